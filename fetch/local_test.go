package fetch

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// tree is the files of a local source by name.
type tree map[string][]byte

func (f tree) blob(b []byte) v1.Hash {
	d := id.BlobOf(b)
	f[blobName(d)] = b
	return hashOf(d)
}

// image adds an image and returns its descriptor.
func (f tree) image(t *testing.T, platform, tag string, layers ...[]byte) v1.Descriptor {
	t.Helper()
	p, _ := ParsePlatform(platform)
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Layers: []v1.Descriptor{}}
	diffs := []id.Blob{}
	for _, l := range layers {
		diffs = append(diffs, id.BlobOf(l))
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: types.OCIUncompressedLayer, Size: int64(len(l)), Digest: f.blob(l)})
	}
	conf := mustJSON(t, map[string]any{"os": p.OS, "architecture": p.Architecture, "rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
		"history": make([]struct{}, len(layers))})
	m.Config = v1.Descriptor{MediaType: types.OCIConfigJSON, Size: int64(len(conf)), Digest: f.blob(conf)}
	raw := mustJSON(t, m)
	d := v1.Descriptor{MediaType: types.OCIManifestSchema1, Size: int64(len(raw)), Digest: f.blob(raw),
		Platform: &v1.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}}
	if tag != "" {
		d.Annotations = map[string]string{refName: tag}
	}
	return d
}

// index writes index.json.
func (f tree) index(t *testing.T, descs ...v1.Descriptor) tree {
	t.Helper()
	f["oci-layout"] = []byte(`{"imageLayoutVersion":"1.0.0"}`)
	f["index.json"] = mustJSON(t, v1.IndexManifest{SchemaVersion: 2, Manifests: descs})
	return f
}

func (f tree) dir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, b := range f {
		writeFile(t, filepath.Join(dir, name), string(b))
	}
	return dir
}

// tarFile writes the tree, and then further headers with what they hold.
func (f tree) tarFile(t *testing.T, more ...*tar.Header) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	put := func(h *tar.Header, data []byte) {
		h.Size, h.Mode = int64(len(data)), 0o644
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		w.Write(data)
	}
	for _, name := range slices.Sorted(maps.Keys(f)) {
		put(&tar.Header{Name: name, Typeflag: tar.TypeReg}, f[name])
	}
	for _, h := range more {
		put(h, nil)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "a.tar")
	writeFile(t, name, b.String())
	return name
}

func resolveText(t *testing.T, s, platform string) (*Image, error) {
	t.Helper()
	p, err := ParsePlatform(platform)
	if err != nil {
		t.Fatal(err)
	}
	return New(options(t)).Resolve(t.Context(), mustParse(t, s), p)
}

// One layout, as a directory and as a tar file.
func TestLayouts(t *testing.T) {
	t.Parallel()
	f := tree{}
	amd := f.image(t, "linux/amd64", "", noise(100), noise(3000))
	arm := f.image(t, "linux/arm64", "", noise(200))
	x := mustJSON(t, v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{amd, arm}})
	multi := v1.Descriptor{MediaType: types.OCIImageIndex, Size: int64(len(x)), Digest: f.blob(x), Annotations: map[string]string{refName: "multi"}}
	single := f.image(t, "linux/amd64", "single", noise(300))
	f.index(t, multi, single)
	for _, source := range []string{"oci:" + f.dir(t), "oci-archive:" + f.tarFile(t)} {
		for _, c := range []struct {
			tag, platform string
			digest        v1.Hash
			layers        [][]byte
		}{
			{":multi", "linux/amd64", amd.Digest, [][]byte{noise(100), noise(3000)}},
			{":multi", "linux/arm64", arm.Digest, [][]byte{noise(200)}},
			{":single", "", single.Digest, [][]byte{noise(300)}},
		} {
			img, err := resolveText(t, source+c.tag, c.platform)
			if err != nil {
				t.Fatalf("%s%s: %v", source, c.tag, err)
			}
			if string(img.ManifestDigest) != c.digest.String() || len(img.Layers) != len(c.layers) {
				t.Errorf("%s %s: got %s", c.tag, c.platform, img.ManifestDigest)
			}
			for i, l := range c.layers {
				wantLayer(t, img, i, l)
				wantLayer(t, img, i, l)
			}
			head, err := New(options(t)).Head(t.Context(), mustParse(t, source+c.tag))
			if err != nil || head != img.Digest {
				t.Errorf("%s: head %s, %v, resolved %s", c.tag, head, err, img.Digest)
			}
		}
		_, err := resolveText(t, source, "")
		wantFault(t, err, fault.Invalid, "holds several images", "multi, single")
		_, err = resolveText(t, source+":other", "")
		wantFault(t, err, fault.NotFound, "tag other not found", "multi, single")
		_, err = resolveText(t, source+":multi", "linux/s390x")
		wantFault(t, err, fault.NotFound, "no matching manifest for linux/s390x in the manifest list entries", "linux/arm64")
		_, err = resolveText(t, source+":single", "linux/arm64")
		wantFault(t, err, fault.NotFound, "does not provide the specified platform", "linux/amd64")
	}
	// Without tags: one image for several platforms is one image.
	g := tree{}
	g.index(t, g.image(t, "linux/amd64", "", noise(1)), g.image(t, "linux/arm64", "", noise(2)))
	if img, err := resolveText(t, "oci:"+g.dir(t), "linux/arm64"); err != nil || img.Platform.Architecture != "arm64" {
		t.Errorf("untagged platforms: %v", err)
	}
}

func TestDamagedLayouts(t *testing.T) {
	t.Parallel()
	layer := noise(5000)
	made := func() (tree, v1.Descriptor) {
		f := tree{}
		d := f.image(t, "linux/amd64", "1", layer)
		return f.index(t, d), d
	}
	layerName := blobName(id.BlobOf(layer))
	for _, c := range []struct {
		name   string
		damage func(f tree, d v1.Descriptor)
		kind   fault.Kind
		text   string
	}{
		{"no index", func(f tree, _ v1.Descriptor) { delete(f, "index.json") }, fault.Invalid, "no index.json"},
		{"empty index", func(f tree, _ v1.Descriptor) { f.index(t) }, fault.NotFound, "holds no image"},
		{"index is a manifest", func(f tree, d v1.Descriptor) { f["index.json"] = f[blobName(id.Blob(d.Digest.String()))] }, fault.Integrity, "not an index"},
		{"no manifest", func(f tree, d v1.Descriptor) { delete(f, blobName(id.Blob(d.Digest.String()))) }, fault.NotFound, "is not in the layout"},
		{"other manifest", func(f tree, d v1.Descriptor) {
			n := blobName(id.Blob(d.Digest.String()))
			f[n] = append(f[n], ' ')
		}, fault.Integrity, "another digest"},
		{"no layer", func(f tree, _ v1.Descriptor) { delete(f, layerName) }, fault.NotFound, "not there"},
		{"short layer", func(f tree, _ v1.Descriptor) { f[layerName] = layer[:4999] }, fault.Integrity, "4999 bytes, the manifest says 5000"},
		{"long layer", func(f tree, _ v1.Descriptor) { f[layerName] = append(layer[:5000:5000], 0) }, fault.Integrity, "5001 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, archive := range []bool{false, true} {
				f, d := made()
				c.damage(f, d)
				var source string
				if archive {
					source = "oci-archive:" + f.tarFile(t)
				} else {
					source = "oci:" + f.dir(t)
				}
				img, err := resolveText(t, source, "")
				if err == nil {
					_, err = readLayer(t.Context(), img, 0)
				}
				wantFault(t, err, c.kind, c.text, "")
			}
		})
	}
}

// savedTree is what docker save writes; the layers' names are given.
func savedTree(t *testing.T, names []string, layers [][]byte, diffs []id.Blob, tags ...string) tree {
	t.Helper()
	conf := mustJSON(t, map[string]any{"os": "linux", "architecture": "amd64", "rootfs": map[string]any{"type": "layers", "diff_ids": diffs}})
	f := tree{id.BlobOf(conf).Hex() + ".json": conf}
	for i, n := range names {
		if layers[i] != nil {
			f[n] = layers[i]
		}
	}
	f["manifest.json"] = mustJSON(t, []savedImage{{Config: id.BlobOf(conf).Hex() + ".json", RepoTags: tags, Layers: names}})
	return f
}

func TestDockerArchive(t *testing.T) {
	t.Parallel()
	a, b := noise(3000), noise(4000)
	var z bytes.Buffer
	zw := gzip.NewWriter(&z)
	zw.Write(b)
	zw.Close()
	zd := id.BlobOf(z.Bytes())
	diffs := []id.Blob{id.BlobOf(a), id.BlobOf(b)}
	for _, c := range []struct {
		name  string
		names []string
		files [][]byte
		more  []*tar.Header
		blobs []id.Blob
	}{
		{"plain", []string{"1/layer.tar", "2/layer.tar"}, [][]byte{a, b}, nil, diffs},
		{"compressed", []string{"1/layer.tar", "2/layer.tar"}, [][]byte{a, z.Bytes()}, nil, []id.Blob{diffs[0], zd}},
		{"docker 25", []string{blobName(diffs[0]), blobName(zd)}, [][]byte{a, z.Bytes()}, nil, []id.Blob{diffs[0], zd}},
		{"with ./", []string{"./1/layer.tar", "./2/layer.tar"}, [][]byte{a, b}, nil, diffs},
		{"symlink", []string{"1/layer.tar", "2/layer.tar"}, [][]byte{a, nil},
			[]*tar.Header{{Name: "3/layer.tar", Typeflag: tar.TypeLink, Linkname: "real"}, {Name: "2/layer.tar", Typeflag: tar.TypeSymlink, Linkname: "../3/layer.tar"}}, diffs},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := savedTree(t, c.names, c.files, diffs, "debian:12", "me/app:v1")
			if c.name == "symlink" {
				f["real"] = b
			}
			file := f.tarFile(t, c.more...)
			for _, tag := range []string{"", ":debian:12", ":docker.io/library/debian:12", ":me/app:v1", ":v1"} {
				img, err := resolveText(t, "docker-archive:"+file+tag, "")
				if err != nil {
					t.Fatalf("%q: %v", tag, err)
				}
				for i, want := range c.blobs {
					l := img.Layers[i]
					if l.Blob != want || string(l.DiffID) != string(diffs[i]) {
						t.Errorf("layer %d: %+v", i, l)
					}
					got, err := readLayer(t.Context(), img, i)
					if err != nil || id.BlobOf(got) != want {
						t.Errorf("layer %d: %v", i, err)
					}
				}
				if id.BlobOf(img.Manifest) != img.Digest || img.ID != id.ImageIDOf(img.Config) {
					t.Error("digests of the made manifest are wrong")
				}
				if head, err := New(options(t)).Head(t.Context(), mustParse(t, "docker-archive:"+file+tag)); err != nil || head != img.Digest {
					t.Errorf("head: %s, %v", head, err)
				}
			}
			_, err := resolveText(t, "docker-archive:"+file+":debian:13", "")
			wantFault(t, err, fault.NotFound, "tag debian:13 not found", "debian:12, me/app:v1")
		})
	}
}

// Archives are foreign bytes: names in them are keys, nothing more.
func TestHostileArchives(t *testing.T) {
	t.Parallel()
	secret := filepath.Join(t.TempDir(), "secret")
	writeFile(t, secret, "secret")
	a := noise(3000)
	d := []id.Blob{id.BlobOf(a)}
	good := func() tree { return savedTree(t, []string{"l"}, [][]byte{a}, d, "x:1") }
	cut := func(n int64) string {
		name := good().tarFile(t)
		if err := os.Truncate(name, n); err != nil {
			t.Fatal(err)
		}
		return name
	}
	raw := func(b []byte) string {
		name := filepath.Join(t.TempDir(), "f")
		writeFile(t, name, string(b))
		return name
	}
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	link := func(typ byte, target string) string {
		f := good()
		delete(f, "l")
		return f.tarFile(t, &tar.Header{Name: "l", Typeflag: typ, Linkname: target})
	}
	wrongName := good()
	for n, b := range wrongName {
		if strings.HasSuffix(n, ".json") && n != "manifest.json" {
			wrongName[n] = append(b, ' ')
		}
	}
	for _, c := range []struct {
		name, file string
		kind       fault.Kind
		text       string
	}{
		{"absolute symlink", link(tar.TypeSymlink, secret), fault.Integrity, "not in the archive"},
		{"symlink up", link(tar.TypeSymlink, "../../../../../.."+secret), fault.Integrity, "not in the archive"},
		{"hard link to the host", link(tar.TypeLink, secret), fault.Integrity, "not in the archive"},
		{"link to itself", link(tar.TypeSymlink, "l"), fault.Integrity, "too many links"},
		{"device", link(tar.TypeChar, ""), fault.Integrity, "not in the archive"},
		{"layer outside", savedTree(t, []string{"../../../../.." + secret}, [][]byte{nil}, d).tarFile(t), fault.Integrity, "not in the archive"},
		{"config of another digest", wrongName.tarFile(t), fault.Integrity, "image config verification failed for digest"},
		{"too few layers", savedTree(t, nil, nil, d).tarFile(t), fault.Integrity, "layers from manifest don't match image configuration"},
		{"too many layers", savedTree(t, make([]string, maxLayers+1), make([][]byte, maxLayers+1), slices.Repeat(d, maxLayers+1)).tarFile(t), fault.Integrity, "4097 layers"},
		{"cut in a layer", cut(1800), fault.Integrity, "truncated"},
		{"no archive", raw(bytes.Repeat([]byte("x"), 2000)), fault.Invalid, "not a tar file"},
		{"gzip", raw([]byte{0x1f, 0x8b, 8, 0, 0, 0}), fault.Invalid, "compressed (gzip)"},
		{"zstd", raw([]byte{0x28, 0xb5, 0x2f, 0xfd}), fault.Invalid, "compressed (zstd)"},
		{"empty", raw(nil), fault.Invalid, "no manifest.json"},
		{"fifo", fifo, fault.Invalid, "not a regular file"},
		{"directory", filepath.Dir(fifo), fault.Invalid, "not a regular file"},
		{"absent", filepath.Join(t.TempDir(), "x"), fault.NotFound, "no such file or directory"},
		{"manifest.json is no list", tree{"manifest.json": []byte("{}")}.tarFile(t), fault.Integrity, "manifest.json"},
		{"no images", tree{"manifest.json": []byte("[]")}.tarFile(t), fault.NotFound, "holds no image"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := resolveText(t, "docker-archive:"+c.file, "")
			wantFault(t, err, c.kind, c.text, "")
		})
	}
}

func TestCompression(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"": "", "\x1f\x8b": "gzip", "\x1f": "", "\x28\xb5\x2f\xfd": "zstd", "\x5e\x2a\x4d\x18": "zstd", "\x6e\x2a\x4d\x18": "",
		"BZh9": "bzip2", "\xfd7zXZ\x00": "xz", "index.json": "",
	} {
		if got := Compression([]byte(in)); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// A name that occurs twice means the last one, as for tar.
func TestDuplicateNames(t *testing.T) {
	t.Parallel()
	a, b := noise(3000), noise(3001)
	f := savedTree(t, []string{"l"}, [][]byte{b}, []id.Blob{id.BlobOf(b)})
	first := tree{"l": a}.tarFile(t)
	raw, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	second, err := os.ReadFile(f.tarFile(t))
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, first, string(raw[:len(raw)-1024])+string(second))
	img, err := resolveText(t, "docker-archive:"+first, "")
	if err != nil {
		t.Fatal(err)
	}
	wantLayer(t, img, 0, b)
}

// A layout's symlinks do not lead out of it either.
func TestLayoutStaysInside(t *testing.T) {
	t.Parallel()
	layer := noise(10)
	f := tree{}
	f.index(t, f.image(t, "linux/amd64", "", layer))
	dir := f.dir(t)
	out := filepath.Join(t.TempDir(), "layer")
	writeFile(t, out, string(layer))
	name := filepath.Join(dir, blobName(id.BlobOf(layer)))
	os.Remove(name)
	if err := os.Symlink(out, name); err != nil {
		t.Fatal(err)
	}
	img, err := resolveText(t, "oci:"+dir, "")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := readLayer(t.Context(), img, 0); err == nil {
		t.Errorf("%d bytes from outside", len(got))
	}
}

// An archive of terabytes costs its headers, not its contents: the file is
// sparse, and takes no space.
func TestHugeArchive(t *testing.T) {
	t.Parallel()
	const size = 1 << 40
	name := filepath.Join(t.TempDir(), "huge.tar")
	out, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	w := tar.NewWriter(out)
	if err := w.WriteHeader(&tar.Header{Name: "l", Typeflag: tar.TypeReg, Size: size, Format: tar.FormatGNU}); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Seek(size, io.SeekCurrent); err != nil {
		t.Fatal(err)
	}
	f := savedTree(t, []string{"l"}, [][]byte{nil}, []id.Blob{id.BlobOf([]byte("whatever"))}, "x:1")
	rest, err := os.ReadFile(f.tarFile(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Write(rest); err != nil {
		t.Skipf("no sparse files of %s here: %v", fmt.Sprint(int64(size)), err)
	}
	img, err := resolveText(t, "docker-archive:"+name, "")
	if err != nil || img.Layers[0].Size != size {
		t.Fatalf("got %+v, %v", img, err)
	}
}

func FuzzArchive(f *testing.F) {
	add := func(h ...*tar.Header) {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range h {
			w.WriteHeader(h)
		}
		w.Flush()
		f.Add(b.Bytes())
	}
	add(&tar.Header{Name: "a", Typeflag: tar.TypeReg})
	add(&tar.Header{Name: "a", Typeflag: tar.TypeSymlink, Linkname: "../b"}, &tar.Header{Name: "b", Typeflag: tar.TypeLink, Linkname: "a"})
	f.Fuzz(func(t *testing.T, raw []byte) {
		a, err := newArchive(io.NewSectionReader(bytes.NewReader(raw), 0, int64(len(raw))))
		if err != nil {
			return
		}
		for n := range a.entries {
			r, size, err := a.open(n)
			if err != nil {
				continue
			}
			if b, err := io.ReadAll(r); err != nil || int64(len(b)) != size {
				t.Fatalf("%q: %d of %d bytes, %v", n, len(b), size, err)
			}
		}
	})
}

// The digests of an archive's compressed layers are computed, which takes
// time: it ends with its context, whoever asks.
func TestDockerArchiveCanceled(t *testing.T) {
	t.Parallel()
	gz := append([]byte{0x1f, 0x8b, 8}, noise(3000)...)
	ref := mustParse(t, "docker-archive:"+savedTree(t, []string{"l"}, [][]byte{gz}, []id.Blob{someDigest}).tarFile(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := New(options(t))
	if _, err := c.Head(ctx, ref); !errors.Is(err, context.Canceled) {
		t.Errorf("Head: %v", err)
	}
	if _, err := c.Resolve(ctx, ref, Platform{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Resolve: %v", err)
	}
}

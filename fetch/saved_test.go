package fetch

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// memory is a Spool.
type memory struct{ bytes.Buffer }

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(m.Bytes()).ReadAt(p, off)
}

func takeNone(*ArchiveFile) (bool, error) { return false, nil }

// readImages reads an archive in one go.
func readImages(raw []byte, platform string) ([]*ArchiveImage, *Archive, error) {
	p, err := ParsePlatform(platform)
	if err != nil {
		return nil, nil, err
	}
	a, err := ReadArchive(bytes.NewReader(raw), &memory{}, takeNone)
	if err != nil {
		return nil, nil, err
	}
	list, err := a.Images(p)
	return list, a, err
}

func (f tree) bytes(t *testing.T, more ...*tar.Header) []byte {
	t.Helper()
	b, err := os.ReadFile(f.tarFile(t, more...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// told is an image in one line: its tags, its name, its parent's.
func told(img *ArchiveImage) string {
	var tags []string
	for _, t := range img.Tags {
		tags = append(tags, t.Familiar())
	}
	short := func(s string) string { return s[:min(len(s), 8)] }
	return fmt.Sprintf("%s %s<%s %d", strings.Join(tags, ","), short(strings.TrimPrefix(img.Name, "sha256:")), short(strings.TrimPrefix(img.Parent, "sha256:")), len(img.Layers))
}

func wantImages(t *testing.T, list []*ArchiveImage, want ...string) {
	t.Helper()
	var got []string
	for _, img := range list {
		got = append(got, told(img))
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// saved adds an image to what docker save writes, over the parent, if that is
// not "", and returns its ID.
func (f tree) saved(t *testing.T, parent, platform string, layers [][]byte, tags ...string) string {
	t.Helper()
	p, err := ParsePlatform(platform)
	if err != nil {
		t.Fatal(err)
	}
	var diffs []id.Blob
	s := savedImage{RepoTags: tags, Parent: parent}
	for _, l := range layers {
		diffs = append(diffs, id.BlobOf(l))
		s.Layers = append(s.Layers, blobName(id.BlobOf(l)))
		f[blobName(id.BlobOf(l))] = l
	}
	conf := mustJSON(t, map[string]any{"os": p.OS, "architecture": p.Architecture, "rootfs": map[string]any{"type": "layers", "diff_ids": diffs}})
	s.Config = blobName(id.BlobOf(conf))
	f[s.Config] = conf
	var all []savedImage
	if raw := f["manifest.json"]; raw != nil {
		if all, err = savedImages(local(f)); err != nil {
			t.Fatal(err)
		}
	}
	f["manifest.json"] = mustJSON(t, append(all, s))
	return string(id.ImageIDOf(conf))
}

// local is a tree as files.
type local tree

func (l local) open(name string) (io.ReadCloser, int64, error) {
	b := l[name]
	return io.NopCloser(bytes.NewReader(b)), int64(len(b)), nil
}

func (l local) Close() error { return nil }

// A child may stand before its parent; an image may stand there twice.
func TestImagesOfDocker(t *testing.T) {
	t.Parallel()
	f := tree{}
	base := f.saved(t, "", "linux/amd64", [][]byte{noise(100)}, "base:1")
	child := f.saved(t, base, "linux/amd64", [][]byte{noise(100), noise(200)}, "me/child:1", "me/child:2")
	grand := f.saved(t, child, "linux/amd64", [][]byte{noise(100), noise(200), noise(300)})
	f.saved(t, base, "linux/amd64", [][]byte{noise(100), noise(200)}, "again:1")
	arm := f.saved(t, "", "linux/arm64", [][]byte{noise(400)}, "arm:1")
	all, err := savedImages(local(f))
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(all)
	f["manifest.json"] = mustJSON(t, all)
	short := func(s string) string { return strings.TrimPrefix(s, "sha256:")[:8] }
	list, a, err := readImages(f.bytes(t), "")
	if err != nil {
		t.Fatal(err)
	}
	wantImages(t, list,
		"arm:1 "+short(arm)+"< 1",
		"base:1 "+short(base)+"< 1",
		"again:1,me/child:1,me/child:2 "+short(child)+"<"+short(base)+" 2",
		" "+short(grand)+"<"+short(child)+" 3")
	for _, img := range list {
		for i, l := range img.Layers {
			r, err := a.Open(img.Files[i])
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(r)
			if err != nil || string(l.DiffID) != string(id.BlobOf(b)) || l.Blob != "" {
				t.Errorf("%s: layer %d: %v %v", img.Name, i, l, err)
			}
		}
	}
	list, _, err = readImages(f.bytes(t), "linux/arm64")
	if err != nil {
		t.Fatal(err)
	}
	wantImages(t, list, "arm:1 "+short(arm)+"< 1")
	_, _, err = readImages(f.bytes(t), "linux/s390x")
	wantFault(t, err, fault.NotFound, "no image for the specified platform (linux/s390x)", "linux/arm64, linux/amd64")
}

func TestImagesOfLayout(t *testing.T) {
	t.Parallel()
	f := tree{}
	amd := f.image(t, "linux/amd64", "", noise(100), noise(3000))
	arm := f.image(t, "linux/arm64", "", noise(200))
	x := mustJSON(t, v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{amd, arm}})
	multi := v1.Descriptor{MediaType: types.OCIImageIndex, Size: int64(len(x)), Digest: f.blob(x), Annotations: map[string]string{fullName: "docker.io/library/multi:1", refName: "1"}}
	only := mustJSON(t, v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{arm}})
	lone := v1.Descriptor{MediaType: types.OCIImageIndex, Size: int64(len(only)), Digest: f.blob(only), Annotations: map[string]string{refName: "example.org/lone:2"}}
	tagged := f.image(t, "linux/amd64", "latest", noise(300))
	other := f.image(t, "linux/amd64", "other", noise(301))
	signature := f.image(t, "linux/amd64", "", noise(302))
	signature.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
	f.index(t, multi, lone, tagged, other, signature)
	name := func(d v1.Descriptor) string {
		m, err := v1.ParseManifest(bytes.NewReader(f[blobName(id.Blob(d.Digest.String()))]))
		if err != nil {
			t.Fatal(err)
		}
		return m.Config.Digest.Hex[:8]
	}
	list, _, err := readImages(f.bytes(t), "")
	if err != nil {
		t.Fatal(err)
	}
	// A tag alone is no name: there is nothing that it is a tag of.
	wantImages(t, list, "multi:1 "+name(amd)+"< 2", "example.org/lone:2 "+name(arm)+"< 1", " "+name(tagged)+"< 1", " "+name(other)+"< 1")
	if got := list[0]; got.Digest != id.BlobOf(x) || string(got.ManifestDigest) != amd.Digest.String() || id.BlobOf(got.Manifest) != got.ManifestDigest {
		t.Errorf("digests %s %s", got.Digest, got.ManifestDigest)
	}
	// Docker 29 lists in manifest.json what is for its own machine.
	f.saved(t, "", "linux/amd64", [][]byte{noise(100), noise(3000)}, "multi:1")
	f.index(t, multi)
	list, _, err = readImages(f.bytes(t), "linux/arm64")
	if err != nil {
		t.Fatal(err)
	}
	wantImages(t, list, "multi:1 "+name(arm)+"< 1")
	// One image for several platforms, without a name.
	g := tree{}
	g.index(t, g.image(t, "linux/amd64", "", noise(1)), g.image(t, "linux/arm64", "", noise(2)))
	if list, _, err = readImages(g.bytes(t), "linux/arm64"); err != nil || len(list) != 1 || list[0].Platform.Architecture != "arm64" {
		t.Errorf("%v %v", list, err)
	}
}

// version1 is an archive as docker 1.9 wrote it: names of images are made of
// one digit, 64 times.
func version1(t *testing.T, repositories string, images ...string) tree {
	t.Helper()
	f := tree{}
	for _, s := range images {
		name, parent, _ := strings.Cut(s, "<")
		c := map[string]any{
			"id": strings.Repeat(name, 64), "created": "2014-04-17T00:00:00Z", "os": "linux", "architecture": "amd64", "Size": 7,
			"container_config": map[string]any{"Cmd": []string{"/bin/sh", "-c", "make " + name}}, "config": map[string]any{"Env": []string{"A=" + name}},
		}
		if parent != "" {
			c["parent"] = strings.Repeat(parent, 64)
		}
		dir := strings.Repeat(name, 64) + "/"
		f[dir+"VERSION"], f[dir+"json"], f[dir+"layer.tar"] = []byte("1.0"), mustJSON(t, c), noise(100+int(name[0]))
	}
	if repositories != "" {
		f["repositories"] = []byte(repositories)
	}
	return f
}

func TestImagesOfVersion1(t *testing.T) {
	t.Parallel()
	long := func(s string) string { return strings.Repeat(s, 64) }
	f := version1(t, `{"ubuntu":{"14.04":"`+long("1")+`","old":"`+long("2")+`"},"me/app":{"v1":"`+long("1")+`"}}`, "1<2", "2<3", "3", "4<3")
	list, a, err := readImages(f.bytes(t), "")
	if err != nil {
		t.Fatal(err)
	}
	wantImages(t, list,
		" 33333333< 1",
		"ubuntu:old 22222222<33333333 2",
		"ubuntu:14.04,me/app:v1 11111111<22222222 3",
		" 44444444<33333333 2")
	top := list[2]
	var diffs []id.DiffID
	for i := range top.Layers {
		r, err := a.Open(top.Files[i])
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(r)
		diffs = append(diffs, id.DiffID(id.BlobOf(b)))
	}
	conf, err := top.ConfigOf(diffs)
	if err != nil {
		t.Fatal(err)
	}
	// What docker 20.10 made of this archive, field for field.
	want := `{"architecture":"amd64","config":{"Env":["A=1"]},"container_config":{"Cmd":["/bin/sh","-c","make 1"]},"created":"2014-04-17T00:00:00Z","history":[` +
		`{"created":"2014-04-17T00:00:00Z","created_by":"/bin/sh -c make 3"},{"created":"2014-04-17T00:00:00Z","created_by":"/bin/sh -c make 2"},` +
		`{"created":"2014-04-17T00:00:00Z","created_by":"/bin/sh -c make 1"}],"os":"linux","rootfs":{"type":"layers","diff_ids":["` +
		string(diffs[0]) + `","` + string(diffs[1]) + `","` + string(diffs[2]) + `"]}}`
	if string(conf) != want || !top.Legacy() {
		t.Errorf("got  %s\nwant %s", conf, want)
	}
	if _, err := top.ConfigOf(diffs[:2]); err == nil {
		t.Error("a config for two layers of three")
	}
}

// An archive lies about itself in every way that it can.
func TestHostileImages(t *testing.T) {
	t.Parallel()
	long := func(s string) string { return strings.Repeat(s, 64) }
	one := func(edit func(f tree)) tree {
		f := tree{}
		f.saved(t, "", "linux/amd64", [][]byte{noise(100)}, "x:1")
		if edit != nil {
			edit(f)
		}
		return f
	}
	list := func(s ...savedImage) []byte { return mustJSON(t, s) }
	self := func(f tree) { // an image that is its own grandparent
		a := f.saved(t, "", "linux/amd64", [][]byte{noise(1)})
		b := f.saved(t, a, "linux/amd64", [][]byte{noise(2)})
		all, err := savedImages(local(f))
		if err != nil {
			t.Fatal(err)
		}
		all[1].Parent = b
		f["manifest.json"] = mustJSON(t, all)
	}
	many := func(n int, tags ...string) func(f tree) {
		return func(f tree) {
			all, err := savedImages(local(f))
			if err != nil {
				t.Fatal(err)
			}
			all[0].RepoTags = tags
			f["manifest.json"] = mustJSON(t, slices.Repeat(all, n))
		}
	}
	layout := func(edit func(f tree, d *v1.Descriptor)) tree {
		f := tree{}
		d := f.image(t, "linux/amd64", "example.org/x:1", noise(50))
		edit(f, &d)
		return f.index(t, d)
	}
	nested := func(depth int) tree {
		f := tree{}
		d := f.image(t, "linux/amd64", "", noise(1))
		for range depth {
			b := mustJSON(t, v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{d}})
			d = v1.Descriptor{MediaType: types.OCIImageIndex, Size: int64(len(b)), Digest: f.blob(b)}
		}
		return f.index(t, d)
	}
	for _, c := range []struct {
		name string
		f    tree
		more []*tar.Header
		kind fault.Kind
		text string
	}{
		{"nothing", tree{}, nil, fault.Invalid, "not an archive of images"},
		{"a file system", tree{"etc/passwd": []byte("root")}, nil, fault.Invalid, "not an archive of images"},
		{"an empty list", tree{"manifest.json": []byte("[]")}, nil, fault.NotFound, "the archive holds no image"},
		{"no list", tree{"manifest.json": []byte("{}")}, nil, fault.Integrity, "manifest.json: not a list of images: object"},
		{"a list that is a link to the host", tree{}, []*tar.Header{{Name: "manifest.json", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}}, fault.Invalid, "not an archive of images"},
		{"a list that is a link to itself", tree{}, []*tar.Header{{Name: "manifest.json", Typeflag: tar.TypeSymlink, Linkname: "manifest.json"}}, fault.Integrity, "too many links"},
		{"config outside", one(func(f tree) {
			f["manifest.json"] = list(savedImage{Config: "../../../../etc/passwd"})
		}), nil, fault.Integrity, `image config "../../../../etc/passwd" is not in the archive`},
		{"layer outside", one(func(f tree) {
			var all []savedImage
			all, _ = savedImages(local(f))
			all[0].Layers[0] = "/etc/passwd"
			f["manifest.json"] = mustJSON(t, all)
		}), nil, fault.Integrity, `layer "/etc/passwd" is not in the archive`},
		{"layer is a device", one(func(f tree) { maps.DeleteFunc(f, func(_ string, b []byte) bool { return len(b) == 100 }) }),
			[]*tar.Header{{Name: blobName(id.BlobOf(noise(100))), Typeflag: tar.TypeChar}}, fault.Integrity, "is not in the archive"},
		{"name of a host's file", one(many(1, "docker-archive:/etc/passwd")), nil, fault.Integrity, "invalid tag"},
		{"name without a tag", one(many(1, "ubuntu")), nil, fault.Integrity, `invalid tag "ubuntu"`},
		{"name by digest", one(many(1, "ubuntu@"+string(someDigest))), nil, fault.Integrity, "invalid tag"},
		{"name that is none", one(many(1, "a b:c\n")), nil, fault.Integrity, "invalid tag"},
		{"its own ancestor", one(self), nil, fault.Integrity, "is its own ancestor"},
		{"layers of configs elsewhere", one(func(f tree) {
			var all []savedImage
			all, _ = savedImages(local(f))
			all[0].Layers = append(all[0].Layers, all[0].Layers[0])
			f["manifest.json"] = mustJSON(t, all)
		}), nil, fault.Integrity, "layers from manifest don't match image configuration"},
		{"config that is no JSON", one(func(f tree) { f["c"] = []byte("x"); f["manifest.json"] = list(savedImage{Config: "c"}) }), nil, fault.Integrity, "image config"},
		{"config of another digest", one(func(f tree) {
			var all []savedImage
			all, _ = savedImages(local(f))
			f[all[0].Config] = append(f[all[0].Config], ' ')
		}), nil, fault.Integrity, "image config verification failed for digest"},

		{"layout without the manifest", layout(func(f tree, d *v1.Descriptor) { delete(f, blobName(id.Blob(d.Digest.String()))) }), nil, fault.NotFound, "is not in the layout"},
		{"layout with another manifest", layout(func(f tree, d *v1.Descriptor) {
			n := blobName(id.Blob(d.Digest.String()))
			f[n] = append(f[n], ' ')
		}), nil, fault.Integrity, "another digest"},
		{"layout without a layer", layout(func(f tree, _ *v1.Descriptor) { delete(f, blobName(id.BlobOf(noise(50)))) }), nil, fault.Integrity, "is not in the archive"},
		{"layout with a long layer", layout(func(f tree, _ *v1.Descriptor) { f[blobName(id.BlobOf(noise(50)))] = noise(51) }), nil, fault.Integrity, "51 bytes, the manifest says 50"},
		{"layout with a bad name", layout(func(_ tree, d *v1.Descriptor) { d.Annotations = map[string]string{fullName: "docker-archive:/x"} }), nil, fault.Integrity, "invalid tag"},
		{"layout of signatures", layout(func(_ tree, d *v1.Descriptor) {
			d.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
		}), nil, fault.NotFound, "the archive holds no image"},
		{"deep layout", nested(maxDepth + 2), nil, fault.Integrity, "nested more than"},

		{"version 1 without a parent", version1(t, "", "1<2"), nil, fault.Integrity, "parent " + long("2") + " is not in the archive"},
		{"version 1 in a circle", version1(t, "", "1<2", "2<1"), nil, fault.Integrity, "too many parents"},
		{"version 1 with a parent outside", version1(t, "", "1<../"), nil, fault.Integrity, "is no ID"},
		{"version 1 that names nothing", version1(t, `{"a":{"b":"`+long("2")+`"}}`, "1"), nil, fault.Integrity, "invalid target ID"},
		{"version 1 with a bad name", version1(t, `{"a b":{"b":"`+long("1")+`"}}`, "1"), nil, fault.Integrity, "invalid tag"},
		{"version 1 with bad names", version1(t, `[]`, "1"), nil, fault.Integrity, "repositories"},
		{"version 1 without a layer", func() tree { f := version1(t, "", "1"); delete(f, long("1")+"/layer.tar"); return f }(), nil, fault.Integrity, "is not in the archive"},
		{"version 1 with another's config", func() tree {
			f := version1(t, "", "1", "2")
			f[long("1")+"/json"] = f[long("2")+"/json"]
			return f
		}(), nil, fault.Integrity, "calls itself"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := readImages(c.f.bytes(t, c.more...), "")
			wantFault(t, err, c.kind, c.text, "")
		})
	}
	// One config many times costs nothing.
	if got, _, err := readImages(one(many(1000, "x:1")).bytes(t), ""); err != nil || len(got) != 1 {
		t.Errorf("%d images: %v", len(got), err)
	}
}

// A small archive must not become large in memory.
func TestArchiveLimits(t *testing.T) {
	t.Parallel()
	f := tree{"l": noise(10)}
	diffs := slices.Repeat([]id.Blob{id.BlobOf(noise(10))}, maxLayers)
	var all []savedImage
	for i := range maxStacked/maxLayers + 1 {
		name := fmt.Sprint("config", i)
		f[name] = mustJSON(t, map[string]any{"created": i, "rootfs": map[string]any{"diff_ids": diffs}})
		all = append(all, savedImage{Config: name, Layers: slices.Repeat([]string{"l"}, maxLayers)})
	}
	f["manifest.json"] = mustJSON(t, all)
	_, _, err := readImages(f.bytes(t), "")
	wantFault(t, err, fault.Integrity, fmt.Sprintf("images of more than %d layers", maxStacked), "")

	// Nor cost time: a config of 8 MiB, a million times.
	c := append([]byte(`{"rootfs":{"type":"layers"},"x":"`), bytes.Repeat([]byte("x"), maxConfig-64)...)
	f = tree{"c": append(c, `"}`...), "manifest.json": mustJSON(t, slices.Repeat([]savedImage{{Config: "c"}}, 100000))}
	_, _, err = readImages(f.bytes(t), "")
	wantFault(t, err, fault.Integrity, fmt.Sprintf("more than %d bytes", maxTold), "")

	// Parents come before their children, in however long a line.
	f, all = tree{}, nil
	for i := range 5000 {
		c := fmt.Appendf(nil, `{"created":"%d","rootfs":{"type":"layers"}}`, i)
		s := savedImage{Config: fmt.Sprint("config", i)}
		if f[s.Config] = c; i > 0 {
			s.Parent = string(id.ImageIDOf(f[fmt.Sprint("config", i-1)]))
		}
		all = append(all, s)
	}
	slices.Reverse(all)
	f["manifest.json"] = mustJSON(t, all)
	list, _, err := readImages(f.bytes(t), "")
	if err != nil || len(list) != len(all) || list[0].Parent != "" || !slices.IsSortedFunc(list, func(a, b *ArchiveImage) int {
		if a.Parent == b.Name {
			return 1
		}
		return -1
	}) {
		t.Errorf("%d images, %v", len(list), err)
	}
	all[len(all)-1].Parent = string(id.ImageIDOf(f["config7"]))
	f["manifest.json"] = mustJSON(t, all)
	_, _, err = readImages(f.bytes(t), "")
	wantFault(t, err, fault.Integrity, "is its own ancestor", "")

	// Each name costs a record.
	all = []savedImage{{Config: "config0"}}
	for i := range maxTagged + 1 {
		all[0].RepoTags = append(all[0].RepoTags, fmt.Sprint("a:", i))
	}
	f["manifest.json"] = mustJSON(t, all)
	_, _, err = readImages(f.bytes(t), "")
	wantFault(t, err, fault.Integrity, fmt.Sprintf("images of more than %d names", maxTagged), "")

	var b bytes.Buffer
	w := tar.NewWriter(&b)
	long := strings.Repeat("n", 1<<19)
	for i := 0; i <= maxNames>>19; i++ {
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprint(long, i), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	_, _, err = readImages(b.Bytes(), "")
	wantFault(t, err, fault.Integrity, "names of more than", "")
	name := filepath.Join(t.TempDir(), "a.tar")
	writeFile(t, name, b.String())
	_, err = resolveText(t, "docker-archive:"+name, "")
	wantFault(t, err, fault.Integrity, "names of more than", "")
}

// What is taken is not spooled, and comes whole, with the digest its name has.
func TestTakenFiles(t *testing.T) {
	t.Parallel()
	f := tree{}
	a, b := noise(70000), noise(70001)
	f.saved(t, "", "linux/amd64", [][]byte{a, b}, "x:1")
	f["link"] = nil
	raw := f.bytes(t, &tar.Header{Name: "link", Typeflag: tar.TypeSymlink, Linkname: blobName(id.BlobOf(a))})
	spool := &memory{}
	var taken []string
	archive, err := ReadArchive(bytes.NewReader(raw), spool, func(x *ArchiveFile) (bool, error) {
		if x.Size != int64(len(a)) {
			return false, nil
		}
		got, err := io.ReadAll(x.Body)
		if id.BlobOf(got) != id.BlobOf(a) || x.Hex != id.BlobOf(a).Hex() {
			t.Errorf("%s: %d bytes", x.Name, len(got))
		}
		taken = append(taken, x.Name)
		return true, err
	})
	if err != nil || len(taken) != 1 || spool.Len() < len(b) || spool.Len() > len(b)+len(a)/2 {
		t.Fatalf("taken %v, spool of %d bytes, %v", taken, spool.Len(), err)
	}
	list, err := archive.Images(Platform{})
	if err != nil || len(list) != 1 || list[0].Files[0] != taken[0] {
		t.Fatalf("%v %v", list, err)
	}
	if _, err := archive.Open(taken[0]); err == nil {
		t.Error("a file that was taken can be opened")
	}
	if _, err := archive.Open("nosuch"); fault.KindOf(err) != fault.NotFound {
		t.Error(err)
	}
	// A source that fails says why; one that ends early is cut short.
	broken := errors.New("unplugged")
	_, err = ReadArchive(io.MultiReader(bytes.NewReader(raw[:50000]), failing{broken}), &memory{}, takeNone)
	if !errors.Is(err, broken) {
		t.Error(err)
	}
	_, err = ReadArchive(bytes.NewReader(raw[:100]), &memory{}, takeNone)
	wantFault(t, err, fault.Invalid, "not a tar file", "")
	for _, n := range []int{513, 50000} {
		_, err = ReadArchive(bytes.NewReader(raw[:n]), &memory{}, takeNone)
		wantFault(t, err, fault.Integrity, "cut short", "")
	}
	_, err = ReadArchive(bytes.NewReader(raw), &memory{}, func(*ArchiveFile) (bool, error) { return false, broken })
	if !errors.Is(err, broken) {
		t.Error(err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// Whatever an archive says, what comes out of it is bounded, and its layers are
// in it.
func FuzzImages(f *testing.F) {
	t := &testing.T{}
	add := func(x tree) {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, name := range slices.Sorted(maps.Keys(x)) {
			w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: int64(len(x[name]))})
			w.Write(x[name])
		}
		w.Close()
		f.Add(b.Bytes())
	}
	docker := tree{}
	docker.saved(t, docker.saved(t, "", "linux/amd64", [][]byte{noise(10)}, "a:1"), "linux/amd64", [][]byte{noise(10), noise(11)}, "b:1")
	add(docker)
	layout := tree{}
	add(layout.index(t, layout.image(t, "linux/amd64", "example.org/a:1", noise(12))))
	add(version1(t, `{"a":{"b":"`+strings.Repeat("1", 64)+`"}}`, "1<2", "2"))
	var z bytes.Buffer
	gz := gzip.NewWriter(&z)
	gz.Write([]byte("x"))
	gz.Close()
	f.Add(z.Bytes())
	f.Fuzz(func(t *testing.T, raw []byte) {
		list, a, err := readImages(raw, "")
		if err != nil {
			return
		}
		for _, img := range list {
			if len(img.Files) != len(img.Layers) || img.Legacy() == (img.ID != "") {
				t.Fatalf("%+v", img)
			}
			for _, n := range img.Files {
				r, err := a.Open(n)
				if err != nil {
					t.Fatal(err)
				}
				if n, err := io.Copy(io.Discard, r); err != nil || n != r.Size() {
					t.Fatal(n, err)
				}
			}
			for _, tag := range img.Tags {
				if again, err := ParseReference(tag.String()); err != nil || again != tag {
					t.Fatalf("%q: %v", tag, err)
				}
			}
		}
	})
}

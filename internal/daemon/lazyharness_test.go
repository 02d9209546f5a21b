package daemon

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"path"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/klauspost/compress/gzip"

	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
	"github.com/imgfs/imgfs/internal/layertar"
	"github.com/imgfs/imgfs/internal/span"
	"github.com/imgfs/imgfs/internal/toc"
)

// layer is a layer as a registry has it.
type testLayer struct {
	mediaType string
	blob      []byte
	diff      id.DiffID
	notes     map[string]string // of its descriptor
	stream    []byte            // the tar in it
}

const tarGzip = layerType + "+gzip"

// content is the regular files of a test's layer, by name.
type content map[string]string

// bigTree has files of which the bytes are hard to compress: a few large ones
// and many small.
func bigTree(seed uint64) content {
	rnd := rand.New(rand.NewPCG(seed, 1))
	random := func(n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rnd.Uint32()) & 0x3f
		}
		return string(b)
	}
	files := content{"bin/big": random(5 << 20), "lib/middle": random(700 << 10), "etc/empty": ""}
	for i := range 40 {
		files[fmt.Sprintf("share/%03d", i)] = random(100 + rnd.IntN(5000))
	}
	for i := range 4 {
		files[fmt.Sprintf("bin/%d", i)] = random(3 << 20)
	}
	return files
}

// tarOf writes files as a tar, in the order of their names, each directory
// before its first.
func tarOf(t testing.TB, files content) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	made := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if dir := path.Dir(name) + "/"; !made[dir] {
			made[dir] = true
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}); err != nil {
				t.Fatal(err)
			}
		}
		err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(files[name]))})
		if err == nil {
			_, err = io.WriteString(w, files[name])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// plain returns a tar as a layer that is not compressed.
func plain(stream []byte) testLayer {
	return testLayer{mediaType: layerType, blob: stream, stream: stream, diff: id.DiffIDFrom(sha256.Sum256(stream))}
}

// gzipped returns a tar as a layer without any index.
func gzipped(t testing.TB, stream []byte) testLayer {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(stream); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l := plain(stream)
	l.mediaType, l.blob = tarGzip, out.Bytes()
	return l
}

// estargz returns a tar as an eStargz layer that wants prefetch fetched first.
func estargz(t testing.TB, stream []byte, prefetch ...string) testLayer {
	t.Helper()
	var out bytes.Buffer
	w, err := toc.WriteEstargz(t.Context(), &out, io.NewSectionReader(bytes.NewReader(stream), 0, int64(len(stream))), prefetch)
	if err != nil {
		t.Fatal(err)
	}
	return testLayer{mediaType: w.MediaType, blob: out.Bytes(), diff: w.DiffID, notes: w.Annotations}
}

// chunked returns a tar as a zstd:chunked layer.
func chunked(t testing.TB, stream []byte) testLayer {
	t.Helper()
	var out bytes.Buffer
	w, err := toc.WriteZstdChunked(t.Context(), &out, bytes.NewReader(stream))
	if err != nil {
		t.Fatal(err)
	}
	return testLayer{mediaType: w.MediaType, blob: out.Bytes(), diff: w.DiffID, notes: w.Annotations}
}

// pushed is an image in a test's registry.
type pushed struct {
	ref      string
	repo     string
	manifest []byte
	digest   id.Blob
	layers   []testLayer
}

// pushImage puts an image into a registry, which then forgets what it saw.
func pushImage(t testing.TB, reg *imgtest.Registry, name, tag string, layers ...testLayer) *pushed {
	t.Helper()
	descs, diffs := []descriptor{}, []id.DiffID{}
	for _, l := range layers {
		descs = append(descs, descriptor{MediaType: l.mediaType, Digest: reg.PutBlob(t, l.blob), Size: int64(len(l.blob)), Annotations: l.notes})
		diffs = append(diffs, l.diff)
	}
	config := marshal(t, map[string]any{
		"os": "linux", "architecture": runtime.GOARCH, "config": map[string]any{"Labels": map[string]string{"name": name + tag}},
		"rootfs": rootFS{"layers", diffs},
	})
	manifest := marshal(t, map[string]any{
		"schemaVersion": 2, "mediaType": manifestType, "layers": descs,
		"config": descriptor{MediaType: configType, Digest: reg.PutBlob(t, config), Size: int64(len(config))},
	})
	p := &pushed{ref: reg.Host + "/" + name + ":" + tag, repo: name, manifest: manifest, layers: layers}
	p.digest = reg.PutManifest(t, name, tag, manifestType, manifest)
	reg.Forget()
	return p
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// ownIndex returns our index of a layer.
func ownIndex(t testing.TB, l testLayer) []byte { return indexOf(t, l, l) }

// indexOf returns an index with the files of one layer and the spans of another.
func indexOf(t testing.TB, l, spans testLayer) []byte {
	t.Helper()
	x, sk := layertar.NewIndexer(layertar.Limits{}), toc.NewSkeleton()
	x.Record(sk.Record)
	if _, err := x.Write(l.stream); err != nil {
		t.Fatal(err)
	}
	r := span.NewReader(bytes.NewReader(spans.blob), span.Options{})
	if _, err := r.WriteTo(io.Discard); err != nil {
		t.Fatal(err)
	}
	sum, err := x.Finish(io.Discard, "")
	if err != nil {
		t.Fatal(err)
	}
	table, err := r.Table(int64(len(spans.blob)))
	if err != nil {
		t.Fatal(err)
	}
	b, err := sk.Finish(sum.StreamSize)
	if err != nil {
		t.Fatal(err)
	}
	return toc.EncodeLayer(b, table)
}

// pushIndex puts our index of an image beside it.
func pushIndex(t testing.TB, reg *imgtest.Registry, p *pushed, trace []toc.Touch) {
	t.Helper()
	pushIndexes(t, reg, p, trace, func(l testLayer) []byte { return ownIndex(t, l) })
}

// pushIndexes is pushIndex with what index returns of each layer.
func pushIndexes(t testing.TB, reg *imgtest.Registry, p *pushed, trace []toc.Touch, index func(testLayer) []byte) {
	t.Helper()
	a := toc.Artifact{Kind: toc.Own, Type: toc.OwnArtifact, Subject: toc.Subject{MediaType: manifestType, Digest: p.digest, Size: int64(len(p.manifest))}}
	for _, l := range p.layers {
		b := index(l)
		a.Layers = append(a.Layers, toc.Part{Digest: reg.PutBlob(t, b), Size: int64(len(b)), Layer: id.BlobOf(l.blob), DataSize: int64(len(l.stream))})
	}
	if trace != nil {
		b := toc.EncodeTrace(trace)
		a.Trace = &toc.Part{Digest: reg.PutBlob(t, b), Size: int64(len(b))}
	}
	reg.PutBlob(t, []byte(toc.EmptyConfig))
	b, err := a.Encode()
	if err != nil {
		t.Fatal(err)
	}
	reg.PutManifest(t, p.repo, string(id.BlobOf(b)), manifestType, b)
	reg.Forget()
}

// readFile reads a file of a mount that this process may serve; see openFile.
func readFile(path string) (string, error) {
	fd, err := openFile(path)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	var all []byte
	b := make([]byte, 1<<20)
	for {
		n, err := unix.Read(fd, b)
		if err != nil || n == 0 {
			return string(all), err
		}
		all = append(all, b[:n]...)
	}
}

// wantTree checks that below dir are files, with their content.
func wantTree(t testing.TB, dir string, files content) {
	t.Helper()
	for name, want := range files {
		if got, err := readFile(dir + "/" + name); err != nil || got != want {
			t.Errorf("%s: %d bytes, %v; want %d", name, len(got), err, len(want))
		}
	}
}

// asked checks what a registry was asked since it was asked last: so many
// requests at most, and ranges of so many bytes in all.
func asked(t testing.TB, reg *imgtest.Registry, what string, requests int, size int64) {
	t.Helper()
	all := reg.Requests()
	reg.Forget()
	var b strings.Builder
	var sum int64
	for _, q := range all {
		var from, to int64
		if n, _ := fmt.Sscanf(q.Header.Get("Range"), "bytes=%d-%d", &from, &to); n == 2 {
			sum += to - from + 1
		}
		fmt.Fprintf(&b, "\n%s %s %s", q.Method, q.URL.Path, q.Header.Get("Range"))
	}
	if len(all) > requests || sum > size {
		t.Errorf("%s: %d requests, ranges of %d bytes; want at most %d and %d%s", what, len(all), sum, requests, size, b.String())
	}
}

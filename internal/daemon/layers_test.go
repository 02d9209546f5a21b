package daemon

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// layerTar returns the tar of a text, and its diffID.
func layerTar(t testing.TB, text string) ([]byte, id.DiffID) {
	t.Helper()
	b, err := imgtest.Tar(text)
	if err != nil {
		t.Fatal(err)
	}
	return b, id.DiffIDFrom(sha256.Sum256(b))
}

// configOf returns a config with these layers, in an order and with a field of
// its own that no encoder would write.
func configOf(diffs ...id.DiffID) []byte {
	var list []string
	for _, d := range diffs {
		list = append(list, fmt.Sprintf("%q", d))
	}
	return fmt.Appendf(nil, "{\"x-mine\" : 1,\n \"rootfs\":{\"diff_ids\":[%s],\"type\":\"layers\"}, \"os\":\"linux\",\"architecture\":\"arm64\"}\n", strings.Join(list, " , "))
}

func (r *running) importLayer(t testing.TB, req engineapi.LayerImport, stream []byte) engineapi.LayerInspect {
	t.Helper()
	l, err := r.client.ImportLayer(t.Context(), req, bytes.NewReader(stream), nil)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (r *running) exportLayer(t testing.TB, name string) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := r.client.ExportLayer(t.Context(), name, &out); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return out.Bytes()
}

func refuses(t testing.TB, what string, err error, kind fault.Kind, text string) {
	t.Helper()
	if err == nil || fault.KindOf(err) != kind || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: %v (%v), want %q (%v)", what, err, fault.KindOf(err), text, kind)
	}
}

// TestLayerImport imports layers alone, on each other, and as images, whose
// configs are kept byte for byte.
func TestLayerImport(t *testing.T) {
	t.Parallel()
	d := runDaemon(t, Options{Foreground: true})
	ctx := t.Context()
	one, oneDiff := layerTar(t, "file a one")
	two, twoDiff := layerTar(t, "file b two")

	alone := d.importLayer(t, engineapi.LayerImport{}, one)
	if alone.Chain != id.Stack(id.Keys([]id.DiffID{oneDiff})) || alone.DiffID != oneDiff || alone.Image != "" || !alone.Sealed {
		t.Errorf("alone: %+v", alone)
	}
	top := d.importLayer(t, engineapi.LayerImport{Parent: string(alone.Chain)}, two)
	if top.Chain != id.Stack(id.Keys([]id.DiffID{oneDiff, twoDiff})) || !slices.Contains(top.Chains, top.Chain) {
		t.Errorf("on another: %+v", top)
	}
	config := configOf(oneDiff, twoDiff)
	img := d.importLayer(t, engineapi.LayerImport{Parent: string(alone.Chain), Config: config, Reference: "mine:1"}, two)
	if img.Image != id.ImageIDOf(config) {
		t.Fatalf("an image: %+v", img)
	}
	i, err := d.client.Inspect(ctx, "mine:1", engineapi.InspectOptions{})
	if err != nil || i.ID != img.Image || i.Architecture != "arm64" || !slices.Equal(i.RootFS.Layers, []id.DiffID{oneDiff, twoDiff}) {
		t.Errorf("%+v, %v", i, err)
	}
	// An image can be a parent as well.
	three, threeDiff := layerTar(t, "file c three")
	child := d.importLayer(t, engineapi.LayerImport{Parent: "mine:1", Config: configOf(oneDiff, twoDiff, threeDiff)}, three)
	if child.Image == "" {
		t.Errorf("on an image: %+v", child)
	}

	// The diffID, the chain, and the start of one of them name it.
	for _, name := range []string{string(twoDiff), twoDiff.Hex(), twoDiff.Short(), string(top.Chain), top.Chain.Hex()[:20]} {
		if got := d.exportLayer(t, name); !bytes.Equal(got, two) {
			t.Errorf("%s: %d bytes, want %d", name, len(got), len(two))
		}
	}

	refuses(t, "of an image", d.client.RemoveLayer(ctx, string(threeDiff)), fault.Conflict, "was not imported alone")
	for _, name := range []string{string(top.Chain), string(oneDiff)} {
		if err := d.client.RemoveLayer(ctx, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	refuses(t, "twice", d.client.RemoveLayer(ctx, string(oneDiff)), fault.Conflict, "was not imported alone")
	if _, err := d.client.Layer(ctx, string(twoDiff)); err != nil {
		t.Errorf("a layer that an image needs: %v", err)
	}
	for _, i := range []id.ImageID{img.Image, child.Image} {
		if _, err := d.client.Remove(ctx, string(i), engineapi.RemoveOptions{Force: true}); err != nil {
			t.Error(err)
		}
	}
	_, err = d.client.Layer(ctx, string(twoDiff))
	refuses(t, "one that nobody needs", err, fault.NotFound, "No such layer: "+string(twoDiff))
	refuses(t, "an absent one", d.client.RemoveLayer(ctx, "abcdef"), fault.NotFound, "No such layer: abcdef")
}

// TestLayerImportKept has an imported layer stay over a restart and a
// collection.
func TestLayerImportKept(t *testing.T) {
	t.Parallel()
	d := runDaemon(t, Options{Foreground: true})
	stream, diff := layerTar(t, "file a one")
	l := d.importLayer(t, engineapi.LayerImport{}, stream)
	d.end(t)
	d = runDaemon(t, Options{Paths: d.Paths, Foreground: true})
	if _, err := d.client.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := d.exportLayer(t, string(diff)); !bytes.Equal(got, stream) {
		t.Errorf("%d bytes", len(got))
	}
	if err := d.client.RemoveLayer(t.Context(), string(l.Chain)); err != nil {
		t.Fatal(err)
	}
	if u, err := d.client.DiskUsage(t.Context()); err != nil || len(u.Layers) > 0 {
		t.Errorf("left: %+v, %v", u.Layers, err)
	}
}

// TestLayerImportRefuses has nothing left of what is wrong.
func TestLayerImportRefuses(t *testing.T) {
	t.Parallel()
	d := runDaemon(t, Options{Foreground: true})
	stream, diff := layerTar(t, "file a one")
	_, other := layerTar(t, "file b two")
	absent := "sha256:" + strings.Repeat("1", 64)
	long := bytes.Repeat([]byte("no tar at all "), 1<<20) // more than fits into buffers on the way
	for _, tt := range []struct {
		name   string
		req    engineapi.LayerImport
		stream []byte
		kind   fault.Kind
		text   string
	}{
		{"no tar", engineapi.LayerImport{}, long, fault.Integrity, ""},
		{"a tar that ends", engineapi.LayerImport{}, stream[:300], fault.Integrity, ""},
		{"an absent chain", engineapi.LayerImport{Parent: absent}, stream, fault.NotFound, "layer does not exist: " + absent},
		{"an absent image", engineapi.LayerImport{Parent: "absent:1"}, stream, fault.NotFound, "No such image: absent:1"},
		{"a name without a config", engineapi.LayerImport{Reference: "x:1"}, stream, fault.Invalid, "mandatory key 'json' is not set"},
		{"a name that is none", engineapi.LayerImport{Reference: "X:1", Config: configOf(diff)}, stream, fault.Invalid, "must be lowercase"},
		{"a config that is not JSON", engineapi.LayerImport{Config: []byte("{")}, long, fault.Invalid, "config: "},
		{"a config without layers", engineapi.LayerImport{Config: []byte("{}")}, stream, fault.Invalid, "invalid rootfs in image configuration"},
		{"a config of two layers", engineapi.LayerImport{Config: configOf(diff, diff)}, long, fault.Invalid, "layers from manifest don't match image configuration"},
		{"a config of another layer", engineapi.LayerImport{Config: configOf(other)}, stream, fault.Integrity, "layers from manifest don't match image configuration"},
		{"a config whose diffID is none", engineapi.LayerImport{Config: []byte(`{"rootfs":{"diff_ids":["../../etc"]}}`)}, stream, fault.Invalid, "config: "},
	} {
		_, err := d.client.ImportLayer(t.Context(), tt.req, bytes.NewReader(tt.stream), func(engineapi.Progress) {})
		refuses(t, tt.name, err, tt.kind, tt.text)
	}
	gone, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	done := make(chan error)
	go func() {
		_, err := d.client.ImportLayer(gone, engineapi.LayerImport{}, r, nil)
		done <- err
	}()
	if _, err := w.Write(stream[:600]); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err == nil {
		t.Error("a client that leaves: no error")
	}
	w.Close()
	if u, err := d.client.DiskUsage(t.Context()); err != nil || len(u.Layers) > 0 {
		t.Errorf("left: %+v, %v", u.Layers, err)
	}
	if list, err := d.client.Images(t.Context(), nil, engineapi.ListOptions{All: true}); err != nil || len(list) > 0 {
		t.Errorf("left: %+v, %v", list, err)
	}
}

// TestLayerExport exports layers in every form they are stored in: each is the
// very stream that its diffID is of.
func TestLayerExport(t *testing.T) {
	t.Parallel()
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	stream := tarOf(t, bigTree(1))
	for name, l := range map[string]testLayer{
		"gzip": gzipped(t, stream), "plain": plain(stream), "estargz": estargz(t, stream), "zstd-chunked": chunked(t, stream),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := runDaemon(t, Options{Foreground: true})
			img := pushImage(t, reg, name, "1", l)
			if _, err := d.client.Warm(t.Context(), engineapi.WarmRequest{Image: img.ref, Paths: []string{"etc/empty"}}, nil); err != nil {
				t.Fatal(err)
			}
			for range 2 { // lazily, and when all of it is here
				got := d.exportLayer(t, string(l.diff))
				if id.DiffIDFrom(sha256.Sum256(got)) != l.diff {
					t.Errorf("%d bytes that are not %s", len(got), l.diff)
				}
			}
			i, err := d.client.Layer(t.Context(), id.BlobOf(l.blob).Short())
			if err != nil || i.DiffID != l.diff || !slices.Contains(i.Blobs, id.BlobOf(l.blob)) || len(i.Sources) != 1 || !strings.HasSuffix(i.Sources[0], "/"+name) || !slices.Equal(i.Images, []string{img.ref}) {
				t.Errorf("%+v, %v", i, err)
			}
		})
	}
}

// TestLayerNames calls layers by the beginning of their IDs, as images are.
func TestLayerNames(t *testing.T) {
	t.Parallel()
	var texts []string
	for i := range 17 { // two of which begin alike
		texts = append(texts, fmt.Sprintf("file f%d %d", i, i))
	}
	d, _ := seeded(t, seed{called: "x", layers: texts})
	begun := map[string]int{}
	for _, text := range texts {
		diff := tarDiff(t, text)
		begun[diff.Hex()[:1]]++
		for _, name := range []string{string(diff), diff.Hex(), diff.Hex()[:12], "sha256:" + diff.Hex()[:12]} {
			if l, err := d.client.Layer(t.Context(), name); err != nil || l.DiffID != diff {
				t.Errorf("%s: %s, %v", name, l.DiffID, err)
			}
		}
	}
	for digit, n := range begun {
		_, err := d.client.Layer(t.Context(), digit)
		if want := fmt.Sprintf("ambiguous id prefix %q: matches ", digit); n > 1 && (fault.KindOf(err) != fault.Conflict || !strings.HasPrefix(err.Error(), want)) {
			t.Errorf("%d layers: %v", n, err)
		}
	}
	if _, err := d.client.Layer(t.Context(), "nosuch"); fault.KindOf(err) != fault.NotFound || err.Error() != "No such layer: nosuch" {
		t.Errorf("none: %v", err)
	}
}

// TestLayerCompressed imports what programs have compressed.
func TestLayerCompressed(t *testing.T) {
	t.Parallel()
	d := runDaemon(t, Options{Foreground: true})
	for _, name := range []string{"gzip", "bzip2", "xz", "zstd"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Logf("without %s: %v", name, err)
			continue
		}
		stream, diff := layerTar(t, "file a "+name)
		cmd := exec.Command(name, "-c")
		cmd.Stdin = bytes.NewReader(stream)
		blob, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		if l := d.importLayer(t, engineapi.LayerImport{}, blob); l.DiffID != diff || l.Compression != name {
			t.Errorf("%s: %+v", name, l)
		}
	}
}

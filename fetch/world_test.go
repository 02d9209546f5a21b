package fetch

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// options returns Options that see nothing of the machine's configuration and
// lose no time.
func options(t *testing.T) Options {
	t.Helper()
	empty := t.TempDir()
	return Options{
		CertsDirs: []string{filepath.Join(empty, "certs.d")},
		Auth:      AuthOptions{DockerConfig: empty, Home: empty, RuntimeDir: empty, ConfigHome: empty},
		Backoff:   time.Millisecond,
		MaxRetry:  3,
		Hedge:     -1, // or what is counted would depend on the machine's load
	}
}

// hostsFile writes a hosts.toml for a domain and returns the directory.
func hostsFile(t *testing.T, domain, text string) string {
	t.Helper()
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, domain, "hosts.toml"), text)
	return dir
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func mustParse(t *testing.T, s string) Reference {
	t.Helper()
	r, err := ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// noise returns n bytes that are the same for the same n.
func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)}).Read(b)
	return b
}

// made is an image put into a registry.
type made struct {
	config, manifest []byte
	digest           id.Blob
	layers           [][]byte
}

// makeImage puts an image of uncompressed layers into reg. platform "" =
// linux/amd64; tag "" = by digest only.
func makeImage(t *testing.T, reg *imgtest.Registry, repo, tag, platform string, layers ...[]byte) made {
	t.Helper()
	p := Platform{OS: "linux", Architecture: "amd64"}
	if platform != "" {
		p, _ = ParsePlatform(platform)
	}
	diffs := []id.Blob{}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Layers: []v1.Descriptor{}}
	for _, l := range layers {
		d := reg.PutBlob(t, l)
		diffs = append(diffs, d)
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: types.OCIUncompressedLayer, Size: int64(len(l)), Digest: hashOf(d)})
	}
	conf := mustJSON(t, map[string]any{"os": p.OS, "architecture": p.Architecture, "variant": p.Variant,
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs}})
	m.Config = v1.Descriptor{MediaType: types.OCIConfigJSON, Size: int64(len(conf)), Digest: hashOf(reg.PutBlob(t, conf))}
	raw := mustJSON(t, m)
	return made{config: conf, manifest: raw, layers: layers, digest: reg.PutManifest(t, repo, tag, typeManifest, raw)}
}

// makeIndex puts an index of the images into reg.
func makeIndex(t *testing.T, reg *imgtest.Registry, repo, tag string, platforms map[string]made) id.Blob {
	t.Helper()
	x := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	for name, m := range platforms {
		p, _ := ParsePlatform(name)
		x.Manifests = append(x.Manifests, v1.Descriptor{MediaType: types.OCIManifestSchema1, Size: int64(len(m.manifest)), Digest: hashOf(m.digest),
			Platform: &v1.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}})
	}
	return reg.PutManifest(t, repo, tag, typeIndex, mustJSON(t, x))
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustResolve(t *testing.T, c *Client, ref string) *Image {
	t.Helper()
	img, err := c.Resolve(t.Context(), mustParse(t, ref), Platform{})
	if err != nil {
		t.Fatalf("resolve %s: %v", ref, err)
	}
	return img
}

// readLayer reads a layer to its end.
func readLayer(ctx context.Context, img *Image, i int) ([]byte, error) {
	r, err := img.Open(ctx, i)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func wantLayer(t *testing.T, img *Image, i int, want []byte) {
	t.Helper()
	got, err := readLayer(t.Context(), img, i)
	if err != nil {
		t.Fatalf("layer %d: %v after %d bytes", i, err, len(got))
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("layer %d: %d bytes differ from %d", i, len(got), len(want))
	}
}

// wantFault checks kind and text of an error, that it is one line, and that a
// hint is there if hint is not empty.
func wantFault(t *testing.T, err error, kind fault.Kind, text, hint string) {
	t.Helper()
	switch {
	case err == nil:
		t.Fatalf("no error, want %q", text)
	case fault.KindOf(err) != kind:
		t.Errorf("kind %v, want %v: %v", fault.KindOf(err), kind, err)
	case !strings.Contains(err.Error(), text):
		t.Errorf("got %q, want %q", err, text)
	case strings.Contains(err.Error(), "\n"):
		t.Errorf("more than one line: %q", err)
	case !strings.Contains(fault.HintOf(err), hint):
		t.Errorf("hint %q, want %q", fault.HintOf(err), hint)
	}
}

func wantCounts(t *testing.T, reg *imgtest.Registry, want map[imgtest.Kind]int) {
	t.Helper()
	got := map[imgtest.Kind]int{}
	for _, r := range reg.Requests() {
		got[r.Kind]++
	}
	for k, n := range want {
		if got[k] != n {
			t.Errorf("%d requests of kind %s, want %d (%v)", got[k], k, n, fmt.Sprint(got))
		}
	}
}

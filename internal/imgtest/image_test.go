package imgtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// TestPush pushes an image in every form and reads back what it was made of.
func TestPush(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	layers := Tree(1, 30, 2)
	for _, how := range []string{"none", "gzip", "gzip-members", "zstd", "zstd-frames"} {
		for _, docker := range []bool{false, true} {
			m, err := NewImage(ImageSpec{Layers: layers, Compression: how, Docker: docker})
			if err != nil {
				t.Fatal(err)
			}
			if err := m.Push(t.Context(), host, "a/b", how); err != nil {
				t.Fatal(err)
			}
			var manifest struct{ Layers []blobDescriptor }
			if err := json.Unmarshal(get(t, fmt.Sprintf("%s/v2/a/b/manifests/%s", server.URL, how)), &manifest); err != nil {
				t.Fatal(err)
			}
			for i, l := range manifest.Layers {
				blob := get(t, fmt.Sprintf("%s/v2/a/b/blobs/%s", server.URL, l.Digest))
				var r io.Reader = bytes.NewReader(blob)
				switch {
				case strings.HasSuffix(l.MediaType, "gzip"):
					r, err = gzip.NewReader(r)
				case strings.HasSuffix(l.MediaType, "zstd"):
					r, err = zstd.NewReader(r)
				}
				if err != nil {
					t.Fatal(err)
				}
				if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, layers[i]) {
					t.Errorf("%s: layer %d is not what was given: %v", how, i, err)
				}
			}
		}
	}
}

func get(t *testing.T, url string) []byte {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %v", url, resp.Status, err)
	}
	return b
}

// TestArchives has skopeo read what is written as a layout and as docker save.
func TestArchives(t *testing.T) {
	Program(t, "skopeo")
	layers := Tree(1, 30, 2)
	m, err := NewImage(ImageSpec{Layers: layers, Compression: "none", Docker: true})
	if err != nil {
		t.Fatal(err)
	}
	oci, err := NewImage(ImageSpec{Layers: layers, Compression: "zstd"})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := oci.WriteLayout(filepath.Join(dir, "layout"), "v1"); err != nil {
		t.Fatal(err)
	}
	if err := m.WriteDockerArchive(filepath.Join(dir, "a.tar"), "example.com/a:v1"); err != nil {
		t.Fatal(err)
	}
	for _, source := range []string{"oci:" + filepath.Join(dir, "layout") + ":v1", "docker-archive:" + filepath.Join(dir, "a.tar") + ":example.com/a:v1"} {
		out, err := exec.Command("skopeo", "inspect", "--config", source).CombinedOutput()
		if err != nil || !strings.Contains(string(out), m.DiffIDs[1]) {
			t.Errorf("%s: %v\n%s", source, err, out)
		}
	}
}

package daemon

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// registry serves images of test layers from memory.
type registry struct {
	*httptest.Server
	requests  atomic.Int64
	mu        sync.Mutex
	paths     map[string]int // requests by path
	blobs     map[string][]byte
	manifests map[string][]byte // by NAME:TAG and by digest
}

const (
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	indexType    = "application/vnd.oci.image.index.v1+json"
	configType   = "application/vnd.oci.image.config.v1+json"
	layerType    = "application/vnd.oci.image.layer.v1.tar"
)

func newRegistry(t testing.TB) *registry {
	r := &registry{paths: map[string]int{}, blobs: map[string][]byte{}, manifests: map[string][]byte{}}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Server.Close)
	return r
}

// host returns what a reference begins with.
func (r *registry) host() string { return strings.TrimPrefix(r.URL, "http://") }

// push puts an image of the given layers, each a text for imgtest.Tar, and
// returns its reference and ID.
func (r *registry) push(t testing.TB, name string, layers ...string) (ref string, imageID id.ImageID) {
	t.Helper()
	type descriptor struct {
		MediaType string  `json:"mediaType"`
		Digest    id.Blob `json:"digest"`
		Size      int     `json:"size"`
	}
	put := func(mediaType string, b []byte) descriptor {
		d := id.BlobOf(b)
		r.blobs[string(d)] = b
		return descriptor{mediaType, d, len(b)}
	}
	var descs []descriptor
	diffs := []id.DiffID{}
	for _, text := range layers {
		b, err := imgtest.Tar(text)
		if err != nil {
			t.Fatal(err)
		}
		descs = append(descs, put(layerType, b))
		diffs = append(diffs, id.DiffIDFrom(sha256.Sum256(b)))
	}
	config, err := json.Marshal(map[string]any{
		"created": "2014-04-17T00:00:00Z", "os": "linux", "architecture": "amd64",
		"config": map[string]any{"Labels": map[string]string{"name": name}, "Cmd": []string{"/bin/sh"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
	})
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": manifestType, "config": put(configType, config), "layers": descs,
	})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(name, ":") {
		name += ":latest"
	}
	r.manifests[name] = manifest
	r.manifests[string(id.BlobOf(manifest))] = manifest
	return r.host() + "/" + name, id.ImageIDOf(config)
}

// got returns the number of requests by path.
func (r *registry) got() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.paths)
}

// config returns the digest of an image's config.
func (r *registry) config(t testing.TB, name string) string {
	t.Helper()
	var m struct{ Config struct{ Digest string } }
	if err := json.Unmarshal(r.manifests[name], &m); err != nil {
		t.Fatal(err)
	}
	return m.Config.Digest
}

func (r *registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.requests.Add(1)
	r.mu.Lock()
	r.paths[req.URL.Path]++
	r.mu.Unlock()
	path := strings.TrimPrefix(req.URL.Path, "/v2/")
	if name, ref, ok := strings.Cut(path, "/manifests/"); ok {
		b := r.manifests[ref]
		if b == nil {
			b = r.manifests[name+":"+ref]
		}
		if b == nil {
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}`)
			return
		}
		kind := manifestType
		if bytes.Contains(b, []byte(indexType)) {
			kind = indexType
		}
		w.Header().Set("Content-Type", kind)
		w.Header().Set("Docker-Content-Digest", string(id.BlobOf(b)))
		w.Header().Set("Content-Length", fmt.Sprint(len(b)))
		if req.Method == http.MethodGet {
			w.Write(b)
		}
		return
	}
	if _, digest, ok := strings.Cut(path, "/blobs/"); ok {
		if b := r.blobs[digest]; b != nil {
			w.Write(b)
			return
		}
		w.WriteHeader(http.StatusNotFound)
		return
	}
	fmt.Fprint(w, "{}")
}

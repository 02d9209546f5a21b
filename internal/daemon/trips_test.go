package daemon

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// layoutLayers returns the layers of a layout with one image, as gzip.
func layoutLayers(t testing.TB, dir string) []testLayer {
	t.Helper()
	read := func(digest id.Blob) []byte {
		b, err := os.ReadFile(filepath.Join(dir, "blobs/sha256", digest.Hex()))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var index, manifest struct {
		Manifests, Layers []struct{ Digest id.Blob }
	}
	b, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err == nil {
		err = json.Unmarshal(b, &index)
	}
	if err == nil {
		err = json.Unmarshal(read(index.Manifests[0].Digest), &manifest)
	}
	if err != nil {
		t.Fatal(err)
	}
	var list []testLayer
	for _, d := range manifest.Layers {
		blob := read(d.Digest)
		r, err := gzip.NewReader(bytes.NewReader(blob))
		if err != nil {
			t.Fatal(err)
		}
		stream, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		l := plain(stream)
		l.mediaType, l.blob = tarGzip, blob
		list = append(list, l)
	}
	return list
}

// TestRoundTrips counts what it costs from an empty store to the first output
// of a program, over a link: in round trips, as the registry counts them, and
// in bytes. The image was run once somewhere else, which pushed its index, and
// made an eStargz image of it.
func TestRoundTrips(t *testing.T) {
	needFUSE(t)
	const rtt = 100 * time.Millisecond // long beside what a busy machine adds
	type cost struct {
		trips int
		size  int64 // bytes
	}
	for _, w := range []struct {
		spec    imgtest.DebianSpec
		command []string
		forms   map[string]cost
	}{
		{imgtest.DebianBase(), []string{"sh", "-c", "echo ok"},
			map[string]cost{"estargz": {6, 1600e3}, "index": {14, 5000e3}}},
		{imgtest.DebianPython(), []string{"python3", "-c", "import json; print('ok')"},
			map[string]cost{"estargz": {10, 5800e3}, "index": {24, 20000e3}}},
	} {
		layout, err := imgtest.Debian(t.Context(), imageCache, w.spec)
		imgtest.Need(t, err == nil, fmt.Sprint("a Debian image: ", err))
		reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
		pushImage(t, reg, "x", "index", layoutLayers(t, layout)...)
		run := func(t *testing.T, c *engineapi.Client, ref string) engineapi.Mount {
			dir := mountDir(t)
			m, err := mountAs(t.Context(), c, ref, dir)
			if err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command("chroot", append([]string{dir}, w.command...)...).CombinedOutput()
			if err != nil || strings.TrimSpace(string(out)) != "ok" {
				t.Fatalf("%s, %v", out, err)
			}
			return m
		}
		c, first := spawned(t, newStore(t)), reg.Host+"/x:index"
		unmounted(t, c, run(t, c, first))
		if _, err := c.PushIndex(t.Context(), engineapi.IndexRequest{Image: first}, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Convert(t.Context(), engineapi.ConvertImageRequest{Image: first, To: engineapi.ToEstargz, Target: reg.Host + "/x:estargz"}, nil); err != nil {
			t.Fatal(err)
		}
		for form, want := range w.forms {
			t.Run(w.spec.Name+", "+form, func(t *testing.T) {
				link, err := imgtest.NewShaper(reg.Host, imgtest.Link{RTT: rtt, Bandwidth: 1e9})
				if err != nil {
					t.Fatal(err)
				}
				defer link.Close()
				c := spawned(t, newStore(t))
				reg.Forget()
				start := time.Now()
				run(t, c, link.Addr()+"/x:"+form)
				t.Logf("%d trips, %d requests over %d connections, %d bytes, %v",
					reg.Trips(rtt), reg.Count(), reg.Connections(), link.Bytes(), time.Since(start))
				if n := reg.Trips(rtt); n > want.trips {
					t.Errorf("%d round trips, want at most %d", n, want.trips)
					for _, q := range reg.Requests() {
						t.Log(q.Method, q.URL.Path, q.Header.Get("Range"))
					}
				}
				if n := link.Bytes(); n > want.size {
					t.Errorf("%d bytes, want at most %d", n, want.size)
				}
			})
		}
	}
}

package daemon

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// TestLazy mounts images of every kind of layer that need not be fetched whole:
// a mount fetches little, a file what it takes, and all files are right. What
// is here is read again by a later daemon, without the registry.
func TestLazy(t *testing.T) {
	needFUSE(t)
	files := bigTree(7)
	stream := tarOf(t, files)
	for _, tt := range []struct {
		name      string
		layer     testLayer
		index     bool
		mount     int   // requests until it is mounted
		mountSize int64 // bytes of ranges
		file      int   // requests for one small file
		fileSize  int64
	}{
		{"estargz", estargz(t, stream), false, 4, 256 << 10, 1, 64 << 10},
		{"zstd-chunked", chunked(t, stream), false, 3, 64 << 10, 1, 64 << 10},
		{"plain", plain(stream), false, 12, 1 << 20, 2, 3 << 20},
		{"our-index", gzipped(t, stream), true, 6, 0, 2, 3 << 20},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newStore(t)
			var ref string
			t.Run("online", func(t *testing.T) {
				reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
				img := pushImage(t, reg, "x", "1", tt.layer)
				other := pushImage(t, reg, "x", "2", tt.layer)
				if tt.index {
					pushIndex(t, reg, img, nil)
					pushIndex(t, reg, other, nil)
				}
				ref = img.ref
				d := runDaemon(t, Options{Paths: p})
				dir := mountDir(t)
				m, err := mountAs(testContext(t), d.client, img.ref, dir)
				if err != nil {
					t.Fatal(err)
				}
				asked(t, reg, "mount", tt.mount, tt.mountSize)
				wantTree(t, dir, content{"share/007": files["share/007"]})
				asked(t, reg, "a small file", tt.file, tt.fileSize)
				unmounted(t, d.client, m)

				if m, err = mountAs(testContext(t), d.client, img.ref, dir); err != nil {
					t.Fatal(err)
				}
				wantTree(t, dir, content{"share/007": files["share/007"], "etc/empty": ""})
				asked(t, reg, "what is known", 0, 0)
				unmounted(t, d.client, m)

				if m, err = mountAs(testContext(t), d.client, other.ref, dir); err != nil {
					t.Fatal(err)
				}
				wantTree(t, dir, content{"share/007": files["share/007"]})
				asked(t, reg, "another image of the same layer", tt.mount-1, 0) // ranges of none
				unmounted(t, d.client, m)
			})
			t.Run("offline", func(t *testing.T) {
				d := runDaemon(t, Options{Paths: p})
				dir := mountDir(t)
				m, err := mountAs(testContext(t), d.client, ref, dir)
				if err != nil {
					t.Fatal(err)
				}
				wantTree(t, dir, content{"share/007": files["share/007"]})
				start := time.Now()
				if _, err := readFile(filepath.Join(dir, "bin/3")); !errors.Is(err, unix.EIO) {
					t.Errorf("a file that is not here: %v", err)
				}
				if since := time.Since(start); since > engineapi.DefaultPatience/2 {
					t.Errorf("it took %v to say so", since)
				}
				st, err := d.client.Status(testContext(t))
				if err != nil || len(st.Faults) == 0 || st.Faults[0].Mount != m.ID || !strings.Contains(st.Faults[0].Reason, "refused") {
					t.Errorf("status: %+v, %v", st.Faults, err)
				}
				unmounted(t, d.client, m)
			})
		})
	}
}

// TestLazyWhole reads all of lazy images: every byte is right, and the layer is
// then proven where that takes no other bytes, so that another image which has
// the same stream in another blob fetches nothing of it.
func TestLazyWhole(t *testing.T) {
	needFUSE(t)
	files := bigTree(8)
	stream := tarOf(t, files)
	for _, tt := range []struct {
		name   string
		layer  testLayer
		index  bool
		sealed bool
	}{
		{"estargz", estargz(t, stream, "share/007", "lib/middle"), false, false},
		{"zstd-chunked", chunked(t, stream), false, false},
		{"plain", plain(stream), false, true},
		{"our-index", gzipped(t, stream), true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
			img := pushImage(t, reg, "x", "1", tt.layer)
			if tt.index {
				pushIndex(t, reg, img, nil)
			}
			d := runDaemon(t, Options{})
			dir := mountDir(t)
			m, err := mountAs(testContext(t), d.client, img.ref, dir)
			if err != nil {
				t.Fatal(err)
			}
			wantTree(t, dir, files)
			unmounted(t, d.client, m)
			reg.Forget()

			// All of it, and proven.
			res, err := d.client.Pull(testContext(t), engineapi.PullRequest{Reference: img.ref}, nil)
			if err != nil {
				t.Errorf("pull: %+v, %v", res, err)
			}
			if n := reg.Count(imgtest.KindBlob); tt.sealed && n > 0 {
				t.Errorf("%d blobs fetched to prove what is here", n)
			}
			reg.Forget()
			l := tt.layer
			if tt.sealed {
				l = gzipped(t, stream)
				l.blob = append(l.blob, gzipped(t, nil).blob...) // one more member
			}
			again := pushImage(t, reg, "x", "2", l)
			if m, err = mountAs(testContext(t), d.client, again.ref, dir); err != nil {
				t.Fatal(err)
			}
			asked(t, reg, "the same stream", 3, 0)
			if n := reg.Count(imgtest.KindBlob); n > 1 {
				t.Errorf("%d blobs", n)
			}
			unmounted(t, d.client, m)
		})
	}
}

package daemon

import (
	"archive/tar"
	"bytes"
	"compress/gzip"

	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/fs"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// pushGenerated puts an image of one layer, which write makes and which is
// compressed on the way: uncompressed it need not fit into memory.
func pushGenerated(t testing.TB, reg *imgtest.Registry, name string, write func(w *tar.Writer) error) (ref string) {
	t.Helper()
	var blob bytes.Buffer
	sum := sha256.New()
	z, err := gzip.NewWriterLevel(&blob, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(io.MultiWriter(z, sum))
	if err := errors.Join(write(w), w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	diff := id.DiffIDFrom([sha256.Size]byte(sum.Sum(nil)))
	img, err := imgtest.NewImage(imgtest.ImageSpec{Layers: [][]byte{blob.Bytes()}, Compression: "none", DiffIDs: []string{string(diff)}})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range append(img.Layers, img.Config) {
		reg.PutBlob(t, b.Data)
	}
	reg.PutManifest(t, name, "1", img.Manifest.MediaType, img.Manifest.Data)
	return reg.Host + "/" + name + ":1"
}

// emptyFiles writes n files into one directory.
func emptyFiles(n int) func(w *tar.Writer) error {
	return func(w *tar.Writer) error {
		h := tar.Header{Mode: 0o644, Format: tar.FormatUSTAR}
		for i := range n {
			h.Name = fmt.Sprintf("d/%07d", i)
			if err := w.WriteHeader(&h); err != nil {
				return err
			}
		}
		return nil
	}
}

// nested writes directories inside each other, and a file in the innermost.
func nested(depth int) func(w *tar.Writer) error {
	return func(w *tar.Writer) error {
		return w.WriteHeader(&tar.Header{Name: strings.Repeat("d/", depth) + "f", Mode: 0o644, Format: tar.FormatPAX})
	}
}

// TestExtremes mounts what is lawful but large, with both drivers, and
// refuses what is beyond the limits.
func TestExtremes(t *testing.T) {
	needFUSE(t)
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	p := newStore(t)
	c := spawned(t, p)
	ctx := testContext(t)
	dir := mountDir(t)
	zeros := func(w *tar.Writer) error {
		err := w.WriteHeader(&tar.Header{Name: "zeros", Size: 256 << 20, Mode: 0o644})
		if err == nil {
			_, err = io.CopyN(w, zeroes{}, 256<<20)
		}
		return err
	}
	for _, tt := range []struct {
		name  string
		write func(w *tar.Writer) error
		err   string // "" = it mounts
		check func(t *testing.T)
	}{
		{"million", emptyFiles(1_000_000), "", func(t *testing.T) {
			if n := countEntries(t, filepath.Join(dir, "d")); n != 1_000_000 {
				t.Errorf("%d entries", n)
			}
		}},
		{"deep", nested(2000), "", func(t *testing.T) {
			var st unix.Stat_t
			if err := unix.Lstat(filepath.Join(dir, strings.Repeat("d/", 2000), "f"), &st); err != nil || st.Mode != unix.S_IFREG|0o644 {
				t.Errorf("mode %o, %v", st.Mode, err)
			}
		}},
		{"deeper", nested(3000), "path of 6001 bytes", nil},
		{"bomb", zeros, "", func(t *testing.T) {
			var st unix.Stat_t
			if err := unix.Lstat(filepath.Join(dir, "zeros"), &st); err != nil || st.Size != 256<<20 {
				t.Errorf("size %d, %v", st.Size, err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if testing.Short() && tt.name == "million" {
				t.Skip("-short: takes some seconds")
			}
			ref := pushGenerated(t, reg, tt.name, tt.write)
			before := diskUse(t, p.Root+"/layers")
			for _, driver := range drivers {
				m, err := driver.mount(t, ctx, c, ref, dir)
				if tt.err != "" {
					if fault.KindOf(err) != fault.Integrity || !strings.Contains(err.Error(), tt.err) {
						t.Errorf("%s: error %v, want %q", driver.name, err, tt.err)
					}
					continue
				}
				if err != nil {
					t.Fatalf("%s: %v", driver.name, err)
				}
				tt.check(t)
				if grown := diskUse(t, p.Root+"/layers") - before; tt.name == "bomb" && grown > 1<<20 {
					t.Errorf("256 MiB of zeros take %d bytes of the disk", grown)
				}
				if err := fs.Unmount(dir, false); err != nil {
					t.Fatal(err)
				}
				if err := c.WaitGone(ctx, m.ID); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
	if left, err := os.ReadDir(filepath.Join(p.Root, "tmp")); err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}
	if list, err := c.Mounts(ctx); err != nil || len(list) > 0 {
		t.Errorf("mounts: %v %v", list, err)
	}
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// countEntries reads a directory to its end.
func countEntries(t testing.TB, dir string) int {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n := 0
	for {
		names, err := f.Readdirnames(10_000)
		n += len(names)
		if err == io.EOF {
			return n
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// diskUse returns the bytes that the files below dir occupy.
func diskUse(t testing.TB, dir string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		n += st.Blocks * 512
		return nil
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return n
}

// TestManyLayers mounts an image of 127 layers with both drivers: docker's
// limit, and more than the options of mount(2) can name devices.
func TestManyLayers(t *testing.T) {
	needFUSE(t)
	const n = 127
	var layers []string
	for i := range n {
		text := fmt.Sprintf("file f%d %d\nfile top %d", i, i, i)
		if i%2 == 1 {
			text += fmt.Sprintf("\nfile .wh.f%d", i-1)
		}
		layers = append(layers, text)
	}
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	pushTo(t, "many", "1", layers, reg)
	p := newStore(t)
	c := spawned(t, p)
	ctx := testContext(t)
	for _, driver := range drivers {
		dir := mountDir(t)
		m, err := driver.mount(t, ctx, c, reg.Host+"/many:1", dir)
		if err != nil {
			t.Fatalf("%s: %v", driver.name, err)
		}
		for i := range n {
			if i%2 == 1 || i == n-1 { // the others' whiteouts are in the next layer
				wantFile(t, filepath.Join(dir, fmt.Sprintf("f%d", i)), strconv.Itoa(i))
			}
		}
		wantFile(t, filepath.Join(dir, "top"), strconv.Itoa(n-1))
		if got := countEntries(t, dir); got != n/2+1+1 {
			t.Errorf("%s: %d entries", driver.name, got)
		}
		if err := fs.Unmount(dir, false); err != nil {
			t.Fatal(err)
		}
		if err := c.WaitGone(ctx, m.ID); err != nil {
			t.Fatal(err)
		}
	}
}

// TestVeryManyLayers pulls what docker refuses to run, with a warning.
func TestVeryManyLayers(t *testing.T) {
	t.Parallel()
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	pushTo(t, "many", "1", slices.Repeat([]string{"file a 1"}, manyLayers+1), reg)
	d := runDaemon(t, Options{})
	if _, err := d.client.Pull(testContext(t), engineapi.PullRequest{Reference: reg.Host + "/many:1"}, nil); err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(filepath.Join(d.Root, "daemon.log"))
	if err != nil || !strings.Contains(string(log), "very many layers") || !strings.Contains(string(log), "layers=501") {
		t.Errorf("the log (%v):\n%s", err, log)
	}
}

// TestMemory: an index is mapped and not read, so a mount costs the daemon
// next to no memory of its own, whatever the image's size, also once it was
// walked.
func TestMemory(t *testing.T) {
	needFUSE(t)
	if testing.Short() {
		t.Skip("-short: takes seconds, and the race detector's memory is not the daemon's")
	}
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	ref := pushGenerated(t, reg, "files", emptyFiles(100_000))
	p := newStore(t)
	c := spawned(t, p)
	ctx := testContext(t)
	if _, err := mountAs(ctx, c, ref, mountDir(t)); err != nil {
		t.Fatal(err)
	}
	killDaemon(t, p) // what the pull took goes with it
	if _, err := c.Ping(ctx); err != nil {
		t.Fatal(err)
	}
	pid := holder(p)
	walked := func() {
		dir := mountDir(t)
		if _, err := mountAs(ctx, c, ref, dir); err != nil {
			t.Fatal(err)
		}
		if n := countEntries(t, filepath.Join(dir, "d")); n != 100_000 {
			t.Errorf("%d entries", n)
		}
	}
	for range 10 {
		walked()
	}
	ten := anonymousKiB(t, pid)
	const more = 8 // the heap grows by steps: the mean of several counts
	for range more {
		walked()
	}
	each := (anonymousKiB(t, pid) - ten) / more
	t.Logf("RssAnon %d KiB with ten mounts, %d KiB for each further one", ten, each)
	if ten > 40<<10 {
		t.Errorf("%d KiB with ten mounts, want 40 MiB at most", ten)
	}
	if each > 1<<10 {
		t.Errorf("a further mount took %d KiB, want 1 MiB at most", each)
	}
}

// anonymousKiB returns a process's anonymous memory in KiB.
func anonymousKiB(t testing.TB, pid string) int {
	t.Helper()
	b, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "RssAnon:")
	var n int
	if _, err := fmt.Sscan(rest, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

package overlay_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/imgfs/imgfs/fs"
	"github.com/imgfs/imgfs/internal/imgtest"
	"github.com/imgfs/imgfs/internal/lower"
	"github.com/imgfs/imgfs/internal/upperdir"
	"github.com/imgfs/imgfs/union/overlay"
	"golang.org/x/sys/unix"
)

// counted is a mount served by the test itself, which can count requests. What
// is done to it is done by bare system calls: the runtime's poller would ask
// the server about each file, and a garbage collection then waits for itself.
type counted struct {
	t     *testing.T
	at    string
	upper string
	srv   *fs.Server
	data  []*countedData
}

// countedData is a layer's data file that counts, and can make wait.
type countedData struct {
	f     *os.File
	bytes atomic.Int64
	fill  func(ctx context.Context, off, n int64) error // nil: present
}

func (d *countedData) Fill(ctx context.Context, off, n, _ int64) (*os.File, error) {
	d.bytes.Add(n)
	if d.fill != nil {
		return d.f, d.fill(ctx, off, n)
	}
	return d.f, nil
}

// startCounted mounts a chain until the test ends; options may be nil.
func startCounted(t *testing.T, c chain, change func(*counted, *overlay.Options)) *counted {
	t.Helper()
	needRoot(t)
	dir := workDir(t)
	m := &counted{t: t, at: filepath.Join(dir, "merged"), upper: filepath.Join(dir, "upper")}
	m.must(os.Mkdir(m.at, 0o755))
	tars, err := c.tars()
	m.must(err)
	m.must(buildTars(dir, tars))
	tree, done, err := openLower(dir)
	m.must(err)
	t.Cleanup(done)
	var data []lower.Data
	for i := range tree.Image().Devices() {
		f, err := os.Open(filepath.Join(dir, fmt.Sprint("data", i)))
		m.must(err)
		t.Cleanup(func() { f.Close() })
		m.data = append(m.data, &countedData{f: f})
		data = append(data, m.data[i])
	}
	low := lower.New(tree.Image(), data, 0, lower.Root)
	up, err := upperdir.Create(m.upper, upperdir.Info{Image: "test"})
	m.must(err)
	t.Cleanup(func() { up.Close() })
	var o overlay.Options
	if change != nil {
		change(m, &o)
	}
	u, err := overlay.New(&low, up, o)
	m.must(err)
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	m.must(err)
	m.must(unix.Mount("imgtest", m.at, "fuse.imgfs", 0,
		fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other,max_read=%d", fd, 1<<20)))
	t.Cleanup(func() {
		if err := unix.Unmount(m.at, 0); err != nil {
			t.Errorf("unmount: %v", err)
			unix.Unmount(m.at, unix.MNT_DETACH)
			if m.srv != nil {
				m.srv.Close()
			}
		}
		if m.srv != nil {
			if err := m.srv.Wait(); err != nil {
				t.Error(err)
			}
			if st := m.srv.Stats(); st.Errors != 0 {
				t.Errorf("%d requests failed, the last by: %s", st.Errors, st.LastError)
			}
		}
		u.Close()
	})
	m.srv, err = fs.Serve(context.Background(), u, fd, fs.Options{})
	m.must(err)
	return m
}

func (m *counted) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *counted) path(name string) string { return filepath.Join(m.at, name) }

func (m *counted) open(name string, flags int) int {
	m.t.Helper()
	fd, err := unix.Open(m.path(name), flags|unix.O_CLOEXEC, 0o644)
	if err != nil {
		m.t.Fatalf("open %s: %v", name, err)
	}
	return fd
}

func (m *counted) close(fds ...int) {
	for _, fd := range fds {
		m.must(unix.Close(fd))
	}
}

func (m *counted) stat(name string) unix.Stat_t {
	m.t.Helper()
	var st unix.Stat_t
	m.must(unix.Lstat(m.path(name), &st))
	return st
}

func (m *counted) write(name, data string) {
	m.t.Helper()
	fd := m.open(name, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC)
	m.pwrite(fd, data, 0)
	m.close(fd)
}

func (m *counted) pwrite(fd int, data string, off int64) {
	m.t.Helper()
	if n, err := unix.Pwrite(fd, []byte(data), off); err != nil || n != len(data) {
		m.t.Fatalf("write: %d, %v", n, err)
	}
}

func (m *counted) pread(fd int, n int, off int64) string {
	m.t.Helper()
	buf := make([]byte, n)
	n, err := unix.Pread(fd, buf, off)
	m.must(err)
	return string(buf[:n])
}

func (m *counted) read(name string) string {
	m.t.Helper()
	fd := m.open(name, unix.O_RDONLY)
	defer m.close(fd)
	return m.pread(fd, int(m.stat(name).Size)+1, 0)
}

// requests returns how many of a kind, as fs.Stats has them, do makes.
func (m *counted) requests(do func()) map[string]uint64 {
	before := m.srv.Stats()
	do()
	after := m.srv.Stats()
	got := map[string]uint64{}
	for _, x := range []struct {
		name string
		n    uint64
	}{
		{"lookup", after.Lookups - before.Lookups},
		{"getattr", after.Getattrs - before.Getattrs},
		{"open", after.Opens - before.Opens},
		{"read", after.Reads - before.Reads},
		{"write", after.Writes - before.Writes},
		{"xattr", after.Xattrs - before.Xattrs},
		{"change", after.Changes - before.Changes},
		{"sync", after.Syncs - before.Syncs},
		{"other", after.Others - before.Others},
	} {
		if x.n != 0 {
			got[x.name] = x.n
		}
	}
	return got
}

// onDisk is a path in the upper's tree.
func (m *counted) onDisk(name string) string { return filepath.Join(m.upper, "diff", name) }

// inUpper reports whether a file's data is in the upper.
func (m *counted) inUpper(name string) bool {
	m.t.Helper()
	_, err := unix.Lgetxattr(m.onDisk(name), "trusted.overlay.metacopy", nil)
	var st unix.Stat_t
	return err == unix.ENODATA && unix.Lstat(m.onDisk(name), &st) == nil
}

func (m *counted) passthrough() {
	m.t.Helper()
	imgtest.Need(m.t, m.srv.Passthrough(), "passthrough")
}

// startApart mounts a chain, served by another process, until the test ends: a
// process must not touch a mapping of a file that it serves itself.
func startApart(t *testing.T, k kind, c chain) *counted {
	t.Helper()
	u := start(t, k, c)
	return &counted{t: t, at: u.at, upper: u.Upper}
}

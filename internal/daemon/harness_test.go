package daemon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/fs"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// needFUSE skips a test that mounts where that is impossible, or fails it
// where it was said to be possible.
func needFUSE(t testing.TB) {
	t.Helper()
	_, err := os.Stat("/dev/fuse")
	imgtest.Need(t, err == nil && Privileged(), "root and /dev/fuse")
}

// newStore returns the paths of a store of its own.
func newStore(t testing.TB) Paths {
	t.Helper()
	return testPaths(filepath.Join(t.TempDir(), "store"))
}

// running is a daemon inside the test process.
type running struct {
	Paths
	client *engineapi.Client
	ended  chan error
	stop   context.CancelFunc
}

// runDaemon starts a daemon in this process and waits until it serves.
func runDaemon(t testing.TB, o Options) *running {
	t.Helper()
	if o.Paths.Root == "" {
		o.Paths = newStore(t)
	}
	ctx, stop := context.WithCancel(context.Background())
	r := &running{Paths: o.Paths, client: engineapi.New(o.Paths.Socket), ended: make(chan error, 1), stop: stop}
	serving := make(chan struct{})
	o.Serving = func() { close(serving) }
	go func() { r.ended <- Run(ctx, o) }()
	select {
	case <-serving:
	case err := <-r.ended:
		stop()
		t.Fatalf("daemon: %v", err)
	}
	t.Cleanup(func() { r.end(t) })
	return r
}

// end unmounts what is mounted and stops the daemon.
func (r *running) end(t testing.TB) {
	t.Helper()
	if r.ended == nil {
		return
	}
	if err := r.client.Shutdown(context.Background(), true); err != nil && !errors.Is(err, engineapi.ErrNoDaemon) {
		t.Errorf("shutdown: %v", err)
		r.stop()
	}
	r.wait(t)
}

// wait returns when Run has.
func (r *running) wait(t testing.TB) {
	t.Helper()
	if err := <-r.ended; err != nil {
		t.Errorf("daemon: %v", err)
	}
	r.ended = nil
	r.stop()
	r.client.Close()
}

// spawned is a daemon in a process of its own, started as the CLI does.
func spawned(t testing.TB, p Paths) *engineapi.Client {
	t.Helper()
	c := Connect(p)
	if _, err := c.Ping(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c := engineapi.New(p.Socket)
		if err := c.Shutdown(context.Background(), true); err != nil && !errors.Is(err, engineapi.ErrNoDaemon) {
			t.Errorf("shutdown: %v", err)
		}
	})
	return c
}

// killDaemon kills the daemon of a store with SIGKILL and returns when it is
// gone.
func killDaemon(t testing.TB, p Paths) {
	t.Helper()
	pid, err := strconv.Atoi(holder(p))
	if err != nil || pid == os.Getpid() {
		t.Fatalf("pid of the daemon: %d %v", pid, err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	f, err := waitLock(context.Background(), p.lockFile())
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

// mountAs does what the CLI does.
func mountAs(ctx context.Context, c *engineapi.Client, image, target string, edit ...func(*engineapi.MountRequest)) (engineapi.Mount, error) {
	req := engineapi.MountRequest{Image: image, Target: target, Driver: "fuse"}
	var err error
	if req.MountNS, req.UserNS, err = ownNamespaces(); err != nil {
		return engineapi.Mount{}, err
	}
	for _, f := range edit {
		f(&req)
	}
	mounted := false
	m, err := c.Mount(ctx, req, nil, func(r engineapi.MountReady) (int, engineapi.MountReply, error) {
		fd, err := fs.Mount(req.Target, r.Source, fs.MountFlags{Writable: req.Mode == "rw"})
		mounted = err == nil
		return fd, engineapi.MountReply{}, err
	})
	if err != nil && mounted {
		err = errors.Join(err, fs.Unmount(target, true))
	}
	return m, err
}

func ownNamespaces() (mnt, user string, err error) {
	if mnt, err = os.Readlink("/proc/self/ns/mnt"); err == nil {
		user, err = os.Readlink("/proc/self/ns/user")
	}
	return mnt, user, err
}

func namespaces(t testing.TB) (mnt, user string) {
	t.Helper()
	mnt, user, err := ownNamespaces()
	if err != nil {
		t.Fatal(err)
	}
	return mnt, user
}

// mountDir returns an empty directory for a mount, which is taken away at the
// end of the test if it is still there.
func mountDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() {
		for {
			at, err := fs.MountAt(dir)
			if err != nil {
				t.Fatal(err)
			}
			if at == nil {
				return
			}
			if err := fs.Unmount(dir, true); err != nil {
				t.Fatal(err)
			}
		}
	})
	return dir
}

// openFile opens a file of a mount that this very process may serve. Package
// os would add it to epoll, and the runtime does that without telling its
// scheduler: the kernel asks the server, which cannot run if the collector
// waits for that same thread. As there, what the scheduler's signals interrupt is
// begun again.
func openFile(path string) (fd int, err error) {
	for {
		if fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != unix.EINTR {
			return fd, err
		}
	}
}

// wantFile checks the content of a file.
func wantFile(t testing.TB, path, want string) {
	t.Helper()
	fd, err := openFile(path)
	if err != nil {
		t.Errorf("%s: %v", path, err)
		return
	}
	defer unix.Close(fd)
	b := make([]byte, 1<<16)
	n, err := unix.Read(fd, b)
	for err == unix.EINTR {
		n, err = unix.Read(fd, b)
	}
	if err != nil || string(b[:n]) != want {
		t.Errorf("%s: got %q, %v; want %q", path, b[:max(n, 0)], err, want)
	}
}

// isMounted reports whether an imgfs mount is at dir.
func isMounted(t testing.TB, dir string) bool {
	t.Helper()
	at, err := fs.MountAt(dir)
	if err != nil {
		t.Fatal(err)
	}
	return at != nil && at.Imgfs()
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

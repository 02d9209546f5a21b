package fs

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/imgfs/imgfs/internal/imgtest"
	"github.com/imgfs/imgfs/internal/lower"
	"golang.org/x/sys/unix"
)

// TestWaitingReads has a layer whose bytes do not come: its readers wait and
// can be killed, everybody else goes on, and the mount can be given up.
func TestWaitingReads(t *testing.T) {
	root := makeTree(t, 1, 2)
	p := pack(t, root, 2) // file-0 is on the first device, file-1 on the second
	waiting := make(chan struct{}, 100)
	var ended atomic.Int32
	p.files[0].fill = func(ctx context.Context, _, _ int64) error {
		if ctx.Err() == nil {
			waiting <- struct{}{}
		}
		<-ctx.Done()
		ended.Add(1)
		return ctx.Err()
	}
	dir := t.TempDir()
	s := serveCold(t, NewChain(p.img, p.data(), Options{}), dir, MountFlags{})
	var readers []*exec.Cmd
	for range 20 {
		cmd := exec.Command("cat", filepath.Join(dir, "dir-0/file-0"))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		readers = append(readers, cmd)
	}
	<-waiting // readers of one page wait for one request
	if out, err := exec.Command("cmp", filepath.Join(root, "dir-0/file-1"), filepath.Join(dir, "dir-0/file-1")).CombinedOutput(); err != nil {
		t.Errorf("%v %s", err, out)
	}
	for _, cmd := range readers[1:] {
		cmd.Process.Kill()
		cmd.Wait()
	}
	// The last one waits until the mount is given up.
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	select {
	case err := <-closed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("Close waits for a read that waits for bytes")
	}
	if err := readers[0].Wait(); err == nil {
		t.Error("a reader of bytes that never came succeeded")
	}
	if s.Stats().Errors != 0 {
		t.Errorf("an interrupted read counts as a failure: %+v", s.Stats())
	}
}

// TestServeGivesUp has a descriptor on which no INIT will come.
func TestServeGivesUp(t *testing.T) {
	needRoot(t)
	fd, err := unix.Open(fuseDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	p := pack(t, makeTree(t, 1, 1), 1)
	if _, err := Serve(ctx, NewChain(p.img, p.data(), Options{}), fd, Options{}); err == nil {
		t.Error("served a descriptor without a mount")
	}
}

func TestReadAhead(t *testing.T) {
	p := pack(t, makeTree(t, 1, 1), 1)
	dir, _ := serve(t, p, MountFlags{})
	at, err := MountAt(dir)
	if err != nil || at == nil {
		t.Fatal(at, err)
	}
	b, err := os.ReadFile("/sys/class/bdi/" + at.Dev + "/read_ahead_kb")
	imgtest.Need(t, err == nil, "/sys")
	if got := strings.TrimSpace(string(b)); got != "1024" {
		t.Errorf("the kernel reads %s KiB ahead, want 1024", got)
	}
}

// TestServeCancelled has the client of a mount go just when the kernel's INIT
// is there: a server that will not last is an error, for its mount to be taken
// away.
func TestServeCancelled(t *testing.T) {
	needRoot(t)
	p := pack(t, makeTree(t, 1, 1), 1)
	dir := t.TempDir()
	fd, err := Mount(dir, "test:image", MountFlags{})
	if err != nil {
		t.Fatal(err)
	}
	defer Unmount(dir, true)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	s, err := Serve(ctx, NewChain(p.img, p.data(), Options{}), fd, Options{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err == nil {
		s.Close()
	}
}

// stuckLookups is a file system whose lookups wait until it is given up.
type stuckLookups struct {
	fuse.RawFileSystem
	started chan struct{}
	gone    chan struct{}
}

func (s *stuckLookups) Lookup(_ <-chan struct{}, _ *fuse.InHeader, _ string, _ *fuse.EntryOut) fuse.Status {
	s.started <- struct{}{}
	<-s.gone
	return fuse.EIO
}

func (s *stuckLookups) OnUnmount() { close(s.gone) }

// TestCloseWhenAllWait has every worker wait, the reader included, who then
// sees no sign to stop.
func TestCloseWhenAllWait(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	send := func(op uint32, unique uint64, payload []byte) {
		b := make([]byte, inHeaderSize, inHeaderSize+len(payload))
		native.PutUint32(b, uint32(inHeaderSize+len(payload)))
		native.PutUint32(b[4:], op)
		native.PutUint64(b[8:], unique)
		native.PutUint64(b[16:], lower.Root)
		if _, err := unix.Write(pair[0], append(b, payload...)); err != nil {
			t.Fatal(err)
		}
	}
	hello := make([]byte, 64) // fuse_init_in
	native.PutUint32(hello, 7)
	native.PutUint32(hello[4:], 31)
	send(opInit, 1, hello)
	stuck := &stuckLookups{fuse.NewDefaultRawFileSystem(), make(chan struct{}), make(chan struct{})}
	s, err := Serve(t.Context(), stuck, pair[1], Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxWorkers {
		send(opLookup, uint64(i+2), []byte("x\x00"))
		<-stuck.started
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

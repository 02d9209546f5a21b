package engineapi

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/fault"
)

// listenAs listens on path as another user.
func listenAs(t *testing.T, path string, uid int) net.Listener {
	t.Helper()
	// The system call itself is of this thread alone.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	set := func(uid int) {
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
			t.Fatal(errno)
		}
	}
	set(uid)
	defer set(os.Getuid())
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestServerPeer has somebody else listen where the daemon's socket should be:
// nothing is sent, above all no password.
func TestServerPeer(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to be somebody else")
	}
	dir, err := os.MkdirTemp("", "peer")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	l := listenAs(t, filepath.Join(dir, "s"), 65534)
	got := make(chan string, 1)
	go func() {
		defer close(got)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			b := make([]byte, 4096)
			if n, _ := conn.Read(b); n > 0 {
				got <- string(b[:n])
			}
			conn.Close()
		}
	}()
	c := New(l.Addr().String())
	defer c.Close()
	c.Restart = func(context.Context) error { t.Error("started"); return nil }
	ctx := context.Background()
	_, pull := c.Pull(ctx, PullRequest{Reference: "x", Registry: RegistryOptions{Password: "secret"}}, nil)
	_, mount := c.Mount(ctx, testMount, nil, nil)
	for _, err := range []error{pull, mount} {
		if fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), "another user's (uid 65534)") || fault.HintOf(err) == "" {
			t.Errorf("got %v", err)
		}
	}
	l.Close()
	if s, ok := <-got; ok {
		t.Errorf("was sent %q", s)
	}
}

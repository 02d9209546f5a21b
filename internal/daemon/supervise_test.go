package daemon

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/imgfs/imgfs/internal/engineapi"
)

// TestSupervised runs a daemon as systemd does: its socket is there before it
// is, and it tells how it is until it has gone.
func TestSupervised(t *testing.T) {
	t.Parallel()
	p := newStore(t)
	dir := t.TempDir()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	passed, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer passed.Close()
	told, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer told.Close()
	told.SetReadDeadline(time.Now().Add(time.Minute))
	var said []string
	wait := func(state string) {
		t.Helper()
		for !slices.ContainsFunc(said, func(s string) bool { return strings.Contains(s, state) }) {
			b := make([]byte, 4<<10)
			n, err := told.Read(b)
			if err != nil {
				t.Fatalf("%s: %v; said: %q", state, err, said)
			}
			said = append(said, string(b[:n]))
		}
	}

	// Who comes before the daemon does is served when it is there.
	client := engineapi.NewRemote(engineapi.Remote{Network: "unix", Address: l.Addr().String()})
	defer client.Close()
	early := make(chan error)
	go func() {
		_, err := client.Ping(testContext(t))
		early <- err
	}()

	var log bytes.Buffer
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh", os.Args[0], "--root", p.Root, "daemon", "--supervised")
	cmd.ExtraFiles, cmd.Stderr = []*os.File{passed}, &log
	cmd.Env = append(os.Environ(), "LISTEN_FDS=1", "NOTIFY_SOCKET="+told.LocalAddr().String(), "WATCHDOG_USEC=100000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	wait("READY=1")
	if !strings.Contains(said[0], "STATUS=0 mounts, 0 images") {
		t.Errorf("said: %q", said)
	}
	if err := <-early; err != nil {
		t.Error(err)
	}
	wait("WATCHDOG=1")
	said = nil
	if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	wait("RELOADING=1\nMONOTONIC_USEC=")
	wait("READY=1")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	wait("STOPPING=1")
	if err := cmd.Wait(); err != nil {
		t.Errorf("daemon: %v", err)
	}
	// systemd's socket is not the daemon's to remove.
	if _, err := os.Stat(l.Addr().String()); err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(log.String()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("log: %s", line)
		}
	}
}

// TestPassed has descriptors passed that are no sockets to listen on.
func TestPassed(t *testing.T) {
	t.Parallel()
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	pair := os.NewFile(uintptr(fds[0]), "pair")
	defer pair.Close()
	defer syscall.Close(fds[1])
	for _, f := range []*os.File{file, pair} {
		if l, err := (Listening{}).inherit(f, int(f.Fd())); err == nil {
			l.Close()
			t.Errorf("%s: taken", f.Name())
		}
	}
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := (Listening{}).inherit(f, int(f.Fd())); err == nil {
		t.Error("a socket that strangers reach is taken")
	}
	if _, err := (Listening{}).takePassed("imgfs.socket", nil); err == nil {
		t.Error("none is enough")
	}
}

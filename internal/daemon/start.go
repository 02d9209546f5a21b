package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

// readyFD is the descriptor on which a spawned daemon says that it is ready.
const readyFD = 3

// Connect returns a client of the store's daemon. It is started when the
// first request finds none; nothing is connected before. A daemon of another
// build that serves nobody is replaced by one of this; one that is in use goes
// on, since the two understand each other's errors at least.
func Connect(p Paths) *engineapi.Client {
	c := engineapi.New(p.Socket)
	c.Restart = func(ctx context.Context) error { return Start(ctx, p) }
	c.Skew = func(ctx context.Context, _ string) error {
		err := Replace(ctx, p)
		if fault.KindOf(err) == fault.Conflict {
			return nil
		}
		return err
	}
	return c
}

// Start makes sure that a daemon of the store answers on its socket. Many
// processes may call it at once: one daemon is started, and all return when
// it is ready. Where it cannot start, its own error is returned.
//
// The daemon is this program run again, as
//
//	imgfs --root ROOT daemon --spawned
//
// in a session of its own, at /, with standard streams on /dev/null.
func Start(ctx context.Context, p Paths) error {
	if err := p.makeRuntime(); err != nil {
		return err
	}
	if err := p.makeRoot(); err != nil {
		return err
	}
	// Held until the child is ready: who comes later waits here, and then
	// finds it.
	lock, err := waitLock(ctx, p.startLock())
	if err != nil {
		return fmt.Errorf("daemon: start %w", err)
	}
	defer lock.Close()
	probe := engineapi.New(p.Socket)
	defer probe.Close()
	if _, err := probe.Ping(ctx); !errors.Is(err, engineapi.ErrNoDaemon) {
		return err
	}
	return spawn(ctx, p)
}

// Replace stops a daemon of another build and starts one of this; a daemon
// that is in use is left alone, and its error (fault.Conflict) returned.
func Replace(ctx context.Context, p Paths) error {
	c := engineapi.New(p.Socket)
	defer c.Close()
	if err := c.Shutdown(ctx, false); err != nil && !errors.Is(err, engineapi.ErrNoDaemon) {
		return err
	}
	return Start(ctx, p)
}

// spawn starts the daemon and waits until it is ready or has said why not.
func spawn(ctx context.Context, p Paths) error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("daemon: %w", err)
	}
	defer r.Close()
	cmd := exec.Command(ownPath(), "--root", p.Root, "daemon", "--spawned")
	cmd.Args[0] = "imgfs"
	cmd.Dir = "/"
	cmd.Env = sharedEnv(os.Environ())
	cmd.ExtraFiles = []*os.File{w} // readyFD
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fault.New(fault.Unavailable, "daemon: %w", err)
	}
	// A daemon outlives us; until then it is our child, and reaped if it ends.
	go cmd.Wait()

	stop := context.AfterFunc(ctx, func() { r.Close() })
	defer stop()
	b, err := io.ReadAll(io.LimitReader(r, 64<<10))
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("daemon: start: %w", ctx.Err())
	case err != nil:
		return fmt.Errorf("daemon: start: %w", err)
	case string(b) == readyOK:
		return nil
	}
	var e engineapi.Error
	if json.Unmarshal(b, &e) != nil || e.Message == "" {
		return fault.WithHint(
			fault.New(fault.Unavailable, "daemon: ended before it was ready: %s", strings.TrimSpace(string(b))),
			"see %s", p.logFile())
	}
	return fmt.Errorf("daemon: %w", e.Err())
}

// readyOK is what a daemon writes to the readiness pipe when it serves;
// anything else is an engineapi.Error.
const readyOK = "ok\n"

// tellReady reports to the starter, once, and closes the pipe.
func tellReady(w *os.File, err error) {
	if w == nil {
		return
	}
	defer w.Close()
	msg := []byte(readyOK)
	if err != nil {
		msg, _ = json.Marshal(engineapi.WireError(err))
	}
	w.Write(msg) // nobody may be listening any more
}

// ownPath returns the path of this program's file: its own, which ps(1) then
// shows, or a link that works as well where the file is gone or replaced.
func ownPath() string {
	const link = "/proc/self/exe"
	name, err := os.Readlink(link)
	if err != nil {
		return link
	}
	byName, err1 := os.Stat(name)
	running, err2 := os.Stat(link)
	if err1 != nil || err2 != nil || !os.SameFile(byName, running) {
		return link
	}
	return name
}

// sharedEnv leaves out of a client's environment what speaks for that client
// alone: each sends its own along with what it asks for; and what its
// supervisor has told it.
func sharedEnv(env []string) []string {
	own := []string{
		"DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "IMGFS_AUTHFILE", "IMGFS_CERTS_DIR",
		"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES",
	}
	return slices.DeleteFunc(env, func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return slices.Contains(own, name)
	})
}

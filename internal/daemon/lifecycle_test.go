package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

// TestOneDaemon has twenty clients want a daemon at once.
func TestOneDaemon(t *testing.T) {
	p := newStore(t)
	spawned(t, p) // for the cleanup; and stopped again
	if err := engineapi.New(p.Socket).Shutdown(testContext(t), false); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	pids := make([]int, 20)
	for i := range pids {
		wg.Go(func() {
			c := Connect(p)
			defer c.Close()
			st, err := c.Status(testContext(t))
			if err != nil {
				t.Error(err)
			}
			pids[i] = st.PID
		})
	}
	wg.Wait()
	for _, pid := range pids {
		if pid != pids[0] || pid == os.Getpid() {
			t.Fatalf("daemons: %v", pids)
		}
	}
}

func TestStoreInUse(t *testing.T) {
	d := runDaemon(t, Options{})
	err := Run(testContext(t), Options{Paths: d.Paths})
	if fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), fmt.Sprintf("in use by process %d", os.Getpid())) {
		t.Errorf("second daemon: %v", err)
	}
	if fault.HintOf(err) == "" {
		t.Error("no hint")
	}
	// The refused one has left the socket alone.
	if _, err := d.client.Ping(testContext(t)); err != nil {
		t.Error(err)
	}
}

// TestIdle has a daemon leave by itself, but not under a mount or a request,
// and a client find a new one.
func TestIdle(t *testing.T) {
	needFUSE(t)
	reg := newRegistry(t)
	ref, _ := reg.push(t, "idle", "file a one")
	d := runDaemon(t, Options{Idle: time.Millisecond * 50})
	dir := mountDir(t)
	if _, err := mountAs(testContext(t), d.client, ref, dir); err != nil {
		t.Fatal(err)
	}
	// The mount outlives several idle times; the clock is another daemon's.
	other := runDaemon(t, Options{Idle: time.Millisecond * 200})
	other.wait(t)
	wantFile(t, filepath.Join(dir, "a"), "one")
	if err := fsUnmount(dir); err != nil {
		t.Fatal(err)
	}
	d.wait(t)
	if _, err := os.Lstat(d.Socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket after the daemon has left: %v", err)
	}
	if _, err := d.client.Mounts(testContext(t)); !errors.Is(err, engineapi.ErrNoDaemon) {
		t.Errorf("no daemon: %v", err)
	}
}

// TestIdleRace lets clients come all the time to a daemon that always wants
// to leave: none may notice.
func TestIdleRace(t *testing.T) {
	p := newStore(t)
	ctx := testContext(t)
	restarts := 0
	for i := range 40 {
		c := engineapi.New(p.Socket)
		c.Restart = func(context.Context) error {
			restarts++
			runDaemon(t, Options{Paths: p, Idle: time.Duration(i%5) * time.Millisecond, Spawned: false})
			return nil
		}
		if _, err := c.Mounts(ctx); err != nil && !errors.Is(err, engineapi.ErrNoDaemon) {
			t.Fatal(err)
		}
		c.Close()
	}
	if restarts == 0 {
		t.Error("no daemon was started")
	}
}

func TestStopRefused(t *testing.T) {
	needFUSE(t)
	reg := newRegistry(t)
	ref, _ := reg.push(t, "stop", "file a one")
	d := runDaemon(t, Options{})
	ctx := testContext(t)
	dir := mountDir(t)
	if _, err := mountAs(ctx, d.client, ref, dir); err != nil {
		t.Fatal(err)
	}
	err := d.client.Shutdown(ctx, false)
	if fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), dir) {
		t.Errorf("stop with a mount: %v", err)
	}
	// A busy mount does not stop a forced one.
	fd, err := openFile(filepath.Join(dir, "a"))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := d.client.Shutdown(ctx, true); err != nil {
		t.Fatal(err)
	}
	if isMounted(t, dir) {
		t.Error("still mounted")
	}
	// The store is unlocked when Shutdown returns.
	l, err := tryLock(d.lockFile())
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	d.wait(t)
}

// TestStaleSocket starts a daemon where a killed one has left its socket.
func TestStaleSocket(t *testing.T) {
	p := newStore(t)
	spawned(t, p)
	killDaemon(t, p)
	if _, err := os.Lstat(p.Socket); err != nil {
		t.Fatalf("the kill left no socket: %v", err)
	}
	if _, err := net.Dial("unix", p.Socket); err == nil {
		t.Fatal("somebody answers")
	}
	spawned(t, p)
}

// TestStartError has the daemon's own words reach who started it.
func TestStartError(t *testing.T) {
	p := newStore(t)
	if err := os.MkdirAll(p.Root, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(p.Root, 0o777); err != nil {
		t.Fatal(err)
	}
	_, err := Connect(p).Ping(testContext(t))
	if fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), "others may write to "+p.Root) || !strings.Contains(fault.HintOf(err), "chmod") {
		t.Errorf("got %v (%v), hint %q", err, fault.KindOf(err), fault.HintOf(err))
	}
}

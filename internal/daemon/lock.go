package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/fault"
)

// errHeld is returned (wrapped) by tryLock when another process has the lock.
var errHeld = errors.New("lock is held")

// tryLock locks path, which it creates, without waiting. The lock goes with
// the file's last descriptor, so also with a killed process.
func tryLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = errHeld
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// waitLock locks path, waiting for as long as ctx allows.
func waitLock(ctx context.Context, path string) (*os.File, error) {
	if f, err := tryLock(path); !errors.Is(err, errHeld) {
		return f, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	// flock cannot be interrupted from within: a waiter that gives up leaves
	// its goroutine behind, which lets the lock go as soon as it gets it.
	got := make(chan error)
	abandoned := make(chan struct{})
	go func() {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		for errors.Is(err, unix.EINTR) {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		}
		select {
		case got <- err:
		case <-abandoned:
			f.Close()
		}
	}()
	select {
	case err := <-got:
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		return f, nil
	case <-ctx.Done():
		close(abandoned)
		return nil, fmt.Errorf("lock %s: %w", path, ctx.Err())
	}
}

// lockStore takes the store's lock; where wait is false a store in use is an
// error that names the holder.
func lockStore(ctx context.Context, p Paths, wait bool) (*os.File, error) {
	var f *os.File
	var err error
	if wait {
		f, err = waitLock(ctx, p.lockFile())
	} else {
		f, err = tryLock(p.lockFile())
	}
	switch {
	case errors.Is(err, errHeld), errors.Is(err, context.DeadlineExceeded):
		return nil, fault.WithHint(
			fault.New(fault.Conflict, "store %s is in use by process %s", p.Root, holder(p)),
			"imgfs daemon stop")
	case err != nil:
		return nil, fmt.Errorf("store: %w", err)
	}
	if err := f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("store: lock: %w", err)
		}
	}
	return f, nil
}

// holder returns the pid that the lock file names, "?" if it names none.
func holder(p Paths) string {
	b, err := os.ReadFile(p.lockFile())
	if s := strings.TrimSpace(string(b)); err == nil && s != "" {
		return s
	}
	return "?"
}

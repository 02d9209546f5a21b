package daemon

import (
	"fmt"
	"os"
	"sync"

	"github.com/imgfs/imgfs/fs"
	"golang.org/x/sys/unix"
)

// watcher tells when a kernel mount of this mount namespace has gone: poll(2)
// on mountinfo reports every change of the table. It runs while it watches
// something.
type watcher struct {
	mu     sync.Mutex // guards the rest
	marks  map[mountMark]func()
	wake   *os.File // write end of the pipe that ends the loop; nil: not running
	closed bool
	wg     sync.WaitGroup
}

// mountMark identifies a mount: devices of block-less file systems are unique
// while they exist.
type mountMark struct{ device, target string }

func newWatcher() *watcher { return &watcher{marks: map[mountMark]func(){}} }

// add calls gone, once, from another goroutine, when the mount has gone,
// which may have happened already.
func (w *watcher) add(m mountMark, gone func()) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return fmt.Errorf("mount watcher: %w", os.ErrClosed)
	}
	w.marks[m] = gone
	if w.wake != nil {
		// The loop looks again at every wake-up, also at this one.
		_, err := w.wake.Write([]byte{1})
		return err
	}
	// Not os.Open: that hands the file to the runtime's epoll, and whoever polls
	// this file first takes the event from the others.
	table, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/proc/self/mountinfo", Err: err}
	}
	r, wake, err := os.Pipe()
	if err != nil {
		unix.Close(table)
		return err
	}
	w.wake = wake
	w.wg.Go(func() {
		defer unix.Close(table)
		defer r.Close()
		w.loop(table, r)
	})
	return nil
}

// close ends the watching; no gone is called afterwards.
func (w *watcher) close() {
	w.mu.Lock()
	w.closed = true
	clear(w.marks)
	if w.wake != nil {
		w.wake.Close()
	}
	w.mu.Unlock()
	w.wg.Wait()
}

func (w *watcher) loop(table int, wake *os.File) {
	fds := []unix.PollFd{
		{Fd: int32(table), Events: unix.POLLPRI},
		{Fd: int32(wake.Fd()), Events: unix.POLLIN},
	}
	for {
		if !w.look() {
			return
		}
		_, err := unix.Poll(fds, -1)
		if err != nil && err != unix.EINTR {
			return
		}
		if fds[1].Revents&unix.POLLIN != 0 {
			wake.Read(make([]byte, 64))
		}
	}
}

// look calls the gone of every mount that is not in the table any more, and
// reports whether to go on.
func (w *watcher) look() bool {
	list, err := fs.Mounts()
	have := map[mountMark]bool{}
	for _, e := range list {
		have[mountMark{e.Dev, e.Target}] = true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return false
	}
	if err != nil {
		return true // an unreadable table says nothing about a mount
	}
	for m, gone := range w.marks {
		if !have[m] {
			delete(w.marks, m)
			w.wg.Go(gone)
		}
	}
	return true
}

package imagedb

import (
	"errors"
	"sync"

	"golang.org/x/sys/unix"
)

// watch tells whether anything was done to the files of a directory since it
// was asked last, so that a listing of ten thousand images need not look at
// each. Where the kernel gives none, the answer is always yes.
type watch struct {
	mu     sync.Mutex // held by who asks, until it has looked
	fd     int        // of inotify; < 0: none
	looked bool       // once, since the watch began
}

// watchMask is all that makes a file another, or its content.
const watchMask = unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_CREATE | unix.IN_DELETE |
	unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_UNMOUNT

// watchDir returns a watch of a directory. It answers yes at first.
func watchDir(dir string) *watch {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return &watch{fd: -1}
	}
	w := &watch{fd: fd}
	if _, err := unix.InotifyAddWatch(fd, dir, watchMask); err != nil {
		w.close()
		return w
	}
	return w
}

// changed reports whether something was done, or may have been.
//
// Preconditions: w.mu is held.
func (w *watch) changed() bool {
	if w.fd < 0 {
		return true
	}
	some := !w.looked
	w.looked = true
	var b [4096]byte
	for ; ; some = true {
		switch _, err := unix.Read(w.fd, b[:]); {
		case err == nil, errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return some
		default:
			return true
		}
	}
}

func (w *watch) close() {
	if w.fd >= 0 {
		unix.Close(w.fd)
		w.fd = -1
	}
}

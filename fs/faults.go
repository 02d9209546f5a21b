package fs

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/imgfs/imgfs/internal/erofs"
)

// maxReasons bounds what faults remembers; further reasons are only counted.
const maxReasons = 64

// faults turns errors into errno and remembers why.
type faults struct {
	log *slog.Logger

	mu      sync.Mutex
	total   uint64
	last    string
	reasons map[string]struct{}
}

func newFaults(log *slog.Logger) *faults {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &faults{log: log, reasons: map[string]struct{}{}}
}

// status returns the errno of err, see the package's table. Those of the first
// group are answers, not failures.
func (f *faults) status(op string, err error) fuse.Status {
	var errno syscall.Errno
	switch {
	case err == nil:
		return fuse.OK
	case errors.Is(err, erofs.ErrNotExist):
		return fuse.ENOENT
	case errors.Is(err, context.Canceled):
		return fuse.EINTR
	case errors.As(err, &errno) && err == error(errno): // said by this package, not by a disk
		return fuse.Status(errno)
	}
	f.note(op, err)
	return fuse.EIO
}

func (f *faults) note(op string, err error) {
	reason := err.Error()
	f.mu.Lock()
	f.total++
	f.last = reason
	_, known := f.reasons[reason]
	if !known && len(f.reasons) < maxReasons {
		f.reasons[reason] = struct{}{}
	} else {
		known = true
	}
	f.mu.Unlock()
	if !known {
		f.log.Error("file system", "op", op, "err", err)
	}
}

func (f *faults) get() (total uint64, last string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.total, f.last
}

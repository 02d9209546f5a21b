package lower

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/imgfs/imgfs/internal/erofs"
)

// maxReasons bounds what Faults remembers; further reasons are only counted.
const maxReasons = 64

// Faults turns errors into errno and remembers why.
type Faults struct {
	log *slog.Logger

	mu      sync.Mutex
	total   uint64
	last    string
	reasons map[string]struct{}
}

// NewFaults returns Faults that log each reason once; nil discards.
func NewFaults(log *slog.Logger) *Faults {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Faults{log: log, reasons: map[string]struct{}{}}
}

// Status returns the errno of err (package fs has the table). Those of the first
// group are answers, not failures.
func (f *Faults) Status(op string, err error) fuse.Status {
	var errno syscall.Errno
	switch {
	case err == nil:
		return fuse.OK
	case errors.Is(err, erofs.ErrNotExist):
		return fuse.ENOENT
	case errors.Is(err, context.Canceled):
		return fuse.EINTR
	case errors.As(err, &errno) && err == error(errno): // said by a file system of ours, not by a disk
		return fuse.Status(errno)
	}
	f.note(op, err)
	return fuse.EIO
}

func (f *Faults) note(op string, err error) {
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

// Get returns the number of failures and the reason of the last one.
func (f *Faults) Get() (total uint64, last string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.total, f.last
}

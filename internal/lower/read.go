package lower

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync/atomic"

	"github.com/imgfs/imgfs/internal/erofs"
	"golang.org/x/sys/unix"
)

// Data is one device of a chain: a layer's data file.
type Data interface {
	// Fill returns when the n bytes at off are present, at once if they are,
	// and the file that they are in: in that file they stay, even if the store
	// goes on with another. It returns an error when they will not be present,
	// or ctx's when the caller gives up waiting; the work goes on without it.
	// Who reads on reads up to end, where the extent of his file ends.
	Fill(ctx context.Context, off, n, end int64) (*os.File, error)
}

// Read fills buf from byte off of a regular file. It returns less than
// len(buf) only at the end of the file, and never invents a byte.
func (t *Tree) Read(ctx context.Context, n erofs.NID, off uint64, buf []byte) (int, error) {
	return t.readWith(n, off, buf, func(d Data, dst []byte, at, end int64) error {
		f, err := d.Fill(ctx, at, int64(len(dst)), end)
		if err != nil {
			return err
		}
		got, err := f.ReadAt(dst, at)
		if got < len(dst) {
			if err == nil || err == io.EOF {
				err = fmt.Errorf("data file ends at %d, wanted %d bytes at %d: %w", at+int64(got), len(dst), at, io.ErrUnexpectedEOF)
			}
			return err
		}
		return nil
	})
}

// readWith walks the extents of buf's range: holes become zeros, all else is
// copied by pread.
func (t *Tree) readWith(n erofs.NID, off uint64, buf []byte, pread func(d Data, dst []byte, at, end int64) error) (int, error) {
	done := 0
	for done < len(buf) {
		e, err := t.img.Extent(n, off+uint64(done))
		if err == io.EOF {
			break
		}
		if err != nil {
			return 0, err
		}
		dst := buf[done:]
		if uint64(len(dst)) > e.Len {
			dst = dst[:e.Len]
		}
		switch {
		case e.Hole:
			clear(dst)
		case e.Device >= len(t.data):
			return 0, fmt.Errorf("%w: no device %d", erofs.ErrCorrupt, e.Device)
		default:
			if err := pread(t.data[e.Device], dst, int64(e.Off), int64(e.Off+e.Len)); err != nil {
				return 0, err
			}
		}
		done += len(dst)
	}
	return done, nil
}

// TryRead is Read if that needs no waiting, neither for Fill nor for a disk;
// otherwise ok is false. blind is set where a data file's file system cannot
// tell: then nobody need try again.
func (t *Tree) TryRead(blind *atomic.Bool, n erofs.NID, off uint64, buf []byte) (done int, ok bool) {
	if blind.Load() {
		return 0, false
	}
	done, err := t.readWith(n, off, buf, func(d Data, dst []byte, at, end int64) error {
		f, err := d.Fill(t.ended, at, int64(len(dst)), end)
		if err != nil {
			return err
		}
		got, err := unix.Preadv2(int(f.Fd()), [][]byte{dst}, at, unix.RWF_NOWAIT)
		runtime.KeepAlive(f)
		switch {
		case err == unix.EOPNOTSUPP:
			blind.Store(true)
			return err
		case err != nil:
			return err
		case got < len(dst):
			return unix.EAGAIN
		}
		return nil
	})
	return done, err == nil
}

// Request is the context of a FUSE request: it ends when the kernel interrupts
// the request or the file system is gone.
type Request struct {
	context.Context
	cancel context.CancelFunc
	gone   chan struct{} // closed when the goroutine of NewRequest has returned
}

// NewRequest returns the context of a request. The caller calls End.
func NewRequest(interrupt, unmounted <-chan struct{}) *Request {
	r := &Request{gone: make(chan struct{})}
	r.Context, r.cancel = context.WithCancel(context.Background())
	go func() {
		defer close(r.gone)
		select {
		case <-interrupt:
		case <-unmounted:
		case <-r.Done():
		}
		r.cancel()
	}()
	return r
}

// End frees what NewRequest took.
func (r *Request) End() {
	r.cancel()
	<-r.gone
}

// Data returns a device's data: where an extent's bytes are.
func (t *Tree) Data(device int) (Data, error) {
	if device < 0 || device >= len(t.data) {
		return nil, fmt.Errorf("%w: no device %d", erofs.ErrCorrupt, device)
	}
	return t.data[device], nil
}

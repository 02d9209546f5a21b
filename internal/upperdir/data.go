package upperdir

import (
	"context"
	"errors"
	"io"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/lower"
)

// contents reads the data of a regular file from its beginning.
type contents struct {
	read  func(p []byte, off int64) (int, error)
	close func()
	off   int64
}

func (c *contents) Read(p []byte) (int, error) {
	n, err := c.read(p, c.off)
	c.off += int64(n)
	if n == 0 && err == nil {
		err = io.EOF
	}
	return n, err
}

func (c *contents) Close() { c.close() }

// lowerContents reads a file of the lower.
func lowerContents(ctx context.Context, low *lower.Tree, nid erofs.NID) *contents {
	return &contents{
		read: func(p []byte, off int64) (int, error) {
			// A piece at a time: it is fetched before it is read.
			return low.Read(ctx, nid, uint64(off), p[:min(len(p), 1<<20)])
		},
		close: func() {},
	}
}

// contents opens the data of an item that is a regular file. It returns
// unix.ENOENT if that has vanished, or is another type of inode by now.
func (w *walker) contents(it *item) (*contents, error) {
	if !it.upper() {
		return lowerContents(w.ctx, w.low, it.low), nil
	}
	fd, err := openRegular(it.dirfd, it.name, unix.O_RDONLY)
	if err == unix.EINVAL || err == unix.ELOOP || err == unix.ENXIO {
		err = unix.ENOENT
	}
	if err != nil {
		return nil, err
	}
	// It may have become whole since the walk came to it, never the reverse.
	meta, err := w.format.Metacopy(fd)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	if !meta {
		return fdContents(fd), nil
	}
	unix.Close(fd)
	var a erofs.Attr
	if it.low == 0 || w.img.Stat(it.low, &a) != nil || a.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, damaged("the file of the image that has its data is not there")
	}
	return lowerContents(w.ctx, w.low, it.low), nil
}

// fdContents reads a file, and closes it.
func fdContents(fd int) *contents {
	return &contents{
		read: func(p []byte, off int64) (int, error) {
			for {
				n, err := unix.Pread(fd, p, off)
				if err != unix.EINTR {
					return max(n, 0), err
				}
			}
		},
		close: func() { unix.Close(fd) },
	}
}

// copyData writes size bytes of an item to dst.
func (w *walker) copyData(dst io.Writer, it *item, src *contents, buf []byte) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{dst}, io.LimitReader(src, it.attr.Size), buf)
	if err != nil || src.off >= it.attr.Size {
		return err
	}
	if it.metacopy {
		return damaged("has %d bytes, and its data in the image %d", it.attr.Size, src.off)
	}
	return fault.WithHint(fault.New(fault.Conflict, "became shorter while it was read"), "try again when nobody writes to it")
}

// vanished reports whether an error says that an item is no longer there.
func vanished(err error) bool { return errors.Is(err, unix.ENOENT) }

package upperdir

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/lower"
)

// Diff calls fn for what is different in b, compared with a, in the order of
// paths and by the rules of [Dir.Changes]. Files whose attributes are the same
// are compared byte by byte, unless they lie at the same place of the same
// layer.
func Diff(ctx context.Context, a, b *lower.Tree, fn func(Change) error) error {
	d := differ{ctx: ctx, a: newWalker(ctx, Format{}, a), b: newWalker(ctx, Format{}, b)}
	if _, err := d.directory("", a.Image().Root(), b.Image().Root()); err != nil {
		return err
	}
	return d.tell(fn)
}

// differ compares two trees.
type differ struct {
	collector
	ctx  context.Context
	a, b *walker
}

// directory compares what is in two directories, of which a may be 0 or no
// directory, and reports whether something differs.
func (d *differ) directory(path string, a, b erofs.NID) (differs bool, err error) {
	if err := d.ctx.Err(); err != nil {
		return false, err
	}
	err = d.b.names(b, func(name string, nb erofs.NID) error {
		na, err := d.a.lookup(a, name)
		if err != nil {
			return at(path, err)
		}
		one, err := d.one(join(path, name), na, nb)
		differs = differs || one
		return err
	})
	if err != nil || !d.a.isDir(a) {
		return differs, err
	}
	err = d.a.names(a, func(name string, _ erofs.NID) error {
		nb, err := d.b.lookup(b, name)
		if err == nil && nb == 0 {
			differs = true
			d.list = append(d.list, Change{Deleted, "/" + join(path, name)})
		}
		return at(path, err)
	})
	return differs, err
}

// one compares two inodes, of which a may be 0.
func (d *differ) one(path string, a, b erofs.NID) (bool, error) {
	differs := a == 0
	if a != 0 {
		same, err := d.same(a, b)
		if err != nil {
			return false, at(path, err)
		}
		differs = !same
	}
	if d.b.isDir(b) {
		below, err := d.directory(path, a, b)
		if err != nil {
			return false, err
		}
		differs = differs || below
	}
	if differs {
		k := Changed
		if a == 0 {
			k = Added
		}
		d.list = append(d.list, Change{k, "/" + path})
	}
	return differs, nil
}

// same reports whether two inodes have the same attributes and data.
func (d *differ) same(a, b erofs.NID) (bool, error) {
	var sa, sb erofs.Attr
	if err := errors.Join(d.a.img.Stat(a, &sa), d.b.img.Stat(b, &sb)); err != nil {
		return false, err
	}
	if lowerAttr(&sa) != lowerAttr(&sb) {
		return false, nil
	}
	xa, err1 := lowerXattrs(d.a.img, a)
	xb, err2 := lowerXattrs(d.b.img, b)
	if err := errors.Join(err1, err2); err != nil || !maps.Equal(xa, xb) {
		return false, err
	}
	switch sa.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		ta, err1 := d.a.img.ReadLink(a)
		tb, err2 := d.b.img.ReadLink(b)
		return bytes.Equal(ta, tb), errors.Join(err1, err2)
	case unix.S_IFREG:
		return d.sameData(a, b, sa.Size)
	}
	return true, nil
}

// sameData compares the data of two files of the same size.
func (d *differ) sameData(a, b erofs.NID, size uint64) (bool, error) {
	if size == 0 || d.samePlace(a, b, size) {
		return true, nil
	}
	ra, rb := lowerContents(d.ctx, d.a.low, a), lowerContents(d.ctx, d.b.low, b)
	ba, bb := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		na, err1 := io.ReadFull(ra, ba)
		nb, err2 := io.ReadFull(rb, bb)
		if !bytes.Equal(ba[:na], bb[:nb]) {
			return false, nil
		}
		for _, err := range []error{err1, err2} {
			if err == io.EOF || err == io.ErrUnexpectedEOF {
				return err1 == err2, nil
			}
			if err != nil {
				return false, err
			}
		}
	}
}

// samePlace reports whether two files are the same bytes of the same layer.
func (d *differ) samePlace(a, b erofs.NID, size uint64) bool {
	for off := uint64(0); off < size; {
		ea, err1 := d.a.img.Extent(a, off)
		eb, err2 := d.b.img.Extent(b, off)
		switch {
		case err1 != nil || err2 != nil || ea.Len != eb.Len || ea.Hole != eb.Hole || ea.Len == 0:
			return false
		case !ea.Hole && (ea.Off != eb.Off || d.a.img.Devices()[ea.Device].Tag != d.b.img.Devices()[eb.Device].Tag):
			return false
		}
		off += ea.Len
	}
	return true
}

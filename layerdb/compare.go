package layerdb

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/erofs"
)

// side is one of two trees that are compared, and the data its one device is.
type side struct {
	img  *erofs.Image
	data io.ReaderAt
}

// comparison holds the tree that a table of contents gave against that of the
// layer's stream.
type comparison struct {
	ctx          context.Context
	kept, stream side
	same         map[erofs.NID]erofs.NID // files compared: of kept -> of the stream
	a, b         []byte
}

// pair is an inode of either tree under one name.
type pair struct {
	path         string // directories end with a slash
	kept, stream erofs.NID
}

// trees compares everything: names, attributes, content, and which names are
// links of one file. lie says what differs.
func (c *comparison) trees() (lie, err error) {
	c.same = map[erofs.NID]erofs.NID{}
	c.a, c.b = make([]byte, 256<<10), make([]byte, 256<<10)
	todo := []pair{{"/", c.kept.img.Root(), c.stream.img.Root()}}
	for len(todo) > 0 {
		p := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if err := c.ctx.Err(); err != nil {
			return nil, err
		}
		dir, lie, err := c.inode(p)
		if dir && lie == nil && err == nil {
			todo, lie, err = c.names(p, todo)
		}
		if lie != nil {
			lie = fmt.Errorf("its table of contents lies: %s: %w", p.path, lie)
		}
		if lie != nil || err != nil {
			return lie, err
		}
	}
	return nil, nil
}

// names compares the names of a directory and appends them to todo.
func (c *comparison) names(p pair, todo []pair) (_ []pair, lie, err error) {
	kept, err := c.kept.names(p.kept)
	if err != nil {
		return nil, nil, err
	}
	stream, err := c.stream.names(p.stream)
	if err != nil {
		return nil, nil, err
	}
	if p.path == "/" {
		// Files of stargz's own, which its readers hide.
		for _, own := range []string{".prefetch.landmark", ".no.prefetch.landmark", "stargz.index.json"} {
			if _, ok := kept[own]; !ok {
				delete(stream, own)
			}
		}
	}
	for name, n := range stream {
		k, ok := kept[name]
		if !ok {
			return nil, fmt.Errorf("it lacks %q", name), nil
		}
		todo = append(todo, pair{p.path + name, k, n})
	}
	if len(kept) > len(stream) {
		return nil, fmt.Errorf("it has names that are not there"), nil
	}
	return todo, nil, nil
}

func (s side) names(dir erofs.NID) (map[string]erofs.NID, error) {
	names := map[string]erofs.NID{}
	err := s.img.ReadDir(dir, 0, func(e *erofs.Dirent) bool {
		names[string(e.Name)] = e.NID
		return true
	})
	delete(names, ".")
	delete(names, "..")
	return names, err
}

// inode compares two inodes; dir says that both are directories.
func (c *comparison) inode(p pair) (dir bool, lie, err error) {
	var a, b erofs.Attr
	if err := c.kept.img.Stat(p.kept, &a); err != nil {
		return false, nil, err
	}
	if err := c.stream.img.Stat(p.stream, &b); err != nil {
		return false, nil, err
	}
	dir = b.Mode&unix.S_IFMT == unix.S_IFDIR
	if a.MtimeNsec == 0 { // most tables of contents know seconds, and stargz rounds to them
		if a.Mtime == b.Mtime+1 && b.MtimeNsec >= 5e8 {
			b.Mtime++
		}
		b.MtimeNsec = 0
	}
	a.Blocks, b.Blocks = 0, 0 // sparse files are not so everywhere
	if dir {
		a.Size, b.Size = 0, 0
		a.Nlink, b.Nlink = 0, 0
	}
	if a != b {
		return dir, fmt.Errorf("attributes are %+v, not %+v", b, a), nil
	}
	xa, err := c.kept.xattrs(p.kept)
	if err != nil {
		return dir, nil, err
	}
	xb, err := c.stream.xattrs(p.stream)
	if err != nil {
		return dir, nil, err
	}
	if !bytes.Equal(xa, xb) {
		return dir, fmt.Errorf("extended attributes are %q, not %q", xb, xa), nil
	}
	switch b.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		ta, err := c.kept.img.ReadLink(p.kept)
		if err != nil {
			return dir, nil, err
		}
		tb, err := c.stream.img.ReadLink(p.stream)
		if err == nil && !bytes.Equal(ta, tb) {
			lie = fmt.Errorf("leads to %q, not %q", tb, ta)
		}
		return dir, lie, err
	case unix.S_IFREG:
		if n, ok := c.same[p.kept]; ok {
			if n != p.stream {
				lie = fmt.Errorf("is a link of another file")
			}
			return dir, lie, nil
		}
		c.same[p.kept] = p.stream
		lie, err = c.content(p, int64(b.Size))
	}
	return dir, lie, err
}

// xattrs returns all attributes of an inode, in one form.
func (s side) xattrs(n erofs.NID) ([]byte, error) {
	var out []byte
	err := s.img.Xattrs(n, func(name string, value []byte) bool {
		out = fmt.Appendf(out, "%q=%q ", name, value)
		return true
	})
	return out, err
}

// content compares the data of two regular files.
func (c *comparison) content(p pair, size int64) (lie, err error) {
	for off := int64(0); off < size; {
		n := min(size-off, int64(len(c.a)))
		if err := c.kept.read(p.kept, off, c.a[:n]); err != nil {
			return nil, err
		}
		if err := c.stream.read(p.stream, off, c.b[:n]); err != nil {
			return nil, err
		}
		if !bytes.Equal(c.a[:n], c.b[:n]) {
			return fmt.Errorf("content differs between bytes %d and %d", off, off+n), nil
		}
		off += n
		if err := c.ctx.Err(); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// read fills p from byte off of a file.
func (s side) read(n erofs.NID, off int64, p []byte) error {
	for len(p) > 0 {
		e, err := s.img.Extent(n, uint64(off))
		if err != nil {
			return err
		}
		k := min(len(p), int(min(e.Len, 1<<30)))
		if e.Hole {
			clear(p[:k])
		} else if got, err := s.data.ReadAt(p[:k], int64(e.Off)); got < k {
			return fmt.Errorf("data at %d: %w", e.Off, err)
		}
		p, off = p[k:], off+int64(k)
	}
	return nil
}

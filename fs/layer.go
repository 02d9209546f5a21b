package fs

import (
	"strings"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/layertar"
	"golang.org/x/sys/unix"
)

// layer is the tree of a single layer's index, as aufs kept layers: a deleted
// name is an empty file .wh.NAME, a directory that hides those below holds
// .wh..wh..opq. A hard link to a file of another layer is an empty file with
// the attribute layertar.MarkLink.
type layer struct{ tree }

const (
	whiteoutPrefix = ".wh."
	opaqueName     = ".wh..wh..opq"
	opaqueBit      = 1 << (treeShift - 1) // directory's nid | opaqueBit: its opaqueName
	opaqueCookie   = 1 << 62              // behind all cookies of an index
)

func (t *layer) whiteout(n erofs.NID) bool {
	if n&opaqueBit != 0 {
		return true
	}
	var a erofs.Attr
	return t.img.Stat(n, &a) == nil && a.Xattrs && a.Mode&unix.S_IFMT == unix.S_IFCHR && t.marked(n, layertar.MarkWhiteout)
}

func (t *layer) marked(n erofs.NID, mark string) bool {
	_, err := t.img.Xattr(n, mark)
	return err == nil
}

func (t *layer) attr(n erofs.NID, out *fuse.Attr) error {
	if !t.whiteout(n) {
		return t.tree.attr(n, out)
	}
	if err := t.tree.attr(n&^opaqueBit, out); err != nil {
		return err
	}
	out.Ino = t.number | uint64(n)
	out.Mode = unix.S_IFREG | 0o444
	out.Nlink, out.Size, out.Blocks, out.Rdev = 1, 0, 0, 0
	return nil
}

func (t *layer) entry(n erofs.NID, out *fuse.EntryOut) error {
	if err := t.attr(n, &out.Attr); err != nil {
		return err
	}
	out.NodeId, out.Generation = t.node(n), 1
	out.EntryValid, out.AttrValid = forever, forever
	return nil
}

func (t *layer) lookup(dir erofs.NID, name string, out *fuse.EntryOut) error {
	out.EntryValid = forever
	if name == opaqueName {
		if t.marked(dir, layertar.MarkOpaque) {
			return t.entry(dir|opaqueBit, out)
		}
		return nil
	}
	hidden, isWhiteout := strings.CutPrefix(name, whiteoutPrefix)
	if isWhiteout {
		name = hidden
	}
	n, _, err := t.img.Lookup(dir, unsafe.Slice(unsafe.StringData(name), len(name)))
	switch {
	case err == erofs.ErrNotExist:
		return nil
	case err != nil:
		return err
	case t.whiteout(n) != isWhiteout:
		return nil
	}
	return t.entry(n, out)
}

func (t *layer) readDir(dir erofs.NID, cookie uint64, plus bool, out *fuse.DirEntryList) error {
	if cookie == opaqueCookie {
		return nil
	}
	add := func(e fuse.DirEntry, n erofs.NID) bool {
		if !plus {
			return out.AddDirEntry(e)
		}
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			return false
		}
		if e.Name != "." && e.Name != ".." {
			if err := t.entry(n, entry); err != nil {
				*entry = fuse.EntryOut{}
			}
		}
		return true
	}
	full := false
	err := t.img.ReadDir(dir, cookie, func(d *erofs.Dirent) bool {
		e := fuse.DirEntry{Mode: uint32(d.Type) << 12, Name: string(d.Name), Ino: t.ino(d.NID), Off: d.Next}
		if d.Type == unix.DT_CHR && t.whiteout(d.NID) {
			e.Name, e.Mode = whiteoutPrefix+e.Name, unix.S_IFREG
		}
		full = !add(e, d.NID)
		return !full
	})
	if err == nil && !full && t.marked(dir, layertar.MarkOpaque) {
		n := dir | opaqueBit
		add(fuse.DirEntry{Mode: unix.S_IFREG, Name: opaqueName, Ino: t.number | uint64(n), Off: opaqueCookie}, n)
	}
	return err
}

// shown tells whether an attribute of a layer is the image's own.
func shown(name string) bool {
	return !strings.HasPrefix(name, erofs.MarkerPrefix) || name == layertar.MarkLink
}

func (t *layer) xattr(n erofs.NID, name string, dest []byte) (uint32, error) {
	if n&opaqueBit != 0 || !shown(name) {
		return 0, unix.ENODATA
	}
	return t.tree.xattr(n, name, dest)
}

func (t *layer) xattrs(n erofs.NID, root bool, dest []byte) (uint32, error) {
	if n&opaqueBit != 0 {
		return 0, nil
	}
	return listNames(t.img, n, dest, func(name string) bool { return shown(name) && (root || !isTrusted(name)) })
}

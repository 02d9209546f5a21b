package fs

import (
	"strings"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/layertar"
	"github.com/imgfs/imgfs/internal/lower"
	"golang.org/x/sys/unix"
)

// layer is the tree of a single layer's index, as aufs kept layers: a deleted
// name is an empty file .wh.NAME, a directory that hides those below holds
// .wh..wh..opq. A hard link to a file of another layer is an empty file with
// the attribute layertar.MarkLink.
type layer struct{ *lower.Tree }

const (
	whiteoutPrefix = ".wh."
	opaqueName     = ".wh..wh..opq"
	opaqueBit      = 1 << (lower.TreeShift - 1) // directory's nid | opaqueBit: its opaqueName
	opaqueCookie   = 1 << 62                    // behind all cookies of an index
)

func (t *layer) whiteout(n erofs.NID) bool {
	if n&opaqueBit != 0 {
		return true
	}
	var a erofs.Attr
	return t.Image().Stat(n, &a) == nil && a.Xattrs && a.Mode&unix.S_IFMT == unix.S_IFCHR && t.marked(n, layertar.MarkWhiteout)
}

func (t *layer) marked(n erofs.NID, mark string) bool {
	_, err := t.Image().Xattr(n, mark)
	return err == nil
}

func (t *layer) Attr(n erofs.NID, out *fuse.Attr) error {
	if !t.whiteout(n) {
		return t.Tree.Attr(n, out)
	}
	if err := t.Tree.Attr(n&^opaqueBit, out); err != nil {
		return err
	}
	out.Ino = t.Ino(n)
	out.Mode = unix.S_IFREG | 0o444
	out.Nlink, out.Size, out.Blocks, out.Rdev = 1, 0, 0, 0
	return nil
}

func (t *layer) Entry(n erofs.NID, out *fuse.EntryOut) error {
	if err := t.Attr(n, &out.Attr); err != nil {
		return err
	}
	out.NodeId, out.Generation = t.Node(n), 1
	out.EntryValid, out.AttrValid = lower.Forever, lower.Forever
	return nil
}

func (t *layer) Lookup(dir erofs.NID, name string, out *fuse.EntryOut) error {
	out.EntryValid = lower.Forever
	if name == opaqueName {
		if t.marked(dir, layertar.MarkOpaque) {
			return t.Entry(dir|opaqueBit, out)
		}
		return nil
	}
	hidden, isWhiteout := strings.CutPrefix(name, whiteoutPrefix)
	if isWhiteout {
		name = hidden
	}
	n, _, err := t.Image().Lookup(dir, unsafe.Slice(unsafe.StringData(name), len(name)))
	switch {
	case err == erofs.ErrNotExist:
		return nil
	case err != nil:
		return err
	case t.whiteout(n) != isWhiteout:
		return nil
	}
	return t.Entry(n, out)
}

func (t *layer) ReadDir(dir erofs.NID, cookie uint64, plus bool, out *fuse.DirEntryList) error {
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
			if err := t.Entry(n, entry); err != nil {
				*entry = fuse.EntryOut{}
			}
		}
		return true
	}
	full := false
	err := t.Image().ReadDir(dir, cookie, func(d *erofs.Dirent) bool {
		e := fuse.DirEntry{Mode: uint32(d.Type) << 12, Name: string(d.Name), Ino: t.Ino(d.NID), Off: d.Next}
		if d.Type == unix.DT_CHR && t.whiteout(d.NID) {
			e.Name, e.Mode = whiteoutPrefix+e.Name, unix.S_IFREG
		}
		full = !add(e, d.NID)
		return !full
	})
	if err == nil && !full && t.marked(dir, layertar.MarkOpaque) {
		n := dir | opaqueBit
		add(fuse.DirEntry{Mode: unix.S_IFREG, Name: opaqueName, Ino: t.Ino(n), Off: opaqueCookie}, n)
	}
	return err
}

// shown tells whether an attribute of a layer is the image's own.
func shown(name string) bool {
	return !strings.HasPrefix(name, erofs.MarkerPrefix) || name == layertar.MarkLink
}

func (t *layer) Xattr(n erofs.NID, name string, dest []byte) (uint32, error) {
	if n&opaqueBit != 0 || !shown(name) {
		return 0, unix.ENODATA
	}
	return t.Tree.Xattr(n, name, dest)
}

func (t *layer) Xattrs(n erofs.NID, root bool, dest []byte) (uint32, error) {
	if n&opaqueBit != 0 {
		return 0, nil
	}
	return lower.ListNames(t.Image(), n, dest, func(name string) bool { return shown(name) && (root || !lower.Trusted(name)) })
}

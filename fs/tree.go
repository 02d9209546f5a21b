package fs

import (
	"context"
	"errors"
	"io"
	"math"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/imgfs/imgfs/internal/erofs"
	"golang.org/x/sys/unix"
)

const (
	treeShift = 40
	nidMask   = 1<<treeShift - 1

	// forever is the longest time the kernel can be told to keep something:
	// seconds, clamped by it to what its clock can hold.
	forever = math.MaxInt64

	fuseRoot = fuse.FUSE_ROOT_ID
)

// tree answers for the inodes of one index. It is immutable.
type tree struct {
	img    *erofs.Image
	data   []Data // by device
	number uint64 // tree number << treeShift
	root   uint64 // node ID of the root directory
	self   uint64 // st_ino of the root directory
	faults *faults
	ended  context.Context // has ended: who is given it waits for nothing
}

func newTree(img *erofs.Image, data []Data, number, root uint64, f *faults) tree {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	t := tree{img: img, data: data, number: number << treeShift, root: root, self: root, faults: f, ended: ended}
	if root == fuseRoot {
		t.self = t.number | uint64(img.Root())
	}
	return t
}

// node returns the node ID of an inode.
func (t *tree) node(n erofs.NID) uint64 {
	if n == t.img.Root() {
		return t.root
	}
	return t.ino(n)
}

// ino returns the st_ino of an inode.
func (t *tree) ino(n erofs.NID) uint64 {
	if n == t.img.Root() {
		return t.self
	}
	return t.number | uint64(n)
}

// nid is the inverse of node.
func (t *tree) nid(node uint64) erofs.NID {
	if node == t.root {
		return t.img.Root()
	}
	return erofs.NID(node & nidMask)
}

// attr fills out.
func (t *tree) attr(n erofs.NID, out *fuse.Attr) error {
	var a erofs.Attr
	if err := t.img.Stat(n, &a); err != nil {
		return err
	}
	out.Ino = t.ino(n)
	out.Size = a.Size
	out.Blocks = a.Blocks
	out.Mode = a.Mode
	out.Nlink = a.Nlink
	out.Uid = a.UID
	out.Gid = a.GID
	out.Rdev = a.Rdev
	out.Blksize = blockSize
	// The one time a layer records. EROFS shows it three times, too.
	out.Mtime, out.Mtimensec = uint64(a.Mtime), a.MtimeNsec
	out.Atime, out.Atimensec = out.Mtime, out.Mtimensec
	out.Ctime, out.Ctimensec = out.Mtime, out.Mtimensec
	return nil
}

// blockSize is st_blksize and the unit of statfs.
const blockSize = 4096

// entry fills out, to be kept for ever.
func (t *tree) entry(n erofs.NID, out *fuse.EntryOut) error {
	if err := t.attr(n, &out.Attr); err != nil {
		return err
	}
	out.NodeId = t.node(n)
	out.Generation = 1
	out.EntryValid, out.AttrValid = forever, forever
	return nil
}

// lookup fills out for a name. An absent one is an entry without a node,
// which the kernel keeps as well.
func (t *tree) lookup(dir erofs.NID, name string, out *fuse.EntryOut) error {
	n, _, err := t.img.Lookup(dir, unsafe.Slice(unsafe.StringData(name), len(name)))
	if errors.Is(err, erofs.ErrNotExist) {
		out.EntryValid = forever
		return nil
	}
	if err != nil {
		return err
	}
	return t.entry(n, out)
}

// readDir lists a directory from a cookie. With plus each entry carries its
// attributes; "." and ".." do not, as the kernel has them.
func (t *tree) readDir(dir erofs.NID, cookie uint64, plus bool, out *fuse.DirEntryList) error {
	return t.img.ReadDir(dir, cookie, func(d *erofs.Dirent) bool {
		e := fuse.DirEntry{
			Mode: uint32(d.Type) << 12,
			Name: unsafe.String(unsafe.SliceData(d.Name), len(d.Name)),
			Ino:  t.ino(d.NID),
			Off:  d.Next,
		}
		if !plus {
			return out.AddDirEntry(e)
		}
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			return false
		}
		if dots(d.Name) {
			return true
		}
		if err := t.entry(d.NID, entry); err != nil {
			// Without a node the kernel takes the name alone and asks
			// about it, and gets the error, when somebody wants it.
			*entry = fuse.EntryOut{}
		}
		return true
	})
}

func dots(name []byte) bool {
	return len(name) > 0 && name[0] == '.' && (len(name) == 1 || len(name) == 2 && name[1] == '.')
}

// seek is lseek(2) with SEEK_DATA or SEEK_HOLE.
func (t *tree) seek(n erofs.NID, off uint64, whence uint32) (uint64, error) {
	if whence != unix.SEEK_DATA && whence != unix.SEEK_HOLE {
		return 0, unix.EINVAL
	}
	for first := true; ; first = false {
		e, err := t.img.Extent(n, off)
		switch {
		case err == io.EOF && (first || whence == unix.SEEK_DATA):
			return 0, unix.ENXIO
		case err == io.EOF: // the hole behind the last byte
			return off, nil
		case err != nil:
			return 0, err
		case e.Hole == (whence == unix.SEEK_HOLE):
			return off, nil
		}
		off += e.Len
	}
}

// xattr copies an attribute's value to dest, as getxattr(2): it returns the
// value's size, and ERANGE if dest is too small, even if it is empty.
func (t *tree) xattr(n erofs.NID, name string, dest []byte) (uint32, error) {
	v, err := t.img.Xattr(n, name)
	if errors.Is(err, erofs.ErrNotExist) {
		return 0, unix.ENODATA
	}
	if err != nil {
		return 0, err
	}
	if len(v) > len(dest) {
		return uint32(len(v)), unix.ERANGE
	}
	return uint32(copy(dest, v)), nil
}

// xattrs lists the names of attributes, as listxattr(2), to be used like xattr.
// Those that only root may read, only root sees.
func (t *tree) xattrs(n erofs.NID, root bool, dest []byte) (uint32, error) {
	return listNames(t.img, n, dest, func(name string) bool { return root || !isTrusted(name) })
}

func listNames(img *erofs.Image, n erofs.NID, dest []byte, show func(name string) bool) (uint32, error) {
	size := 0
	err := img.Xattrs(n, func(name string, _ []byte) bool {
		if !show(name) {
			return true
		}
		if size+len(name) < len(dest) {
			copy(dest[size:], name)
			dest[size+len(name)] = 0
		}
		size += len(name) + 1
		return true
	})
	if err != nil {
		return 0, err
	}
	if size > len(dest) {
		return uint32(size), unix.ERANGE
	}
	return uint32(size), nil
}

func isTrusted(name string) bool {
	const prefix = "trusted."
	return len(name) > len(prefix) && name[:len(prefix)] == prefix
}

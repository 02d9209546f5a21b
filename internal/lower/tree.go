// Package lower is the read-only side of a mount: the tree of one index and the
// data files behind it, answering in FUSE's terms.
//
// A [Tree] gives each inode the node ID, and st_ino,
//
//	tree << 40 | nid
//
// nid being its number in the index; package fs says who has which tree. A
// Tree is immutable and keeps nothing per inode: whatever it says may be kept
// for ever. A read gives all the bytes that the index promises or an error,
// never zeros for bytes that are missing from a data file.
package lower

import (
	"context"
	"errors"
	"io"
	"math"
	"strings"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/imgfs/imgfs/internal/erofs"
	"golang.org/x/sys/unix"
)

// Of a node ID, the tree is above TreeShift, the nid below.
const (
	TreeShift = 40
	NIDMask   = 1<<TreeShift - 1
)

const (
	// Forever is the longest time the kernel can be told to keep something:
	// seconds, clamped by it to what its clock can hold.
	Forever = math.MaxInt64

	// Root is FUSE's node ID of the root. No index uses nid 1.
	Root = fuse.FUSE_ROOT_ID

	// BlockSize is st_blksize and the unit of statfs.
	BlockSize = 4096
)

// Tree answers for the inodes of one index. It is immutable.
type Tree struct {
	img    *erofs.Image
	data   []Data          // by device
	number uint64          // tree number << TreeShift
	root   uint64          // node ID of the root directory
	self   uint64          // st_ino of the root directory
	ended  context.Context // has ended: who is given it waits for nothing
	notes  Notes           // nil: none
}

// New returns the tree of img, whose devices are data, in order. Number is its
// tree; root is the node ID of its root directory, Root for that of a mount.
func New(img *erofs.Image, data []Data, number, root uint64) Tree {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	t := Tree{img: img, data: data, number: number << TreeShift, root: root, self: root, ended: ended}
	if root == Root {
		t.self = t.number | uint64(img.Root())
	}
	return t
}

// NotePrefix begins the names of attributes that Notes answers.
const NotePrefix = "user.imgfs."

// Notes says of an inode what its image does not, as attributes that can be
// read and are never listed: who copies a tree does not copy them.
type Notes interface {
	// Note returns the attribute NotePrefix+name; ok is false if there is none.
	Note(n erofs.NID, name string) (value string, ok bool)
}

// WithNotes returns t with notes, nil for none.
func (t Tree) WithNotes(notes Notes) Tree {
	t.notes = notes
	return t
}

// HasXattrs reports whether any inode may have an attribute.
func (t *Tree) HasXattrs() bool { return t.notes != nil || t.img.HasXattrs() }

// Image returns the index.
func (t *Tree) Image() *erofs.Image { return t.img }

// Node returns the node ID of an inode.
func (t *Tree) Node(n erofs.NID) uint64 {
	if n == t.img.Root() {
		return t.root
	}
	return t.Ino(n)
}

// Ino returns the st_ino of an inode.
func (t *Tree) Ino(n erofs.NID) uint64 {
	if n == t.img.Root() {
		return t.self
	}
	return t.number | uint64(n)
}

// NID is the inverse of Node.
func (t *Tree) NID(node uint64) erofs.NID {
	if node == t.root {
		return t.img.Root()
	}
	return erofs.NID(node & NIDMask)
}

// Attr fills out.
func (t *Tree) Attr(n erofs.NID, out *fuse.Attr) error {
	var a erofs.Attr
	if err := t.img.Stat(n, &a); err != nil {
		return err
	}
	out.Ino = t.Ino(n)
	out.Size = a.Size
	out.Blocks = a.Blocks
	out.Mode = a.Mode
	out.Nlink = a.Nlink
	out.Uid = a.UID
	out.Gid = a.GID
	out.Rdev = a.Rdev
	out.Blksize = BlockSize
	// The one time a layer records. EROFS shows it three times, too.
	out.Mtime, out.Mtimensec = uint64(a.Mtime), a.MtimeNsec
	out.Atime, out.Atimensec = out.Mtime, out.Mtimensec
	out.Ctime, out.Ctimensec = out.Mtime, out.Mtimensec
	return nil
}

// Entry fills out, to be kept for ever.
func (t *Tree) Entry(n erofs.NID, out *fuse.EntryOut) error {
	if err := t.Attr(n, &out.Attr); err != nil {
		return err
	}
	out.NodeId = t.Node(n)
	out.Generation = 1
	out.EntryValid, out.AttrValid = Forever, Forever
	return nil
}

// Lookup fills out for a name. An absent one is an entry without a node,
// which the kernel keeps as well.
func (t *Tree) Lookup(dir erofs.NID, name string, out *fuse.EntryOut) error {
	n, _, err := t.img.Lookup(dir, unsafe.Slice(unsafe.StringData(name), len(name)))
	if errors.Is(err, erofs.ErrNotExist) {
		out.EntryValid = Forever
		return nil
	}
	if err != nil {
		return err
	}
	return t.Entry(n, out)
}

// ReadDir lists a directory from a cookie. With plus each entry carries its
// attributes; "." and ".." do not, as the kernel has them.
func (t *Tree) ReadDir(dir erofs.NID, cookie uint64, plus bool, out *fuse.DirEntryList) error {
	return t.img.ReadDir(dir, cookie, func(d *erofs.Dirent) bool {
		e := fuse.DirEntry{
			Mode: uint32(d.Type) << 12,
			Name: unsafe.String(unsafe.SliceData(d.Name), len(d.Name)),
			Ino:  t.Ino(d.NID),
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
		if err := t.Entry(d.NID, entry); err != nil {
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

// Seek is lseek(2) with SEEK_DATA or SEEK_HOLE.
func (t *Tree) Seek(n erofs.NID, off uint64, whence uint32) (uint64, error) {
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

// Xattr copies an attribute's value to dest, as getxattr(2): it returns the
// value's size, and ERANGE if dest is too small, even if it is empty.
func (t *Tree) Xattr(n erofs.NID, name string, dest []byte) (uint32, error) {
	v, err := t.xattr(n, name)
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

func (t *Tree) xattr(n erofs.NID, name string) ([]byte, error) {
	if t.notes != nil {
		if of, ok := strings.CutPrefix(name, NotePrefix); ok {
			if v, ok := t.notes.Note(n, of); ok {
				return []byte(v), nil
			}
		}
	}
	return t.img.Xattr(n, name)
}

// Xattrs lists the names of attributes, as listxattr(2), to be used like Xattr.
// Those that only root may read, only root sees.
func (t *Tree) Xattrs(n erofs.NID, root bool, dest []byte) (uint32, error) {
	return ListNames(t.img, n, dest, func(name string) bool { return root || !Trusted(name) })
}

// ListNames is Xattrs for the names that show takes.
func ListNames(img *erofs.Image, n erofs.NID, dest []byte, show func(name string) bool) (uint32, error) {
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

// Trusted tells whether only root may see an attribute.
func Trusted(name string) bool {
	const prefix = "trusted."
	return len(name) > len(prefix) && name[:len(prefix)] == prefix
}

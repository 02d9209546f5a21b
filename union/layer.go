package union

import (
	"bytes"
	"fmt"
	"unsafe"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/layertar"
	"golang.org/x/sys/unix"
)

// maxEntries bounds the names of all layers of a chain together: 32-bit places
// in the arrays, and far beyond what an index of 512-byte blocks can hold.
const maxEntries = 1 << 31

// item is one name of a layer.
type item struct {
	name   string // lies in the image
	nid    erofs.NID
	first  uint32 // of a directory's items, which stand together
	count  uint32
	parent uint32
	kind   kind
	// Directories only.
	opaque, implied bool
}

// layerTree is what a layer contains, checked: items[0] is the root, and the
// items of a directory stand behind it. The arrays are used again for the next.
type layerTree struct {
	items []item
	// Which inode of the tree a file of the layer became, by nid; 0 none yet.
	// Of directories, 1 says that they were seen.
	inodes []inodeID
	links  []uint32 // items that are links
}

// load reads a layer. marks says whether the image may have marks; a chain
// index has none.
func (l *layerTree) load(img *erofs.Image, marks bool) error {
	l.items, l.links = l.items[:0], l.links[:0]
	if n := int(img.Size() / nidSize); n <= cap(l.inodes) {
		l.inodes = l.inodes[:n]
		clear(l.inodes)
	} else {
		l.inodes = make([]inodeID, n)
	}
	if err := l.add(img, marks, 0, img.Root(), nil); err != nil {
		return err
	}
	// In a sound image the directories' data do not overlap. Where they do,
	// the same bytes could be read once for every inode.
	budget := uint64(img.Size())
	for i := uint32(0); i < uint32(len(l.items)); i++ {
		if l.items[i].kind != kindDir {
			continue
		}
		var a erofs.Attr
		if err := img.Stat(l.items[i].nid, &a); err != nil {
			return err
		}
		if a.Size > budget {
			return corrupt("directories overlap")
		}
		budget -= a.Size
		if len(l.items) > maxEntries {
			return fmt.Errorf("%w: more than %d names", erofs.ErrLimit, maxEntries)
		}
		first := len(l.items)
		var failed error
		err := img.ReadDir(l.items[i].nid, 0, func(e *erofs.Dirent) bool {
			if isDot(e.Name) {
				return true
			}
			failed = l.add(img, marks, i, e.NID, e.Name)
			return failed == nil
		})
		if failed != nil {
			return failed
		}
		if err != nil {
			return err
		}
		l.items[i].first, l.items[i].count = uint32(first), uint32(len(l.items)-first)
	}
	return nil
}

// nidSize is the distance of two nids in bytes.
const nidSize = 32

func isDot(name []byte) bool {
	return len(name) > 0 && len(name) <= 2 && name[0] == '.' && name[len(name)-1] == '.'
}

func (l *layerTree) add(img *erofs.Image, marks bool, parent uint32, nid erofs.NID, name []byte) error {
	if bytes.IndexByte(name, '/') >= 0 || bytes.IndexByte(name, 0) >= 0 {
		return corrupt(fmt.Sprintf("name %q", name))
	}
	var a erofs.Attr
	if err := img.Stat(nid, &a); err != nil {
		return err
	}
	it := item{name: alias(name), nid: nid, parent: parent}
	marks = marks && a.Xattrs
	var err error
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if l.inodes[nid] != 0 {
			return corrupt(fmt.Sprintf("directory %q has two parents", name))
		}
		l.inodes[nid] = 1
		it.kind = kindDir
		if marks {
			if it.opaque, err = has(img, nid, layertar.MarkOpaque); err != nil {
				return err
			}
			if it.implied, err = has(img, nid, layertar.MarkImplied); err != nil {
				return err
			}
		}
	case unix.S_IFLNK:
		it.kind = kindSymlink
	case unix.S_IFCHR:
		if marks && a.Rdev == 0 {
			found, err := has(img, nid, layertar.MarkWhiteout)
			if err != nil {
				return err
			}
			if found {
				it.kind = kindWhiteout
			}
		}
	case unix.S_IFREG:
		if marks && a.Size == 0 {
			found, err := has(img, nid, layertar.MarkLink)
			if err != nil {
				return err
			}
			if found {
				it.kind = kindLink
				l.links = append(l.links, uint32(len(l.items)))
			}
		}
	}
	l.items = append(l.items, it)
	return nil
}

// path returns the path of item i, for messages.
func (l *layerTree) path(i uint32) string {
	var parts []string
	n := 0
	for ; i != 0; i = l.items[i].parent {
		parts = append(parts, l.items[i].name)
		n += 1 + len(l.items[i].name)
	}
	b := make([]byte, 0, n)
	for i := len(parts) - 1; i >= 0; i-- {
		b = append(append(b, '/'), parts[i]...)
	}
	if len(b) == 0 {
		return "/"
	}
	return string(b)
}

func has(img *erofs.Image, nid erofs.NID, mark string) (bool, error) {
	_, err := img.Xattr(nid, mark)
	if err == erofs.ErrNotExist {
		return false, nil
	}
	return err == nil, err
}

// alias returns b as a string without a copy: b lies in an image, which does
// not change.
func alias(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

func corrupt(what string) error { return fmt.Errorf("%w: %s", erofs.ErrCorrupt, what) }

package upperdir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/lower"
)

// item is a name that a walk has come to.
type item struct {
	path string    // "a/b"; "" is the root
	gone bool      // the image has the name and the merged tree has not; only base and covered are set besides
	base erofs.NID // what the image has at this path; 0 is nothing

	attr     attr
	dirfd    int       // the upper's directory that has it, or -1: only the lower has it
	name     string    // in dirfd; "" is dirfd itself
	low      erofs.NID // a directory's lower part, a metacopy's data, or all there is; 0 is none
	metacopy bool
	opaque   bool   // a directory through which no name of base, a directory, is seen
	covered  bool   // an ancestor is opaque
	dev, ino uint64 // of an inode of the upper
	links    uint64 // number of its names
}

func (i *item) upper() bool { return i.dirfd >= 0 }
func (i *item) isDir() bool { return i.attr.kind() == unix.S_IFDIR }

// walker walks an upper, with the lower that it lies on.
type walker struct {
	ctx    context.Context
	format Format
	low    *lower.Tree
	img    *erofs.Image
	whole  bool // the merged tree, not only what the upper changes
	links  links

	// enter is called for each name: of a directory first the directory, then
	// what is gone from it, then what is in it, each in the order of bytes.
	enter func(*item) error
	// leave is called behind all that is in a directory; it may be nil.
	leave func(*item) error
}

func newWalker(ctx context.Context, f Format, low *lower.Tree) *walker {
	return &walker{ctx: ctx, format: f, low: low, img: low.Image()}
}

// run walks from the root. root is the upper's diff/, or -1: the lower alone.
func (w *walker) run(root int) error {
	it := &item{dirfd: root, low: w.img.Root(), base: w.img.Root()}
	if root < 0 {
		if err := w.statLower(it); err != nil {
			return err
		}
		return w.directory(it, root)
	}
	var st unix.Stat_t
	if err := w.format.Stat(root, "", &st); err != nil {
		return at("", err)
	}
	it.setStat(&st)
	opaque, err := w.format.Opaque(root)
	if err != nil {
		return at("", err)
	}
	if opaque {
		it.low, it.opaque = 0, true
	}
	return w.directory(it, root)
}

// at names the path in front of an error about it.
func at(path string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("/%s: %w", path, err)
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

func (i *item) setStat(st *unix.Stat_t) {
	i.attr = attrOf(st)
	i.dev, i.ino, i.links = st.Dev, st.Ino, uint64(st.Nlink)
}

func (w *walker) statLower(i *item) error {
	var a erofs.Attr
	if err := w.img.Stat(i.low, &a); err != nil {
		return at(i.path, err)
	}
	i.attr, i.links = lowerAttr(&a), uint64(a.Nlink)
	return nil
}

// directory walks dir, fd being open on the upper's part of it, or -1.
func (w *walker) directory(dir *item, fd int) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	if err := w.enter(dir); err != nil {
		return err
	}
	list, err := w.list(dir, fd)
	if err != nil {
		return err
	}
	for _, it := range list {
		if err := w.one(dir, it); err != nil {
			return err
		}
	}
	if w.leave != nil {
		return w.leave(dir)
	}
	return nil
}

// list returns what there is to visit in dir.
func (w *walker) list(dir *item, fd int) (list []*item, err error) {
	has := map[string]bool{} // names that the upper decides on, or that the merged tree has
	add := func(name string, base erofs.NID) *item {
		it := &item{path: join(dir.path, name), base: base, dirfd: -1, name: name, covered: dir.covered || dir.opaque}
		list = append(list, it)
		has[name] = true
		return it
	}
	if fd >= 0 {
		names, err := readNames(fd)
		if err != nil {
			return nil, at(dir.path, err)
		}
		for _, name := range names {
			base, err := w.lookup(dir.base, name)
			if err != nil {
				return nil, at(dir.path, err)
			}
			var st unix.Stat_t
			err = w.format.Stat(fd, name, &st)
			switch {
			case err == unix.ENOENT: // vanished
			case err != nil:
				return nil, at(join(dir.path, name), err)
			case !w.format.Whiteout(&st):
				it := add(name, base)
				it.dirfd = fd
				it.setStat(&st)
			case base != 0:
				add(name, base).gone = true
			default:
				has[name] = true
			}
		}
	}
	// What only the lower has differs from the image, unless it is the image's
	// at this very path.
	moved := dir.low != dir.base || dir.covered
	if dir.low != 0 && (w.whole || moved || w.links.dirs[dir.low]) {
		err = w.names(dir.low, func(name string, nid erofs.NID) error {
			if has[name] || !w.whole && !moved && !w.links.shows(nid) {
				return nil
			}
			base, err := w.lookup(dir.base, name)
			add(name, base).low = nid
			return err
		})
		if err != nil {
			return nil, at(dir.path, err)
		}
	}
	if dir.low != dir.base && w.isDir(dir.base) {
		err = w.names(dir.base, func(name string, nid erofs.NID) error {
			if !has[name] {
				add(name, nid).gone = true
			}
			return nil
		})
		if err != nil {
			return nil, at(dir.path, err)
		}
	}
	slices.SortFunc(list, func(a, b *item) int {
		switch {
		case a.gone == b.gone:
			return strings.Compare(a.name, b.name)
		case a.gone:
			return -1
		}
		return 1
	})
	return list, nil
}

// one walks one name of dir.
func (w *walker) one(dir, it *item) error {
	switch {
	case it.gone:
		if w.whole {
			return nil
		}
		return w.enter(it)
	case !it.upper():
		if err := w.statLower(it); err != nil {
			return err
		}
		if !it.isDir() {
			return w.enter(it)
		}
		it.opaque = !it.covered && it.low != it.base && w.isDir(it.base)
		return w.directory(it, -1)
	case !it.isDir():
		if it.attr.kind() == unix.S_IFREG {
			if err := w.findData(dir, it); err != nil {
				return at(it.path, err)
			}
		}
		return w.enter(it)
	}
	fd, err := openDir(it.dirfd, it.name)
	if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
		return nil // vanished
	}
	if err != nil {
		return at(it.path, err)
	}
	defer unix.Close(fd)
	if err := w.merge(dir, it, fd); err != nil {
		return at(it.path, err)
	}
	it.opaque = !it.covered && it.low != it.base && w.isDir(it.base)
	return w.directory(it, fd)
}

// findData finds the lower file of a metacopy in dir.
func (w *walker) findData(dir, it *item) error {
	path := procName(it.dirfd, it.name)
	_, meta, err := xattr(path, w.format.Prefix+"metacopy", false)
	if err != nil || !meta {
		if err == unix.ENOENT {
			err = nil // enter will see
		}
		return err
	}
	it.metacopy = true
	redirect, _, err := xattr(path, w.format.Prefix+"redirect", false)
	if err != nil {
		return err
	}
	it.low, err = w.below(dir, it, string(redirect))
	return err
}

// merge finds what a directory of the upper in dir, open as fd, is merged with.
func (w *walker) merge(dir, it *item, fd int) error {
	opaque, err := w.format.Opaque(fd)
	if err != nil || opaque {
		return err
	}
	redirect, err := w.format.Redirect(fd)
	if err != nil {
		return err
	}
	nid, err := w.below(dir, it, redirect)
	if w.isDir(nid) {
		it.low = nid
	}
	return err
}

// below returns the lower inode that belongs to an inode of the upper with
// this redirect, 0 if there is none. No redirect is its own name in what dir
// is merged with; one without a slash, which only the kernel writes, another
// name there.
func (w *walker) below(dir, it *item, redirect string) (erofs.NID, error) {
	if redirect == "" {
		return w.lookup(dir.low, it.name)
	}
	if err := checkRedirect(redirect); err != nil {
		return 0, err
	}
	if redirect[0] != '/' {
		return w.lookup(dir.low, redirect)
	}
	nid := w.img.Root()
	for name := range strings.SplitSeq(redirect[1:], "/") {
		var err error
		if nid, err = w.lookup(nid, name); err != nil || nid == 0 {
			return 0, err
		}
	}
	return nid, nil
}

// lookup returns the inode of a name in a lower directory; 0 if there is none,
// or dir is no directory.
func (w *walker) lookup(dir erofs.NID, name string) (erofs.NID, error) {
	if !w.isDir(dir) {
		return 0, nil
	}
	nid, _, err := w.img.Lookup(dir, []byte(name))
	if errors.Is(err, erofs.ErrNotExist) {
		return 0, nil
	}
	return nid, err
}

func (w *walker) isDir(nid erofs.NID) bool {
	var a erofs.Attr
	return nid != 0 && w.img.Stat(nid, &a) == nil && a.Mode&unix.S_IFMT == unix.S_IFDIR
}

// names calls fn for the entries of a lower directory, until it fails.
func (w *walker) names(dir erofs.NID, fn func(name string, nid erofs.NID) error) (err error) {
	rerr := w.img.ReadDir(dir, 0, func(e *erofs.Dirent) bool {
		if bytes.Equal(e.Name, []byte(".")) || bytes.Equal(e.Name, []byte("..")) {
			return true
		}
		err = fn(string(e.Name), e.NID)
		return err == nil
	})
	return errors.Join(err, rerr)
}

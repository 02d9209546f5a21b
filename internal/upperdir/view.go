package upperdir

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/lower"
)

// maxLinks is how many symbolic links one path may lead over, as in the kernel.
const maxLinks = 40

// View is a merged tree, or that of an image alone, in which files are found by
// their paths. No path leads out of it.
type View struct {
	w    *walker
	root int
}

// NewView returns the tree of low with up on it, nil for none. ctx ends what is
// read through it.
func NewView(ctx context.Context, low *lower.Tree, up *Dir) *View {
	f, root := Format{}, -1
	if up != nil {
		f, root = up.format, up.root
	}
	w := newWalker(ctx, f, low)
	w.whole = true
	return &View{w: w, root: root}
}

// File is what a path leads to. It is closed when it is no longer used.
type File struct {
	w    *walker
	path []step // from the root; the last is the file
}

// step is a file on the way of a path.
type step struct {
	it *item
	fd int // of a directory, open on the upper's part of it; -1: there is none
}

// Find follows a path, and what is a symbolic link at its end only if last is
// set or a slash follows. It returns, wrapped, unix.ENOENT, ENOTDIR or ELOOP.
func (v *View) Find(path string, last bool) (_ *File, err error) {
	f := &File{w: v.w}
	defer func() {
		if err != nil {
			f.Close()
			err = at(strings.TrimPrefix(path, "/"), err)
		}
	}()
	if err := f.enterRoot(v.root); err != nil {
		return nil, err
	}
	rest := strings.Split(path, "/")
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		if !f.it().isDir() {
			return nil, unix.ENOTDIR
		}
		switch name {
		case "", ".":
			continue
		case "..":
			if len(f.path) > 1 {
				f.pop()
			}
			continue
		}
		it, err := v.w.child(f.top(), name)
		if err != nil {
			return nil, err
		}
		if it.attr.kind() == unix.S_IFLNK && (last || len(rest) > 0) {
			if links++; links > maxLinks {
				return nil, unix.ELOOP
			}
			to, err := v.w.target(it)
			if err != nil {
				return nil, err
			}
			if strings.HasPrefix(to, "/") {
				for len(f.path) > 1 {
					f.pop()
				}
			}
			rest = append(strings.Split(to, "/"), rest...)
			continue
		}
		if err := f.push(it); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// enterRoot begins the path.
func (f *File) enterRoot(root int) error {
	it := &item{dirfd: root, low: f.w.img.Root()}
	fd := -1
	if root < 0 {
		if err := f.w.statLower(it); err != nil {
			return err
		}
	} else {
		var st unix.Stat_t
		if err := f.w.format.Stat(root, "", &st); err != nil {
			return err
		}
		it.setStat(&st)
		opaque, err := f.w.format.Opaque(root)
		if err != nil {
			return err
		}
		if opaque {
			it.low = 0
		}
		if fd, err = openDir(root, "."); err != nil {
			return err
		}
	}
	f.path = append(f.path, step{it, fd})
	return nil
}

// child returns what dir has under a name.
func (w *walker) child(dir step, name string) (*item, error) {
	it := &item{path: join(dir.it.path, name), dirfd: -1, name: name}
	if strings.IndexByte(name, 0) >= 0 {
		return nil, unix.ENOENT
	}
	if dir.fd >= 0 {
		var st unix.Stat_t
		err := w.format.Stat(dir.fd, name, &st)
		switch {
		case err == nil && w.format.Whiteout(&st):
			return nil, unix.ENOENT
		case err == nil:
			it.dirfd = dir.fd
			it.setStat(&st)
			if it.attr.kind() == unix.S_IFREG {
				err = w.findData(dir.it, it)
			}
			return it, err
		case err != unix.ENOENT && err != unix.ENAMETOOLONG:
			return nil, err
		}
	}
	nid, err := w.lookup(dir.it.low, name)
	if err != nil {
		return nil, err
	}
	if nid == 0 {
		return nil, unix.ENOENT
	}
	it.low = nid
	return it, w.statLower(it)
}

// push goes on to it, which is in the last directory.
func (f *File) push(it *item) error {
	fd := -1
	if it.upper() && it.isDir() {
		var err error
		if fd, err = openDir(it.dirfd, it.name); err != nil {
			return err
		}
		if err := f.w.merge(f.it(), it, fd); err != nil {
			unix.Close(fd)
			return err
		}
	}
	f.path = append(f.path, step{it, fd})
	return nil
}

func (f *File) top() step { return f.path[len(f.path)-1] }
func (f *File) it() *item { return f.top().it }

func (f *File) pop() {
	if fd := f.top().fd; fd >= 0 {
		unix.Close(fd)
	}
	f.path = f.path[:len(f.path)-1]
}

// Close frees what f holds open.
func (f *File) Close() {
	for len(f.path) > 0 {
		f.pop()
	}
}

// Path returns where the file is, without symbolic links on the way and without
// a leading slash: "" is the root.
func (f *File) Path() string { return f.it().path }

// IsDir and IsRegular report what the file is.
func (f *File) IsDir() bool { return f.it().isDir() }

// IsRegular reports whether the file has bytes to copy.
func (f *File) IsRegular() bool { return f.it().attr.kind() == unix.S_IFREG }

// Entry is what stat(2) and readlink(2) say of a file.
type Entry struct {
	Path         string // relative to what was listed; "" itself
	Mode         uint32
	UID, GID     uint32
	Links        uint64
	Inode        uint64 // of an upper, on its file system
	Size         int64  // of a regular file or a symbolic link
	Major, Minor uint32 // of a device
	Sec, Nsec    int64  // time of the last change
	Target       string // of a symbolic link
}

// entry returns what is told of an item.
func (w *walker) entry(it *item, path string) (e Entry, err error) {
	a := &it.attr
	e = Entry{Path: path, Mode: a.Mode, UID: a.UID, GID: a.GID, Links: it.links, Inode: it.ino,
		Size: a.Size, Major: a.Major, Minor: a.Minor, Sec: a.Sec, Nsec: a.Nsec}
	if !it.upper() {
		e.Inode = w.low.Ino(it.low)
	}
	if a.kind() == unix.S_IFLNK {
		e.Target, err = w.target(it)
		e.Size = int64(len(e.Target))
	}
	return e, err
}

// Entry returns what f itself is; its Path is "".
func (f *File) Entry() (Entry, error) {
	return f.w.entry(f.it(), "")
}

// List calls fn for the entries of a directory, in the order of bytes; with
// all set, for everything below as well, a directory standing before what is in
// it. No bytes of files are read for it.
func (f *File) List(all bool, fn func(Entry) error) error {
	if all {
		return f.walk("", func(it *item) error {
			if it.path == "" {
				return nil
			}
			return f.w.tell(it, it.path, fn)
		})
	}
	dir := f.top()
	list, err := f.w.list(dir.it, dir.fd)
	if err != nil {
		return err
	}
	for _, it := range slices.DeleteFunc(list, func(it *item) bool { return it.gone }) {
		if !it.upper() {
			if err := f.w.statLower(it); err != nil {
				return err
			}
		}
		if err := f.w.tell(it, it.name, fn); err != nil {
			return err
		}
	}
	return nil
}

// tell calls fn with an item, unless that has vanished.
func (w *walker) tell(it *item, path string, fn func(Entry) error) error {
	e, err := w.entry(it, path)
	if vanished(err) {
		return nil
	}
	if err != nil {
		return at(it.path, err)
	}
	return fn(e)
}

// walk calls enter for f, which it calls name, and all that is below.
func (f *File) walk(name string, enter func(*item) error) error {
	w := *f.w
	w.enter = enter
	it := *f.it()
	it.path = name
	if !it.isDir() {
		return enter(&it)
	}
	return w.directory(&it, f.top().fd)
}

// WriteTar writes f and all that is below as a tar in which f is called name;
// "" is the root of the tar.
func (f *File) WriteTar(dst io.Writer, name string) error {
	t := newTarball(f.w, dst)
	if err := f.walk(name, t.enter); err != nil {
		return err
	}
	return t.tw.Close()
}

// WriteTo writes the bytes of a regular file.
func (f *File) WriteTo(dst io.Writer) (int64, error) {
	src, err := f.w.contents(f.it())
	if err != nil {
		return 0, err
	}
	defer src.Close()
	buf := make([]byte, min(256<<10, cmp.Or(f.it().attr.Size, 1)))
	err = f.w.copyData(dst, f.it(), src, buf)
	if vanished(err) {
		err = fmt.Errorf("/%s: %w", f.it().path, err)
	}
	return src.off, err
}

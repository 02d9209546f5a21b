package upperdir

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/lower"
)

// The names by which a layer says what is gone.
const (
	whiteoutPrefix = ".wh."
	opaqueName     = ".wh..wh..opq"
)

// WriteLayer writes the tar of a layer that, laid on low, is the merged tree:
// the same bytes for the same upper. Per directory come first what is gone,
// then what is there, in the order of bytes; a directory stands before what is
// in it, if something is or its own attributes changed.
func (d *Dir) WriteLayer(ctx context.Context, dst io.Writer, low *lower.Tree) error {
	w := newWalker(ctx, d.format, low)
	t := newTarball(w, dst)
	t.layer = true
	w.enter, w.leave = t.enter, t.leave
	var err error
	if w.links, err = w.scatteredLinks(d.root); err == nil {
		err = t.run(d.root)
	}
	if err != nil {
		return fmt.Errorf("upper %s: %w", d.name(), err)
	}
	return nil
}

// Export writes the tar of the merged tree, of low alone if up is nil.
func Export(ctx context.Context, dst io.Writer, low *lower.Tree, up *Dir) error {
	f, root := Format{}, -1
	if up != nil {
		f, root = up.format, up.root
	}
	w := newWalker(ctx, f, low)
	w.whole = true
	t := newTarball(w, dst)
	w.enter = t.enter
	if err := t.run(root); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	return nil
}

// tarball writes items as a tar.
type tarball struct {
	w     *walker
	tw    *tar.Writer
	layer bool
	buf   []byte
	dirs  []*item // directories of a layer that are being walked and not yet written
	first map[inode]string
}

// inode is one that has several names.
type inode struct {
	dev, ino uint64
	nid      erofs.NID // 0 unless of the lower
}

func newTarball(w *walker, dst io.Writer) *tarball {
	return &tarball{w: w, tw: tar.NewWriter(dst), buf: make([]byte, 256<<10), first: map[inode]string{}}
}

func (t *tarball) run(root int) error {
	if err := t.w.run(root); err != nil {
		return err
	}
	return t.tw.Close()
}

// enter writes an item; of a layer's directories it puts off those that have
// not changed themselves.
func (t *tarball) enter(it *item) error {
	if t.layer {
		name := it.path[strings.LastIndexByte(it.path, '/')+1:]
		if strings.HasPrefix(name, whiteoutPrefix) && !(it.gone && it.covered) {
			return at(it.path, fault.WithHint(
				fault.New(fault.Invalid, "a layer cannot hold a name that begins with %s: there it means that a name is gone", whiteoutPrefix),
				"rename or remove it; imgfs export can write it"))
		}
	}
	switch {
	case it.gone && it.covered:
		return nil
	case it.gone:
		if err := t.flush(); err != nil {
			return err
		}
		dir, name := splitPath(it.path)
		return t.marker(it, dir+whiteoutPrefix+name)
	case !it.isDir():
		if err := t.flush(); err != nil {
			return err
		}
		return t.write(it)
	case !t.layer:
		return t.write(it)
	}
	same := false
	if !it.covered && !it.opaque {
		var err error
		if same, err = t.w.sameAsImage(it); vanished(err) {
			err = nil
		} else if err != nil {
			return at(it.path, err)
		}
	}
	t.dirs = append(t.dirs, it)
	if same {
		return nil
	}
	return t.flush()
}

// leave forgets a directory that has nothing to tell.
func (t *tarball) leave(it *item) error {
	if n := len(t.dirs); n > 0 && t.dirs[n-1] == it {
		t.dirs = t.dirs[:n-1]
	}
	return nil
}

// flush writes the directories put off.
func (t *tarball) flush() error {
	for _, it := range t.dirs {
		if err := t.write(it); err != nil {
			return err
		}
		if it.opaque {
			if err := t.marker(it, join(it.path, opaqueName)); err != nil {
				return err
			}
		}
	}
	t.dirs = t.dirs[:0]
	return nil
}

// splitPath splits a path behind its last slash.
func splitPath(path string) (dir, name string) {
	n := strings.LastIndexByte(path, '/') + 1
	return path[:n], path[n:]
}

// marker writes what says that something is gone.
func (t *tarball) marker(it *item, name string) error {
	return at(it.path, t.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}))
}

// write writes an item that is there, unless it has vanished.
func (t *tarball) write(it *item) error {
	err := t.writeEntry(it)
	if vanished(err) {
		return nil
	}
	return at(it.path, err)
}

func (t *tarball) writeEntry(it *item) (err error) {
	h := &tar.Header{
		Name:    it.path,
		Mode:    int64(it.attr.Mode & 0o7777),
		Uid:     int(it.attr.UID),
		Gid:     int(it.attr.GID),
		ModTime: time.Unix(it.attr.Sec, it.attr.Nsec),
		Format:  tar.FormatPAX,
	}
	kind := it.attr.kind()
	if kind != unix.S_IFDIR && it.links > 1 {
		id := inode{dev: it.dev, ino: it.ino}
		if !it.upper() {
			id = inode{nid: it.low}
		}
		first, again := t.first[id]
		if again {
			h.Typeflag, h.Linkname, kind = tar.TypeLink, first, 0
		} else {
			defer func() {
				if err == nil {
					t.first[id] = it.path
				}
			}()
		}
	}
	var src *contents
	switch kind {
	case 0: // a further name; it has the inode's attributes as well
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, it.attr.Size
		if src, err = t.w.contents(it); err != nil {
			return err
		}
		defer src.Close()
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, it.path+"/"
		if it.path == "" {
			h.Name = "./"
		}
	case unix.S_IFLNK:
		target, err := t.w.target(it)
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if kind == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(it.attr.Major), int64(it.attr.Minor)
	default: // a socket, of which a layer has none
		if t.layer && it.base != 0 && !it.covered {
			dir, name := splitPath(it.path)
			return t.marker(it, dir+whiteoutPrefix+name)
		}
		return nil
	}
	xattrs, err := t.w.xattrs(it)
	if err != nil {
		return err
	}
	for _, name := range sortedKeys(xattrs) {
		if strings.Contains(name, "=") {
			return fault.New(fault.Invalid, "a tar cannot hold the attribute %q: its name has an equals sign", name)
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+name] = xattrs[name]
	}
	if err := t.tw.WriteHeader(h); err != nil {
		return err
	}
	if src == nil {
		return nil
	}
	if err := t.w.copyData(t.tw, it, src, t.buf); err != nil {
		if vanished(err) { // the header is written: it cannot be left out any more
			err = fmt.Errorf("%v", err)
		}
		return err
	}
	return nil
}

// target returns a symlink's target.
func (w *walker) target(it *item) (string, error) {
	if !it.upper() {
		b, err := w.img.ReadLink(it.low)
		return string(b), err
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(it.dirfd, it.name, buf)
	if err == unix.EINVAL {
		err = unix.ENOENT
	}
	return string(buf[:max(n, 0)]), err
}

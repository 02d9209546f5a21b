package upperdir

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/lower"
)

// Convert rewrites the upper so that kernel overlayfs reads it with the
// attributes to (Trusted, User; "" is those that it has): overrides become real
// where the process may, and for User what redirects and metacopies refer to
// is copied from low. Each step leaves the upper whole and the tree the same,
// so that what was interrupted is gone on with by another call.
func (d *Dir) Convert(ctx context.Context, low *lower.Tree, to string) error {
	if to == "" {
		to = d.Info().Xattrs
	}
	err := d.convert(ctx, low, to)
	if err != nil {
		return fmt.Errorf("upper %s: %w", d.name(), err)
	}
	return nil
}

func (d *Dir) convert(ctx context.Context, low *lower.Tree, to string) error {
	prefix := trustedPrefix
	switch to {
	case Trusted:
	case User:
		prefix = userPrefix
		c := converter{d: d, w: newWalker(ctx, d.format, low)}
		if err := c.materialise(); err != nil {
			return err
		}
	default:
		return fault.New(fault.Invalid, "attributes %q: they are %s or %s", to, Trusted, User)
	}
	if d.format.Override {
		if err := d.dropOverrides(ctx); err != nil {
			return err
		}
	}
	if prefix == d.format.Prefix {
		return nil
	}
	return d.changePrefix(ctx, to, prefix)
}

// dropOverrides makes the overrides real.
func (d *Dir) dropOverrides(ctx context.Context) error {
	return d.scan(ctx, func(f *found) error {
		v, ok, err := fdXattr(f.fd, overrideName)
		if err != nil || !ok {
			return at(f.path, err)
		}
		a, err := parseOverride(string(v))
		if err != nil {
			return at(f.path, err)
		}
		kind := a.Mode & unix.S_IFMT
		if kind == 0 {
			kind = f.kind()
			a.Mode |= kind
		}
		real := a
		if real.UID == 0 {
			real.UID = d.format.UID
		}
		if real.GID == 0 {
			real.GID = d.format.GID
		}
		if kind != f.kind() {
			err = d.makeReal(f, real)
		} else if err = setReal(f.fd, &f.st, real); err == nil {
			err = removeFdXattr(f.fd, overrideName)
		}
		if err == unix.EPERM || err == unix.EINVAL {
			err = fault.WithHint(fault.New(fault.Denied, "%s cannot be set on disk: %w", a, err), "convert it as root, or use --driver fuse")
		}
		return at(f.path, err)
	})
}

// makeReal replaces a regular file that stands for another inode by that.
func (d *Dir) makeReal(f *found, want Attr) error {
	if f.st.Nlink > 1 {
		return fault.New(fault.Invalid, "it has several names, and stands for a special file")
	}
	const tmp = "special"
	if err := removeAll(d.stage, tmp); err != nil {
		return err
	}
	if err := unix.Mknodat(d.stage, tmp, want.Mode&unix.S_IFMT|0o600, int(want.Rdev)); err != nil {
		return err
	}
	fd, err := unix.Openat(d.stage, tmp, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if err := setReal(fd, &st, want); err != nil {
		return err
	}
	if err := setTimes(d.stage, tmp, f.st.Mtim); err != nil {
		return err
	}
	var dir unix.Stat_t
	if err := unix.Fstat(f.dirfd, &dir); err != nil {
		return err
	}
	if err := unix.Renameat(d.stage, tmp, f.dirfd, f.name); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, procPath(f.dirfd), []unix.Timespec{dir.Mtim, dir.Mtim}, 0)
}

// setTimes sets both times of an inode.
func setTimes(dirfd int, name string, t unix.Timespec) error {
	return unix.UtimesNanoAt(dirfd, name, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW)
}

// changePrefix gives the format's attributes another prefix: first all get the
// new ones as well, then the upper says which count, then the old ones go.
func (d *Dir) changePrefix(ctx context.Context, to, prefix string) error {
	old := d.format.Prefix
	own := func(f *found, fn func(name string) error) error {
		names, err := listXattrs(f.fd)
		if err != nil {
			return at(f.path, err)
		}
		for _, n := range names {
			if rest, ok := strings.CutPrefix(n, old); ok {
				if err := fn(rest); err != nil {
					return at(f.path, err)
				}
			}
		}
		return nil
	}
	err := d.scan(ctx, func(f *found) error {
		return own(f, func(rest string) error {
			if strings.HasPrefix(rest, escape) {
				return fault.New(fault.Invalid, "it belongs to an overlay inside the upper: such an upper cannot be converted")
			}
			v, ok, err := fdXattr(f.fd, old+rest)
			if err != nil || !ok {
				return err
			}
			err = setFdXattr(f.fd, prefix+rest, string(v))
			if err == unix.EPERM && !canOverride(f.st.Mode) {
				return nil // its inode number, which it can do without
			}
			return err
		})
	})
	if err != nil {
		return err
	}
	d.mu.Lock()
	i := d.info
	i.Xattrs = to
	if err = writeInfo(d.top, i); err == nil {
		d.info, d.format.Prefix = i, prefix
	}
	d.mu.Unlock()
	if err != nil {
		return err
	}
	return d.scan(ctx, func(f *found) error {
		return own(f, func(rest string) error { return removeFdXattr(f.fd, old+rest) })
	})
}

// converter copies what redirects and metacopies refer to.
type converter struct {
	d *Dir
	w *walker
	n int // of things made in stage/
}

func (c *converter) materialise() error {
	root := &item{dirfd: c.d.root, low: c.w.img.Root()}
	if opaque, err := c.d.format.Opaque(c.d.root); err != nil {
		return err
	} else if opaque {
		root.low = 0
	}
	err := c.directory(root, c.d.root, false)
	return errors.Join(err, emptyDir(c.d.stage))
}

// directory makes what is below a directory of the upper independent of
// redirects, and with full set of the lower.
func (c *converter) directory(dir *item, fd int, full bool) error {
	if err := c.w.ctx.Err(); err != nil {
		return err
	}
	names, err := readNames(fd)
	if err != nil {
		return at(dir.path, err)
	}
	has := map[string]bool{}
	var whiteouts []string
	for _, name := range names {
		has[name] = true
		it := &item{path: join(dir.path, name), dirfd: fd, name: name}
		var st unix.Stat_t
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return at(it.path, err)
		}
		it.setStat(&st)
		switch {
		case c.d.format.Whiteout(&st):
			whiteouts = append(whiteouts, name)
		case it.isDir():
			err = c.subdirectory(dir, it, full)
		case it.attr.kind() == unix.S_IFREG:
			err = c.file(dir, it, st.Mtim)
		}
		if err != nil {
			return err
		}
	}
	if !full {
		return nil
	}
	if dir.low != 0 {
		err := c.w.names(dir.low, func(name string, nid erofs.NID) error {
			if has[name] {
				return nil
			}
			return at(join(dir.path, name), c.copyUp(fd, name, nid))
		})
		if err != nil {
			return err
		}
	}
	if err := c.d.format.SetOpaque(fd); err != nil {
		return at(dir.path, err)
	}
	if err := c.d.format.ClearRedirect(fd); err != nil {
		return at(dir.path, err)
	}
	for _, name := range whiteouts {
		if err := unix.Unlinkat(fd, name, 0); err != nil {
			return at(join(dir.path, name), err)
		}
	}
	return nil
}

func (c *converter) subdirectory(dir, it *item, full bool) error {
	fd, err := openDir(it.dirfd, it.name)
	if err != nil {
		return at(it.path, err)
	}
	defer unix.Close(fd)
	if err := c.w.merge(dir, it, fd); err != nil {
		return at(it.path, err)
	}
	redirect, err := c.d.format.Redirect(fd)
	if err != nil {
		return at(it.path, err)
	}
	full = full && it.low != 0 || redirect != ""
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return at(it.path, err)
	}
	if err := c.directory(it, fd, full); err != nil {
		return err
	}
	if !full {
		return nil
	}
	return at(it.path, setTimes(it.dirfd, it.name, st.Mtim))
}

// file fills a metacopy.
func (c *converter) file(dir, it *item, mtime unix.Timespec) error {
	if err := c.w.findData(dir, it); err != nil || !it.metacopy {
		return at(it.path, err)
	}
	fd, err := openRegular(it.dirfd, it.name, unix.O_RDWR)
	if err != nil {
		return at(it.path, err)
	}
	defer unix.Close(fd)
	if it.low == 0 {
		return at(it.path, damaged("the file of the image that has its data is not there"))
	}
	err = c.write(fd, it.low, it.attr.Size)
	if err == nil {
		err = unix.Fdatasync(fd)
	}
	if err != nil { // what is there is not needed as long as it is a metacopy
		err = errors.Join(err, unix.Ftruncate(fd, 0), unix.Ftruncate(fd, it.attr.Size), setTimes(it.dirfd, it.name, mtime))
		return at(it.path, err)
	}
	if err := setTimes(it.dirfd, it.name, mtime); err != nil {
		return at(it.path, err)
	}
	return at(it.path, c.d.format.ClearMetacopy(fd))
}

// write writes the first size bytes of a lower file, its holes as such.
func (c *converter) write(fd int, nid erofs.NID, size int64) error {
	if err := unix.Ftruncate(fd, size); err != nil {
		return err
	}
	buf := make([]byte, 256<<10)
	for off := int64(0); off < size; {
		e, err := c.w.img.Extent(nid, uint64(off))
		if err != nil {
			return err
		}
		n := min(int64(e.Len), size-off)
		if e.Hole {
			off += n
			continue
		}
		k, err := c.w.low.Read(c.w.ctx, nid, uint64(off), buf[:min(n, int64(len(buf)))])
		if err != nil {
			return err
		}
		if k, err = unix.Pwrite(fd, buf[:k], off); err != nil {
			return err
		}
		off += int64(k)
	}
	return nil
}

// copyUp copies a lower inode with all below it to a name in the upper, where
// it appears at once.
func (c *converter) copyUp(dirfd int, name string, nid erofs.NID) error {
	c.n++
	tmp := "copy-" + strconv.Itoa(c.n)
	if err := c.copy(c.d.stage, tmp, nid); err != nil {
		return err
	}
	return unix.Renameat2(c.d.stage, tmp, dirfd, name, unix.RENAME_NOREPLACE)
}

func (c *converter) copy(dirfd int, name string, nid erofs.NID) error {
	if err := c.w.ctx.Err(); err != nil {
		return err
	}
	var e erofs.Attr
	if err := c.w.img.Stat(nid, &e); err != nil {
		return err
	}
	a, fm := lowerAttr(&e), c.d.format
	linked := a.kind() != unix.S_IFDIR && e.Nlink > 1
	link := "link-" + strconv.FormatUint(uint64(nid), 10)
	if linked {
		err := unix.Linkat(c.d.stage, link, dirfd, name, 0)
		if err != unix.ENOENT {
			return err
		}
	}
	rdev := unix.Mkdev(a.Major, a.Minor)
	var err error
	switch a.kind() {
	case unix.S_IFDIR:
		err = unix.Mkdirat(dirfd, name, 0o700)
	case unix.S_IFLNK:
		var target []byte
		if target, err = c.w.img.ReadLink(nid); err == nil {
			err = unix.Symlinkat(string(target), dirfd, name)
		}
	default:
		err = fm.Mknod(dirfd, name, a.kind()|0o600, rdev)
	}
	if err != nil {
		return err
	}
	fd, err := unix.Openat(dirfd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	switch a.kind() {
	case unix.S_IFDIR:
		err = c.w.names(nid, func(child string, n erofs.NID) error { return c.copy(fd, child, n) })
	case unix.S_IFREG:
		err = c.copyFile(dirfd, name, nid, a.Size)
	}
	if err != nil {
		return err
	}
	if err := fm.SetStat(fd, Attr{UID: a.UID, GID: a.GID, Mode: a.Mode, Rdev: rdev}); err != nil {
		return err
	}
	xattrs := map[string]string{} // behind the owner, whose change takes capabilities away
	if err := c.w.img.Xattrs(nid, func(name string, v []byte) bool { xattrs[name] = string(v); return true }); err != nil {
		return err
	}
	for _, n := range sortedKeys(xattrs) {
		if err := setFdXattr(fd, fm.Escape(n), xattrs[n]); err != nil && err != unix.EPERM {
			return err
		}
	}
	if err := setTimes(dirfd, name, unix.Timespec{Sec: a.Sec, Nsec: a.Nsec}); err != nil {
		return err
	}
	if linked {
		return unix.Linkat(dirfd, name, c.d.stage, link, 0)
	}
	return nil
}

func (c *converter) copyFile(dirfd int, name string, nid erofs.NID, size int64) error {
	fd, err := openRegular(dirfd, name, unix.O_RDWR)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := c.write(fd, nid, size); err != nil {
		return err
	}
	return unix.Fdatasync(fd)
}

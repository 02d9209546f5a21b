package upperdir

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/lower"
)

// found is an inode that a scan has come to, under one of its names.
type found struct {
	path  string // "a/b"; "" is the root
	dirfd int
	name  string // in dirfd; "" is dirfd itself
	fd    int    // open by O_PATH
	st    unix.Stat_t
}

func (f *found) kind() uint32 { return f.st.Mode & unix.S_IFMT }

// scan calls fn for all names of the upper as they are on disk, but not for
// whiteouts: a directory first, then what is in it. What is damaged does not
// hinder it.
func (d *Dir) scan(ctx context.Context, fn func(*found) error) error {
	return d.scanEntry(ctx, &found{dirfd: d.root}, fn)
}

func (d *Dir) scanEntry(ctx context.Context, f *found, fn func(*found) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	it := item{dirfd: f.dirfd, name: f.name}
	var err error
	if f.fd, err = it.openPath(); err == nil {
		err = unix.Fstat(f.fd, &f.st)
		defer unix.Close(f.fd)
	}
	switch {
	case vanished(err):
		return nil
	case err != nil:
		return at(f.path, err)
	case d.format.Whiteout(&f.st):
		return nil
	}
	if err := fn(f); err != nil {
		return err
	}
	if f.kind() != unix.S_IFDIR {
		return nil
	}
	fd, err := openDir(f.fd, ".")
	if vanished(err) {
		return nil
	}
	if err != nil {
		return at(f.path, err)
	}
	defer unix.Close(fd)
	names, err := readNames(fd)
	if err != nil {
		return at(f.path, err)
	}
	for _, name := range names {
		if err := d.scanEntry(ctx, &found{path: join(f.path, name), dirfd: fd, name: name}, fn); err != nil {
			return err
		}
	}
	return nil
}

// KernelReads returns nil if kernel overlayfs reads the upper as it is meant.
// It never knows overrides, and without the trusted attributes neither
// redirects nor metacopies.
func (d *Dir) KernelReads(ctx context.Context) error {
	err := d.scan(ctx, func(f *found) error {
		what := ""
		for _, hard := range d.hardForKernel() {
			if _, ok, err := fdXattr(f.fd, hard.attribute); err != nil {
				return at(f.path, err)
			} else if ok && what == "" {
				what = hard.what
			}
		}
		if what == "" {
			return nil
		}
		return fault.New(fault.Conflict, "kernel overlayfs cannot read it: /%s %s", f.path, what)
	})
	if fault.KindOf(err) == fault.Conflict {
		hint := "use --driver fuse"
		if n := d.Info().Name; n != "" {
			hint = fmt.Sprintf("imgfs upper convert %s rewrites it; or use --driver fuse", n)
		}
		err = fault.WithHint(err, "%s", hint)
	}
	if err != nil {
		return fmt.Errorf("upper %s: %w", d.name(), err)
	}
	return nil
}

// hardAttribute is one that kernel overlayfs does not read.
type hardAttribute struct{ attribute, what string }

func (d *Dir) hardForKernel() []hardAttribute {
	hard := []hardAttribute{{overrideName, "has an owner or mode that could not be set on disk"}}
	if !d.format.Override {
		hard = nil
	}
	if d.format.Prefix == userPrefix {
		hard = append(hard,
			hardAttribute{userPrefix + "metacopy", "has its data in the image"},
			hardAttribute{userPrefix + "redirect", "was renamed, and its content is in the image"})
	}
	return hard
}

// Problem is something wrong with an upper.
type Problem struct {
	Path string // "/a/b"
	What string
}

// Check looks for what breaks the format, on low if that is not nil, and returns
// it in the order of paths. What it does not list can be read.
func (d *Dir) Check(ctx context.Context, low *lower.Tree) ([]Problem, error) {
	var list []Problem
	note := func(path string, err error) { list = append(list, Problem{"/" + path, err.Error()}) }
	err := d.scan(ctx, func(f *found) error {
		var st unix.Stat_t
		if err := d.format.Stat(f.dirfd, f.name, &st); err != nil && !vanished(err) {
			note(f.path, err)
		}
		if _, _, err := d.format.NID(f.fd); err != nil {
			note(f.path, err)
		}
		redirect, err := d.format.Redirect(f.fd)
		if err != nil {
			note(f.path, err)
		}
		meta, err := d.format.Metacopy(f.fd)
		if err != nil {
			note(f.path, err)
		}
		switch {
		case meta && f.kind() != unix.S_IFREG:
			note(f.path, damaged("metacopy of what is no regular file"))
		case meta && low != nil && strings.HasPrefix(redirect, "/"):
			w := newWalker(ctx, d.format, low)
			nid, err := w.below(nil, nil, redirect)
			var a erofs.Attr
			if err == nil && nid != 0 {
				err = w.img.Stat(nid, &a)
			}
			if err != nil || a.Mode&unix.S_IFMT != unix.S_IFREG {
				note(f.path, damaged("the file of the image that has its data, %s, is not there", redirect))
			}
		}
		return nil
	})
	slices.SortStableFunc(list, func(a, b Problem) int { return strings.Compare(a.Path, b.Path) })
	if err != nil {
		return list, fmt.Errorf("upper %s: %w", d.name(), err)
	}
	return list, nil
}

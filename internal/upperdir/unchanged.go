package upperdir

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/lower"
)

// Unchanged reports whether the upper changes nothing of low: it is empty, or
// has only directories that are as low has them, as of those that something was
// mounted on. It looks no further than to the first change. The root's time,
// which moves with every name that comes and goes, is none; its other
// attributes are.
func (d *Dir) Unchanged(ctx context.Context, low *lower.Tree) (bool, error) {
	w := newWalker(ctx, d.format, low)
	c := collector{w: w}
	w.enter = func(it *item) error {
		if it.path == "" {
			same, err := w.sameRoot(it)
			if err == nil && !same {
				err = errChange
			}
			return err
		}
		if err := c.enter(it); err != nil {
			return err
		}
		if len(c.list) > 0 || it.isDir() && !it.gone && c.open[len(c.open)-1] {
			return errChange
		}
		return nil
	}
	err := w.run(d.root)
	if errors.Is(err, errChange) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("upper %s: %w", d.name(), err)
	}
	return true, nil
}

// errChange ends a walk that looks for any change.
var errChange = errors.New("changed")

// sameRoot reports whether the root has the attributes that the image gives
// it, but for times, and for what a user's daemon could not set. It has until
// it is seeded: nobody has mounted it.
func (w *walker) sameRoot(it *item) (bool, error) {
	if _, seeded, err := fdXattr(it.dirfd, w.format.Prefix+seedName); err != nil || !seeded {
		return err == nil, err
	}
	var e erofs.Attr
	if err := w.img.Stat(it.base, &e); err != nil {
		return false, err
	}
	want := lowerAttr(&e)
	want.Sec, want.Nsec = it.attr.Sec, it.attr.Nsec
	if want != it.attr {
		return false, nil
	}
	ours, err := w.xattrs(it)
	if err != nil {
		return false, err
	}
	image, err := lowerXattrs(w.img, it.base)
	if w.format.Override {
		maps.DeleteFunc(image, func(name, _ string) bool { _, has := ours[name]; return !has })
	}
	return maps.Equal(ours, image), err
}

package upperdir

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/imgfs/imgfs/internal/lower"
)

// Kind says how a name differs.
type Kind byte

// The kinds, as docker diff prints them.
const (
	Added   Kind = 'A'
	Changed Kind = 'C'
	Deleted Kind = 'D'
)

// String returns the kind's letter.
func (k Kind) String() string { return string(rune(k)) }

// Change is a name that differs.
type Change struct {
	Kind Kind
	Path string // "/a/b"
}

// Changes calls fn for what the upper changes of low, in the order of paths. A
// directory counts as changed if its own attributes are, or something below it
// is; what is below a deleted one is not listed. A renamed directory is a
// deleted one and a new one.
func (d *Dir) Changes(ctx context.Context, low *lower.Tree, fn func(Change) error) error {
	w := newWalker(ctx, d.format, low)
	c := collector{w: w}
	w.enter, w.leave = c.enter, c.leave
	if err := w.run(d.root); err != nil {
		return fmt.Errorf("upper %s: %w", d.name(), err)
	}
	return c.tell(fn)
}

// collector collects changes.
type collector struct {
	w    *walker
	list []Change
	open []bool // of the directories being walked, the root first: changed, or something below is
}

// enter notes an item.
func (c *collector) enter(it *item) error {
	if it.gone {
		c.note(it, Deleted)
		return nil
	}
	change := false
	switch {
	case it.base == 0 || it.upper() && !it.isDir():
		change = true
	case !it.upper() && it.low == it.base: // moved away and back
	default:
		same, err := c.w.sameAsImage(it)
		if err != nil && !vanished(err) {
			return at(it.path, err)
		}
		// What is not in the upper, but was moved to where something else was,
		// is another inode.
		change = !same || !it.isDir()
	}
	if it.isDir() {
		c.open = append(c.open, change)
		return nil
	}
	if change {
		c.note(it, kindOf(it))
	}
	return nil
}

func (c *collector) leave(it *item) error {
	last := len(c.open) - 1
	changed := c.open[last]
	c.open = c.open[:last]
	if changed {
		c.note(it, kindOf(it))
	}
	return nil
}

func kindOf(it *item) Kind {
	if it.base == 0 {
		return Added
	}
	return Changed
}

// note records a change, which changes the directory it is in.
func (c *collector) note(it *item, k Kind) {
	if it.path == "" {
		return // docker's list does not have the root
	}
	c.list = append(c.list, Change{k, "/" + it.path})
	if n := len(c.open); n > 0 {
		c.open[n-1] = true
	}
}

// tell calls fn for the changes in order.
func (c *collector) tell(fn func(Change) error) error {
	slices.SortFunc(c.list, func(a, b Change) int { return strings.Compare(a.Path, b.Path) })
	for _, ch := range c.list {
		if err := fn(ch); err != nil {
			return err
		}
	}
	return nil
}

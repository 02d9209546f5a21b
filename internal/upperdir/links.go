package upperdir

import "github.com/imgfs/imgfs/internal/erofs"

// A directory that was renamed may hold names of files that have others where
// nothing was changed. A layer that has the ones as a new file breaks the link,
// and a link to a name that only the image has is more than many appliers can
// do: so the layer has the others as well.
type links struct {
	files map[erofs.NID]bool // lower inodes that a layer has, and the image elsewhere too
	dirs  map[erofs.NID]bool // lower directories on the way to their names
}

// scatteredLinks walks the upper as a layer does, and finds these files.
func (w *walker) scatteredLinks(root int) (links, error) {
	type count struct{ seen, of uint64 }
	counts := map[erofs.NID]*count{}
	scan := *w
	scan.leave = nil
	scan.enter = func(it *item) error {
		if it.gone || it.upper() || it.isDir() || it.links < 2 {
			return nil
		}
		c := counts[it.low]
		if c == nil {
			c = &count{of: it.links}
			counts[it.low] = c
		}
		c.seen++
		return nil
	}
	if err := scan.run(root); err != nil {
		return links{}, err
	}
	l := links{map[erofs.NID]bool{}, map[erofs.NID]bool{}}
	for nid, c := range counts {
		if c.seen < c.of {
			l.files[nid] = true
		}
	}
	if len(l.files) == 0 {
		return links{}, nil
	}
	_, err := w.markWay(&l, w.img.Root())
	return l, err
}

// markWay notes the directories below dir, itself included, that lead to one
// of the files.
func (w *walker) markWay(l *links, dir erofs.NID) (leads bool, err error) {
	if err := w.ctx.Err(); err != nil {
		return false, err
	}
	err = w.names(dir, func(_ string, nid erofs.NID) error {
		below := l.files[nid]
		if !below && w.isDir(nid) {
			var err error
			if below, err = w.markWay(l, nid); err != nil {
				return err
			}
		}
		leads = leads || below
		return nil
	})
	if leads {
		l.dirs[dir] = true
	}
	return leads, err
}

// shows reports whether a walk has to visit what only the lower has at a name,
// for the sake of the links.
func (l *links) shows(nid erofs.NID) bool { return l.files[nid] || l.dirs[nid] }

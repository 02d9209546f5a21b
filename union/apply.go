package union

import (
	"fmt"

	"github.com/imgfs/imgfs/internal/erofs"
)

// merger applies images, the lowest first, to a tree.
type merger struct {
	*tree
	images []*erofs.Image
	layer  uint32 // number of the image being applied, from 1
	src    layerTree
	// Directories of the layer to be applied: item to directory.
	queue []job
	// Implied directories over symlinks, applied when the rest of the layer is.
	deferred []deferral
	links    linkSet
	steps    int      // path components that may still be walked for this layer
	rest     []string // of walker
	missing  []string // of walker
}

type job struct {
	item uint32
	dir  dirID
}

type deferral struct {
	item  uint32
	entry entryID
}

// apply applies an image. A chain index has no marks.
func (m *merger) apply(img *erofs.Image, marks bool) error {
	m.images = append(m.images, img)
	m.layer = uint32(len(m.images))
	if err := m.src.load(img, marks); err != nil {
		return err
	}
	if uint64(len(m.entries))+uint64(len(m.src.items)) > maxEntries {
		return fmt.Errorf("%w: more than %d names in all layers", erofs.ErrLimit, maxEntries)
	}
	m.steps = baseSteps + stepsPerName*len(m.src.items)
	m.deferred = m.deferred[:0]
	if err := m.beginLinks(img); err != nil {
		return err
	}

	r := &m.src.items[0]
	if r.opaque {
		m.hide(rootInode, m.layer)
	}
	if !r.implied {
		m.setSource(rootInode, r.nid)
	}
	m.touch(m.root(), m.layer)
	m.run(0, m.root())
	for i := 0; i < len(m.deferred); i++ {
		if err := m.applyDeferred(m.deferred[i]); err != nil {
			return fmt.Errorf("%s: %w", m.src.path(m.deferred[i].item), err)
		}
	}
	return m.endLinks()
}

func (m *merger) setSource(n inodeID, nid erofs.NID) {
	m.inodes[n].nid, m.inodes[n].image = nid, m.layer-1
}

// run applies the content of a directory of the layer, and of those below it,
// in directory d.
func (m *merger) run(item uint32, d dirID) {
	m.queue = append(m.queue[:0], job{item, d})
	for i := 0; i < len(m.queue); i++ {
		j := m.queue[i]
		dir := &m.src.items[j.item]
		for k := dir.first; k < dir.first+dir.count; k++ {
			m.applyItem(k, j.dir)
		}
	}
}

func (m *merger) applyItem(i uint32, d dirID) {
	it := &m.src.items[i]
	switch it.kind {
	case kindWhiteout:
		if e := m.lookup(d, it.name); e != 0 {
			m.remove(e, m.layer)
		}
	case kindDir:
		e := m.open(d, it.name)
		if it.implied && m.kindOf(e) == kindSymlink {
			m.deferred = append(m.deferred, deferral{i, e})
			return
		}
		m.applyDir(i, e)
	default:
		n := m.src.inodes[it.nid]
		if n == 0 {
			n = m.newInode(inode{nid: it.nid, image: m.layer - 1, kind: it.kind})
			m.src.inodes[it.nid] = n
		}
		e := m.open(d, it.name)
		m.put(e, n, m.layer)
		if it.kind == kindLink {
			m.links.names = append(m.links.names, e)
		}
	}
}

// applyDir makes entry e the layer's directory i, which is not deferred, and
// queues its content.
func (m *merger) applyDir(i uint32, e entryID) {
	it := &m.src.items[i]
	n := m.entries[e].inode
	if m.inodes[n].dir == 0 {
		n = m.mkdir(e)
	} else if it.opaque {
		m.hide(n, m.layer)
	}
	d := m.inodes[n].dir
	m.dirs[d].touched = m.layer
	if !it.implied {
		m.setSource(n, it.nid)
	}
	m.queue = append(m.queue, job{i, d})
}

// mkdir makes entry e a new implied directory, in place of what it is.
func (m *merger) mkdir(e entryID) inodeID {
	parent := m.entries[e].dir
	m.touch(parent, m.layer)
	n := m.newInode(inode{kind: kindDir, dir: m.newDir(parent, m.layer)})
	m.put(e, n, m.layer)
	return n
}

// applyDeferred applies an implied directory that met a symlink. Where another
// deferral has replaced the symlink since, what follow makes of that is the rule
// for implied directories.
func (m *merger) applyDeferred(df deferral) error {
	d, err := m.follow(df.entry)
	if err != nil {
		return err
	}
	if m.src.items[df.item].opaque {
		m.prune(d, m.layer)
	}
	m.touch(d, m.layer)
	m.run(df.item, d)
	return nil
}

package overlay

import (
	"fmt"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/lower"
	"golang.org/x/sys/unix"
)

// onDisk is what an entry on disk says of itself.
type onDisk struct {
	st       unix.Stat_t // overrides applied
	redirect string
	opaque   bool
	metacopy bool
	nid      erofs.NID // 0: none
}

// inspect reads an entry of an upper directory.
func (u *Union) inspect(dirfd int, name string) (onDisk, error) {
	var f onDisk
	fd, err := u.openPath(dirfd, name, 0)
	if err != nil {
		return f, err
	}
	defer unix.Close(fd)
	if err := u.format.Stat(fd, "", &f.st); err != nil {
		return f, err
	}
	kind := f.st.Mode & unix.S_IFMT
	if n, err := unix.Listxattr(procPath(fd), nil); err == nil && n == 0 {
		return f, nil // as it is of most
	}
	if kind == unix.S_IFDIR {
		if f.opaque, err = u.format.Opaque(fd); err != nil {
			return f, err
		}
	} else {
		f.nid = u.copiedFrom(fd, name, kind)
	}
	if kind == unix.S_IFREG {
		if f.metacopy, err = u.format.Metacopy(fd); err != nil {
			return f, err
		}
	}
	if kind == unix.S_IFDIR || f.metacopy {
		f.redirect, err = u.format.Redirect(fd)
	}
	return f, err
}

// copiedFrom returns the inode of the chain whose identity an upper inode has.
// What is no such number, or that of an inode which the chain does not have or
// has of another type, is none: nothing but st_ino depends on it.
func (u *Union) copiedFrom(fd int, name string, kind uint32) erofs.NID {
	if u.o.Foreign {
		return 0
	}
	n, ok, err := u.format.NID(fd)
	if err != nil {
		u.faults.Status("lookup", fmt.Errorf("upper entry %q: %w", name, err))
		return 0
	}
	if !ok || n <= lower.Root || n > lower.NIDMask {
		return 0
	}
	var a erofs.Attr
	if u.img.Stat(erofs.NID(n), &a) != nil || a.Mode&unix.S_IFMT != kind {
		return 0
	}
	return erofs.NID(n)
}

// readLocked looks at an entry of the upper, and makes it a node or a damage.
//
// Preconditions: mu is held exclusively; p is loaded; e is unread.
func (u *Union) readLocked(p *node, e *entry) {
	p.dir.settle(e, nil) // for who comes by here again, by redirects
	e.state = entryDamaged
	n, err := u.nodeLocked(p, e.name)
	if err != nil {
		p.dir.settle(e, nil)
		e.state, e.err = entryDamaged, fmt.Errorf("upper entry %q: %w", e.name, err)
		u.faults.Status("lookup", e.err)
		return
	}
	p.dir.settle(e, n)
}

// nodeLocked returns the node of an entry on disk.
//
// Preconditions: mu is held exclusively.
func (u *Union) nodeLocked(p *node, name string) (*node, error) {
	h, err := u.openDir(p)
	if err != nil {
		return nil, err
	}
	defer u.dirs.release(h)
	f, err := u.inspect(h.fd, name)
	if err != nil {
		return nil, err
	}
	kind := f.st.Mode & unix.S_IFMT
	if kind == unix.S_IFDIR {
		return u.dirNodeLocked(p, name, &f)
	}
	id := u.bornID(f.st.Ino)
	if n := u.nodes[id]; n != nil {
		return n, u.nameLocked(n, p, name)
	}
	if f.nid != 0 {
		old := u.nodes[u.low.Node(f.nid)]
		switch {
		case old == nil:
			id = u.low.Node(f.nid)
		case old.ino == f.st.Ino:
			return old, u.nameLocked(old, p, name)
		}
	}
	n := &node{id: id, gen: 1, ino: f.st.Ino, mode: kind, orphan: -1, parent: p, name: name}
	n.full.Store(!f.metacopy)
	n.placed.Add(1) // as far as we know
	if f.metacopy {
		if n.lower, err = u.dataOf(p, name, f.redirect); err != nil {
			return nil, err
		}
		n.redirected = f.redirect != "" && f.redirect[0] == '/'
	}
	u.nodes[id] = n
	if f.nid != 0 && id == u.low.Node(f.nid) {
		if err := u.gatherLocked(n, f.nid); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// dataOf returns the lower file that a metacopy has its data from.
func (u *Union) dataOf(p *node, name, redirect string) (erofs.NID, error) {
	if redirect == "" {
		redirect = name // written by the kernel, which then means the same name
	}
	nid, err := u.lowerAt(p.lower, redirect)
	if err != nil {
		return 0, err
	}
	var a erofs.Attr
	if err := u.img.Stat(nid, &a); err != nil {
		return 0, err
	}
	if a.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0, fmt.Errorf("%w: its data is at %q, which is no file", errDamaged, redirect)
	}
	return nid, nil
}

// dirNodeLocked returns the node of a directory on disk.
//
// Preconditions: mu is held exclusively.
func (u *Union) dirNodeLocked(p *node, name string, f *onDisk) (*node, error) {
	n := &node{ino: f.st.Ino, gen: 1, mode: unix.S_IFDIR, orphan: -1, parent: p, name: name, opaque: f.opaque}
	switch {
	case f.opaque:
	case f.redirect != "":
		nid, err := u.lowerAt(p.lower, f.redirect)
		if err != nil {
			return nil, err
		}
		n.lower, n.redirected = nid, f.redirect[0] == '/'
	default:
		nid, kind, err := u.lowerLookup(p, name)
		if err != nil {
			return nil, err
		}
		if kind == unix.DT_DIR {
			n.lower = nid
		}
	}
	n.placed.Add(1)
	n.id = u.bornID(f.st.Ino)
	if n.lower != 0 {
		var a erofs.Attr
		if err := u.img.Stat(n.lower, &a); err != nil {
			return nil, err
		}
		if a.Mode&unix.S_IFMT != unix.S_IFDIR {
			return nil, fmt.Errorf("%w: redirect %q leads to what is no directory", errDamaged, f.redirect)
		}
		n.id = u.low.Node(n.lower)
		if f.redirect != "" {
			shown, err := u.shownLocked(n.lower)
			if err != nil {
				return nil, err
			}
			if shown {
				return nil, fmt.Errorf("%w: redirect %q leads to what is still there", errDamaged, f.redirect)
			}
		}
	}
	if u.nodes[n.id] != nil {
		return nil, fmt.Errorf("%w: directory has two places", errDamaged)
	}
	u.nodes[n.id] = n
	return n, nil
}

// shownLocked reports whether a directory of the chain can be reached: by its
// own name there, or by one that a redirect we know has given it. What of the
// upper lies on its own path is known then.
//
// Preconditions: mu is held exclusively.
func (u *Union) shownLocked(nid erofs.NID) (bool, error) {
	id := u.low.Node(nid)
	if n := u.nodes[id]; n != nil {
		return n == u.root || n.parent != nil, nil
	}
	names, err := u.names.of(u.img, nid)
	if err != nil || len(names) == 0 {
		return false, err
	}
	shown, err := u.nameShownLocked(names[0])
	if err != nil || shown {
		return shown, err
	}
	if p := u.nodes[u.low.Node(names[0].dir)]; p != nil && p.dir != nil {
		name, err := names[0].name(u.img)
		if err != nil {
			return false, err
		}
		if e := p.dir.names[name]; e != nil && e.state == entryUnread {
			u.readLocked(p, e)
		}
	}
	return u.nodes[id] != nil, nil
}

// nameShownLocked reports whether a name of the chain is visible and is not in
// the upper, as far as is known without looking for redirects.
//
// Preconditions: mu is held exclusively.
func (u *Union) nameShownLocked(l lowerName) (bool, error) {
	shown, err := u.shownLocked(l.dir)
	if err != nil || !shown {
		return false, err
	}
	p := u.nodes[u.low.Node(l.dir)]
	if p == nil {
		return true, nil
	}
	d, err := u.loadLocked(p)
	if err != nil {
		return false, err
	}
	name, err := l.name(u.img)
	return d.names[name] == nil, err
}

// nameLocked notes a further name of a node.
//
// Preconditions: mu is held exclusively.
func (u *Union) nameLocked(n *node, p *node, name string) error {
	if n.parent != nil {
		if n.isDir() {
			return fmt.Errorf("%w: directory has two places", errDamaged)
		}
		n.links = append(n.links, link{p, name})
		return nil
	}
	n.parent, n.name = p, name
	if n.orphan >= 0 {
		unix.Close(n.orphan)
		n.orphan = -1
	}
	return nil
}

// unnameLocked forgets a name of a node.
//
// Preconditions: mu is held exclusively.
func (n *node) unnameLocked(p *node, name string) {
	gone := link{p, name}
	if gone == (link{n.parent, n.name}) {
		n.parent, n.name = nil, ""
		if last := len(n.links) - 1; last >= 0 {
			n.parent, n.name = n.links[last].parent, n.links[last].name
			n.links = n.links[:last]
		}
		return
	}
	for i, l := range n.links {
		if l == gone {
			n.links = append(n.links[:i], n.links[i+1:]...)
			return
		}
	}
}

// bornID returns the node ID of what was not copied up. If there is a node of
// that ID it is that inode's.
//
// Preconditions: mu is held exclusively.
func (u *Union) bornID(ino uint64) uint64 {
	if ino <= lower.NIDMask {
		n := u.nodes[upperTree|ino]
		if n == nil || n.ino == ino {
			return upperTree | ino
		}
	}
	id, ok := u.others[ino]
	if !ok {
		// From the top: no file system gives out numbers that large as well as
		// numbers too large.
		id = upperTree | (lower.NIDMask - 1 - u.given)
		u.given++
		u.others[ino] = id
	}
	return id
}

// upperTree is the number of the upper's tree in node IDs.
const upperTree = 1 << lower.TreeShift

package overlay

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/imgfs/imgfs/internal/erofs"
	"golang.org/x/sys/unix"
)

// Unlink removes a name of what is no directory.
func (u *Union) Unlink(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.status("unlink", u.unlinkLocked(in.NodeId, name))
}

func (u *Union) unlinkLocked(dir uint64, name string) error {
	c, err := u.resolveLocked(dir, name)
	if err != nil {
		return err
	}
	if c.none() {
		return unix.ENOENT
	}
	if c.n == nil {
		var a erofs.Attr
		if err := u.img.Stat(c.nid, &a); err != nil {
			return err
		}
		if a.Mode&unix.S_IFMT == unix.S_IFDIR {
			return unix.EISDIR
		}
		if a.Nlink == 1 {
			return u.hideLocked(dir, name, c.nid, &a)
		}
		// Its other names are to have the right link count.
		if c.n, err = u.copyUpLocked(u.low.Node(c.nid)); err != nil {
			return err
		}
	}
	if c.n.isDir() {
		return unix.EISDIR
	}
	return u.takeAwayLocked(dir, name, c.n, func(dirfd int, below bool) error {
		if below {
			return u.replaceByWhiteout(dirfd, name, false, nil)
		}
		return u.unlink(dirfd, name)
	})
}

// takeAwayLocked removes a name of a node that is in the upper. On disk remove
// does it, and leaves a whiteout if below: the lower has the name.
//
// Preconditions: mu is held exclusively.
func (u *Union) takeAwayLocked(dir uint64, name string, n *node, remove func(dirfd int, below bool) error) error {
	p, err := u.copyUpLocked(dir)
	if err != nil {
		return err
	}
	h, err := u.openDir(p)
	if err != nil {
		return err
	}
	defer u.dirs.release(h)
	hold, err := u.holdLocked(n, h.fd, name)
	if err != nil {
		return err
	}
	below, _, err := u.lowerLookup(p, name)
	if err == nil {
		err = remove(h.fd, below != 0)
	}
	if err != nil {
		closeHold(hold)
		return err
	}
	u.goneLocked(p, p.dir.names[name], hold, below != 0)
	return nil
}

// hideLocked removes the only name of an inode that is in the lower only: a
// whiteout is all that it takes.
//
// Preconditions: mu is held exclusively.
func (u *Union) hideLocked(dir uint64, name string, nid erofs.NID, a *erofs.Attr) error {
	p, err := u.copyUpLocked(dir)
	if err != nil {
		return err
	}
	d, err := u.loadLocked(p)
	if err != nil {
		return err
	}
	h, err := u.openDir(p)
	if err != nil {
		return err
	}
	defer u.dirs.release(h)
	if err := u.whiteout(h.fd, name); err != nil {
		return err
	}
	d.settle(d.add(name, true), nil)
	u.bareLocked(nid, a)
	return nil
}

// bareLocked notes that an inode of the chain has no name any more.
//
// Preconditions: mu is held exclusively.
func (u *Union) bareLocked(nid erofs.NID, a *erofs.Attr) {
	n := &node{id: u.low.Node(nid), gen: 1, mode: a.Mode & unix.S_IFMT, lower: nid, orphan: -1, early: true, bare: true}
	n.inexact.Store(true)
	if n.isDir() {
		n.dir, n.lower = newDirectory(), 0
	}
	u.nodes[n.id] = n
}

// holdLocked opens an inode that is about to lose its last known name, as the
// kernel still refers to it: -1 if there is no need.
//
// Preconditions: mu is held exclusively.
func (u *Union) holdLocked(n *node, dirfd int, name string) (int, error) {
	if len(n.links) > 0 {
		return -1, nil
	}
	if !n.isReferred() {
		// It must be, by whoever removes it: a late FORGET, see node.early.
		n.inexact.Store(true)
	}
	return u.openPath(dirfd, name, 0)
}

func (n *node) isReferred() bool { return n.inexact.Load() || n.lookups.Load() > 0 }

func closeHold(fd int) {
	if fd >= 0 {
		unix.Close(fd)
	}
}

// goneLocked notes that a name of a node is no more, or is a whiteout now.
//
// Preconditions: mu is held exclusively.
func (u *Union) goneLocked(p *node, e *entry, hold int, whiteout bool) {
	n := e.n
	u.unnamedLocked(n, p, e.name, hold)
	if whiteout {
		p.dir.settle(e, nil)
	} else {
		p.dir.remove(e)
	}
}

// unnamedLocked notes that a node has lost a name. It takes hold.
//
// Preconditions: mu is held exclusively.
func (u *Union) unnamedLocked(n *node, p *node, name string, hold int) {
	n.unnameLocked(p, name)
	if n.parent != nil {
		closeHold(hold)
		return
	}
	n.orphan = hold
	if n.isDir() {
		n.dir, n.lower = newDirectory(), 0
		u.dirs.drop(n)
	}
	if hold < 0 {
		u.dropLocked(n)
	}
}

// replaceByWhiteout puts a whiteout in the place of an entry, in one step. Of
// a directory, whiteouts are the names of the whiteouts in it.
//
// Preconditions: mu is held exclusively.
func (u *Union) replaceByWhiteout(dirfd int, name string, dir bool, whiteouts []string) error {
	tmp := u.staged()
	if err := u.whiteout(u.up.Stage(), tmp); err != nil {
		return err
	}
	flags := uint(0)
	if dir {
		flags = unix.RENAME_EXCHANGE
	}
	if err := u.rename(u.up.Stage(), tmp, dirfd, name, flags); err != nil {
		u.discard(tmp, false)
		return err
	}
	if dir {
		u.clear(tmp, whiteouts)
	}
	return nil
}

// Rmdir removes a directory that is empty.
func (u *Union) Rmdir(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.status("rmdir", u.rmdirLocked(in.NodeId, name))
}

func (u *Union) rmdirLocked(dir uint64, name string) error {
	c, err := u.resolveLocked(dir, name)
	if err != nil {
		return err
	}
	if c.none() {
		return unix.ENOENT
	}
	if err := u.emptyLocked(c); err != nil {
		return err
	}
	if c.n == nil {
		var a erofs.Attr
		if err := u.img.Stat(c.nid, &a); err != nil {
			return err
		}
		return u.hideLocked(dir, name, c.nid, &a)
	}
	return u.takeAwayLocked(dir, name, c.n, func(dirfd int, below bool) error {
		return u.removeDirLocked(c.n, dirfd, name, below)
	})
}

// removeDirLocked removes an empty directory from the disk.
//
// Preconditions: mu is held exclusively; n is loaded.
func (u *Union) removeDirLocked(n *node, dirfd int, name string, below bool) error {
	inside := n.dir.whiteouts()
	if below {
		return u.replaceByWhiteout(dirfd, name, true, inside)
	}
	if len(inside) == 0 {
		return u.rmdir(dirfd, name)
	}
	tmp := u.staged()
	if err := u.rename(dirfd, name, u.up.Stage(), tmp, 0); err != nil {
		return err
	}
	u.clear(tmp, inside)
	return nil
}

// emptyLocked returns nil for a directory without visible names, ENOTEMPTY for
// one with some, ENOTDIR for what is none.
//
// Preconditions: mu is held exclusively.
func (u *Union) emptyLocked(c child) error {
	nid := c.nid
	var d *directory
	if c.n != nil {
		var err error
		if d, err = u.loadLocked(c.n); err != nil {
			return err
		}
		for _, e := range d.names {
			if e.state != entryWhiteout {
				return unix.ENOTEMPTY
			}
		}
		nid = c.n.lower
	}
	if nid == 0 {
		return nil
	}
	var a erofs.Attr
	if err := u.img.Stat(nid, &a); err != nil {
		return err
	}
	if a.Mode&unix.S_IFMT != unix.S_IFDIR {
		return unix.ENOTDIR
	}
	empty := true
	err := u.img.ReadDir(nid, 0, func(l *erofs.Dirent) bool {
		if !isDots(l.Name) && (d == nil || d.names[string(l.Name)] == nil) {
			empty = false
		}
		return empty
	})
	if err == nil && !empty {
		err = unix.ENOTEMPTY
	}
	return err
}

package overlay

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/lower"
	"github.com/imgfs/imgfs/internal/upperdir"
	"golang.org/x/sys/unix"
)

// copyUp returns the node of id with its metadata in the upper, that is not
// bare. The data of a regular file stays where it is.
func (u *Union) copyUp(id uint64) (*node, fuse.Status) {
	u.mu.RLock()
	n := u.nodes[id]
	ready := n != nil && !n.bare
	u.mu.RUnlock()
	if ready {
		return n, fuse.OK
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	n, err := u.copyUpLocked(id)
	return n, u.status("copy-up", err)
}

// copyUpLocked is copyUp.
//
// Preconditions: mu is held exclusively.
func (u *Union) copyUpLocked(id uint64) (*node, error) {
	n := u.nodes[id]
	if n != nil && !n.bare {
		return n, nil
	}
	if id>>lower.TreeShift != 0 {
		return nil, unix.ESTALE
	}
	nid := u.low.NID(id)
	var a erofs.Attr
	if err := u.img.Stat(nid, &a); err != nil {
		return nil, err
	}
	if n != nil {
		return n, u.copyUpBareLocked(n, nid, &a)
	}
	places, err := u.placesLocked(nid, a.Mode&unix.S_IFMT == unix.S_IFDIR || a.Nlink == 1)
	if err != nil {
		return nil, err
	}
	if len(places) == 0 {
		return nil, unix.ESTALE
	}
	return u.copyUpToLocked(nid, &a, places)
}

// placesLocked returns the visible names of an inode of the chain; the
// directories are in the upper then.
//
// Preconditions: mu is held exclusively.
func (u *Union) placesLocked(nid erofs.NID, one bool) ([]link, error) {
	names, err := u.names.of(u.img, nid)
	if err != nil {
		return nil, err
	}
	var places []link
	for _, l := range names {
		shown, err := u.nameShownLocked(l)
		if err == nil && !shown && !one {
			// One of several names: its directory may have been moved to
			// where we have not yet looked.
			u.loadAllLocked()
			shown, err = u.nameShownLocked(l)
		}
		if err != nil {
			if one {
				return nil, err
			}
			u.status("copy-up", err) // logged: what is damaged there is not seen here
			continue
		}
		if !shown {
			continue
		}
		p, err := u.copyUpLocked(u.low.Node(l.dir))
		if err != nil {
			return nil, err
		}
		name, err := l.name(u.img)
		if err != nil {
			return nil, err
		}
		places = append(places, link{p, name})
	}
	return places, nil
}

// loadAllLocked loads every directory of the upper, once, so that all
// redirects are known but those in what is damaged.
//
// Preconditions: mu is held exclusively.
func (u *Union) loadAllLocked() {
	if u.loadedAll {
		return
	}
	todo := []*node{u.root}
	for len(todo) > 0 {
		n := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		d, err := u.loadLocked(n)
		if err != nil {
			u.status("copy-up", err)
			continue
		}
		for _, e := range d.names {
			if e.state == entryUnread {
				u.readLocked(n, e)
			}
			if e.n != nil && e.n.isDir() {
				todo = append(todo, e.n)
			}
		}
	}
	u.loadedAll = true
}

// copyUpToLocked makes an inode of the chain an inode of the upper at places.
//
// Preconditions: mu is held exclusively; the names are free there.
func (u *Union) copyUpToLocked(nid erofs.NID, a *erofs.Attr, places []link) (*node, error) {
	tmp := u.staged()
	dir := a.Mode&unix.S_IFMT == unix.S_IFDIR
	ino, err := u.stageCopy(tmp, nid, a)
	if err != nil {
		u.discard(tmp, dir)
		return nil, err
	}
	n := &node{id: u.low.Node(nid), gen: 1, ino: ino, mode: a.Mode & unix.S_IFMT, orphan: -1, early: true}
	n.inexact.Store(true)
	n.placed.Add(1)
	n.setLower(nid, a)
	if dir {
		n.dir = newDirectory()
	}
	for i, at := range places {
		last := i == len(places)-1
		err := u.quietly(at.parent, func(dirfd int) error {
			if last {
				return u.rename(u.up.Stage(), tmp, dirfd, at.name, 0)
			}
			return u.linkFrom(u.up.Stage(), tmp, dirfd, at.name)
		})
		if err != nil {
			u.discard(tmp, dir)
			if i > 0 {
				// Some names are there. They mean the same as the lower's.
				u.nodes[n.id] = n
			}
			return nil, err
		}
		d := at.parent.dir
		d.settle(d.add(at.name, true), n)
		if err := u.nameLocked(n, at.parent, at.name); err != nil {
			return nil, err
		}
	}
	u.nodes[n.id] = n
	return n, nil
}

// setLower notes where a copied-up inode has its data, or what it is merged with.
func (n *node) setLower(nid erofs.NID, a *erofs.Attr) {
	switch {
	case n.isDir():
		n.lower = nid
	case n.isRegular() && a.Size > 0:
		n.lower, n.redirected = nid, true
	default:
		n.full.Store(true)
	}
}

// quietly changes an entry of a directory that is in the upper, as copy-up
// does, which nobody is to see: the directory's times stay.
//
// Preconditions: mu is held exclusively.
func (u *Union) quietly(p *node, do func(dirfd int) error) error {
	if _, err := u.loadLocked(p); err != nil {
		return err
	}
	h, err := u.openDir(p)
	if err != nil {
		return err
	}
	defer u.dirs.release(h)
	was, err := timesOf(h.fd)
	if err != nil {
		return err
	}
	if err := do(h.fd); err != nil {
		return err
	}
	return u.setTimes(h.fd, was)
}

// gatherLocked completes a copy-up of several names that was cut off.
//
// Preconditions: mu is held exclusively; n has a name.
func (u *Union) gatherLocked(n *node, nid erofs.NID) error {
	var a erofs.Attr
	if err := u.img.Stat(nid, &a); err != nil || a.Nlink < 2 || n.isDir() {
		return err
	}
	names, err := u.names.of(u.img, nid)
	if err != nil {
		return err
	}
	for _, l := range names {
		shown, err := u.nameShownLocked(l)
		if err != nil || !shown {
			continue // what is damaged is not made worse
		}
		p, err := u.copyUpLocked(u.low.Node(l.dir))
		if err != nil {
			return err
		}
		name, err := l.name(u.img)
		if err != nil {
			return err
		}
		dirfd, from, done, err := u.placeLocked(n)
		if err != nil {
			return err
		}
		err = u.quietly(p, func(to int) error { return u.linkFrom(dirfd, from, to, name) })
		done()
		if err != nil {
			return err
		}
		p.dir.settle(p.dir.add(name, true), n)
		if err := u.nameLocked(n, p, name); err != nil {
			return err
		}
	}
	return nil
}

// copyUpBareLocked gives an unlinked inode of the chain a part in the upper,
// without a name there either.
//
// Preconditions: mu is held exclusively.
func (u *Union) copyUpBareLocked(n *node, nid erofs.NID, a *erofs.Attr) error {
	tmp := u.staged()
	ino, err := u.stageCopy(tmp, nid, a)
	if err != nil {
		u.discard(tmp, n.isDir())
		return err
	}
	fd, err := u.openPath(u.up.Stage(), tmp, 0)
	u.discard(tmp, n.isDir())
	if err != nil {
		return err
	}
	n.orphan, n.ino, n.bare = fd, ino, false
	n.setLower(nid, a)
	return nil
}

// stageCopy makes the upper inode of an inode of the chain, all but its data,
// in stage/.
func (u *Union) stageCopy(tmp string, nid erofs.NID, a *erofs.Attr) (ino uint64, err error) {
	kind := a.Mode & unix.S_IFMT
	err = u.change("stage", func() error {
		switch kind {
		case unix.S_IFDIR:
			return unix.Mkdirat(u.up.Stage(), tmp, 0o700)
		case unix.S_IFLNK:
			target, err := u.img.ReadLink(nid)
			if err != nil {
				return err
			}
			return unix.Symlinkat(string(target), u.up.Stage(), tmp)
		case unix.S_IFCHR, unix.S_IFBLK:
			return u.format.Mknod(u.up.Stage(), tmp, kind|0o600, decodeDev(a.Rdev))
		}
		return u.format.Mknod(u.up.Stage(), tmp, kind|0o600, 0)
	})
	if err != nil {
		return 0, err
	}
	fd, err := u.openPath(u.up.Stage(), tmp, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if kind == unix.S_IFREG && a.Size > 0 {
		path, err := u.names.path(u.img, nid)
		if err != nil {
			return 0, err
		}
		if err := unix.Truncate(procPath(fd), int64(a.Size)); err != nil {
			return 0, err
		}
		if err := u.format.SetMetacopy(fd, path); err != nil {
			return 0, err
		}
	}
	if kind != unix.S_IFDIR && !u.o.Foreign { // it would be taken for one of the upper's own chain
		if err := u.format.SetNID(fd, uint64(nid)); err != nil {
			return 0, err
		}
	}
	if err := u.copyAttrs(fd, nid, a); err != nil {
		return 0, err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(fd, "", &st, unix.AT_EMPTY_PATH); err != nil {
		return 0, err
	}
	return st.Ino, nil
}

// copyAttrs gives an open inode of the upper what an inode of the chain has:
// owner, mode, extended attributes, times.
func (u *Union) copyAttrs(fd int, nid erofs.NID, a *erofs.Attr) error {
	want := upperdir.Attr{UID: a.UID, GID: a.GID, Mode: a.Mode, Rdev: decodeDev(a.Rdev)}
	if err := u.format.SetStat(fd, want); err != nil {
		return err
	}
	var failed error
	err := u.img.Xattrs(nid, func(name string, value []byte) bool {
		if upperdir.Private(name) {
			return true // nobody sees it, and here it would mean something
		}
		if name == aclAccess {
			value = u.diskACL(value, a.Mode)
		}
		failed = unix.Setxattr(procPath(fd), u.format.Escape(name), value, 0)
		if u.format.Override && (failed == unix.EPERM || failed == unix.EOPNOTSUPP) {
			failed = nil // who has no privilege cannot keep what only root may set
		}
		return failed == nil
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return err
	}
	at := unix.Timespec{Sec: a.Mtime, Nsec: int64(a.MtimeNsec)}
	return u.setTimes(fd, times{at, at})
}

// decodeDev is the inverse of FUSE's and EROFS' form of a device number.
func decodeDev(rdev uint32) uint64 {
	return unix.Mkdev(rdev>>8&0xfff, rdev&0xff|rdev>>12&0xfff00)
}

// openRoot makes the upper's top directory the union's: a fresh one takes the
// attributes of the chain's root.
func (u *Union) openRoot() error {
	var st unix.Stat_t
	fd := u.up.Root()
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	u.root.ino = st.Ino
	d, err := u.loadLocked(u.root)
	if err != nil {
		return err
	}
	if len(d.names) > 0 {
		return nil
	}
	return u.up.Seed(u.img)
}

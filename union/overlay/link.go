package overlay

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Link gives an inode a further name, or one made by O_TMPFILE its first.
func (u *Union) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	u.mu.Lock()
	defer u.mu.Unlock()
	n, err := u.linkLocked(in.Oldnodeid, in.NodeId, name)
	if err == nil {
		err = u.entry(child{n: n}, out)
	}
	return u.status("link", err)
}

func (u *Union) linkLocked(id, dir uint64, name string) (*node, error) {
	if len(name) > maxName {
		return nil, unix.ENAMETOOLONG
	}
	if n := u.nodes[id]; n != nil && n.bare {
		return nil, unix.ENOENT
	}
	c, err := u.resolveLocked(dir, name)
	if err != nil {
		return nil, err
	}
	if !c.none() {
		return nil, unix.EEXIST
	}
	n, err := u.copyUpLocked(id)
	if err != nil {
		return nil, err
	}
	if n.isDir() {
		return nil, unix.EPERM
	}
	p, err := u.copyUpLocked(dir)
	if err != nil {
		return nil, err
	}
	d, err := u.loadLocked(p)
	if err != nil {
		return nil, err
	}
	if p.parent == nil && p != u.root {
		return nil, unix.ENOENT
	}
	if err := u.redirectLocked(n); err != nil {
		return nil, err
	}
	h, err := u.openDir(p)
	if err != nil {
		return nil, err
	}
	defer u.dirs.release(h)
	dirfd, from, done, err := u.placeLocked(n)
	if err != nil {
		return nil, err
	}
	defer done()
	e := d.names[name]
	if e == nil {
		err = u.linkFrom(dirfd, from, h.fd, name)
	} else {
		tmp := u.staged()
		if err = u.linkFrom(dirfd, from, u.up.Stage(), tmp); err == nil {
			if err = u.rename(u.up.Stage(), tmp, h.fd, name, 0); err != nil {
				u.discard(tmp, false)
			}
		}
	}
	if err != nil {
		return nil, err
	}
	if e == nil {
		e = d.add(name, false)
	}
	d.settle(e, n)
	n.placed.Add(1)
	return n, u.nameLocked(n, p, name)
}

// redirectLocked records on disk where the lower of a merged directory or
// metacopy is, so that it may be moved.
//
// Preconditions: mu is held exclusively; n is in the upper.
func (u *Union) redirectLocked(n *node) error {
	if n.lower == 0 || n.redirected || !n.isDir() && n.full.Load() {
		return nil
	}
	path, err := u.names.path(u.img, n.lower)
	if err != nil {
		return err
	}
	return u.mark(n, func(fd int) error { return u.format.SetRedirect(fd, path) }, func() { n.redirected = true })
}

// opaqueLocked marks a directory so that it hides a lower one at its name.
//
// Preconditions: mu is held exclusively; n is in the upper, and has no lower.
func (u *Union) opaqueLocked(n *node) error {
	if n.opaque {
		return nil
	}
	return u.mark(n, u.format.SetOpaque, func() { n.opaque = true })
}

func (u *Union) mark(n *node, set func(fd int) error, done func()) error {
	dirfd, name, release, err := u.placeLocked(n)
	if err != nil {
		return err
	}
	defer release()
	fd := dirfd
	if name != "" {
		if fd, err = u.openPath(dirfd, name, 0); err != nil {
			return err
		}
		defer unix.Close(fd)
	}
	if err := u.change("setxattr", func() error { return set(fd) }); err != nil {
		return err
	}
	done()
	return nil
}

// Readlink returns a symlink's target, as recorded.
func (u *Union) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	u.mu.RLock()
	defer u.mu.RUnlock()
	n := u.nodes[in.NodeId]
	if n == nil || n.bare {
		target, err := u.img.ReadLink(u.low.NID(in.NodeId))
		return target, u.status("readlink", err)
	}
	dirfd, name, done, err := u.placeLocked(n)
	if err != nil {
		return nil, u.status("readlink", err)
	}
	defer done()
	buf := make([]byte, unix.PathMax)
	size, err := unix.Readlinkat(dirfd, name, buf)
	return buf[:max(size, 0)], u.status("readlink", err)
}

package overlay

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/imgfs/imgfs/internal/erofs"
	"golang.org/x/sys/unix"
)

// move is a rename under way.
type move struct {
	n              *node // what is moved
	from, to       *node // directories, in the upper and loaded
	name, newName  string
	fromDir, toDir *heldDir
	// target is what has the new name: a node, or an inode of the chain, or
	// nothing.
	target child
	// fromBelow and toBelow: the lower has the name, of this type.
	fromBelow, toBelow uint8
	hold               int // descriptor of target, see holdLocked
}

// Rename moves a name, of whatever is below it without copying that.
func (u *Union) Rename(_ <-chan struct{}, in *fuse.RenameIn, name, newName string) fuse.Status {
	if in.Flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 || in.Flags == unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE {
		return fuse.EINVAL
	}
	if len(newName) > maxName {
		return fuse.Status(unix.ENAMETOOLONG)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.status("rename", u.renameLocked(in, name, newName))
}

func (u *Union) renameLocked(in *fuse.RenameIn, name, newName string) error {
	source, err := u.resolveLocked(in.NodeId, name)
	if err != nil {
		return err
	}
	target, err := u.resolveLocked(in.Newdir, newName)
	if err != nil {
		return err
	}
	switch {
	case source.none():
		return unix.ENOENT
	case !target.none() && in.Flags&unix.RENAME_NOREPLACE != 0:
		return unix.EEXIST
	case target.none() && in.Flags&unix.RENAME_EXCHANGE != 0:
		return unix.ENOENT
	case source == target:
		return nil // two names of one inode, or one name
	}
	if in.Flags&unix.RENAME_EXCHANGE == 0 && !target.none() {
		if err := u.replaceableLocked(source, target); err != nil {
			return err
		}
	}
	m := &move{name: name, newName: newName, target: target, hold: -1}
	if err := u.prepareLocked(m, in, source); err != nil {
		return err
	}
	defer u.dirs.release(m.fromDir)
	defer u.dirs.release(m.toDir)
	if in.Flags&unix.RENAME_EXCHANGE != 0 {
		return u.exchangeLocked(m)
	}
	return u.moveLocked(m)
}

// replaceableLocked checks the types, and that a directory is empty.
//
// Preconditions: mu is held exclusively.
func (u *Union) replaceableLocked(source, target child) error {
	from, err := u.kindOf(source)
	if err != nil {
		return err
	}
	to, err := u.kindOf(target)
	switch {
	case err != nil:
		return err
	case from == unix.S_IFDIR && to != unix.S_IFDIR:
		return unix.ENOTDIR
	case from != unix.S_IFDIR && to == unix.S_IFDIR:
		return unix.EISDIR
	case to == unix.S_IFDIR:
		return u.emptyLocked(target)
	}
	return nil
}

func (u *Union) kindOf(c child) (uint32, error) {
	if c.n != nil {
		return c.n.mode, nil
	}
	var a erofs.Attr
	err := u.img.Stat(c.nid, &a)
	return a.Mode & unix.S_IFMT, err
}

// prepareLocked has all that a rename touches in the upper, and marks it so
// that it means the same at its new place.
//
// Preconditions: mu is held exclusively.
func (u *Union) prepareLocked(m *move, in *fuse.RenameIn, source child) (err error) {
	if m.n = source.n; m.n == nil {
		if m.n, err = u.copyUpLocked(u.low.Node(source.nid)); err != nil {
			return err
		}
	}
	if m.target.n == nil && m.target.nid != 0 {
		var a erofs.Attr
		if err := u.img.Stat(m.target.nid, &a); err != nil {
			return err
		}
		many := a.Nlink > 1 && a.Mode&unix.S_IFMT != unix.S_IFDIR
		if many || in.Flags&unix.RENAME_EXCHANGE != 0 {
			if m.target.n, err = u.copyUpLocked(u.low.Node(m.target.nid)); err != nil {
				return err
			}
		}
	}
	if m.from, err = u.copyUpLocked(in.NodeId); err != nil {
		return err
	}
	if m.to, err = u.copyUpLocked(in.Newdir); err != nil {
		return err
	}
	if m.to.parent == nil && m.to != u.root {
		return unix.ENOENT
	}
	for _, p := range []*node{m.from, m.to} {
		if _, err = u.loadLocked(p); err != nil {
			return err
		}
	}
	if _, m.fromBelow, err = u.lowerLookup(m.from, m.name); err != nil {
		return err
	}
	if _, m.toBelow, err = u.lowerLookup(m.to, m.newName); err != nil {
		return err
	}
	if err = u.markLocked(m.n, m.toBelow); err != nil {
		return err
	}
	if in.Flags&unix.RENAME_EXCHANGE != 0 {
		if err = u.markLocked(m.target.n, m.fromBelow); err != nil {
			return err
		}
	}
	if m.fromDir, err = u.openDir(m.from); err != nil {
		return err
	}
	if m.toDir, err = u.openDir(m.to); err != nil {
		u.dirs.release(m.fromDir)
	}
	return err
}

// markLocked marks a node for a place where the lower has something of type
// below: what it is merged with is recorded, and a directory that is merged
// with nothing is not to be merged there.
//
// Preconditions: mu is held exclusively; n is in the upper.
func (u *Union) markLocked(n *node, below uint8) error {
	if n.isDir() && n.lower == 0 {
		if below != unix.DT_DIR {
			return nil
		}
		return u.opaqueLocked(n)
	}
	return u.redirectLocked(n)
}

// moveLocked moves m.n onto what may be replaced.
//
// Preconditions: mu is held exclusively; m is prepared.
func (u *Union) moveLocked(m *move) (err error) {
	old := m.to.dir.names[m.newName] // nil, a whiteout, or m.target's
	if t := m.target.n; t != nil {
		if t.isDir() {
			if err = u.emptyDiskLocked(m, t); err != nil {
				return err
			}
		}
		if m.hold, err = u.holdLocked(t, m.toDir.fd, m.newName); err != nil {
			return err
		}
	}
	overWhiteout := old != nil && old.state == entryWhiteout
	flags := uint(0)
	leave := m.fromBelow != 0 // a whiteout, where it was
	switch {
	case overWhiteout && (m.n.isDir() || leave):
		// The whiteout goes where it is needed, or, as no directory replaces
		// one, to where it says nothing, until it is removed.
		flags = unix.RENAME_EXCHANGE
	case leave:
		flags = unix.RENAME_WHITEOUT
	}
	if err = u.rename(m.fromDir.fd, m.name, m.toDir.fd, m.newName, flags); err != nil {
		closeHold(m.hold)
		return err
	}
	if flags == unix.RENAME_EXCHANGE && !leave {
		u.unlink(m.fromDir.fd, m.name) // if this fails it says nothing there
	}
	u.movedLocked(m, old, leave)
	return nil
}

// movedLocked has the names say what is on disk after moveLocked.
//
// Preconditions: mu is held exclusively.
func (u *Union) movedLocked(m *move, old *entry, leave bool) {
	source := m.from.dir.names[m.name]
	if leave {
		m.from.dir.settle(source, nil)
	} else {
		m.from.dir.remove(source)
	}
	if old == nil {
		old = m.to.dir.add(m.newName, m.toBelow != 0)
	}
	switch t := m.target; {
	case t.n != nil:
		u.unnamedLocked(t.n, m.to, m.newName, m.hold)
	case t.nid != 0:
		var a erofs.Attr
		if u.img.Stat(t.nid, &a) == nil { // as it was before
			u.bareLocked(t.nid, &a)
		}
	}
	m.to.dir.settle(old, m.n)
	m.n.renamedLocked(link{m.from, m.name}, link{m.to, m.newName})
}

// renamedLocked notes that one of a node's names is another now.
func (n *node) renamedLocked(from, to link) {
	n.placed.Add(1)
	if (link{n.parent, n.name}) == from {
		n.parent, n.name = to.parent, to.name
		return
	}
	for i := range n.links {
		if n.links[i] == from {
			n.links[i] = to
		}
	}
}

// emptyDiskLocked has a directory that is about to be replaced be empty on
// disk as well: it may have whiteouts.
//
// Preconditions: mu is held exclusively; t is loaded and has no visible name.
func (u *Union) emptyDiskLocked(m *move, t *node) error {
	inside := t.dir.whiteouts()
	if len(inside) == 0 {
		return nil
	}
	tmp := u.staged()
	if err := u.stageEmpty(tmp, m.toDir.fd, m.newName); err != nil {
		u.discard(tmp, true)
		return err
	}
	if err := u.rename(u.up.Stage(), tmp, m.toDir.fd, m.newName, unix.RENAME_EXCHANGE); err != nil {
		u.discard(tmp, true)
		return err
	}
	// From here on the directory is another inode on disk; who refers to it
	// finds it as it is to be a moment later, without a name.
	u.dirs.drop(t)
	var st unix.Stat_t
	if err := unix.Fstatat(m.toDir.fd, m.newName, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	t.ino, t.dir, t.lower, t.opaque = st.Ino, newDirectory(), 0, true
	u.clear(tmp, inside)
	return nil
}

// stageEmpty makes an empty opaque directory with the attributes of another.
func (u *Union) stageEmpty(tmp string, dirfd int, name string) error {
	if err := u.change("stage", func() error { return unix.Mkdirat(u.up.Stage(), tmp, 0o700) }); err != nil {
		return err
	}
	old, err := u.openPath(dirfd, name, 0)
	if err != nil {
		return err
	}
	defer unix.Close(old)
	fd, err := u.openPath(u.up.Stage(), tmp, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstatat(old, "", &st, unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	if err := unix.Fchownat(fd, "", int(st.Uid), int(st.Gid), unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	if err := unix.Chmod(procPath(fd), st.Mode&0o7777); err != nil {
		return err
	}
	if err := copyXattrs(old, fd); err != nil {
		return err
	}
	if err := u.format.ClearRedirect(fd); err != nil {
		return err
	}
	if err := u.format.SetOpaque(fd); err != nil {
		return err
	}
	return u.setTimes(fd, times{st.Atim, st.Mtim})
}

// exchangeLocked exchanges two names.
//
// Preconditions: mu is held exclusively; m is prepared.
func (u *Union) exchangeLocked(m *move) error {
	if err := u.rename(m.fromDir.fd, m.name, m.toDir.fd, m.newName, unix.RENAME_EXCHANGE); err != nil {
		return err
	}
	m.from.dir.settle(m.from.dir.names[m.name], m.target.n)
	m.to.dir.settle(m.to.dir.names[m.newName], m.n)
	from, to := link{m.from, m.name}, link{m.to, m.newName}
	m.n.renamedLocked(from, to)
	m.target.n.renamedLocked(to, from)
	return nil
}

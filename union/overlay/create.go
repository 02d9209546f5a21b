package overlay

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/imgfs/imgfs/internal/upperdir"
	"golang.org/x/sys/unix"
)

const maxName = 255 // bytes

// birth is an inode to be made.
type birth struct {
	mode   uint32 // type, and the permission bits asked for
	umask  uint32 // where no default ACL takes its place
	rdev   uint64
	target string // of a symlink
	uid    uint32
	gid    uint32
	open   bool // a regular file is to be left open
}

// parentage is what a new inode has from its directory.
type parentage struct {
	p    *node
	h    *heldDir
	acl  []byte // default ACL; nil: none
	sgid bool   // on disk
	egid uint32 // whose group the file system gives to what is made there
}

// Mknod makes a file, fifo, socket or device.
func (u *Union) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	b := u.birth(&in.InHeader, in.Mode, in.Umask)
	switch in.Mode & unix.S_IFMT {
	case unix.S_IFCHR, unix.S_IFBLK:
		b.rdev = decodeDev(in.Rdev)
		if in.Mode&unix.S_IFMT == unix.S_IFCHR && b.rdev == 0 {
			return fuse.EPERM // a whiteout
		}
	case 0:
		b.mode |= unix.S_IFREG
	}
	_, _, s := u.create(in.NodeId, name, b, out)
	return s
}

// Mkdir makes a directory.
func (u *Union) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	_, _, s := u.create(in.NodeId, name, u.birth(&in.InHeader, in.Mode&0o7777|unix.S_IFDIR, in.Umask), out)
	return s
}

// Symlink makes a symlink.
func (u *Union) Symlink(_ <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	b := u.birth(in, unix.S_IFLNK|0o777, 0)
	b.target = target
	_, _, s := u.create(in.NodeId, name, b, out)
	return s
}

// Create makes a file and opens it.
func (u *Union) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	b := u.birth(&in.InHeader, in.Mode&0o7777|unix.S_IFREG, in.Umask)
	b.open = true
	n, fd, s := u.create(in.NodeId, name, b, &out.EntryOut)
	if s == fuse.OK {
		u.newFile(n, fd, in, out)
	}
	return s
}

func (u *Union) birth(in *fuse.InHeader, mode, umask uint32) *birth {
	b := &birth{mode: mode, umask: umask}
	b.uid, b.gid = u.owner(in.Owner)
	return b
}

func (u *Union) create(dir uint64, name string, b *birth, out *fuse.EntryOut) (*node, int, fuse.Status) {
	if len(name) > maxName {
		return nil, -1, fuse.Status(unix.ENAMETOOLONG)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	n, fd, err := u.createLocked(dir, name, b)
	if err == nil {
		if err = u.entry(child{n: n}, out); err != nil && fd >= 0 {
			unix.Close(fd)
		}
	}
	return n, fd, u.status("create", err)
}

// createLocked makes an inode at a name that is free. The descriptor is -1
// unless the file is to be left open.
//
// Preconditions: mu is held exclusively.
func (u *Union) createLocked(dir uint64, name string, b *birth) (*node, int, error) {
	c, err := u.resolveLocked(dir, name)
	if err != nil {
		return nil, -1, err
	}
	if !c.none() {
		return nil, -1, unix.EEXIST
	}
	p, err := u.copyUpLocked(dir)
	if err != nil {
		return nil, -1, err
	}
	d, err := u.loadLocked(p)
	if err != nil {
		return nil, -1, err
	}
	if p.parent == nil && p != u.root {
		return nil, -1, unix.ENOENT
	}
	from, err := u.inherit(p, b)
	if err != nil {
		return nil, -1, err
	}
	defer u.dirs.release(from.h)
	e := d.names[name] // nil or a whiteout
	var fd int
	if e == nil && u.plain(from, b) {
		fd, err = u.make(from.h.fd, name, b, true)
	} else {
		fd, err = u.makeStaged(from, e != nil, name, b)
	}
	if err != nil {
		return nil, -1, err
	}
	var st unix.Stat_t
	if fd >= 0 {
		err = unix.Fstat(fd, &st)
	} else {
		err = unix.Fstatat(from.h.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, -1, err
	}
	if err := u.remode(from.h.fd, name, &st, from, b); err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, -1, err
	}
	n := u.bornLocked(st.Ino, b.mode)
	n.parent, n.name = p, name
	if n.isDir() {
		n.dir = newDirectory()
		n.opaque = e != nil
	}
	if e == nil {
		e = d.add(name, false)
	}
	d.settle(e, n)
	return n, fd, nil
}

// remode gives an inode the mode that the process' own umask has kept it from.
func (u *Union) remode(dirfd int, name string, st *unix.Stat_t, from parentage, b *birth) error {
	if from.acl != nil || u.format.Override || b.mode&unix.S_IFMT == unix.S_IFLNK || (st.Mode^b.mode)&0o7777 == 0 {
		return nil
	}
	fd, err := u.openPath(dirfd, name, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return u.change("chmod", func() error { return unix.Chmod(procPath(fd), b.mode&0o7777) })
}

// bornLocked returns the node of an inode that was just made.
//
// Preconditions: mu is held exclusively.
func (u *Union) bornLocked(ino uint64, mode uint32) *node {
	u.gen++
	n := &node{id: u.bornID(ino), gen: u.gen, ino: ino, mode: mode & unix.S_IFMT, orphan: -1}
	n.full.Store(true)
	n.placed.Add(1)
	u.nodes[n.id] = n
	return n
}

// inherit applies a directory's part in the attributes of what is made in it;
// the caller releases h.
func (u *Union) inherit(p *node, b *birth) (from parentage, err error) {
	from.p = p
	if from.h, err = u.openDir(p); err != nil {
		return from, err
	}
	if b.mode&unix.S_IFMT != unix.S_IFLNK {
		from.acl, err = getXattr(from.h.fd, aclDefault)
	}
	var st unix.Stat_t
	if err == nil {
		err = u.format.Stat(from.h.fd, "", &st)
	}
	if err != nil {
		u.dirs.release(from.h)
		return from, err
	}
	if from.acl == nil {
		b.mode &^= b.umask & 0o777
	}
	from.sgid = !u.format.Override && st.Mode&unix.S_ISGID != 0
	from.egid = u.egid
	if st.Mode&unix.S_ISGID != 0 {
		b.gid = st.Gid
		if b.mode&unix.S_IFMT == unix.S_IFDIR {
			b.mode |= unix.S_ISGID
		}
		if from.sgid {
			from.egid = st.Gid
		}
	}
	return from, nil
}

// plain reports whether one system call in the directory itself makes an inode
// as it is to be.
func (u *Union) plain(from parentage, b *birth) bool {
	if !u.format.Override {
		return b.uid == u.euid && b.gid == from.egid
	}
	if b.uid != 0 || b.gid != 0 || from.acl != nil {
		return false
	}
	switch b.mode & unix.S_IFMT {
	case unix.S_IFLNK:
		return true
	case unix.S_IFREG:
		return b.mode&0o7600 == 0o600
	case unix.S_IFDIR:
		return b.mode&0o7700 == 0o700
	}
	return false
}

// make makes an inode on disk. One that is plain has the mode it is to have
// then; where the process has a umask of its own, a moment later.
func (u *Union) make(dirfd int, name string, b *birth, plain bool) (fd int, err error) {
	perm := b.mode & 0o7777
	if !plain && u.format.Override {
		perm |= 0o600
	}
	fd = -1
	err = u.change("create", func() error {
		switch b.mode & unix.S_IFMT {
		case unix.S_IFDIR:
			return unix.Mkdirat(dirfd, name, perm)
		case unix.S_IFLNK:
			return unix.Symlinkat(b.target, dirfd, name)
		case unix.S_IFREG:
			if b.open {
				flags := unix.O_RDWR | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
				fd, err = unix.Openat(dirfd, name, flags, perm)
				return err
			}
			return unix.Mknodat(dirfd, name, unix.S_IFREG|perm, 0)
		}
		return u.format.Mknod(dirfd, name, b.mode&unix.S_IFMT|perm, b.rdev)
	})
	return fd, err
}

// makeStaged makes an inode in stage/, gives it its attributes, and moves it to
// its place, in one step with the removal of the whiteout there.
//
// Preconditions: mu is held exclusively.
func (u *Union) makeStaged(from parentage, overWhiteout bool, name string, b *birth) (fd int, err error) {
	tmp, dir := u.staged(), b.mode&unix.S_IFMT == unix.S_IFDIR
	if fd, err = u.make(u.up.Stage(), tmp, b, false); err != nil {
		return -1, err
	}
	if err = u.dressStaged(tmp, from, b, overWhiteout && dir); err == nil {
		switch {
		case overWhiteout && dir:
			err = u.rename(u.up.Stage(), tmp, from.h.fd, name, unix.RENAME_EXCHANGE)
			if err == nil {
				u.discard(tmp, false)
			}
		case overWhiteout:
			err = u.rename(u.up.Stage(), tmp, from.h.fd, name, 0)
		default:
			err = u.rename(u.up.Stage(), tmp, from.h.fd, name, unix.RENAME_NOREPLACE)
		}
	}
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		u.discard(tmp, dir)
		return -1, err
	}
	return fd, nil
}

func (u *Union) dressStaged(tmp string, from parentage, b *birth, opaque bool) error {
	fd, err := u.openPath(u.up.Stage(), tmp, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return u.dress(fd, from, b, opaque)
}

// dress gives what is not yet in diff/ its attributes.
func (u *Union) dress(fd int, from parentage, b *birth, opaque bool) (err error) {
	want := upperdir.Attr{UID: b.uid, GID: b.gid, Mode: b.mode, Rdev: b.rdev}
	var access []byte
	if from.acl != nil {
		if access, want.Mode, err = inheritACL(from.acl, b.mode); err != nil {
			return err
		}
	}
	if err := u.format.SetStat(fd, want); err != nil {
		return err
	}
	if access != nil {
		if err := unix.Setxattr(procPath(fd), aclAccess, u.diskACL(access, b.mode), 0); err != nil {
			return err
		}
	}
	if from.acl != nil && b.mode&unix.S_IFMT == unix.S_IFDIR {
		if err := unix.Setxattr(procPath(fd), aclDefault, from.acl, 0); err != nil {
			return err
		}
	}
	if opaque {
		return u.format.SetOpaque(fd)
	}
	return nil
}

// Tmpfile makes and opens a file without a name; LINK may give it one.
func (u *Union) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	b := u.birth(&in.InHeader, in.Mode&0o7777|unix.S_IFREG, in.Umask)
	n, fd, err := u.tmpfile(in.NodeId, b, &out.EntryOut)
	if err != nil {
		return u.status("tmpfile", err)
	}
	u.newFile(n, fd, in, out)
	return fuse.OK
}

func (u *Union) tmpfile(dir uint64, b *birth, out *fuse.EntryOut) (n *node, fd int, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	from := parentage{}
	if p := u.nodes[dir]; p != nil && !p.bare {
		if from, err = u.inherit(p, b); err != nil {
			return nil, -1, err
		}
		defer u.dirs.release(from.h)
	} else if from.acl, err = u.inheritLower(dir, b); err != nil {
		return nil, -1, err
	}
	err = u.change("tmpfile", func() error {
		fd, err = unix.Openat(u.up.Stage(), ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, b.mode&0o7777|0o600)
		return err
	})
	if err != nil {
		return nil, -1, err
	}
	var st unix.Stat_t
	orphan := -1
	if err = u.dress(fd, from, b, false); err == nil {
		if err = unix.Fstat(fd, &st); err == nil {
			orphan, err = unix.Open(procPath(fd), unix.O_PATH|unix.O_CLOEXEC, 0)
		}
	}
	if err == nil {
		n = u.bornLocked(st.Ino, b.mode)
		n.orphan = orphan
		err = u.entry(child{n: n}, out)
	}
	if err != nil {
		unix.Close(fd)
	}
	return n, fd, err
}

// inheritLower is inherit of a directory that is in the lower only: what has no
// name there yet does not change it.
func (u *Union) inheritLower(dir uint64, b *birth) (acl []byte, err error) {
	nid := u.low.NID(dir)
	var a fuse.Attr
	if err := u.low.Attr(nid, &a); err != nil {
		return nil, err
	}
	v, err := u.img.Xattr(nid, aclDefault)
	if err == nil {
		acl = v
	} else {
		b.mode &^= b.umask & 0o777
	}
	if a.Mode&unix.S_ISGID != 0 {
		b.gid = a.Gid
	}
	return acl, nil
}

package overlay

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/imgfs/imgfs/internal/lower"
	"github.com/imgfs/imgfs/internal/upperdir"
	"golang.org/x/sys/unix"
)

// stat is lstat(2) of the upper inode of n, overrides applied.
func (u *Union) stat(n *node, st *unix.Stat_t) error {
	u.mu.RLock()
	defer u.mu.RUnlock()
	return u.statLocked(n, st)
}

// statLocked is stat.
//
// Preconditions: mu is held, at least for reading; n is not bare.
func (u *Union) statLocked(n *node, st *unix.Stat_t) error {
	dirfd, name, done, err := u.placeLocked(n)
	if err != nil {
		return err
	}
	defer done()
	return u.format.Stat(dirfd, name, st)
}

// attrFor is attr, and for how long, in seconds, the kernel may keep it: for
// ever, unless attributes may change unseen, by somebody who writes through a
// mapping, or whose write takes set-uid away.
//
// Preconditions: mu is held, at least for reading.
func (u *Union) attrFor(n *node, out *fuse.Attr) (valid uint64, err error) {
	// Whoever may write now may have done so, and be gone, when we have looked.
	mapped := u.unseen(n.id, 0)
	if err := u.attr(n, out); err != nil {
		return 0, err
	}
	if mapped || killable(out.Mode) && u.unseen(n.id, out.Mode) {
		return 0, nil
	}
	return lower.Forever, nil
}

// attr fills out for a node.
//
// Preconditions: mu is held, at least for reading.
func (u *Union) attr(n *node, out *fuse.Attr) error {
	if n.bare {
		if err := u.low.Attr(u.low.NID(n.id), out); err != nil {
			return err
		}
		out.Nlink = 0
		u.squash(&out.Owner)
		return nil
	}
	var st unix.Stat_t
	stat := u.statLocked
	if !n.full.Load() && n.isRegular() {
		stat = u.statCopied
	}
	if err := stat(n, &st); err != nil {
		return err
	}
	*out = fuse.Attr{
		Ino:       u.ino(n),
		Size:      uint64(st.Size),
		Blocks:    uint64(st.Blocks),
		Atime:     uint64(st.Atim.Sec),
		Mtime:     uint64(st.Mtim.Sec),
		Ctime:     uint64(st.Ctim.Sec),
		Atimensec: uint32(st.Atim.Nsec),
		Mtimensec: uint32(st.Mtim.Nsec),
		Ctimensec: uint32(st.Ctim.Nsec),
		Mode:      st.Mode,
		Nlink:     uint32(st.Nlink),
		Owner:     fuse.Owner{Uid: st.Uid, Gid: st.Gid},
		Rdev:      encodeDev(st.Rdev),
		Blksize:   lower.BlockSize,
	}
	switch {
	case n.isDir() && n.lower != 0 && n.orphan < 0:
		// Not counted: what is on disk has only those of the subdirectories
		// that are in the upper. 1 tells programs not to rely on it.
		out.Nlink = 1
	case n.isRegular() && !n.full.Load():
		var low fuse.Attr
		if err := u.low.Attr(n.lower, &low); err != nil {
			return err
		}
		out.Blocks = low.Blocks
	}
	u.squash(&out.Owner)
	return nil
}

// encodeDev is the form of a device number that FUSE has.
func encodeDev(rdev uint64) uint32 {
	major, minor := unix.Major(rdev), unix.Minor(rdev)
	return minor&0xff | major<<8 | minor&^0xff<<12
}

// GetAttr is stat(2).
func (u *Union) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	return u.status("getattr", u.attrOut(in.NodeId, out))
}

func (u *Union) attrOut(id uint64, out *fuse.AttrOut) error {
	u.mu.RLock()
	defer u.mu.RUnlock()
	n := u.nodes[id]
	if n == nil {
		out.AttrValid = lower.Forever
		err := u.low.Attr(u.low.NID(id), &out.Attr)
		u.squash(&out.Attr.Owner)
		return err
	}
	var err error
	out.AttrValid, err = u.attrFor(n, &out.Attr)
	return err
}

// Statx is GETATTR with the time of birth, which kernel overlayfs knows and an
// image does not. If it were answered the kernel would ask for it again and
// again: those who want it want it of every file.
func (u *Union) Statx(<-chan struct{}, *fuse.StatxIn, *fuse.StatxOut) fuse.Status {
	return fuse.ENOSYS
}

// Access is the kernel's to decide (default_permissions).
func (u *Union) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.ENOSYS }

// StatFs tells of the upper's file system, where the space is.
func (u *Union) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	var st unix.Statfs_t
	if err := unix.Fstatfs(u.up.Root(), &st); err != nil {
		return u.status("statfs", err)
	}
	*out = fuse.StatfsOut{
		Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail,
		Files: st.Files, Ffree: st.Ffree,
		Bsize: uint32(st.Bsize), Frsize: uint32(st.Frsize),
		NameLen: 255,
	}
	return fuse.OK
}

// SetAttr changes attributes. The kernel has decided that the caller may, holds
// the inode's lock, and takes what is answered for the truth.
func (u *Union) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	u.files.wrote()
	n, s := u.copyUp(in.NodeId)
	if s != fuse.OK {
		return s
	}
	kill := in.Valid&fuse.FATTR_KILL_SUIDGID != 0
	if in.Valid&fuse.FATTR_SIZE != 0 {
		if s := u.truncate(caller{cancel, in.Pid}, n, in.Size, kill); s != fuse.OK {
			return s
		}
	}
	const owner = fuse.FATTR_UID | fuse.FATTR_GID
	const times = fuse.FATTR_ATIME | fuse.FATTR_MTIME
	if in.Valid&(owner|fuse.FATTR_MODE|times) != 0 {
		err := u.onUpper(n, func(fd int) error {
			if in.Valid&(owner|fuse.FATTR_MODE) != 0 {
				if err := u.setOwnerMode(fd, in, kill); err != nil {
					return err
				}
			}
			if in.Valid&times == 0 {
				return nil
			}
			return u.retime(n, fd, [2]unix.Timespec{
				timeOf(in.Valid, fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, in.Atime, in.Atimensec),
				timeOf(in.Valid, fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, in.Mtime, in.Mtimensec),
			})
		})
		if err != nil {
			return u.status("setattr", err)
		}
	}
	return u.status("setattr", u.attrOut(in.NodeId, out))
}

// timeOf is what utimensat(2) is to be told.
func timeOf(valid, set, now uint32, sec uint64, nsec uint32) unix.Timespec {
	switch {
	case valid&set == 0:
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	case valid&now != 0:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	}
	return unix.Timespec{Sec: int64(sec), Nsec: int64(nsec)}
}

// onUpper calls do with a descriptor of the upper inode of n, open by O_PATH or
// better: nothing is followed or opened by it.
func (u *Union) onUpper(n *node, do func(fd int) error) error {
	if f := u.files.pinOpen(n.id); f != nil {
		defer u.files.unpin(f)
		return do(f.fd)
	}
	dirfd, name, done, err := u.place(n)
	if err != nil {
		return err
	}
	defer done()
	if name == "" {
		return do(dirfd)
	}
	fd, err := u.openPath(dirfd, name, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return do(fd)
}

// truncate sets the size. Of what is cut off nothing is copied up.
func (u *Union) truncate(c caller, n *node, size uint64, kill bool) fuse.Status {
	if !n.isRegular() {
		return fuse.EINVAL
	}
	if s := u.fillUpTo(c, n, int64(size)); s != fuse.OK {
		return s
	}
	f, err := u.acquire(n, true)
	if err != nil {
		return u.status("truncate", err)
	}
	defer u.files.unpin(f)
	if kill {
		if err := u.killPrivileges(f); err != nil {
			return u.status("truncate", err)
		}
	}
	return u.status("truncate", u.change("truncate", func() error { return unix.Ftruncate(f.fd, int64(size)) }))
}

// setOwnerMode is chown(2) and chmod(2). A change of the owner clears the bits
// that give his rights away, as the kernel does on disk.
func (u *Union) setOwnerMode(fd int, in *fuse.SetAttrIn, kill bool) error {
	uid, gid := u.owner(in.Owner)
	if u.format.Override {
		var st unix.Stat_t
		if err := u.format.Stat(fd, "", &st); err != nil {
			return err
		}
		want := upperdir.Attr{UID: st.Uid, GID: st.Gid, Mode: st.Mode, Rdev: st.Rdev}
		if in.Valid&fuse.FATTR_UID != 0 {
			want.UID = uid
		}
		if in.Valid&fuse.FATTR_GID != 0 {
			want.GID = gid
		}
		if kill {
			want.Mode = killed(want.Mode)
		}
		if in.Valid&fuse.FATTR_MODE != 0 {
			want.Mode = want.Mode&unix.S_IFMT | in.Mode&0o7777
		}
		return u.change("setattr", func() error { return u.format.SetStat(fd, want) })
	}
	if in.Valid&(fuse.FATTR_UID|fuse.FATTR_GID) != 0 {
		if in.Valid&fuse.FATTR_UID == 0 {
			uid = ^uint32(0)
		}
		if in.Valid&fuse.FATTR_GID == 0 {
			gid = ^uint32(0)
		}
		err := u.change("chown", func() error {
			return unix.Fchownat(fd, "", int(int32(uid)), int(int32(gid)), unix.AT_EMPTY_PATH)
		})
		if err != nil {
			return err
		}
	}
	if in.Valid&fuse.FATTR_MODE == 0 {
		return nil
	}
	return u.change("chmod", func() error { return unix.Chmod(procPath(fd), in.Mode&0o7777) })
}

// killable reports whether a write by a user clears bits of a mode. Nobody does
// that for a file in passthrough: the file in the upper is written to by the
// daemon, who may.
func killable(mode uint32) bool { return killed(mode) != mode }

// killed is a mode after a write by a user.
func killed(mode uint32) uint32 {
	if mode&unix.S_IFMT == unix.S_IFDIR {
		return mode
	}
	mode &^= unix.S_ISUID
	if mode&unix.S_IXGRP != 0 {
		mode &^= unix.S_ISGID
	}
	return mode
}

// killPrivileges clears set-uid and set-gid of a file that a user writes to.
// Capabilities the file system on disk clears itself, whoever writes.
func (u *Union) killPrivileges(f *file) error {
	var st unix.Stat_t
	if err := u.format.Stat(f.fd, "", &st); err != nil || !killable(st.Mode) {
		return err
	}
	want := upperdir.Attr{UID: st.Uid, GID: st.Gid, Mode: killed(st.Mode), Rdev: st.Rdev}
	err := u.change("chmod", func() error { return u.format.SetStat(f.fd, want) })
	// The kernel leaves it to us, and does not look whether the mode changed.
	u.invalidate(f.id, -1, 0)
	return err
}

// killUnlessRoot is killPrivileges for the requests by which the kernel does
// not say whether the caller has CAP_FSETID.
func (u *Union) killUnlessRoot(f *file, uid uint32) error {
	if uid == 0 {
		return nil
	}
	return u.killPrivileges(f)
}

package overlay

import (
	"bytes"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/imgfs/imgfs/internal/lower"
	"github.com/imgfs/imgfs/internal/upperdir"
	"golang.org/x/sys/unix"
)

// inLower reports whether what is asked of an inode that is not its data is to
// be asked of the chain. If not, n is its node.
func (u *Union) inLower(id uint64) (n *node, yes bool) {
	u.mu.RLock()
	defer u.mu.RUnlock()
	n = u.nodes[id]
	return n, n == nil || n.bare
}

// GetXAttr reads an attribute, as getxattr(2).
func (u *Union) GetXAttr(_ <-chan struct{}, in *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	if upperdir.Private(name) {
		return 0, fuse.ENODATA
	}
	size, err := u.getXattr(in.NodeId, name, dest)
	if err == nil && (name == aclAccess || name == aclDefault) {
		u.mapACL(dest[:size], onWire)
	}
	return uint32(max(size, 0)), u.status("getxattr", err)
}

func (u *Union) getXattr(id uint64, name string, dest []byte) (size int, err error) {
	n, low := u.inLower(id)
	if low {
		if !u.low.HasXattrs() {
			return 0, unix.ENODATA
		}
		size, err := u.low.Xattr(u.low.NID(id), name, dest)
		return int(size), err
	}
	err = u.onUpper(n, func(fd int) (err error) {
		size, err = u.xattr(fd, name, dest)
		return err
	})
	return size, err
}

// xattr reads a user's attribute of an open inode: its size, and ERANGE with
// it if dest is too small, even if it is empty.
func (u *Union) xattr(fd int, name string, dest []byte) (int, error) {
	size, err := unix.Getxattr(procPath(fd), u.format.Escape(name), dest)
	if err == nil && len(dest) == 0 && size > 0 {
		return size, unix.ERANGE
	}
	if err == unix.ERANGE {
		size, sizeErr := unix.Getxattr(procPath(fd), u.format.Escape(name), nil)
		if sizeErr == nil && size > len(dest) {
			return size, unix.ERANGE
		}
	}
	if err != nil || name != aclAccess || !u.format.Override {
		return size, err
	}
	var st unix.Stat_t
	if err := u.format.Stat(fd, "", &st); err != nil {
		return 0, err
	}
	if a, ok := parseACL(dest[:size]); ok {
		a.setUser(st.Mode >> 6)
		copy(dest, a)
	}
	return size, nil
}

// ListXAttr lists the names of attributes that the caller may know of.
func (u *Union) ListXAttr(_ <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	root := in.Uid == 0
	n, low := u.inLower(in.NodeId)
	if low {
		if !u.img.HasXattrs() {
			return 0, fuse.OK
		}
		size, err := lower.ListNames(u.img, u.low.NID(in.NodeId), dest, func(name string) bool {
			return !upperdir.Private(name) && (root || !lower.Trusted(name))
		})
		return size, u.status("listxattr", err)
	}
	var names []byte
	err := u.onUpper(n, func(fd int) (err error) {
		names, err = rawNames(fd)
		return err
	})
	if err == unix.EOPNOTSUPP {
		return 0, fuse.OK
	}
	if err != nil {
		return 0, u.status("listxattr", err)
	}
	size := 0
	for disk := range bytes.SplitSeq(names, []byte{0}) {
		name, shown := u.format.Unescape(string(disk))
		if len(disk) == 0 || !shown || lower.Trusted(name) && !root {
			continue
		}
		if size+len(name) < len(dest) {
			copy(dest[size:], name)
			dest[size+len(name)] = 0
		}
		size += len(name) + 1
	}
	if size > len(dest) {
		return uint32(size), fuse.ERANGE
	}
	return uint32(size), fuse.OK
}

// rawNames returns the names of an open inode's attributes on disk, each with
// a NUL behind it.
func rawNames(fd int) ([]byte, error) {
	buf := make([]byte, 1024)
	for {
		n, err := unix.Listxattr(procPath(fd), buf)
		switch {
		case err == nil:
			return buf[:n], nil
		case err == unix.ERANGE && len(buf) < 1<<20:
			buf = make([]byte, 8*len(buf))
		case err != unix.EINTR:
			return nil, err
		}
	}
}

// SetXAttr sets an attribute. That of an ACL sets the mode as well, on disk by
// the file system there.
func (u *Union) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, value []byte) fuse.Status {
	u.files.wrote()
	if upperdir.Private(name) {
		return fuse.EPERM
	}
	n, s := u.copyUp(in.NodeId)
	if s != fuse.OK {
		return s
	}
	if u.o.IDs != nil && (name == aclAccess || name == aclDefault) {
		value = bytes.Clone(value)
		u.mapACL(value, inTree)
	}
	return u.status("setxattr", u.onUpper(n, func(fd int) error {
		if name == aclAccess {
			return u.setACL(fd, value, in.SetXAttrFlags&fuse.SETXATTR_ACL_KILL_SGID != 0)
		}
		set := func() error {
			return u.change("setxattr", func() error {
				return unix.Setxattr(procPath(fd), u.format.Escape(name), value, int(in.Flags))
			})
		}
		if name == capability {
			return u.setCapability(n, bytes.Clone(value), set)
		}
		return set()
	}))
}

// setACL sets an access ACL, and the mode that it says.
func (u *Union) setACL(fd int, value []byte, killSgid bool) error {
	a, ok := parseACL(value)
	if !ok {
		return unix.EINVAL
	}
	var st unix.Stat_t
	if err := u.format.Stat(fd, "", &st); err != nil {
		return err
	}
	want := upperdir.Attr{UID: st.Uid, GID: st.Gid, Mode: a.mode(st.Mode), Rdev: st.Rdev}
	if killSgid {
		want.Mode &^= unix.S_ISGID
	}
	if u.format.Override {
		a.keepOwner(st.Mode)
	}
	err := u.change("setxattr", func() error { return unix.Setxattr(procPath(fd), aclAccess, a, 0) })
	if err != nil {
		return err
	}
	return u.change("chmod", func() error { return u.format.SetStat(fd, want) })
}

// RemoveXAttr removes an attribute.
func (u *Union) RemoveXAttr(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	u.files.wrote()
	if upperdir.Private(name) {
		return fuse.EPERM
	}
	n, s := u.copyUp(in.NodeId)
	if s != fuse.OK {
		return s
	}
	return u.status("removexattr", u.onUpper(n, func(fd int) error {
		remove := func() error {
			return u.change("removexattr", func() error {
				return unix.Removexattr(procPath(fd), u.format.Escape(name))
			})
		}
		if name == capability {
			return u.setCapability(n, nil, remove)
		}
		return remove()
	}))
}

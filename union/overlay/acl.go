package overlay

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
	capability = "security.capability"

	// The attribute's form: a version, then entries of tag, permissions, ID.
	aclVersion = 2
	aclHeader  = 4
	aclEntry   = 2 + 2 + 4

	aclUserObj, aclUser, aclGroupObj = 0x01, 0x02, 0x04
	aclGroup, aclMask, aclOther      = 0x08, 0x10, 0x20
)

// inheritACL returns the access ACL and the mode of what is made with mode in
// a directory that has a default ACL, as the kernel computes them: nil if the
// mode says it all.
func inheritACL(def []byte, mode uint32) (access []byte, _ uint32, _ error) {
	le := binary.LittleEndian
	if len(def) < aclHeader || le.Uint32(def) != aclVersion || (len(def)-aclHeader)%aclEntry != 0 {
		return nil, 0, fmt.Errorf("%w: default ACL", errDamaged)
	}
	access = slices.Clone(def)
	var group, mask []byte
	more := false
	limit := func(e []byte, shift uint) {
		perm := le.Uint16(e[2:]) & uint16(mode>>shift&7)
		le.PutUint16(e[2:], perm)
		mode &^= 7 << shift
		mode |= uint32(perm) << shift
	}
	for e := access[aclHeader:]; len(e) > 0; e = e[aclEntry:] {
		switch le.Uint16(e) {
		case aclUserObj:
			limit(e, 6)
		case aclUser, aclGroup:
			more = true
		case aclGroupObj:
			group = e
		case aclMask:
			mask, more = e, true
		case aclOther:
			limit(e, 0)
		default:
			return nil, 0, fmt.Errorf("%w: default ACL", errDamaged)
		}
	}
	switch {
	case mask != nil:
		limit(mask, 3)
	case group != nil:
		limit(group, 3)
	}
	if !more {
		access = nil
	}
	return access, mode, nil
}

// diskACL returns an access ACL of an inode of mode as it is kept on disk.
func (u *Union) diskACL(v []byte, mode uint32) []byte {
	a, ok := parseACL(v)
	if !ok || !u.format.Override {
		return v
	}
	a.keepOwner(mode)
	return a
}

// getXattr returns an attribute of an open inode, nil if it has none.
func getXattr(fd int, name string) ([]byte, error) {
	for size := 256; ; {
		buf := make([]byte, size)
		n, err := unix.Getxattr(procPath(fd), name, buf)
		switch err {
		case nil:
			return buf[:n], nil
		case unix.ENODATA, unix.EOPNOTSUPP:
			return nil, nil
		case unix.ERANGE:
			size = 64 << 10
		case unix.EINTR:
		default:
			return nil, err
		}
	}
}

// copyXattrs gives one inode the attributes of another, as they are on disk.
func copyXattrs(from, to int) error {
	buf := make([]byte, 64<<10)
	n, err := unix.Listxattr(procPath(from), buf)
	if err != nil || n == 0 {
		if err == unix.EOPNOTSUPP {
			err = nil
		}
		return err
	}
	for name := range bytes.SplitSeq(buf[:n], []byte{0}) {
		if len(name) == 0 {
			continue
		}
		value, err := getXattr(from, string(name))
		if err != nil {
			return err
		}
		if err := unix.Setxattr(procPath(to), string(name), value, 0); err != nil {
			return err
		}
	}
	return nil
}

package overlay

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"
)

// accessACL is an access ACL, in the form that attributes have.
type accessACL []byte

// parseACL returns a copy of an attribute; ok is false if it is no ACL.
func parseACL(v []byte) (a accessACL, ok bool) {
	if len(v) < aclHeader || (len(v)-aclHeader)%aclEntry != 0 || binary.LittleEndian.Uint32(v) != aclVersion {
		return nil, false
	}
	return slices.Clone(v), true
}

// entry returns the entry with a tag, nil if there is none.
func (a accessACL) entry(tag uint16) []byte {
	for e := a[aclHeader:]; len(e) > 0; e = e[aclEntry:] {
		if binary.LittleEndian.Uint16(e) == tag {
			return e[:aclEntry]
		}
	}
	return nil
}

// mode returns mode with the permissions that the ACL says.
func (a accessACL) mode(mode uint32) uint32 {
	group := a.entry(aclMask)
	if group == nil {
		group = a.entry(aclGroupObj)
	}
	for i, e := range [][]byte{a.entry(aclOther), group, a.entry(aclUserObj)} {
		if e != nil {
			perm := uint32(binary.LittleEndian.Uint16(e[2:])) & 7
			mode = mode&^(7<<(3*i)) | perm<<(3*i)
		}
	}
	return mode
}

// mapACL makes the users and groups in an ACL of the tree those of one on the
// wire, or, by inTree, the reverse.
func (u *Union) mapACL(v []byte, whom func([]IDRange, uint32) uint32) {
	if u.o.IDs == nil || len(v) < aclHeader || (len(v)-aclHeader)%aclEntry != 0 {
		return
	}
	for e := v[aclHeader:]; len(e) > 0; e = e[aclEntry:] {
		ranges := u.o.IDs.Users
		switch binary.LittleEndian.Uint16(e) {
		case aclGroup:
			ranges = u.o.IDs.Groups
		case aclUser:
		default:
			continue
		}
		id := e[4:]
		binary.LittleEndian.PutUint32(id, whom(ranges, binary.LittleEndian.Uint32(id)))
	}
}

// setUser says in the ACL what the owner may.
func (a accessACL) setUser(perm uint32) {
	if e := a.entry(aclUserObj); e != nil {
		binary.LittleEndian.PutUint16(e[2:], uint16(perm&7))
	}
}

// keepOwner makes the ACL what a rootless upper keeps: the owner on disk, who
// is the daemon's user, is never locked out. The override has what he may.
func (a accessACL) keepOwner(mode uint32) {
	e := a.entry(aclUserObj)
	if e == nil {
		return
	}
	perm := uint32(binary.LittleEndian.Uint16(e[2:])) | 6
	if mode&unix.S_IFMT == unix.S_IFDIR {
		perm |= 1
	}
	a.setUser(perm)
}

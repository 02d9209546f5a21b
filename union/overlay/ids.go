package overlay

import "github.com/hanwen/go-fuse/v2/fuse"

// IDs says which users and groups of the wire, that is of the machine, are
// which of the tree. Those of no range are the same in both; nil changes none.
type IDs struct{ Users, Groups []IDRange }

// IDRange maps Count IDs from Wire up to those from Tree up.
type IDRange struct{ Wire, Tree, Count uint32 }

// RootIs returns the map by which a user and group of the machine are root in
// the tree, so that what an image gives to root is theirs. Users and groups are
// the ranges of those that are subordinate to them; without any, they change
// places with root.
func RootIs(uid, gid uint32, users, groups []IDRange) *IDs {
	return &IDs{Users: rootIs(uid, users), Groups: rootIs(gid, groups)}
}

func rootIs(id uint32, others []IDRange) []IDRange {
	if len(others) == 0 {
		others = []IDRange{{Wire: 0, Tree: id, Count: 1}}
	}
	return append([]IDRange{{Wire: id, Tree: 0, Count: 1}}, others...)
}

func inTree(ranges []IDRange, id uint32) uint32 {
	for _, r := range ranges {
		if id-r.Wire < r.Count {
			return id - r.Wire + r.Tree
		}
	}
	return id
}

func onWire(ranges []IDRange, id uint32) uint32 {
	for _, r := range ranges {
		if id-r.Tree < r.Count {
			return id - r.Tree + r.Wire
		}
	}
	return id
}

// owner returns who a user and group of the wire are in the tree.
func (u *Union) owner(o fuse.Owner) (uid, gid uint32) {
	if u.o.IDs == nil {
		return o.Uid, o.Gid
	}
	return inTree(u.o.IDs.Users, o.Uid), inTree(u.o.IDs.Groups, o.Gid)
}

// squash makes an owner in the tree one of the wire.
func (u *Union) squash(o *fuse.Owner) {
	if u.o.IDs != nil {
		o.Uid, o.Gid = onWire(u.o.IDs.Users, o.Uid), onWire(u.o.IDs.Groups, o.Gid)
	}
}

package overlay_test

import (
	"bytes"
	"encoding/binary"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSquashedACL: who mounted is root in the tree's ACLs as well.
func TestSquashedACL(t *testing.T) {
	needRoot(t)
	u, err := newUnion(workDir(t), chain{"file f size=10 mode=0640"}, 1000)
	must(t, err)
	u.Squash = true
	must(t, u.mount())
	t.Cleanup(func() {
		if err := u.close(); err != nil {
			t.Error(err)
		}
	})
	acl := func(user uint32) []byte {
		const userObj, aUser, groupObj, mask, other = 0x01, 0x02, 0x04, 0x10, 0x20
		b := binary.LittleEndian.AppendUint32(nil, 2)
		for _, e := range [][3]uint32{{userObj, 6, ^uint32(0)}, {aUser, 4, user}, {groupObj, 4, ^uint32(0)}, {mask, 4, ^uint32(0)}, {other, 0, ^uint32(0)}} {
			b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
			b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
			b = binary.LittleEndian.AppendUint32(b, e[2])
		}
		return b
	}
	const name = "system.posix_acl_access"
	for _, c := range []struct{ wire, tree uint32 }{{1000, 0}, {0, 1000}, {7, 7}} {
		must(t, unix.Setxattr(filepath.Join(u.at, "f"), name, acl(c.wire), 0))
		got := make([]byte, 256)
		n, err := unix.Getxattr(filepath.Join(u.Upper, "diff", "f"), name, got)
		if err != nil || !bytes.Equal(got[:n], acl(c.tree)) {
			t.Errorf("user %d: on disk %x, %v", c.wire, got[:max(n, 0)], err)
		}
		n, err = unix.Getxattr(filepath.Join(u.at, "f"), name, got)
		if err != nil || !bytes.Equal(got[:n], acl(c.wire)) {
			t.Errorf("user %d: seen %x, %v", c.wire, got[:max(n, 0)], err)
		}
	}
}

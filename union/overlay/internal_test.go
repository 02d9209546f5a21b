package overlay

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

func acl(entries ...uint32) []byte { // tag, permissions, ...
	b := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for i := 0; i < len(entries); i += 2 {
		b = binary.LittleEndian.AppendUint16(b, uint16(entries[i]))
		b = binary.LittleEndian.AppendUint16(b, uint16(entries[i+1]))
		b = binary.LittleEndian.AppendUint32(b, ^uint32(0))
	}
	return b
}

func TestInheritACL(t *testing.T) {
	for _, c := range []struct {
		name     string
		def      []byte
		mode     uint32
		access   []byte
		wantMode uint32
	}{
		{"what a mode can say", acl(aclUserObj, 7, aclGroupObj, 5, aclOther, 0), 0o100666, nil, 0o100640},
		{"a user and a mask", acl(aclUserObj, 7, aclUser, 6, aclGroupObj, 5, aclMask, 7, aclOther, 4), 0o100640,
			acl(aclUserObj, 6, aclUser, 6, aclGroupObj, 5, aclMask, 4, aclOther, 0), 0o100640},
		{"set-group-ID stays", acl(aclUserObj, 7, aclGroupObj, 7, aclOther, 7), 0o42755, nil, 0o42755},
	} {
		def := bytes.Clone(c.def)
		access, mode, err := inheritACL(def, c.mode)
		if err != nil || !bytes.Equal(access, c.access) || mode != c.wantMode {
			t.Errorf("%s: %x %o %v, want %x %o", c.name, access, mode, err, c.access, c.wantMode)
		}
		if !bytes.Equal(def, c.def) {
			t.Errorf("%s: the directory's own has changed", c.name)
		}
	}
	for _, bad := range [][]byte{{}, {2, 0, 0}, acl(aclUserObj, 7)[:9], acl(0x40, 7), {1, 0, 0, 0}} {
		if _, _, err := inheritACL(bad, 0o644); err == nil {
			t.Errorf("%x is taken", bad)
		}
	}
}

// TestDirectoryOrder has cookies mean the same whatever is removed.
func TestDirectoryOrder(t *testing.T) {
	d := newDirectory()
	for i := range 1000 {
		d.settle(d.add(fmt.Sprint(i), i%10 == 0), nil)
	}
	rest := func(cookie uint64) (names []string) {
		for _, s := range d.order[d.after(cookie):] {
			if s.e != nil {
				names = append(names, s.e.name)
			}
		}
		return names
	}
	cookie := d.names["501"].seq
	want := slices.DeleteFunc(rest(cookie), func(n string) bool { return len(n) == 3 && n[2] < '7' })
	for i := range 1000 {
		if i%10 < 7 {
			d.remove(d.names[fmt.Sprint(i)])
		}
	}
	d.settle(d.add("more", false), nil)
	if got := rest(cookie); !slices.Equal(got, append(want, "more")) {
		t.Errorf("behind the cookie: %v", got)
	}
	if len(d.order) >= 900 {
		t.Errorf("%d slots for %d names", len(d.order), len(d.names))
	}
	if d.unread != 0 {
		t.Errorf("%d unread", d.unread)
	}
}

func TestForgetCounts(t *testing.T) {
	n := &node{}
	n.lookups.Store(3)
	for left := 2; left >= 0; left-- {
		if over := n.forget(1); over != (left == 0) {
			t.Errorf("over is %v with %d lookups left", over, left)
		}
	}
	// Copied up with references we had not counted, then looked up once.
	n.inexact.Store(true)
	n.lookups.Store(1)
	if n.forget(1) {
		t.Error("forgotten, though there may be earlier references")
	}
	if !n.forget(4) || n.isReferred() {
		t.Error("more than were counted are not all")
	}
}

func TestDeviceNumbers(t *testing.T) {
	for _, rdev := range []uint64{0, 1, 0x103, 0xfffff, 0x12345678} {
		if got := decodeDev(encodeDev(rdev & 0xfffff)); got != rdev&0xfffff {
			t.Errorf("%#x becomes %#x", rdev&0xfffff, got)
		}
	}
}

// TestSharedWhiteouts: whiteouts are links of one inode, until that has as many
// as it can.
func TestSharedWhiteouts(t *testing.T) {
	u := newUnmounted(t)
	const most = 66000 // more than ext4 allows
	u.mu.Lock()
	defer u.mu.Unlock()
	inodes := map[uint64]int{}
	for i := range most {
		name := strconv.Itoa(i)
		if err := u.whiteout(u.up.Root(), name); err != nil {
			t.Fatalf("whiteout %d: %v", i, err)
		}
		var st unix.Stat_t
		if err := unix.Fstatat(u.up.Root(), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			t.Fatal(err)
		}
		if !u.format.Whiteout(&st) {
			t.Errorf("%s is no whiteout: mode %o", name, st.Mode)
		}
		inodes[st.Ino]++
	}
	if len(inodes) > 2 {
		t.Errorf("%d inodes for %d whiteouts", len(inodes), most)
	}
	if err := u.whiteout(u.up.Root(), "0"); err != unix.EEXIST {
		t.Errorf("a second whiteout of a name: %v", err)
	}
}

package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
)

// smallImage is an image that has every form of inode, in few blocks.
func smallImage(t testing.TB) []byte {
	tree := []entry{
		{in: Inode{Mode: dirMode, Xattrs: []Xattr{{"user.a", []byte("1")}, {"trusted.b", []byte("22")}}}},
		{path: "a", in: Inode{Mode: dirMode}},
		{path: "a/s", in: Inode{Mode: symlink, Target: "../f"}},
		{path: "a/t", in: Inode{Mode: symlink, Target: strings.Repeat("t", 513)}},
		{path: "f", in: oneChunk(5000, 0, 1)},
		{path: "c", in: Inode{Mode: regular, Size: 1025, Chunks: []Chunk{{0, 5}, {Block: HoleBlock}, {1, 9}}}},
		{path: "e", in: Inode{Mode: regular}},
		{path: "n", in: Inode{Mode: modeChar, Rdev: 0x103}},
		{path: "l", link: "f"},
		{path: "big", in: Inode{Mode: dirMode}},
	}
	for i := range 25 {
		tree = append(tree, entry{path: fmt.Sprintf("big/%0*d", 2+i, i), link: "e"})
	}
	return write(t, build(t, twoDevices, "fuzz", tree))
}

// exercise calls everything on an image, within bounds that a format error
// must not lift, and fails where an error is not ErrCorrupt.
func exercise(t testing.TB, b []byte) {
	m, err := New(b)
	if err != nil {
		if !errors.Is(err, ErrCorrupt) {
			t.Fatalf("open: %v", err)
		}
		return
	}
	check := func(what string, n NID, err error) bool {
		if err != nil && !errors.Is(err, ErrCorrupt) && err != ErrNotExist && err != io.EOF {
			t.Fatalf("%s of %d: %v", what, n, err)
		}
		return err == nil
	}
	seen := map[NID]bool{}
	queue := []NID{m.Root(), 0, 1, 1 << 59, 1<<64 - 1, NID(len(b) >> slotBits), NID(len(b)>>slotBits) - 1}
	for len(queue) > 0 && len(seen) < 1000 {
		n := queue[0]
		queue = queue[1:]
		if seen[n] {
			continue
		}
		seen[n] = true
		var a Attr
		if !check("stat", n, m.Stat(n, &a)) {
			continue
		}
		m.Xattrs(n, func(name string, value []byte) bool {
			got, err := m.Xattr(n, name)
			return check("xattr "+name, n, err) && len(got) <= maxXattrValue
		})
		m.Xattr(n, "user.a")
		_, err := m.ReadLink(n)
		check("target", n, err)
		_, chunks, err := m.Chunks(n)
		check("chunks", n, err)
		if len(chunks) > len(b) {
			t.Fatalf("%d chunks in %d bytes", len(chunks), len(b))
		}
		for _, off := range []uint64{0, a.Size / 2, a.Size - 1, a.Size, 1<<64 - 1} {
			e, err := m.Extent(n, off)
			if check("extent", n, err) && (e.Len == 0 || e.Len > a.Size-off || !e.Hole && e.Off+e.Len > uint64(m.devices[e.Device].Blocks)<<blockBits) {
				t.Fatalf("extent of %d at %d: %+v", n, off, e)
			}
		}
		_, _, err = m.Lookup(n, []byte("l"))
		check("lookup", n, err)
		for _, cookie := range []uint64{0, 12, 13, 512, a.Size, 1<<64 - 1} {
			count := 0
			last := cookie
			check("list", n, m.ReadDir(n, cookie, func(e *Dirent) bool {
				if count++; count > len(b) || e.Next <= last && count > 1 || len(e.Name) == 0 || len(e.Name) > maxName {
					t.Fatalf("entry %d of %d: %+v behind %d", count, n, e, last)
				}
				last = e.Next
				if len(queue) < 1000 {
					queue = append(queue, e.NID)
				}
				return count < 200
			}))
		}
	}
}

// seal makes the checksums of a damaged image right.
func seal(b []byte) []byte {
	if len(b) < superOffset+BlockSize {
		return b
	}
	le.PutUint32(b[bootCRC:], bootChecksum(b))
	sb := b[superOffset : superOffset+BlockSize]
	le.PutUint32(sb[sbChecksum:], 0)
	le.PutUint32(sb[sbChecksum:], superChecksum(sb))
	return b
}

// FuzzImage wants -fuzzminimizetime 10x: an image is long for the engine.
func FuzzImage(f *testing.F) {
	f.Add(smallImage(f))
	f.Add(write(f, build(f, nil, "", []entry{{in: Inode{Mode: dirMode}}})))
	f.Fuzz(func(t *testing.T, b []byte) {
		exercise(t, b)
		exercise(t, seal(bytes.Clone(b)))
	})
}

// TestDamage is a run of the fuzz target's kind that needs no fuzzing engine:
// every 16-bit word of an image takes odd values, alone and a few at once.
func TestDamage(t *testing.T) {
	image := smallImage(t)
	exercise(t, image)
	for off := 0; off+2 <= len(image); off += 2 {
		for _, v := range []uint16{0, 1, 0x7fff, 0x8000, 0xffff, le.Uint16(image[off:]) + 1, le.Uint16(image[off:]) ^ 0x20} {
			b := bytes.Clone(image)
			le.PutUint16(b[off:], v)
			exercise(t, seal(b))
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		b := bytes.Clone(image)
		for range 1 + random.IntN(20) {
			b[superOffset+random.IntN(len(b)-superOffset)] = byte(random.Uint32())
		}
		exercise(t, seal(b[:len(b)-random.IntN(3)*random.IntN(BlockSize)]))
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(b []byte) []byte
		sealed bool
	}{
		{"empty", func(b []byte) []byte { return nil }, false},
		{"superblock only", func(b []byte) []byte { return b[:superOffset+superSize] }, false},
		{"magic", func(b []byte) []byte { b[superOffset]++; return b }, true},
		{"checksum", func(b []byte) []byte { b[superOffset+sbLabel]++; return b }, false},
		{"boot area", func(b []byte) []byte { b[bootFlags]++; return b }, false},
		{"block size", func(b []byte) []byte { b[superOffset+sbBlockBits] = 12; return b }, true},
		{"feature", func(b []byte) []byte { b[superOffset+sbIncompat] |= 1; return b }, true},
		{"truncated", func(b []byte) []byte { return b[:len(b)-1] }, true},
		{"root is a file", func(b []byte) []byte {
			le.PutUint16(b[superOffset+sbRoot:], uint16(walkTo(t, open(t, bytes.Clone(b)), "f")))
			return b
		}, true},
		{"root out of range", func(b []byte) []byte { le.PutUint16(b[superOffset+sbRoot:], 0xffff); return b }, true},
		{"device table", func(b []byte) []byte { le.PutUint16(b[superOffset+sbDeviceSlot:], 0xffff); return b }, true},
		{"devices", func(b []byte) []byte { le.PutUint16(b[superOffset+sbDevices:], 0xffff); return b }, true},
	} {
		b := c.damage(smallImage(t))
		if c.sealed {
			b = seal(b)
		}
		if _, err := New(b); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	open(t, seal(smallImage(t)))
}

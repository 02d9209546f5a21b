package erofs

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// zoo is a tree with one of everything that an image may hold, on two devices:
// 0 has random bytes, 1 is sparse and beyond 8 GiB.
func zoo() (devices []Device, tree []entry) {
	devices = []Device{
		{Tag: strings.Repeat("a1", 32), Blocks: 4096},
		{Tag: strings.Repeat("b2", 32), Blocks: (9<<30+sparseStart)>>blockBits + 1},
	}
	add := func(path string, in Inode) { tree = append(tree, entry{path: path, in: in}) }
	dir := func(path string) { add(path, Inode{Mode: dirMode}) }
	add("", Inode{Mode: modeDir | 0o1777, UID: 1, GID: 2, Mtime: 1700000000, MtimeNsec: 123456789})

	dir("names")
	for _, name := range []string{
		strings.Repeat("x", 255), strings.Repeat("\xff", 255), "\xff\xfe\n\x01", "...", ".-", ".", "..", "-", "+", " ", ".a", "..a", ".. ", "a", "~", "Ünïcode", "\\", "*",
	} {
		if name != "." && name != ".." {
			add("names/"+name, Inode{Mode: regular})
		}
	}
	dir("deep")
	for path, i := "deep", 0; i < 300; i++ {
		path += "/d"
		dir(path)
	}
	// Directories of every size around the block borders.
	dir("sizes")
	for i := range 130 {
		path := fmt.Sprintf("sizes/%03d", i)
		dir(path)
		for j := range i {
			add(fmt.Sprintf("%s/%0*d", path, 1+j%(1+i/2), j), Inode{Mode: regular})
		}
	}
	dir("symlinks")
	for i := 1; i < 1100; i += 1 + i/100 {
		add(fmt.Sprintf("symlinks/%d", i), Inode{Mode: symlink, Target: strings.Repeat("t", i)})
	}
	add("symlinks/4095", Inode{Mode: symlink, Target: strings.Repeat("/u", 2047) + "v"})

	dir("devices")
	add("devices/null", Inode{Mode: modeChar | 0o666, Rdev: 1<<8 | 3})
	add("devices/big", Inode{Mode: modeBlock | 0o660, Rdev: 0xfff<<8 | 0xff | 0xfff<<20})
	add("devices/zero", Inode{Mode: modeChar})
	add("devices/fifo", Inode{Mode: modeFIFO | 0o600})
	add("devices/socket", Inode{Mode: modeSocket | 0o600})

	dir("attributes")
	add("attributes/modes", Inode{Mode: modeRegular | 0o7777, UID: 1<<32 - 2, GID: 1<<32 - 2})
	add("attributes/before", Inode{Mode: regular, Mtime: -1, MtimeNsec: 999_999_999})
	add("attributes/long-before", Inode{Mode: regular, Mtime: -(1 << 33), MtimeNsec: 1})
	add("attributes/far", Inode{Mode: symlink, Target: "far", Mtime: 1 << 35})

	dir("links")
	add("links/a", oneChunk(700, 0, 9))
	for _, name := range []string{"links/b", "names/hard link", "zz"} {
		tree = append(tree, entry{path: name, link: "links/a"})
	}
	add("links/null", Inode{Mode: modeChar | 0o600, Rdev: 1<<8 | 3})
	tree = append(tree, entry{path: "links/null2", link: "links/null"})
	add("links/symlink", Inode{Mode: symlink, Target: "a"})
	tree = append(tree, entry{path: "links/symlink2", link: "links/symlink"})

	dir("files")
	for i, size := range []uint64{1, 511, 512, 513, 4095, 4096, 4097, 100_000, 1<<20 + 1} {
		add(fmt.Sprintf("files/%d", size), oneChunk(size, 0, uint32(i*3)))
	}
	add("files/sparse 9G", oneChunk(9<<30+5, 1, sparseStart>>blockBits))
	add("files/largest chunk", func() Inode {
		in := oneChunk(1000, 0, 77)
		in.ChunkBits = 31
		return in
	}())
	add("files/hole", Inode{Mode: regular, Size: 70_000, ChunkBits: 8, Chunks: []Chunk{{Block: HoleBlock}}})
	add("files/chunks", Inode{Mode: regular, Size: 4096*9 + 1000, ChunkBits: 3, Chunks: []Chunk{
		{0, 100}, {0, 108}, {Block: HoleBlock}, {0, 7}, {0, 2000}, {Block: HoleBlock}, {Block: HoleBlock}, {0, 4088}, {1, 8}, {0, 50},
	}})
	add("files/blocks", Inode{Mode: regular, Size: 512*3 - 1, ChunkBits: 0, Chunks: []Chunk{{0, 5}, {Block: HoleBlock}, {0, 3}}})

	dir("xattrs")
	capability := []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	acl := []byte("\x02\x00\x00\x00" +
		"\x01\x00\x07\x00\xff\xff\xff\xff" + "\x02\x00\x05\x00\xe8\x03\x00\x00" +
		"\x04\x00\x05\x00\xff\xff\xff\xff" + "\x10\x00\x05\x00\xff\xff\xff\xff" + "\x20\x00\x05\x00\xff\xff\xff\xff")
	with := func(in Inode, x ...Xattr) Inode { in.Xattrs = x; return in }
	add("xattrs/capability", with(oneChunk(10, 0, 1), Xattr{"security.capability", capability}))
	add("xattrs/acl", with(Inode{Mode: modeDir | 0o755},
		Xattr{"user.z", []byte("z")}, Xattr{"system.posix_acl_default", acl}, Xattr{"system.posix_acl_access", acl}, Xattr{"security.x", []byte("x")}, Xattr{"trusted.y", []byte("y")}))
	add("xattrs/empty", with(Inode{Mode: regular}, Xattr{"user.empty", nil}))
	add("xattrs/name", with(Inode{Mode: regular}, Xattr{"user." + strings.Repeat("n", 250), []byte("v")}))
	add("xattrs/largest", with(oneChunk(600, 0, 2), Xattr{"user.largest", []byte(strings.Repeat("0123456789abcde", 4369))}))
	add("xattrs/symlink", with(Inode{Mode: symlink, Target: strings.Repeat("t", 400)}, Xattr{"trusted.s", []byte(strings.Repeat("s", 300))}))
	var many []Xattr
	for i := range 200 {
		many = append(many, Xattr{fmt.Sprintf("user.many%d", 199-i), []byte(strings.Repeat("m", i))})
	}
	add("xattrs/many", with(Inode{Mode: dirMode}, many...))
	add("xattrs/many/child", oneChunk(5, 0, 1))
	return devices, tree
}

// sparseStart is where the zoo's large file begins on device 1.
const sparseStart = 8192

// zooData makes the zoo's data files.
func zooData(t testing.TB) []string {
	t.Helper()
	dir := t.TempDir()
	paths := []string{filepath.Join(dir, "data0"), filepath.Join(dir, "data1")}
	random := rand.New(rand.NewChaCha8([32]byte{1}))
	b := make([]byte, 4096*BlockSize)
	for i := range b {
		b[i] = byte(random.Uint32())
	}
	if err := os.WriteFile(paths[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	devices, _ := zoo()
	f, err := os.Create(paths[1])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(devices[1].Blocks) * BlockSize); err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 4096, sparseStart, sparseStart + 1<<32 + 17, sparseStart + 8<<30 + 511, sparseStart + 9<<30 - 3} {
		if _, err := f.WriteAt(b[off%1000:][:1000], off); err != nil {
			t.Fatal(err)
		}
	}
	// The 1000 bytes at the end go past the device's blocks: cut them.
	if err := f.Truncate(int64(devices[1].Blocks) * BlockSize); err != nil {
		t.Fatal(err)
	}
	return paths
}

// randomTree is a tree whose names, attributes, targets and directories have
// random sizes, so that inodes and tails meet every place in a block.
func randomTree(seed uint64) []entry {
	random := rand.New(rand.NewPCG(seed, 7))
	word := func(n int) string {
		b := make([]byte, n)
		for i := range b {
			for b[i] == 0 || b[i] == '/' {
				b[i] = byte(random.Uint32())
			}
		}
		return string(b)
	}
	small := func(limit int) int { return 1 + random.IntN(1+random.IntN(limit)) }
	dirs := []string{""}
	tree := []entry{{path: "", in: Inode{Mode: dirMode}}}
	used := map[string]bool{}
	for len(tree) < 3000 {
		dir := dirs[random.IntN(1+random.IntN(len(dirs)))]
		name := word(small(255))
		path := strings.TrimPrefix(dir+"/"+name, "/")
		if used[path] || name == "." || name == ".." {
			continue
		}
		used[path] = true
		var in Inode
		switch random.IntN(5) {
		case 0:
			in.Mode = dirMode
			if len(path) < 2000 {
				dirs = append(dirs, path)
			}
		case 1:
			in = Inode{Mode: symlink, Target: word(small(1400))}
		case 2:
			in = Inode{Mode: regular}
		case 3:
			in = oneChunk(uint64(small(5000)), 0, uint32(random.IntN(4000)))
		case 4:
			first := tree[random.IntN(len(tree))]
			if first.in.Mode&modeType != modeDir && first.link == "" {
				tree = append(tree, entry{path: path, link: first.path})
			}
			continue
		}
		in.Mtime, in.MtimeNsec = int64(random.Int32())-1<<30, uint32(random.IntN(1e9))
		in.UID, in.GID = random.Uint32()>>1, random.Uint32()>>1
		for i := range random.IntN(4) * random.IntN(2) {
			in.Xattrs = append(in.Xattrs, Xattr{fmt.Sprintf("trusted.%d%s", i, word(small(200))), []byte(word(small(700)))})
		}
		tree = append(tree, entry{path: path, in: in})
	}
	return tree
}

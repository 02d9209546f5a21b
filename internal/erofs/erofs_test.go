package erofs

import (
	"strings"
	"testing"
)

var twoDevices = []Device{{strings.Repeat("a1", 32), 100_000}, {strings.Repeat("b2", 32), 1 << 31}}

func TestRoundTrip(t *testing.T) {
	long := strings.Repeat("n", 255)
	tree := []entry{
		{path: "", in: Inode{Mode: dirMode}},
		{path: "empty", in: Inode{Mode: regular, UID: 1 << 31, GID: 7}},
		{path: "one", in: oneChunk(1, 0, 3)},
		{path: "old", in: Inode{Mode: regular, Mtime: -1, MtimeNsec: 999_999_999}},
		{path: "d", in: Inode{Mode: modeDir | 0o1777}},
		{path: "d/again", link: "one"},
		{path: "d/" + long, in: Inode{Mode: symlink, Target: "../one"}},
		{path: "zero", in: Inode{Mode: modeChar | 0o600, Rdev: 0x103}},
	}
	m := open(t, write(t, build(t, twoDevices, "test", tree)))
	want := `"" 40755 0:0 nlink=3 rdev=0x0 names=7 mtime=0.000000000
"d" 41777 0:0 nlink=2 rdev=0x0 names=4 mtime=0.000000000
"d/again" 100644 0:0 nlink=2 rdev=0x0 size=1 blocks=1 mtime=0.000000000 [0+1 0:1536 hole=false]
"d/` + long + `" 120777 0:0 nlink=1 rdev=0x0 size=6 blocks=1 mtime=0.000000000 -> "../one"
"empty" 100644 2147483648:7 nlink=1 rdev=0x0 size=0 blocks=0 mtime=0.000000000
"old" 100644 0:0 nlink=1 rdev=0x0 size=0 blocks=0 mtime=-1.999999999
"one" 100644 0:0 nlink=2 rdev=0x0 size=1 blocks=1 mtime=0.000000000 [0+1 0:1536 hole=false] = d/again
"zero" 20600 0:0 nlink=1 rdev=0x103 size=0 blocks=0 mtime=0.000000000
`
	if got := text(describe(t, m)); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

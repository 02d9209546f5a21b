package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
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

func TestZoo(t *testing.T) {
	devices, tree := zoo()
	m := open(t, write(t, build(t, devices, "imgfs.chain.1", tree)))
	if m.Label() != "imgfs.chain.1" || len(m.Devices()) != 2 || m.Devices()[1] != devices[1] || !m.HasXattrs() {
		t.Errorf("label %q, devices %v, xattrs %v", m.Label(), m.Devices(), m.HasXattrs())
	}
	lines := describe(t, m)
	paths := map[string]bool{}
	for _, e := range tree {
		paths[e.path] = true
	}
	if len(lines) != len(paths) {
		t.Errorf("%d paths, want %d", len(lines), len(paths))
	}
	for _, e := range tree {
		line, ok := lines[e.path]
		if !ok {
			t.Fatalf("%q is missing", e.path)
		}
		if e.link != "" {
			continue
		}
		if want := fmt.Sprintf("%o %d:%d ", e.in.Mode, e.in.UID, e.in.GID); !strings.HasPrefix(line, want) {
			t.Errorf("%q: %.80s, want %s", e.path, line, want)
		}
		if want := fmt.Sprintf("rdev=%#x", e.in.Rdev); !strings.Contains(line, want) {
			t.Errorf("%q: %.80s, want %s", e.path, line, want)
		}
		if want := fmt.Sprintf("mtime=%d.%09d", e.in.Mtime, e.in.MtimeNsec); !strings.Contains(line, want) {
			t.Errorf("%q: %.80s, want %s", e.path, line, want)
		}
		if e.in.Target != "" && !strings.Contains(line, fmt.Sprintf(" -> %q", e.in.Target)) {
			t.Errorf("%q: %.80s, want target %q", e.path, line, e.in.Target)
		}
		n := walkTo(t, m, e.path)
		bits, chunks, err := m.Chunks(n)
		if e.in.Mode&modeType == modeRegular && (err != nil || bits != e.in.ChunkBits || !slices.Equal(chunks, e.in.Chunks)) {
			t.Errorf("%q: chunks %d %v %v, want %d %v", e.path, bits, chunks, err, e.in.ChunkBits, e.in.Chunks)
		}
		got := 0
		m.Xattrs(n, func(string, []byte) bool { got++; return true })
		if got != len(e.in.Xattrs) {
			t.Errorf("%q: %d xattrs, want %d", e.path, got, len(e.in.Xattrs))
		}
		for _, x := range e.in.Xattrs {
			if v, err := m.Xattr(n, x.Name); err != nil || string(v) != string(x.Value) {
				t.Errorf("%q: xattr %q: %.40q %v", e.path, x.Name, v, err)
			}
		}
		if _, err := m.Xattr(n, "user.absent"); err != ErrNotExist {
			t.Errorf("%q: absent xattr: %v", e.path, err)
		}
	}
}

// walkTo looks a path up, name by name.
func walkTo(t testing.TB, m *Image, path string) NID {
	t.Helper()
	n := m.Root()
	for _, name := range strings.Split(path, "/") {
		if name == "" {
			continue
		}
		var err error
		if n, _, err = m.Lookup(n, []byte(name)); err != nil {
			t.Fatalf("lookup %q of %q: %v", name, path, err)
		}
	}
	return n
}

// TestCanonical builds one tree in many ways.
func TestCanonical(t *testing.T) {
	devices, tree := zoo()
	want := write(t, build(t, devices, "x", tree))
	for seed := range uint64(5) {
		random := rand.New(rand.NewPCG(seed, 1))
		b := NewBuilder(make([]Device, len(devices)), "x")
		refs := map[string]Ref{}
		add := func(e entry) {
			in := e.in
			in.Xattrs = slices.Clone(in.Xattrs)
			random.Shuffle(len(in.Xattrs), func(i, j int) { in.Xattrs[i], in.Xattrs[j] = in.Xattrs[j], in.Xattrs[i] })
			ref, err := b.Add(&in)
			if err != nil {
				t.Fatal(err)
			}
			refs[e.path] = ref
		}
		add(tree[0])
		// An inode that is not linked, and what only it leads to, are not written.
		lost, _ := b.Add(&Inode{Mode: dirMode})
		inner, _ := b.Add(&Inode{Mode: dirMode, Xattrs: []Xattr{{"user.x", nil}}})
		if err := b.Link(lost, "inner", inner); err != nil {
			t.Fatal(err)
		}
		rest := slices.Clone(tree[1:])
		random.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
		for _, e := range rest {
			if e.link == "" {
				add(e)
			}
		}
		for _, e := range rest {
			if e.link != "" {
				refs[e.path] = refs[e.link]
			}
		}
		for _, e := range rest {
			i := strings.LastIndexByte(e.path, '/')
			if err := b.Link(refs[e.path[:max(i, 0)]], e.path[i+1:], refs[e.path]); err != nil {
				t.Fatal(err)
			}
		}
		for i, d := range devices {
			b.SetDevice(i, d)
		}
		for range 2 { // writing twice is no different
			if got := write(t, b); !bytes.Equal(got, want) {
				t.Fatalf("seed %d: %d bytes differ from %d", seed, len(got), len(want))
			}
		}
	}
}

func TestHasXattrs(t *testing.T) {
	for _, c := range []struct {
		names []string
		want  bool
	}{
		{nil, false},
		{[]string{MarkerPrefix + "opaque"}, false},
		{[]string{MarkerPrefix + "opaque", "user.x"}, true},
		{[]string{"trusted.imgf"}, true},
	} {
		root := Inode{Mode: dirMode}
		for _, n := range c.names {
			root.Xattrs = append(root.Xattrs, Xattr{Name: n})
		}
		m := open(t, write(t, build(t, nil, "", []entry{{in: root}})))
		if m.HasXattrs() != c.want {
			t.Errorf("%v: HasXattrs %v", c.names, m.HasXattrs())
		}
	}
}

func TestLimits(t *testing.T) {
	file := func(in Inode) Inode { in.Mode = regular; return in }
	many := make([]Xattr, 5)
	for i := range many {
		many[i] = Xattr{fmt.Sprintf("user.%d", i), make([]byte, 65535)}
	}
	for _, c := range []struct {
		name  string
		in    Inode
		limit bool // is ErrLimit, else a mistake of the caller
	}{
		{"no type", Inode{Mode: 0o644}, false},
		{"nanoseconds", Inode{Mode: regular, MtimeNsec: 1e9}, false},
		{"empty target", Inode{Mode: symlink}, true},
		{"long target", Inode{Mode: symlink, Target: strings.Repeat("x", 4096)}, true},
		{"NUL in target", Inode{Mode: symlink, Target: "a\x00b"}, true},
		{"system xattr", file(Inode{Xattrs: []Xattr{{"system.nfs4_acl", nil}}}), true},
		{"foreign xattr", file(Inode{Xattrs: []Xattr{{"com.apple.x", nil}}}), true},
		{"bare prefix", file(Inode{Xattrs: []Xattr{{"user.", nil}}}), true},
		{"longer whole name", file(Inode{Xattrs: []Xattr{{"system.posix_acl_access2", nil}}}), true},
		{"long xattr name", file(Inode{Xattrs: []Xattr{{"user." + strings.Repeat("n", 251), nil}}}), true},
		{"NUL in xattr name", file(Inode{Xattrs: []Xattr{{"user.a\x00b", nil}}}), true},
		{"xattr value", file(Inode{Xattrs: []Xattr{{"user.a", make([]byte, 65536)}}}), true},
		{"xattrs together", file(Inode{Xattrs: many}), true},
		{"xattr twice", file(Inode{Xattrs: []Xattr{{"user.a", nil}, {"user.a", nil}}}), false},
		{"no chunk", file(Inode{Size: 1}), false},
		{"too few chunks", file(Inode{Size: 513, Chunks: []Chunk{{0, 0}}}), false},
		{"chunk of an empty file", file(Inode{Chunks: []Chunk{{0, 0}}}), false},
		{"chunk bits", file(Inode{Size: 1, ChunkBits: 32, Chunks: []Chunk{{0, 0}}}), true},
		{"no such device", file(Inode{Size: 1, Chunks: []Chunk{{2, 0}}}), false},
		{"size", file(Inode{Size: 1 << 63, ChunkBits: 31, Chunks: []Chunk{{0, 0}}}), true},
	} {
		b := build(t, twoDevices, "", []entry{{in: Inode{Mode: dirMode}}})
		_, err := b.Add(&c.in)
		if err == nil || errors.Is(err, ErrLimit) != c.limit {
			t.Errorf("%s: %v", c.name, err)
		}
		var x *Xattr
		if len(c.in.Xattrs) > 0 && c.in.Xattrs[0].Name != "user.0" {
			if x = &c.in.Xattrs[0]; err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", x.Name)) {
				t.Errorf("%s: %v does not name the attribute", c.name, err)
			}
		}
	}

	b := build(t, twoDevices, "", []entry{{in: Inode{Mode: dirMode}}, {path: "d", in: Inode{Mode: dirMode}}, {path: "f", in: Inode{Mode: regular}}})
	for _, c := range []struct {
		dir   Ref
		name  string
		child Ref
	}{{0, "", 2}, {0, ".", 2}, {0, "..", 2}, {0, "a/b", 2}, {0, "a\x00", 2}, {0, strings.Repeat("n", 256), 2}, {2, "x", 2}, {0, "d2", 1}, {1, "root", 0}, {3, "x", 2}, {0, "x", 3}} {
		if err := b.Link(c.dir, c.name, c.child); err == nil {
			t.Errorf("Link(%d, %q, %d) is accepted", c.dir, c.name, c.child)
		}
	}
	write(t, b)
	if err := b.Link(0, "f", 2); err != nil {
		t.Fatal(err)
	}
	if _, err := b.WriteTo(io.Discard); err == nil {
		t.Error("a name used twice is accepted")
	}
	b = build(t, []Device{{"", 3}}, "", []entry{{in: Inode{Mode: dirMode}}, {path: "f", in: oneChunk(513, 0, 2)}})
	if _, err := b.WriteTo(io.Discard); err == nil {
		t.Error("a chunk beyond its device is accepted")
	}
	for _, b := range []*Builder{NewBuilder(make([]Device, 20_000), ""), NewBuilder(nil, "seventeen letters")} {
		if _, err := b.Add(&Inode{Mode: dirMode}); !errors.Is(err, ErrLimit) {
			t.Errorf("Add after bad arguments: %v", err)
		}
	}
	write(t, build(t, make([]Device, 16_000), "sixteen letters!", []entry{{in: Inode{Mode: dirMode}}}))
	if _, err := NewBuilder(nil, "").WriteTo(io.Discard); err == nil {
		t.Error("an image without a root is written")
	}
	if _, err := NewBuilder(nil, "").Add(&Inode{Mode: regular}); err == nil {
		t.Error("a root that is a file is accepted")
	}
}

func TestReadDirCookies(t *testing.T) {
	const count = 100_000
	tree := []entry{{path: "", in: Inode{Mode: dirMode}}, {path: "file", in: Inode{Mode: regular}}}
	for i := range count {
		tree = append(tree, entry{path: fmt.Sprintf("%x-%s", i*2654435761, strings.Repeat("n", i%40)), link: "file"})
	}
	m := open(t, write(t, build(t, nil, "", tree)))
	var names []string
	var cookies []uint64
	collect := func(e *Dirent) bool {
		names, cookies = append(names, string(e.Name)), append(cookies, e.Next)
		return true
	}
	if err := m.ReadDir(m.Root(), 0, collect); err != nil {
		t.Fatal(err)
	}
	if len(names) != count+3 || !slices.IsSorted(names) {
		t.Fatalf("%d names, sorted %v", len(names), slices.IsSorted(names))
	}
	if !slices.IsSorted(cookies) || cookies[0] == 0 {
		t.Error("cookies do not grow")
	}
	for i := 0; i < len(names); i += 1 + i%97 { // resumed behind entry i, the next one comes
		var next []string
		err := m.ReadDir(m.Root(), cookies[i], func(e *Dirent) bool {
			next = append(next, string(e.Name))
			return len(next) < 2
		})
		if want := names[i+1 : min(i+3, len(names))]; err != nil || !slices.Equal(next, want) {
			t.Fatalf("behind %q: %q %v, want %q", names[i], next, err, want)
		}
	}
	for _, bad := range []uint64{1, 511, cookies[len(cookies)-1] + 1, 1 << 63, 1<<64 - 1} {
		n := 0
		if err := m.ReadDir(m.Root(), bad, func(*Dirent) bool { n++; return true }); err != nil || n > len(names) {
			t.Errorf("cookie %d: %d names, %v", bad, n, err)
		}
	}
	for _, absent := range []string{"", "\x00", "\xff", "zz", "-", names[500] + "x", names[500][:3]} {
		if _, _, err := m.Lookup(m.Root(), []byte(absent)); err != ErrNotExist {
			t.Errorf("lookup %q: %v", absent, err)
		}
	}
}

func TestExtentEnds(t *testing.T) {
	m := open(t, write(t, build(t, twoDevices, "", []entry{
		{in: Inode{Mode: dirMode}},
		{path: "f", in: Inode{Mode: regular, Size: 1025, Chunks: []Chunk{{0, 5}, {Block: HoleBlock}, {1, 9}}}},
		{path: "empty", in: Inode{Mode: regular}},
	})))
	f := walkTo(t, m, "f")
	for _, c := range []struct {
		off  uint64
		want Extent
		err  error
	}{
		{0, Extent{0, 5 * 512, 512, false}, nil},
		{511, Extent{0, 5*512 + 511, 1, false}, nil},
		{512, Extent{0, 0, 512, true}, nil},
		{1024, Extent{1, 9 * 512, 1, false}, nil},
		{1025, Extent{}, io.EOF},
		{1<<64 - 1, Extent{}, io.EOF},
	} {
		if got, err := m.Extent(f, c.off); got != c.want || err != c.err {
			t.Errorf("at %d: %+v %v, want %+v %v", c.off, got, err, c.want, c.err)
		}
	}
	if _, err := m.Extent(walkTo(t, m, "empty"), 0); err != io.EOF {
		t.Errorf("empty file: %v", err)
	}
	if _, err := m.Extent(m.Root(), 0); !errors.Is(err, ErrCorrupt) {
		t.Errorf("directory: %v", err)
	}
	if _, err := m.ReadLink(f); !errors.Is(err, ErrCorrupt) {
		t.Errorf("target of a file: %v", err)
	}
	if _, _, err := m.Lookup(f, []byte("x")); !errors.Is(err, ErrCorrupt) {
		t.Errorf("lookup in a file: %v", err)
	}
}

package erofs

import (
	"bytes"
	"fmt"
	"sort"
	"strings"
	"testing"
)

// entry is an inode of a tree under test, as a test states it.
type entry struct {
	path string // "" is the root; parents come first
	in   Inode
	link string // path of an earlier entry, of which this is another name
}

const (
	regular = modeRegular | 0o644
	dirMode = modeDir | 0o755
	symlink = modeSymlink | 0o777
)

// oneChunk returns a regular file of size bytes at a block of a device.
func oneChunk(size uint64, device int, block uint32) Inode {
	in := Inode{Mode: regular, Size: size}
	for uint64(BlockSize)<<in.ChunkBits < size {
		in.ChunkBits++
	}
	in.Chunks = []Chunk{{device, block}}
	return in
}

// build adds a tree to a new Builder.
func build(t testing.TB, devices []Device, label string, tree []entry) *Builder {
	t.Helper()
	b := NewBuilder(devices, label)
	refs := map[string]Ref{}
	for _, e := range tree {
		ref, linked := refs[e.link]
		if e.link == "" || !linked {
			var err error
			if ref, err = b.Add(&e.in); err != nil {
				t.Fatalf("add %q: %v", e.path, err)
			}
		}
		refs[e.path] = ref
		if e.path == "" {
			continue
		}
		dir, name := "", e.path
		if i := strings.LastIndexByte(e.path, '/'); i >= 0 {
			dir, name = e.path[:i], e.path[i+1:]
		}
		parent, ok := refs[dir]
		if !ok {
			t.Fatalf("no parent of %q", e.path)
		}
		if err := b.Link(parent, name, ref); err != nil {
			t.Fatalf("link %q: %v", e.path, err)
		}
	}
	return b
}

func write(t testing.TB, b *Builder) []byte {
	t.Helper()
	var out bytes.Buffer
	n, err := b.WriteTo(&out)
	if err != nil {
		t.Fatal(err)
	}
	if n != int64(out.Len()) || n%BlockSize != 0 {
		t.Fatalf("WriteTo returned %d for %d bytes", n, out.Len())
	}
	return out.Bytes()
}

func open(t testing.TB, image []byte) *Image {
	t.Helper()
	m, err := New(image)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// describe returns a line for every path of an image: all that the reader says.
func describe(t testing.TB, m *Image) map[string]string {
	t.Helper()
	lines := map[string]string{}
	first := map[NID]string{}
	var walk func(path string, n, parent NID)
	walk = func(path string, n, parent NID) {
		var a Attr
		if err := m.Stat(n, &a); err != nil {
			t.Fatalf("stat %q: %v", path, err)
		}
		line := fmt.Sprintf("%o %d:%d nlink=%d rdev=%#x size=%d blocks=%d mtime=%d.%09d",
			a.Mode, a.UID, a.GID, a.Nlink, a.Rdev, a.Size, a.Blocks, a.Mtime, a.MtimeNsec)
		err := m.Xattrs(n, func(name string, value []byte) bool {
			if got, err := m.Xattr(n, name); err != nil || !bytes.Equal(got, value) {
				t.Errorf("%q: xattr %s: %q, %v", path, name, got, err)
			}
			if len(value) > 32 {
				value = fmt.Appendf(nil, "%d:%.8s", len(value), value)
			}
			line += fmt.Sprintf(" %s=%q", name, value)
			return true
		})
		if err != nil {
			t.Fatalf("xattrs %q: %v", path, err)
		}
		switch a.Mode & modeType {
		case modeSymlink:
			target, err := m.ReadLink(n)
			if err != nil {
				t.Fatalf("readlink %q: %v", path, err)
			}
			line += fmt.Sprintf(" -> %q", target)
		case modeRegular:
			for off := uint64(0); off < a.Size; {
				e, err := m.Extent(n, off)
				if err != nil {
					t.Fatalf("extent of %q at %d: %v", path, off, err)
				}
				line += fmt.Sprintf(" [%d+%d %d:%d hole=%v]", off, e.Len, e.Device, e.Off, e.Hole)
				off += e.Len
			}
		case modeDir:
			names := 0
			var last []byte
			err := m.ReadDir(n, 0, func(e *Dirent) bool {
				names++
				if last != nil && bytes.Compare(last, e.Name) >= 0 {
					t.Errorf("%q: %q before %q", path, last, e.Name)
				}
				last = e.Name
				nid, typ, err := m.Lookup(n, e.Name)
				if err != nil || nid != e.NID || typ != e.Type {
					t.Errorf("lookup %q in %q: %d %d %v, want %d %d", e.Name, path, nid, typ, err, e.NID, e.Type)
				}
				switch string(e.Name) {
				case ".":
					if e.NID != n {
						t.Errorf("%q: . is %d, not %d", path, e.NID, n)
					}
				case "..":
					if e.NID != parent {
						t.Errorf("%q: .. is %d, not %d", path, e.NID, parent)
					}
				default:
					walk(strings.TrimPrefix(path+"/"+string(e.Name), "/"), e.NID, n)
				}
				return true
			})
			if err != nil {
				t.Fatalf("readdir %q: %v", path, err)
			}
			line = strings.Replace(line, fmt.Sprintf("size=%d blocks=%d", a.Size, a.Blocks), fmt.Sprintf("names=%d", names), 1)
		}
		if at, ok := first[n]; ok {
			line += " = " + at
		} else {
			first[n] = path
		}
		lines[path] = line
	}
	walk("", m.Root(), m.Root())
	if uint64(len(first)) != m.Inodes() {
		t.Errorf("%d inodes seen, image says %d", len(first), m.Inodes())
	}
	return lines
}

func text(lines map[string]string) string {
	var paths []string
	for p := range lines {
		paths = append(paths, p)
	}
	sort.Strings(paths)
	var s strings.Builder
	for _, p := range paths {
		fmt.Fprintf(&s, "%q %s\n", p, lines[p])
	}
	return s.String()
}

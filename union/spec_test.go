package union

import (
	"bytes"
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/layertar"
	"golang.org/x/sys/unix"
)

// The tests write layers and trees as lines, one per name:
//
//	r            the root itself; without it the root is implied
//	d etc        directory           o etc        opaque directory
//	f etc/a      file                s l -> etc   symlink
//	c dev/x      device 0/0          w etc/a      whiteout
//	h b => etc/a hard link to a file of another layer
//	n b = etc/a  hard link to a file named further up in the layer
//	i etc        implied directory: parents that have no line are that too
//	O etc        implied directory that is opaque
//
// In trees a line ends with the number of the layer that gave the attributes
// (mtime, mode and owner all derive from it) and the data; 0 is an implied
// directory, and "@2 of 1" has layer 1's data with layer 2's attributes. Further
// names of an inode are "n".
type layerSpec struct {
	t     testing.TB
	b     *erofs.Builder
	dirs  map[string]erofs.Ref
	files map[string]erofs.Ref
	layer int
	block uint32
}

func (s *layerSpec) attr(mode uint32) erofs.Inode {
	if s.layer == 0 {
		return erofs.Inode{Mode: mode}
	}
	return erofs.Inode{
		Mode: mode&^0o7 | uint32(s.layer%8), UID: uint32(s.layer), GID: uint32(s.layer) + 1,
		Mtime: int64(s.layer), MtimeNsec: uint32(s.layer),
	}
}

func (s *layerSpec) add(in erofs.Inode) erofs.Ref {
	s.t.Helper()
	ref, err := s.b.Add(&in)
	if err != nil {
		s.t.Fatal(err)
	}
	return ref
}

func (s *layerSpec) link(name string, ref erofs.Ref) {
	s.t.Helper()
	if err := s.b.Link(s.parent(path.Dir(name)), path.Base(name), ref); err != nil {
		s.t.Fatal(err)
	}
}

func (s *layerSpec) parent(dir string) erofs.Ref {
	s.t.Helper()
	if ref, ok := s.dirs[dir]; ok {
		return ref
	}
	ref := s.add(impliedDir())
	s.dirs[dir] = ref
	s.link(dir, ref)
	return ref
}

func impliedDir() erofs.Inode {
	return erofs.Inode{Mode: unix.S_IFDIR | 0o755, Xattrs: []erofs.Xattr{{Name: layertar.MarkImplied}}}
}

// buildLayer returns the index of a layer, whose number is from 1.
func buildLayer(t testing.TB, layer int, lines ...string) *erofs.Image {
	t.Helper()
	return writeImage(t, layerBuilder(t, layer, lines...))
}

func layerBuilder(t testing.TB, layer int, lines ...string) *erofs.Builder {
	t.Helper()
	dev := erofs.Device{Tag: fmt.Sprintf("%064x", layer), Blocks: 1 << 20}
	s := &layerSpec{
		t: t, b: erofs.NewBuilder([]erofs.Device{dev}, layertar.Label),
		dirs: map[string]erofs.Ref{}, files: map[string]erofs.Ref{}, layer: layer,
	}
	in := impliedDir()
	if slices.Contains(lines, "r") {
		in = s.attr(unix.S_IFDIR | 0o750)
	}
	if slices.Contains(lines, "o .") {
		in.Xattrs = append(in.Xattrs, erofs.Xattr{Name: layertar.MarkOpaque})
	}
	s.dirs["."] = s.add(in)
	for _, line := range lines {
		s.line(line)
	}
	return s.b
}

func (s *layerSpec) line(line string) {
	s.t.Helper()
	kind, rest, _ := strings.Cut(line, " ")
	name, target, _ := strings.Cut(rest, " ")
	_, target, _ = strings.Cut(target, " ")
	if kind == "r" || name == "." {
		return
	}
	var in erofs.Inode
	switch kind {
	case "d", "o":
		in = s.attr(unix.S_IFDIR | 0o750)
		in.Xattrs = []erofs.Xattr{{Name: "user.layer", Value: fmt.Append(nil, s.layer)}}
	case "i", "O":
		in = impliedDir()
	case "f":
		in = s.attr(unix.S_IFREG | 0o640)
		in.Size = 512*uint64(s.block%3) + 1
		in.ChunkBits = 2
		in.Chunks = []erofs.Chunk{{Block: s.block}}
		s.block += 4
		if s.block%8 == 0 { // now and then a file with a hole
			in.Size += 2048
			in.Chunks = append(in.Chunks, erofs.Chunk{Block: erofs.HoleBlock})
		}
	case "s":
		in = s.attr(unix.S_IFLNK | 0o770)
		in.Target = target
	case "c", "w":
		in = s.attr(unix.S_IFCHR | 0o640)
		if kind == "w" {
			in.Xattrs = []erofs.Xattr{{Name: layertar.MarkWhiteout}}
		}
	case "h":
		in = s.attr(unix.S_IFREG | 0o640)
		in.Xattrs = []erofs.Xattr{{Name: layertar.MarkLink, Value: []byte(target)}}
	case "n":
		ref, ok := s.files[target]
		if !ok {
			s.t.Fatalf("%q: no file %s in the layer", line, target)
		}
		s.link(name, ref)
		return
	default:
		s.t.Fatalf("unknown line %q", line)
	}
	if kind == "o" || kind == "O" {
		in.Xattrs = append(in.Xattrs, erofs.Xattr{Name: layertar.MarkOpaque})
	}
	ref := s.add(in)
	if in.Mode&unix.S_IFMT == unix.S_IFDIR {
		s.dirs[name] = ref
	} else {
		s.files[name] = ref
	}
	s.link(name, ref)
}

func writeImage(t testing.TB, b *erofs.Builder) *erofs.Image {
	t.Helper()
	var buf bytes.Buffer
	if _, err := b.WriteTo(&buf); err != nil {
		t.Fatal(err)
	}
	return openImage(t, buf.Bytes())
}

func openImage(t testing.TB, b []byte) *erofs.Image {
	t.Helper()
	img, err := erofs.New(b)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// lister writes a chain's tree as lines.
type lister struct {
	t     testing.TB
	img   *erofs.Image
	first map[erofs.NID]string
	links map[erofs.NID]uint32
	nlink map[erofs.NID]uint32
	lines []string
}

// list returns the tree of a chain of layers made by buildLayer, and checks
// what each inode should have given its lines.
func list(t testing.TB, img *erofs.Image) string {
	t.Helper()
	l := &lister{t: t, img: img, first: map[erofs.NID]string{}, links: map[erofs.NID]uint32{}, nlink: map[erofs.NID]uint32{}}
	l.entry(".", img.Root())
	for nid, name := range l.first {
		if l.links[nid] != l.nlink[nid] {
			t.Errorf("%s: nlink %d, %d names", name, l.nlink[nid], l.links[nid])
		}
	}
	return strings.Join(l.lines, "\n")
}

func (l *lister) entry(name string, nid erofs.NID) {
	l.t.Helper()
	var a erofs.Attr
	if err := l.img.Stat(nid, &a); err != nil {
		l.t.Fatal(err)
	}
	from := fmt.Sprint(a.Mtime)
	line := fmt.Sprintf("? %s mode %o", name, a.Mode)
	layerAttr := a.UID == uint32(a.Mtime) && a.MtimeNsec == a.UID && (a.UID == 0 || a.GID == a.UID+1)
	if err := l.img.Xattrs(nid, func(x string, v []byte) bool {
		if x != "user.layer" || string(v) != from {
			l.t.Errorf("%s: xattr %s %q", name, x, v)
		}
		return true
	}); err != nil {
		l.t.Fatal(err)
	}
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		line = "d " + name
		layerAttr = layerAttr && (a.Mode&0o777 == 0o755 && a.UID == 0 || a.UID != 0)
	case unix.S_IFLNK:
		target, err := l.img.ReadLink(nid)
		if err != nil {
			l.t.Fatal(err)
		}
		line = fmt.Sprintf("s %s -> %s", name, target)
	case unix.S_IFREG:
		line = "f " + name
		e, err := l.img.Extent(nid, 0)
		if err != nil {
			l.t.Errorf("%s: %v", name, err)
		}
		if data := fmt.Sprint(e.Device + 1); data != from {
			from += " of " + data
		}
	case unix.S_IFCHR:
		line = "c " + name
	}
	if !layerAttr {
		l.t.Errorf("%s: mixed attributes %+v", name, a)
	}
	line += " @" + from
	if a.Mode&unix.S_IFMT != unix.S_IFDIR {
		l.links[nid]++
		if first, ok := l.first[nid]; ok {
			l.lines = append(l.lines, fmt.Sprintf("n %s = %s", name, first))
			return
		}
		l.first[nid], l.nlink[nid] = name, a.Nlink
	}
	l.lines = append(l.lines, line)
	if a.Mode&unix.S_IFMT != unix.S_IFDIR {
		return
	}
	type sub struct {
		name string
		nid  erofs.NID
	}
	var subs []sub
	if err := l.img.ReadDir(nid, 0, func(e *erofs.Dirent) bool {
		if n := string(e.Name); n != "." && n != ".." {
			subs = append(subs, sub{path.Join(name, n), e.NID})
		}
		return true
	}); err != nil {
		l.t.Fatal(err)
	}
	for _, s := range subs {
		l.entry(s.name, s.nid)
	}
}

// mergeEveryWay merges layers at once and in every two steps, and fails unless
// all give the same bytes, or all an error.
func mergeEveryWay(t testing.TB, layers []*erofs.Image) (*erofs.Image, error) {
	t.Helper()
	var want bytes.Buffer
	stats, wantErr := Merge(&want, layers)
	if wantErr == nil && (stats.Size != int64(want.Len()) || stats.Layers != len(layers)) {
		t.Errorf("stats %+v of %d bytes, %d layers", stats, want.Len(), len(layers))
	}
	for k := 0; k <= len(layers); k++ {
		var lower, got bytes.Buffer
		_, err := Merge(&lower, layers[:k])
		if err == nil {
			_, err = Extend(&got, openImage(t, lower.Bytes()), layers[k:])
		}
		if wantErr != nil {
			if err == nil || err.Error() != wantErr.Error() {
				t.Errorf("in steps of %d and %d: error %v, at once %v", k, len(layers)-k, err, wantErr)
			}
		} else if err != nil {
			t.Errorf("in steps of %d and %d: %v", k, len(layers)-k, err)
		} else if !bytes.Equal(got.Bytes(), want.Bytes()) {
			t.Errorf("in steps of %d and %d: other bytes:\n%s\nat once:\n%s", k, len(layers)-k,
				list(t, openImage(t, got.Bytes())), list(t, openImage(t, want.Bytes())))
		}
	}
	if wantErr != nil {
		return nil, wantErr
	}
	return openImage(t, want.Bytes()), nil
}

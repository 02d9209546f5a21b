package fs

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/layertar"
	"golang.org/x/sys/unix"
)

// store is a LayoutSource of two chains, the second on top of the first.
type store struct {
	chains   []id.ChainKey
	layers   []*packed
	images   map[string]int // name -> chain
	remote   map[string]int // names that only Resolve knows
	released int

	mu       sync.Mutex
	resolved []string
}

func (s *store) Chains(context.Context) ([]id.ChainKey, error) { return s.chains, nil }

func (s *store) Ancestors(_ context.Context, c id.ChainKey) ([]id.ChainKey, error) {
	i := slices.Index(s.chains, c)
	if i < 0 {
		return nil, fault.New(fault.NotFound, "no chain %s", c)
	}
	below := slices.Clone(s.chains[:i])
	slices.Reverse(below)
	return below, nil
}

func (s *store) content(i int) *Content {
	return &Content{Image: s.layers[i].img, Data: s.layers[i].data(), Release: func() { s.released++ }}
}

func (s *store) OpenLayer(_ context.Context, c id.ChainKey) (*Content, error) {
	return s.content(slices.Index(s.chains, c)), nil
}
func (s *store) OpenChain(ctx context.Context, c id.ChainKey) (*Content, error) {
	return s.OpenLayer(ctx, c)
}
func (s *store) Images(context.Context) ([]string, error) {
	var names []string
	for n := range s.images {
		names = append(names, n)
	}
	return names, nil
}
func (s *store) Resolve(_ context.Context, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resolved = append(s.resolved, name)
	if _, ok := s.remote[name]; ok {
		return nil
	}
	if _, ok := s.images[name]; ok {
		return nil
	}
	if strings.HasPrefix(name, "down.example/") {
		return fault.New(fault.Network, "connection refused")
	}
	return fault.New(fault.NotFound, "no image %s", name)
}
func (s *store) OpenImage(_ context.Context, name string) (*Content, error) {
	if i, ok := s.remote[name]; ok {
		return s.content(i), nil
	}
	if i, ok := s.images[name]; ok {
		return s.content(i), nil
	}
	return nil, errors.New("not resolved")
}

// layerIndex makes a layer's index with one of each mark.
func layerIndex(t *testing.T) *packed {
	t.Helper()
	b := erofs.NewBuilder(nil, "imgfs.layer.1")
	mark := func(name string) []erofs.Xattr { return []erofs.Xattr{{Name: name, Value: []byte("y")}} }
	add := func(in erofs.Inode) erofs.Ref {
		r, err := b.Add(&in)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	root := add(erofs.Inode{Mode: unix.S_IFDIR | 0o755})
	link := func(dir erofs.Ref, name string, r erofs.Ref) {
		if err := b.Link(dir, name, r); err != nil {
			t.Fatal(err)
		}
	}
	opaque := add(erofs.Inode{Mode: unix.S_IFDIR | 0o755, Xattrs: mark(layertar.MarkOpaque)})
	link(root, "opaque", opaque)
	link(opaque, "kept", add(erofs.Inode{Mode: unix.S_IFREG | 0o600}))
	link(root, "gone", add(erofs.Inode{Mode: unix.S_IFCHR, Xattrs: mark(layertar.MarkWhiteout)}))
	link(root, "device", add(erofs.Inode{Mode: unix.S_IFCHR | 0o600})) // a real 0/0 device
	link(root, "link", add(erofs.Inode{Mode: unix.S_IFREG | 0o644, Xattrs: mark(layertar.MarkLink)}))
	var buf strings.Builder
	if _, err := b.WriteTo(&buf); err != nil {
		t.Fatal(err)
	}
	img, err := erofs.New([]byte(buf.String()))
	if err != nil {
		t.Fatal(err)
	}
	return &packed{img: img}
}

func TestLayout(t *testing.T) {
	root := makeTree(t, 3, 4)
	low := id.Stack([]id.LayerKey{id.LayerKey("sha256:" + strings.Repeat("a", 64))})
	src := &store{
		chains: []id.ChainKey{low, low.Append(id.LayerKey("sha256:" + strings.Repeat("b", 64)))},
		layers: []*packed{pack(t, root, 2), layerIndex(t)},
		images: map[string]int{"docker.io/library/debian:12": 0, "localhost:5000/a/b@sha256:" + strings.Repeat("c", 64): 0},
		remote: map[string]int{"docker.io/library/new:1": 0},
	}
	l := NewLayout(src, Options{})
	dir := t.TempDir()
	s := serveCold(t, l, dir, MountFlags{})
	sh := func(script string) string {
		t.Helper()
		cmd := exec.Command("sh", "-c", script)
		cmd.Dir = "/"
		cmd.Env = append(os.Environ(), "D="+dir, "A="+src.chains[0].Hex(), "B="+src.chains[1].Hex(), "ROOT="+root)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return string(out) + "(" + err.Error() + ")\n"
		}
		return string(out)
	}
	both := []string{src.chains[0].Hex(), src.chains[1].Hex()}
	slices.Sort(both)
	list := strings.Join(both, "\n") + "\n"
	for _, c := range []struct{ name, script, want string }{
		{"top", `ls $D`, "diff\nimages\nlayers\nmnt\n"},
		{"layers", `ls $D/layers`, list},
		{"diff lists", `ls $D/diff`, list},
		{"lowest has none", `cat $D/layers/$A | wc -c`, "0\n"},
		{"ancestors", `cat $D/layers/$B`, src.chains[0].Hex() + "\n"},
		{"mnt", `diff -r $ROOT $D/mnt/$A`, ""},
		{"again, elsewhere", `diff -r $D/diff/$A $D/mnt/$A`, ""},
		{"whiteouts", `ls -A $D/diff/$B`, ".wh.gone\ndevice\nlink\nopaque\n"},
		{"whiteout", `stat -c '%F %s %a' $D/diff/$B/.wh.gone`, "regular empty file 0 444\n"},
		{"whiteout's name", `stat -c %F $D/diff/$B/gone 2>&1 | grep -c 'No such'`, "1\n"},
		{"not a whiteout", `stat -c '%F' $D/diff/$B/device; ls $D/diff/$B/.wh.device 2>&1 | grep -c 'No such'`, "character special file\n1\n"},
		{"opaque", `ls -A $D/diff/$B/opaque; cat $D/diff/$B/opaque/.wh..wh..opq; ls $D/diff/$B/.wh..wh..opq 2>&1 | grep -c 'No such'`, ".wh..wh..opq\nkept\n1\n"},
		{"inodes", `cd $D/diff/$B && for f in .wh.gone opaque/.wh..wh..opq opaque/kept; do test $(ls -i $f | cut -d' ' -f1) = $(stat -c %i $f) || echo $f; done`, ""},
		{"hosts", `ls $D/images`, "docker.io\nlocalhost:5000\n"},
		{"names", `ls $D/images/docker.io/library $D/images/localhost:5000/a | tail -n1 | cut -c-9`, "b@sha256:\n"},
		{"by name", `diff -r $ROOT $D/images/docker.io/library/debian:12`, ""},
		{"unknown is resolved", `diff -r $ROOT $D/images/docker.io/library/new:1`, ""},
		{"unknown chain", `ls $D/mnt/` + strings.Repeat("0", 64) + ` 2>&1 | grep -c 'No such'`, "1\n"},
		{"no chain", `ls $D/mnt/x 2>&1 | grep -c 'No such'`, "1\n"},
		{"no host", `ls $D/images/nohost 2>&1 | grep -c 'No such'`, "1\n"},
		{"absent, twice", `for i in 1 2; do ls $D/images/docker.io/absent:1 2>&1 | grep -c 'No such'; done`, "1\n1\n"},
		{"registry down, twice", `for i in 1 2; do ls $D/images/down.example/x:1 2>&1 | grep -c 'Input/output'; done`, "1\n1\n"},
		{"read-only", `touch $D/x 2>&1 | grep -c Read-only`, "1\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := sh(c.script); got != c.want {
				t.Errorf("%s\n got %q\nwant %q", c.script, got, c.want)
			}
		})
	}
	count := map[string]int{}
	src.mu.Lock()
	for _, n := range src.resolved {
		count[n]++
	}
	src.mu.Unlock()
	for _, n := range []string{"docker.io/absent:1", "down.example/x:1"} {
		if count[n] != 1 {
			t.Errorf("%s was resolved %d times", n, count[n])
		}
	}
	if err := Unmount(dir, false); err != nil {
		t.Error(err)
	}
	s.Wait()
	l.Close()
	if want := 5; src.released != want { // mnt/A, diff/A, diff/B, two images
		t.Errorf("%d contents released, want %d", src.released, want)
	}
}

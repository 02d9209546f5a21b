package overlay

import (
	"bytes"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/imgtest"
	"github.com/imgfs/imgfs/internal/lower"
	"github.com/imgfs/imgfs/internal/upperdir"
	"golang.org/x/sys/unix"
)

// newUnmounted is a union over an image with one directory, "low", that no
// kernel asks.
func newUnmounted(t *testing.T) *Union {
	t.Helper()
	b := erofs.NewBuilder(nil, "test")
	root, err := b.Add(&erofs.Inode{Mode: unix.S_IFDIR | 0o755})
	if err != nil {
		t.Fatal(err)
	}
	low, err := b.Add(&erofs.Inode{Mode: unix.S_IFDIR | 0o755})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Link(root, "low", low); err != nil {
		t.Fatal(err)
	}
	var index bytes.Buffer
	if _, err := b.WriteTo(&index); err != nil {
		t.Fatal(err)
	}
	img, err := erofs.New(index.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	tree := lower.New(img, nil, 0, lower.Root)
	up, err := upperdir.Create(filepath.Join(t.TempDir(), "upper"), upperdir.Info{Image: "test"})
	if err != nil {
		imgtest.Need(t, false, fmt.Sprint("an upper: ", err))
	}
	t.Cleanup(func() { up.Close() })
	u, err := New(&tree, up, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.Close)
	return u
}

// TestUnload: what the kernel has forgotten takes no memory, and is found again.
func TestUnload(t *testing.T) {
	u := newUnmounted(t)
	ok := func(s fuse.Status) {
		t.Helper()
		if s != fuse.OK {
			t.Fatal(s)
		}
	}
	lookup := func(dir uint64, name string) uint64 {
		t.Helper()
		var out fuse.EntryOut
		ok(u.Lookup(nil, &fuse.InHeader{NodeId: dir}, name, &out))
		return out.NodeId
	}
	dir := lookup(lower.Root, "low")
	kept := map[string]uint64{}
	for i := range 100 {
		name := fmt.Sprint("f", i)
		var out fuse.EntryOut
		ok(u.Mknod(nil, &fuse.MknodIn{InHeader: fuse.InHeader{NodeId: dir}, Mode: unix.S_IFREG | 0o644}, name, &out))
		kept[name] = out.NodeId
	}
	var m fuse.EntryOut
	ok(u.Mkdir(nil, &fuse.MkdirIn{InHeader: fuse.InHeader{NodeId: dir}, Mode: 0o755}, "m", &m))
	kept["m"] = m.NodeId

	for name, id := range kept {
		if name != "f7" {
			u.Forget(id, 1)
		}
	}
	u.Forget(dir, 1)
	if n := u.get(kept["f1"]); n == nil {
		t.Error("unloaded, though a file in it is referred to")
	}
	u.Forget(kept["f7"], 1)
	if again := lookup(lower.Root, "low"); again != dir {
		t.Errorf("node %#x, was %#x", again, dir)
	}
	u.Forget(dir, 2) // more than we counted: it was pure lower before
	for name, id := range kept {
		if u.get(id) != nil {
			t.Errorf("%s is still there", name)
		}
	}
	dir = lookup(lower.Root, "low")
	for name, id := range kept {
		if got := lookup(dir, name); got != id {
			t.Errorf("%s: node %#x, was %#x", name, got, id)
		}
	}
}

package overlay_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/imgfs/imgfs/fs"
	"github.com/imgfs/imgfs/internal/imgtest"
	"github.com/imgfs/imgfs/internal/lower"
	"github.com/imgfs/imgfs/internal/upperdir"
	"github.com/imgfs/imgfs/union/overlay"
	"golang.org/x/sys/unix"
)

// What package fs makes use of.
var (
	_ fs.Attacher    = (*overlay.Union)(nil)
	_ fs.Completer   = (*overlay.Union)(nil)
	_ fs.Failer      = (*overlay.Union)(nil)
	_ fs.QuickReader = (*overlay.Union)(nil)
	_ fs.Writer      = (*overlay.Union)(nil)
)

// called is a union that no kernel asks, but the test, in any order.
type called struct {
	*overlay.Union
	t    *testing.T
	data []*countedData
}

func newCalled(t *testing.T, c chain) *called {
	t.Helper()
	imgtest.Need(t, os.Geteuid() == 0, "root")
	dir := workDir(t)
	tars, err := c.tars()
	must(t, err)
	must(t, buildTars(dir, tars))
	tree, done, err := openLower(dir)
	must(t, err)
	t.Cleanup(done)
	u := &called{t: t}
	var data []lower.Data
	for i := range tree.Image().Devices() {
		f, err := os.Open(filepath.Join(dir, fmt.Sprint("data", i)))
		must(t, err)
		t.Cleanup(func() { f.Close() })
		u.data = append(u.data, &countedData{f: f})
		data = append(data, u.data[i])
	}
	low := lower.New(tree.Image(), data, 0, lower.Root)
	up, err := upperdir.Create(filepath.Join(dir, "upper"), upperdir.Info{Image: "test"})
	must(t, err)
	t.Cleanup(func() { up.Close() })
	u.Union, err = overlay.New(&low, up, overlay.Options{})
	must(t, err)
	return u
}

func (u *called) ok(s fuse.Status) {
	u.t.Helper()
	if s != fuse.OK {
		u.t.Fatal(s)
	}
}

func header(id uint64) fuse.InHeader { return fuse.InHeader{NodeId: id} }

func (u *called) lookup(dir uint64, name string) uint64 {
	u.t.Helper()
	in := header(dir)
	var out fuse.EntryOut
	u.ok(u.Lookup(nil, &in, name, &out))
	return out.NodeId
}

func (u *called) setattr(id uint64, in fuse.SetAttrInCommon) {
	u.t.Helper()
	in.NodeId = id
	u.ok(u.SetAttr(nil, &fuse.SetAttrIn{SetAttrInCommon: in}, &fuse.AttrOut{}))
}

func (u *called) getattr(id uint64) fuse.Attr {
	u.t.Helper()
	var out fuse.AttrOut
	u.ok(u.GetAttr(nil, &fuse.GetAttrIn{InHeader: header(id)}, &out))
	return out.Attr
}

// TestFillEndsBeforeClose: who closes a union may open its upper again, and
// write to what was being copied up.
func TestFillEndsBeforeClose(t *testing.T) {
	u := newCalled(t, chain{"file f size=100000"})
	begun, proceed := make(chan struct{}), make(chan struct{})
	u.data[0].fill = func(ctx context.Context, _, _ int64) error {
		close(begun)
		<-proceed
		return ctx.Err()
	}
	f := u.lookup(lower.Root, "f")
	go u.Write(nil, &fuse.WriteIn{InHeader: header(f)}, []byte("x"))
	<-begun
	u.OnUnmount()
	closed := make(chan struct{})
	go func() {
		u.Close()
		close(closed)
	}()
	select {
	case <-closed:
		t.Error("closed, and still copying")
	case <-time.After(50 * time.Millisecond):
	}
	close(proceed)
	<-closed
}

// TestTimesSetDuringFill: a copy-up keeps the times, also those that somebody
// sets meanwhile, and nobody sees others.
func TestTimesSetDuringFill(t *testing.T) {
	u := newCalled(t, chain{"file f size=10000000 mtime=1000"})
	defer u.Close()
	begun, proceed := make(chan struct{}), make(chan struct{})
	pieces := 0
	u.data[0].fill = func(context.Context, int64, int64) error {
		if pieces++; pieces == 2 { // one has been copied
			close(begun)
			<-proceed
		}
		return nil
	}
	f := u.lookup(lower.Root, "f")
	u.setattr(f, fuse.SetAttrInCommon{Valid: fuse.FATTR_MODE, Mode: 0o600})
	filled := make(chan fuse.Status)
	go func() {
		_, s := u.Write(nil, &fuse.WriteIn{InHeader: header(f)}, nil)
		filled <- s
	}()
	<-begun
	if got := u.getattr(f).Mtime; got != 1000 {
		t.Errorf("while it is copied up: mtime %d", got)
	}
	u.setattr(f, fuse.SetAttrInCommon{Valid: fuse.FATTR_ATIME, Atime: 3000})
	u.setattr(f, fuse.SetAttrInCommon{Valid: fuse.FATTR_MTIME, Mtime: 2000})
	if a := u.getattr(f); a.Atime != 3000 || a.Mtime != 2000 {
		t.Errorf("set while it is copied up: atime %d, mtime %d", a.Atime, a.Mtime)
	}
	close(proceed)
	u.ok(<-filled)
	if a := u.getattr(f); a.Atime != 3000 || a.Mtime != 2000 {
		t.Errorf("afterwards: atime %d, mtime %d", a.Atime, a.Mtime)
	}
}

// TestLateForget: a FORGET may come after a LOOKUP that the kernel made since,
// and be about references of before.
func TestLateForget(t *testing.T) {
	u := newCalled(t, chain{"dir d\nfile d/f size=10 mode=0644"})
	defer u.Close()
	u.lookup(lower.Root, "d")
	d := u.lookup(lower.Root, "d")
	u.lookup(d, "f")
	f := u.lookup(d, "f")
	u.setattr(f, fuse.SetAttrInCommon{Valid: fuse.FATTR_MODE, Mode: 0o600})
	u.Forget(f, 1)
	u.Forget(d, 1)
	if a := u.getattr(f); a.Mode != unix.S_IFREG|0o600 {
		t.Errorf("after FORGETs: mode %o", a.Mode)
	}
	in := header(d)
	u.ok(u.Unlink(nil, &in, "f"))
	if a := u.getattr(f); a.Mode != unix.S_IFREG|0o600 || a.Nlink != 0 {
		t.Errorf("unlinked and open: mode %o, nlink %d", a.Mode, a.Nlink)
	}
	u.Forget(f, 1)
	u.Forget(d, 1)
}

// TestForgottenUnseen: a directory is copied up for the sake of a hard link in
// it, so that the kernel has no references to it of before. Removed and
// forgotten it keeps no descriptor.
func TestForgottenUnseen(t *testing.T) {
	const dirs = 50
	layer := "file f x\n"
	for i := range dirs {
		layer += fmt.Sprintf("dir d%d\nlink d%d/f f\n", i, i)
	}
	u := newCalled(t, chain{layer})
	defer u.Close()
	f := u.lookup(lower.Root, "f")
	before := descriptors(t)
	u.setattr(f, fuse.SetAttrInCommon{Valid: fuse.FATTR_MODE, Mode: 0o600})
	root := header(lower.Root)
	for i := range dirs {
		d := u.lookup(lower.Root, fmt.Sprint("d", i))
		u.lookup(d, "f")
		in := header(d)
		u.ok(u.Unlink(nil, &in, "f"))
		u.ok(u.Rmdir(nil, &root, fmt.Sprint("d", i)))
		u.Forget(d, 1)
	}
	if now := descriptors(t); now > before+5 {
		t.Errorf("%d descriptors, were %d", now, before)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(list)
}

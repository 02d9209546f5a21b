package overlay_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/imgtest"
	"golang.org/x/sys/unix"
)

// mountFS mounts a small file system for an upper until the test ends.
func mountFS(t *testing.T, typ, options string, flags uintptr) string {
	t.Helper()
	needRoot(t)
	dir := workDir(t)
	err := unix.Mount("imgtest", dir, typ, flags, options)
	imgtest.Need(t, err == nil, fmt.Sprintf("a %s: %v", typ, err))
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", typ, err)
			unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	return dir
}

// startAt mounts a chain with an upper in a directory until the test ends.
func startAt(t *testing.T, c chain, upper string) *unionTarget {
	t.Helper()
	u, err := newUnion(workDir(t), c, 0)
	if err != nil {
		t.Fatal(err)
	}
	u.Upper = upper
	if err := u.mount(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := u.close(); err != nil {
			t.Error(err)
		}
	})
	return u
}

func free(t *testing.T, dir string) uint64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return st.Bfree * uint64(st.Bsize)
}

// TestFullDisk: who writes to a file whose copy does not fit is told so, the
// file is what it was, and what was copied of it is given back.
func TestFullDisk(t *testing.T) {
	disk := mountFS(t, "tmpfs", "size=2m", 0)
	c := chain{"dir . mtime=1000000000\nfile big size=4000000 mtime=1000000000 mode=0640\nfile small size=100 mtime=1000000000\ndir d mtime=1000000000\nfile d/f size=9000 mtime=1000000000\n"}
	u := startAt(t, c, filepath.Join(disk, "u"))
	model, err := newModel(workDir(t), c)
	if err != nil {
		t.Fatal(err)
	}
	defer model.close()
	before := free(t, disk)
	for _, op := range []string{"append big 1 t", "write big 0 1 t", "truncate big 3999999", "fallocate big 0 0 4000001"} {
		if got := u.r.do(op); got != "ENOSPC" {
			t.Errorf("%s: %s", op, got)
		}
		if err := compare(model, u.r, masks{}); err != nil {
			t.Errorf("after %s: %v", op, err)
		}
	}
	if lost := int64(before - free(t, disk)); lost > 64<<10 {
		t.Errorf("the copy that failed has kept %d bytes", lost)
	}
	// What needs no copy of the data works, also truncation to nothing.
	for _, op := range []string{"chmod big 600", "rename big d/big", "append small 10 t", "truncate d/big 100000", "empty d/big", "append d/big 5 t"} {
		if want, got := model.do(op), u.r.do(op); want != got {
			t.Errorf("%s: model says %s, here %s", op, want, got)
		}
	}
	if err := step("check", model, u, asRoot); err != nil {
		t.Error(err)
	}
	if err := errorsOf(u.remount(), func() error { return compare(model, u.r, masks{}) }); err != nil {
		t.Error(err)
	}
}

func errorsOf(err error, f func() error) error {
	if err != nil {
		return err
	}
	return f()
}

// fullTarget has its upper on a file system of its own, with few inodes.
type fullTarget struct {
	*unionTarget
	disk string
}

func (f *fullTarget) close() error {
	return errors.Join(f.unionTarget.close(), unix.Unmount(f.disk, 0))
}

// TestNoInodes: where nothing can be made any more, an operation is done or
// says ENOSPC, never half of it. What can be given back can be used again.
func TestNoInodes(t *testing.T) {
	needRoot(t)
	k := kind{
		name:    "few inodes",
		can:     abilities{coherent: true, special: true, drops: true, single: true},
		excuses: []string{"ENOSPC", "ENOTSUP"}, // some of fallocate
		mount: func(dir string, c chain) (target, error) {
			u, err := newUnion(dir, c, 0)
			if err != nil {
				return nil, err
			}
			disk := filepath.Dir(u.Upper)
			size := fmt.Sprintf("mode=0755,nr_inodes=%d", 24+len(c[0])%30)
			if err := unix.Mount("imgtest", disk, "tmpfs", 0, size); err != nil {
				return nil, err
			}
			if err := u.mount(); err != nil {
				return nil, errors.Join(err, unix.Unmount(disk, 0))
			}
			return &fullTarget{u, disk}, nil
		},
	}
	last := uint64(3)
	if *long {
		last = 100
	}
	randomScenarios(t, k, 1, last, 200)
}

// TestUnfitUpper: a file system that cannot hold an upper is refused at once,
// and the message says what it lacks.
func TestUnfitUpper(t *testing.T) {
	disk := mountFS(t, "ramfs", "", 0)
	u, err := newUnion(workDir(t), killChain(), 0)
	if err != nil {
		t.Fatal(err)
	}
	u.Upper = filepath.Join(disk, "u")
	err = u.mount()
	if err == nil {
		u.close()
		t.Fatal("mounted with an upper that can have no attributes")
	}
	if !strings.Contains(err.Error(), "attributes") {
		t.Errorf("refused with %v", err)
	}
	if _, err := os.Lstat(u.Upper); !os.IsNotExist(err) {
		t.Errorf("left behind: %v", err)
	}
}

// TestUpperInUse: an upper has one union at a time, and the second says so; what
// it has is not touched.
func TestUpperInUse(t *testing.T) {
	u := start(t, asRoot, killChain())
	expect(t, u, [2]string{"open 1 d/f2 rw", "ok"}, [2]string{"put 1 0 10 t", "ok"})
	second, err := newUnion(workDir(t), killChain(), 0)
	must(t, err)
	second.Upper = u.Upper
	if err := second.mount(); err == nil {
		second.close()
		t.Fatal("mounted twice")
	} else if !strings.Contains(err.Error(), "in use") {
		t.Errorf("refused with %v", err)
	}
	expect(t, u, [2]string{"put 1 10 10 t", "ok"}, [2]string{"create new 644", "ok"}, [2]string{"rename d e", "ok"}, [2]string{"close 1", "ok"})
	must(t, u.remount())
	expect(t, u, [2]string{"stat new", "100644 0:0 nlink=1 size=0"}, [2]string{"stat e/f2", "100644 0:0 nlink=1 size=70000"})
}

// TestUpperNodev: whiteouts need no device to be opened.
func TestUpperNodev(t *testing.T) {
	disk := mountFS(t, "tmpfs", "size=8m", unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC)
	u := startAt(t, killChain(), filepath.Join(disk, "u"))
	model, err := newModel(workDir(t), killChain())
	if err != nil {
		t.Fatal(err)
	}
	defer model.close()
	for _, op := range killOps() {
		if want, got := model.do(op), u.r.do(op); want != got {
			t.Fatalf("%s: model says %s, here %s", op, want, got)
		}
	}
	for _, op := range []string{"check", "remount", "check"} {
		if err := step(op, model, u, asRoot); err != nil {
			t.Errorf("%s: %v", op, err)
		}
	}
}

// TestOverlayAttributesOfLayers: an image's own overlay attributes mean
// nothing, before a copy-up and after, and nor do those that a user sets.
func TestOverlayAttributesOfLayers(t *testing.T) {
	forged := "xattr:trusted.overlay.opaque=y xattr:trusted.overlay.redirect=/secret xattr:trusted.overlay.metacopy=x " +
		"xattr:user.overlay.opaque=y xattr:user.overlay.redirect=/secret xattr:trusted.overlay.imgfs.nid=1 xattr:user.containers.override_stat=7:7:0100777"
	text := "dir . mtime=1\ndir secret mtime=1\nfile secret/s size=700 mtime=1\nfile secret/f size=900 mtime=1\ndir d mtime=1 %[1]s\nfile d/f size=5000 mtime=1 %[1]s\n"
	u := start(t, asRoot, chain{fmt.Sprintf(text, forged)})
	model, err := newModel(workDir(t), chain{fmt.Sprintf(text, "")})
	if err != nil {
		t.Fatal(err)
	}
	defer model.close()
	for _, op := range []string{"check", "chmod d 700", "chmod d/f 600", "check", "remount", "check", "rename d e", "append e/f 1 t", "remount", "check",
		// A nested overlay's attributes are kept for it.
		"setxattr e trusted.overlay.opaque y", "setxattr e/f trusted.overlay.redirect /secret", "setxattr e trusted.overlay.redirect /secret",
		"setxattr e user.overlay.opaque y", "rmxattr e trusted.overlay.origin", "remount", "check", "rename e d", "rmxattr d trusted.overlay.opaque", "check"} {
		if err := step(op, model, u, asRoot); err != nil {
			t.Errorf("%s: %v", op, err)
		}
	}
	for _, name := range []string{"user.containers.override_stat", "user.fuseoverlayfs.origin"} {
		if got := u.r.do("setxattr d/f " + name + " 0:0:0644"); got != "EPERM" {
			t.Errorf("setxattr %s: %s", name, got)
		}
	}
}

package fs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/imgtest"
	"golang.org/x/sys/unix"
)

// newUpper makes the directories of an upper.
func newUpper(t testing.TB, dir string) string {
	t.Helper()
	for _, name := range []string{"diff", "work"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// overlayOn puts an overlay over p, served by this process or by the kernel.
// The target is the source's name as well.
func overlayOn(t testing.TB, p *packed, driver, target string, l Overlay) (done <-chan struct{}) {
	t.Helper()
	gone := make(chan struct{})
	switch driver {
	case "fuse":
		mnt, fd, err := MountDetached(target, MountFlags{})
		if err != nil {
			t.Fatal(err)
		}
		l.Lower = mnt
		s, err := Serve(t.Context(), NewChain(p.img, p.data(), Options{}), fd, Options{})
		if err != nil {
			t.Fatal(err)
		}
		go func() { s.Wait(); close(gone) }()
	case "erofs":
		var paths []string
		for _, f := range p.files {
			paths = append(paths, f.f.Name())
		}
		mnt, err := MountErofsDetached(p.index, paths, MountFlags{})
		if err != nil {
			t.Fatal(err)
		}
		l.Lower = mnt
		close(gone)
	}
	defer l.Lower.Close()
	if err := MountOverlay(target, target, l, MountFlags{}); err != nil {
		t.Fatal(err)
	}
	return gone
}

// TestMountOverlay: nothing but the overlay is to be seen at the target, what
// is copied up is attributes and names alone, and with the overlay the lower
// goes as well.
func TestMountOverlay(t *testing.T) {
	needRoot(t)
	root := makeTree(t, 3, 3)
	p := pack(t, root, 2)
	for _, driver := range []string{"fuse", "erofs"} {
		for _, user := range []bool{false, true} {
			t.Run(fmt.Sprint(driver, " user=", user), func(t *testing.T) {
				target, upper := t.TempDir(), newUpper(t, t.TempDir())
				gone := overlayOn(t, p, driver, target, Overlay{Upper: upper, User: user, Volatile: user})
				defer unix.Unmount(target, unix.MNT_DETACH)
				all, err := Mounts()
				if err != nil {
					t.Fatal(err)
				}
				var seen []MountPoint
				for _, m := range all {
					if m.Target == target || m.Source == target || m.Source == p.index {
						seen = append(seen, m)
					}
				}
				if len(seen) != 1 || !seen[0].Imgfs() || seen[0].Type != "overlay" || seen[0].Source != "imgfs:"+target {
					t.Fatalf("%+v", seen)
				}
				if out, err := exec.Command("diff", "-r", root, target).CombinedOutput(); err != nil {
					t.Errorf("%v %s", err, out)
				}
				script := `set -e; cd "$0"; echo new >new; chmod 600 dir-0/file-0; rm dir-1/file-1; cat new`
				if !user { // user.overlay.* allow no redirects
					script += `; mv dir-2 moved; stat -c %a moved/file-0`
				}
				out, err := exec.Command("sh", "-c", script, target).CombinedOutput()
				if err != nil || !strings.HasPrefix(string(out), "new\n") {
					t.Fatalf("%v %s", err, out)
				}
				prefix := "trusted.overlay."
				if user {
					prefix = "user.overlay."
				}
				var names []string
				for _, x := range readXattrs(t, filepath.Join(upper, "diff/dir-0/file-0")) {
					names = append(names, x.Name)
				}
				if slices.Contains(names, prefix+"metacopy") == user {
					t.Errorf("attributes of a copied up file: %q", names)
				}
				if err := Unmount(target, false); err != nil {
					t.Fatal(err)
				}
				<-gone
			})
		}
	}
}

// TestMountOverlayInUserNamespace: who is root in a namespace of their own
// needs nobody's help.
func TestMountOverlayInUserNamespace(t *testing.T) {
	needRoot(t)
	imgtest.Program(t, "unshare")
	p := pack(t, makeTree(t, 1, 2), 1)
	upper := newUpper(t, t.TempDir())
	cmd := helper(t, p, t.TempDir(), `cd "$FS_TARGET" && echo more >>dir-0/file-0 && rm dir-0/file-1 && ls dir-0 && tail -c 5 dir-0/file-0`, "unshare", "-Urm")
	cmd.Env = append(cmd.Env, "FS_UPPER="+upper)
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "file-0\nmore\n" {
		t.Fatalf("%v %s", err, out)
	}
	if _, err := os.Stat(filepath.Join(upper, "diff/dir-0/file-0")); err != nil {
		t.Error(err)
	}
}

func TestMountOverlayErrors(t *testing.T) {
	needRoot(t)
	p := pack(t, makeTree(t, 1, 1), 1)
	mnt, fd, err := MountDetached("test:image", MountFlags{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := Serve(t.Context(), NewChain(p.img, p.data(), Options{}), fd, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { mnt.Close(); s.Wait() }()
	target := t.TempDir()
	for _, c := range []struct {
		name  string
		upper func(dir string) error
		kind  fault.Kind
		want  string
	}{
		{"no directory", func(dir string) error { return os.RemoveAll(dir) }, fault.Failed, "no such file or directory"},
		{"no work", func(dir string) error { return os.RemoveAll(dir + "/work") }, fault.Failed, "work: no such file"},
		{"a symlink", func(dir string) error {
			os.RemoveAll(dir + "/diff")
			return os.Symlink("/etc", dir+"/diff")
		}, fault.Failed, "diff: not a directory"},
		{"two file systems", func(dir string) error {
			return unix.Mount("none", dir+"/work", "tmpfs", 0, "")
		}, fault.Invalid, "different file systems"},
		{"a file system without attributes", func(dir string) error {
			return unix.Mount("proc", dir, "proc", 0, "")
		}, fault.Failed, "diff: no such file"},
		{"an overlay as upper", func(dir string) error {
			lower, up := t.TempDir(), newUpper(t, t.TempDir())
			if err := os.MkdirAll(lower+"/diff", 0o755); err != nil {
				return err
			}
			if err := os.MkdirAll(lower+"/work", 0o755); err != nil {
				return err
			}
			return unix.Mount("none", dir, "overlay", 0, "lowerdir="+lower+",upperdir="+up+"/diff,workdir="+up+"/work")
		}, fault.Unavailable, "not supported as upperdir"},
	} {
		t.Run(c.name, func(t *testing.T) {
			upper := newUpper(t, filepath.Join(t.TempDir(), "u"))
			if err := c.upper(upper); err != nil {
				t.Fatal(err)
			}
			defer unix.Unmount(upper, unix.MNT_DETACH)
			defer unix.Unmount(upper+"/work", unix.MNT_DETACH)
			err := MountOverlay(target, "x", Overlay{Lower: mnt, Upper: upper}, MountFlags{})
			kindIs(t, err, c.kind, c.want, "")
			if at, _ := MountAt(target); at != nil {
				t.Errorf("left at the target: %+v", at)
				unix.Unmount(target, unix.MNT_DETACH)
			}
		})
	}
}

package upperdir

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// newDir makes an upper that the test closes.
func newDir(t *testing.T, i Info) *Dir {
	t.Helper()
	d, err := Create(filepath.Join(t.TempDir(), "upper"), i)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestLife(t *testing.T) {
	path := filepath.Join(t.TempDir(), "u")
	layer := id.DiffIDFrom([32]byte{1}).Key()
	d, err := Create(path, Info{Name: "x-1", Image: "x:1", Layers: []id.LayerKey{layer}, ChainID: id.Stack([]id.LayerKey{layer})})
	if err != nil {
		t.Fatal(err)
	}
	if empty, err := d.Empty(); !empty || err != nil {
		t.Errorf("new upper: Empty() = %v, %v", empty, err)
	}
	if _, err := Open(path); fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "upper x-1 is in use by process") {
		t.Errorf("second Open: %v", err)
	}
	if i, err := Load(path); err != nil || i.Name != "x-1" || i.Layers[0] != layer || i.Created.IsZero() {
		t.Errorf("Load of an upper in use: %+v, %v", i, err)
	}
	if err := os.MkdirAll(path+"/stage/a/b", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+"/diff/f", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if empty, _ := d.Empty(); empty {
		t.Error("an upper with a file is empty")
	}
	d.Close()
	if _, err := Create(path, Info{}); fault.KindOf(err) != fault.Conflict {
		t.Errorf("Create over an upper: %v", err)
	}
	if d, err = Open(path); err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if names, err := readNames(d.Stage()); len(names) > 0 || err != nil {
		t.Errorf("Open left %q in stage/ (%v)", names, err)
	}
	if _, err := Open(t.TempDir()); !errors.Is(err, ErrDamaged) {
		t.Errorf("Open of an empty directory: %v", err)
	}
	if _, err := Open(path + "/none"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("Open of nothing: %v", err)
	}
}

func TestOpenFollowsNoSymlink(t *testing.T) {
	for _, name := range []string{"diff", "stage", "upper.json", "lock"} {
		d := newDir(t, Info{})
		d.Close()
		out := t.TempDir()
		at := filepath.Join(d.Path(), name)
		if err := os.Rename(at, filepath.Join(out, name)); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join(out, name), at); err != nil {
			t.Fatal(err)
		}
		if d, err := Open(d.Path()); err == nil {
			d.Close()
			t.Errorf("opened an upper whose %s is a symlink", name)
		}
	}
}

func TestCreateNamesWhatLacks(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts a ramfs")
	}
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "ramfs", 0, ""); err != nil {
		t.Skipf("ramfs: %v", err)
	}
	defer unix.Unmount(dir, 0)
	_, err := Create(dir+"/u", Info{})
	if fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), "(ramfs) lacks extended attributes (user.overlay.*)") || fault.HintOf(err) == "" {
		t.Errorf("Create on a ramfs: %v", err)
	}
	if _, err := os.Lstat(dir + "/u"); !errors.Is(err, os.ErrNotExist) {
		t.Error("Create that failed left its directory")
	}
}

func TestAttributes(t *testing.T) {
	for _, xattrs := range []string{Trusted, User} {
		if xattrs == Trusted && os.Geteuid() != 0 {
			continue
		}
		t.Run(xattrs, func(t *testing.T) {
			d := newDir(t, Info{Xattrs: xattrs})
			f := d.Format()
			for _, name := range []string{"file", "dir", "link"} {
				var err error
				switch name {
				case "file":
					err = f.Mknod(d.Root(), name, unix.S_IFREG|0o600, 0)
				case "dir":
					err = unix.Mkdirat(d.Root(), name, 0o700)
				case "link":
					err = unix.Symlinkat("/nowhere", d.Root(), name)
				}
				if err != nil {
					t.Fatal(err)
				}
				fd, err := unix.Openat(d.Root(), name, unix.O_PATH|unix.O_NOFOLLOW, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer unix.Close(fd)
				if err := f.SetNID(fd, 77); err != nil {
					t.Errorf("%s: SetNID: %v", name, err)
				}
				nid, ok, err := f.NID(fd)
				if want := xattrs == Trusted || name != "link"; ok != want || ok && nid != 77 || err != nil {
					t.Errorf("%s: NID() = %d, %v, %v", name, nid, ok, err)
				}
				if name == "link" {
					continue
				}
				if o, err := f.Opaque(fd); o || err != nil {
					t.Errorf("%s: Opaque() = %v, %v", name, o, err)
				}
				if err := errors.Join(f.SetOpaque(fd), f.SetMetacopy(fd, "/a/b")); err != nil {
					t.Fatal(err)
				}
				o, err1 := f.Opaque(fd)
				m, err2 := f.Metacopy(fd)
				r, err3 := f.Redirect(fd)
				if !o || !m || r != "/a/b" || errors.Join(err1, err2, err3) != nil {
					t.Errorf("%s: %v %v %q", name, o, m, r)
				}
				if err := f.ClearMetacopy(fd); err != nil {
					t.Error(err)
				}
				m, _ = f.Metacopy(fd)
				if r, _ := f.Redirect(fd); m || r != "" {
					t.Errorf("%s: metacopy %v, redirect %q after ClearMetacopy", name, m, r)
				}
				setFdXattr(fd, f.Prefix+"redirect", "/a/../b")
				if _, err := f.Redirect(fd); !errors.Is(err, ErrDamaged) {
					t.Errorf("redirect through ..: %v", err)
				}
			}
		})
	}
}

func TestNames(t *testing.T) {
	f := Format{Prefix: userPrefix}
	for _, row := range []struct{ user, disk string }{
		{"user.x", "user.x"},
		{"user.overlay.opaque", "user.overlay.overlay.opaque"},
		{"user.overlay.overlay.x", "user.overlay.overlay.overlay.x"},
		{"trusted.overlay.opaque", "trusted.overlay.opaque"},
		{"user.overlay", "user.overlay"},
		{"", "user.overlay.opaque"},
		{"", "user.overlay.imgfs.nid"},
		{"", "user.containers.override_stat"},
		{"", "user.fuseoverlayfs.opaque"},
	} {
		got, ok := f.Unescape(row.disk)
		if got != row.user && ok || ok != (row.user != "") {
			t.Errorf("Unescape(%q) = %q, %v", row.disk, got, ok)
		}
		if got := f.Escape(row.user); row.user != "" && got != row.disk {
			t.Errorf("Escape(%q) = %q", row.user, got)
		}
	}
}

// TestOverride: what is wanted is what Stat tells, whatever it is, and the
// owner can always open and enter what is there.
func TestOverride(t *testing.T) {
	d := newDir(t, Info{Xattrs: User, Override: true})
	f := d.Format()
	dev := unix.Mkdev(259, 70000)
	for i, want := range []Attr{
		{0, 0, unix.S_IFREG | 0o644, 0},
		{0, 0, unix.S_IFREG, 0},
		{0, 0, unix.S_IFREG | 0o4755, 0},
		{5, 6, unix.S_IFREG | 0o644, 0},
		{1 << 31, 6, unix.S_IFDIR | 0o1777, 0},
		{0, 0, unix.S_IFDIR | 0o755, 0},
		{0, 0, unix.S_IFDIR, 0},
		{0, 0, unix.S_IFIFO | 0o600, 0},
		{7, 7, unix.S_IFSOCK | 0o777, 0},
		{0, 6, unix.S_IFBLK | 0o660, dev},
		{0, 0, unix.S_IFCHR | 0o666, unix.Mkdev(0, 1)},
	} {
		name := "n" + string(rune('a'+i))
		var err error
		if want.Mode&unix.S_IFMT == unix.S_IFDIR {
			err = unix.Mkdirat(d.Root(), name, 0o700)
		} else {
			err = f.Mknod(d.Root(), name, want.Mode, want.Rdev)
		}
		if err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Openat(d.Root(), name, unix.O_PATH|unix.O_NOFOLLOW, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		check := func(want Attr) {
			t.Helper()
			var st, same, disk unix.Stat_t
			if err := f.Stat(d.Root(), name, &st); err != nil {
				t.Fatal(err)
			}
			if got := (Attr{st.Uid, st.Gid, st.Mode, st.Rdev}); got != want {
				t.Errorf("Stat of %v = %v", want, got)
			}
			if err := f.Stat(fd, "", &same); err != nil || same != st {
				t.Errorf("Stat by descriptor: %v", err)
			}
			unix.Fstat(fd, &disk)
			if disk.Uid != f.UID || disk.Mode&0o7600 != 0o600 {
				t.Errorf("%v on disk: owner %d, mode %o", want, disk.Uid, disk.Mode)
			}
		}
		if err := f.SetStat(fd, want); err != nil {
			t.Fatalf("SetStat(%v): %v", want, err)
		}
		check(want)
		want.UID, want.Mode = want.UID^3, want.Mode^0o2111
		if err := f.SetStat(fd, want); err != nil {
			t.Fatalf("SetStat(%v): %v", want, err)
		}
		check(want)
	}
	if err := f.Mknod(d.Root(), "w", unix.S_IFCHR, 0); err != unix.EPERM {
		t.Errorf("Mknod c 0 0: %v", err)
	}
	if err := MkWhiteout(d.Root(), "w"); err != nil {
		t.Error(err)
	}
	var st unix.Stat_t
	if err := f.Stat(d.Root(), "w", &st); err != nil || !f.Whiteout(&st) {
		t.Errorf("Whiteout: mode %o, %v", st.Mode, err)
	}
}

func TestStatReal(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: sets owners")
	}
	d := newDir(t, Info{Xattrs: Trusted})
	f := d.Format()
	if err := f.Mknod(d.Root(), "dev", unix.S_IFBLK|0o600, unix.Mkdev(7, 9)); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Openat(d.Root(), "dev", unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := f.SetStat(fd, Attr{UID: 5, GID: 6, Mode: 0o4711}); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := f.Stat(d.Root(), "dev", &st); err != nil || st.Uid != 5 || st.Gid != 6 || st.Mode != unix.S_IFBLK|0o4711 || st.Rdev != unix.Mkdev(7, 9) {
		t.Errorf("%+v, %v", st, err)
	}
	if names, _ := listXattrs(fd); len(names) != 0 {
		t.Errorf("attributes %q", names)
	}
}

func FuzzOverride(f *testing.F) {
	for _, s := range []string{"0:0:0755", "0:0:100755:file", "1:2:0644:block-8-1", "1:2:0644:char-0-0", "1:2:0:char-1-2-3", "::", "0:0:0:symlink"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := parseOverride(s)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("%q: %v", s, err)
			}
			return
		}
		if again, err := parseOverride(a.String()); again != a || err != nil {
			t.Errorf("%q is %v, then %v (%v)", s, a, again, err)
		}
	})
}

func FuzzRedirect(f *testing.F) {
	for _, s := range []string{"/a", "/a/b", "a", "/", "", "a/b", "/a/../b", "//"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if checkRedirect(s) != nil {
			return
		}
		if clean := filepath.Clean(s); clean != s || strings.HasPrefix(s, "..") && (len(s) == 2 || s[2] == '/') || s == "/" || s == "." {
			t.Errorf("%q is a redirect", s)
		}
	})
}

func FuzzInfo(f *testing.F) {
	f.Add([]byte(`{"version":1,"xattrs":"user","override":true}`))
	f.Add([]byte(`{"version":1,"xattrs":"trusted","layers":["sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"],"chainID":"sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if i, err := parseInfo(b); err == nil && i.ChainID != id.Stack(i.Layers) {
			t.Errorf("%s: %+v", b, i)
		}
	})
}

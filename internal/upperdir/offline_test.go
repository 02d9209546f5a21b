package upperdir

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/imgtest"
	"github.com/imgfs/imgfs/internal/lower"
)

// tarNames lists a tar as GNU tar does.
func tarNames(t *testing.T, b []byte) string {
	t.Helper()
	cmd := exec.Command("tar", "-t", "--quoting-style=literal")
	cmd.Stdin = bytes.NewReader(b)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	return string(out)
}

// The order and the names in a layer are promised: the same for ever.
func TestLayerText(t *testing.T) {
	low := base(t)
	d := newDir(t, Info{})
	overlayMount(t, d, low, `
		rm etc/passwd var.lock
		echo b > etc/b; echo a > etc/a
		rm -r etc/conf.d; mkdir etc/conf.d; echo n > etc/conf.d/n
		mkdir new; mkdir new/sub
		ln etc/b new/link
		touch -d @5 . etc etc/* etc/conf.d etc/conf.d/* new new/sub`)
	want := `./
.wh.var.lock
etc/
etc/.wh.passwd
etc/a
etc/b
etc/conf.d/
etc/conf.d/.wh..wh..opq
etc/conf.d/n
etc/shadow
etc/shadow-
new/
new/link
new/sub/
`
	if got := tarNames(t, layerOf(t, d, low)); got != want {
		t.Errorf("%s\nwant:\n%s", got, want)
	}
}

// A renamed directory holds a name of a file that has another one elsewhere:
// they stay one file.
func TestLayerScatteredLinks(t *testing.T) {
	b, err := imgtest.Tar("dir a\ndir a/b\nfile a/b/f data\nfile a/b/other x\ndir d\nlink d/f a/b/f\nlink d/g a/b/f\ndir e\nlink z a/b/f\n")
	if err != nil {
		t.Fatal(err)
	}
	low := chainOf(t, b)
	d := newDir(t, Info{})
	want := overlayMount(t, d, low, "mv d new; rm new/g; mkdir d; mv a c; mv c a; touch -d @0 . new; touch -d @5 d")
	layer := layerOf(t, d, low)
	if got := tarNames(t, layer); got != "./\na/\na/b/\na/b/f\nd/\nd/.wh..wh..opq\nnew/\nnew/f\nz\n" {
		t.Errorf("layer:\n%s", got)
	}
	// The kernel counts the name that was removed.
	want = strings.ReplaceAll(want, " n4 ", " n3 ")
	if got := treeOf(t, chainOf(t, b, layer)); got != want {
		t.Errorf("%s", lineDiff(want, got))
	}
}

func TestLayerRefusesWhiteoutNames(t *testing.T) {
	d := newDir(t, Info{})
	low := base(t)
	if err := os.WriteFile(d.Path()+"/diff/.wh.x", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := d.WriteLayer(t.Context(), new(bytes.Buffer), low)
	if fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), "/.wh.x: a layer cannot hold a name that begins with .wh.") {
		t.Errorf("WriteLayer: %v", err)
	}
	if got := tarNames(t, exportOf(t, d, low)); !strings.Contains(got, ".wh.x\n") {
		t.Errorf("export:\n%s", got)
	}
}

// A user's attributes of an overlay's names, and other tools' ones.
func TestLayerXattrs(t *testing.T) {
	d := newDir(t, Info{Xattrs: User})
	f := d.Path() + "/diff/f"
	if err := os.WriteFile(f, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{"user.x": "1", "user.overlay.opaque": "y", "user.overlay.overlay.redirect": "/n", "user.fuseoverlayfs.opaque": "y", overrideName: "0:0:0755"} {
		if err := unix.Setxattr(f, k, []byte(v), 0); err != nil {
			t.Fatal(err)
		}
	}
	tree := treeOf(t, chainOf(t, layerOf(t, d, base(t))))
	if !strings.Contains(tree, " user.x=\"1\"\n") || strings.Contains(tree, "override") {
		t.Error(tree)
	}
	if b := layerOf(t, d, base(t)); !bytes.Contains(b, []byte("SCHILY.xattr.user.overlay.redirect=/n")) {
		t.Error("no attribute of a nested overlay")
	}
}

// What an upper of a user holds by overrides is in the layer as it is meant.
func TestLayerOverride(t *testing.T) {
	d := newDir(t, Info{Xattrs: User, Override: true})
	low := base(t)
	fm := d.Format()
	for name, want := range map[string]Attr{
		"file": {5, 6, unix.S_IFREG | 0o4750, 0},
		"zero": {0, 0, unix.S_IFREG, 0},
		"dev":  {0, 6, unix.S_IFBLK | 0o660, unix.Mkdev(8, 1)},
		"pipe": {1000, 1000, unix.S_IFIFO | 0o600, 0},
		"sock": {0, 0, unix.S_IFSOCK | 0o600, 0},
	} {
		if err := fm.Mknod(d.Root(), name, want.Mode, want.Rdev); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Openat(d.Root(), name, unix.O_PATH, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := fm.SetStat(fd, want); err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		if err := setTimes(d.Root(), name, unix.Timespec{Sec: 9}); err != nil {
			t.Fatal(err)
		}
	}
	tree := treeOf(t, chainOf(t, layerOf(t, d, low)))
	for _, line := range []string{
		"/file f 4750 5:6 n1 @9 0 \"\"\n", "/zero f 0000 0:0 n1 @9 0 \"\"\n",
		"/dev b 0660 0:6 n1 @9 8:1\n", "/pipe p 0600 1000:1000 n1 @9\n",
	} {
		if !strings.Contains(tree, line) {
			t.Errorf("no %q in\n%s", line, tree)
		}
	}
	if strings.Contains(tree, "sock") {
		t.Error("a socket is in the layer")
	}
}

// Symlinks, fifos and devices in an upper lead nowhere and hang nobody.
func TestHostileUpper(t *testing.T) {
	low := base(t)
	d := newDir(t, Info{})
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("do not read me"), 0o600); err != nil {
		t.Fatal(err)
	}
	diff := d.Path() + "/diff"
	for name, target := range map[string]string{"etc": "/etc", "link": secret, "var": filepath.Dir(secret), "up": "../../.."} {
		if err := os.Symlink(target, diff+"/"+name); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(diff+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for what, b := range map[string][]byte{"layer": layerOf(t, d, low), "export": exportOf(t, d, low)} {
			if bytes.Contains(b, []byte("do not read me")) {
				t.Errorf("%s: a symlink was followed", what)
			}
		}
		changesOf(t, d, low)
		if _, err := d.Check(t.Context(), low); err != nil {
			t.Error(err)
		}
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("hangs")
	}
}

func TestDamaged(t *testing.T) {
	low := base(t)
	d := newDir(t, Info{Xattrs: User, Override: true})
	diff := d.Path() + "/diff"
	for name, attr := range map[string][2]string{
		"override": {overrideName, "nonsense"},
		"white":    {overrideName, "0:0:0600:char-0-0"},
		"type":     {overrideName, "0:0:0600:dir"},
		"redirect": {"user.overlay.redirect", "/../../etc"},
		"nid":      {"user.overlay.imgfs.nid", "x"},
	} {
		if err := os.WriteFile(diff+"/"+name, []byte("data"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := unix.Setxattr(diff+"/"+name, attr[0], []byte(attr[1]), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(diff+"/meta", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(diff+"/meta", unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := d.Format().SetMetacopy(fd, "/no/such"); err != nil {
		t.Fatal(err)
	}
	list, err := d.Check(t.Context(), low)
	if err != nil || len(list) != 6 {
		t.Errorf("%d problems (%v): %v", len(list), err, list)
	}
	if err := d.WriteLayer(t.Context(), new(bytes.Buffer), low); !errors.Is(err, ErrDamaged) {
		t.Errorf("WriteLayer: %v", err)
	}
}

func TestConvert(t *testing.T) {
	script := `
		mv etc/conf.d x; echo n > x/n; rm x/a; chmod 700 usr/lib/libc.so; mv usr/lib/libm.so m
		mkdir y; mv x/deep y/; rm -r var/spool; mkdir var/spool; mv dev d; ln m m2; touch -d @7 x y d .`
	low := base(t)
	d := newDir(t, Info{Xattrs: Trusted})
	want := overlayMount(t, d, low, script)
	if err := d.KernelReads(t.Context()); err != nil {
		t.Errorf("what the kernel wrote it reads: %v", err)
	}
	if err := d.Convert(t.Context(), low, User); err != nil {
		t.Fatal(err)
	}
	if err := d.KernelReads(t.Context()); err != nil {
		t.Error(err)
	}
	if i, err := Load(d.Path()); err != nil || i.Xattrs != User {
		t.Errorf("%+v, %v", i, err)
	}
	if got := unpacked(t, exportOf(t, d, low)); got != want {
		t.Errorf("after the conversion:\n%s", lineDiff(want, got))
	}
	if out, err := exec.Command("getfattr", "-R", "-h", "-m", "trusted.*", d.Path()+"/diff").Output(); err == nil && len(out) > 0 {
		t.Errorf("attributes left:\n%s", out)
	}
	if err := d.Convert(t.Context(), low, User); err != nil {
		t.Errorf("again: %v", err)
	}
}

func TestConvertOverride(t *testing.T) {
	imgtest.Need(t, os.Geteuid() == 0, "root")
	low := base(t)
	d := newDir(t, Info{Xattrs: User, Override: true, Name: "u"})
	fm := d.Format()
	if err := fm.Mknod(d.Root(), "dev", unix.S_IFBLK, unix.Mkdev(8, 1)); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Openat(d.Root(), "dev", unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := fm.SetStat(fd, Attr{5, 6, unix.S_IFBLK | 0o644, unix.Mkdev(8, 1)}); err != nil {
		t.Fatal(err)
	}
	want := exportOf(t, d, low)
	err = d.KernelReads(t.Context())
	if fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "/dev has an owner or mode") || !strings.Contains(fault.HintOf(err), "imgfs upper convert u") {
		t.Errorf("KernelReads: %v (%s)", err, fault.HintOf(err))
	}
	if err := d.Convert(t.Context(), low, ""); err != nil {
		t.Fatal(err)
	}
	if err := d.KernelReads(t.Context()); err != nil {
		t.Error(err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(d.Path()+"/diff/dev", &st); err != nil || st.Mode != unix.S_IFBLK|0o644 || st.Uid != 5 {
		t.Errorf("on disk: %o %d, %v", st.Mode, st.Uid, err)
	}
	if !bytes.Equal(exportOf(t, d, low), want) {
		t.Error("the tree has changed")
	}
}

func TestDiff(t *testing.T) {
	one := func(text string) *lower.Tree {
		b, err := imgtest.Tar(text)
		if err != nil {
			t.Fatal(err)
		}
		return chainOf(t, b)
	}
	a := one("dir a\nfile a/same same\nfile a/gone\nfile a/data 1234\nfile t\ndir d\nfile d/x\nsymlink l x\nfile mode mode=0600\n")
	b := one("dir a\nfile a/same same\nfile a/data 1235\nfile a/new\ndir t\nfile t/x\nfile d\nsymlink l y\nfile mode mode=0644\n")
	var got strings.Builder
	if err := Diff(t.Context(), a, b, func(c Change) error { got.WriteString(c.Kind.String() + " " + c.Path + "\n"); return nil }); err != nil {
		t.Fatal(err)
	}
	want := "C /a\nC /a/data\nD /a/gone\nA /a/new\nC /d\nC /l\nC /mode\nC /t\nA /t/x\n"
	if got.String() != want {
		t.Errorf("%s\nwant:\n%s", got.String(), want)
	}
	if err := Diff(t.Context(), a, a, func(c Change) error { t.Error(c); return nil }); err != nil {
		t.Fatal(err)
	}
}

package upperdir

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// listView lists all below the root as find in withFind does.
func listView(t *testing.T, v *View) string {
	t.Helper()
	f, err := v.Find("/", true)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var lines []string
	err = f.List(true, func(e Entry) error {
		kind := map[uint32]string{unix.S_IFREG: "f", unix.S_IFDIR: "d", unix.S_IFLNK: "l", unix.S_IFIFO: "p", unix.S_IFCHR: "c"}[e.Mode&unix.S_IFMT]
		line := fmt.Sprintf("%s %s %o %d %d %d.%09d", e.Path, kind, e.Mode&0o7777, e.UID, e.GID, e.Sec, e.Nsec)
		if kind != "d" {
			line += fmt.Sprintf(" %d %d %s", e.Links, e.Size, e.Target)
		}
		lines = append(lines, strings.TrimRight(line, " "))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// withFind returns a script that writes find's list of the tree to a file.
func withFind(script, out string) string {
	return script + fmt.Sprintf(`
	find . -mindepth 1 '(' -type d -printf '%%P %%y %%m %%U %%G %%T@\n' -o -printf '%%P %%y %%m %%U %%G %%T@ %%n %%s %%l\n' ')' >%s`, out)
}

// What is listed of a changed tree is what the kernel's overlayfs shows.
func TestViewAsKernel(t *testing.T) {
	low := base(t)
	d := newDir(t, Info{})
	out := filepath.Join(t.TempDir(), "found")
	overlayMount(t, d, low, withFind(everything, out))
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for line := range strings.Lines(string(b)) {
		line = strings.TrimRight(line, " \n")
		// Of a pair of a dot and ten digits, find's time has one too many.
		fields := strings.Fields(line)
		for i, f := range fields {
			if n := strings.IndexByte(f, '.'); n > 0 && len(f)-n == 11 && strings.HasSuffix(f, "0") {
				fields[i] = f[:len(f)-1]
			}
		}
		want = append(want, strings.Join(fields, " "))
	}
	slices.Sort(want)
	got := strings.Split(listView(t, NewView(t.Context(), low, d)), "\n")
	for i, line := range got {
		got[i] = strings.Join(strings.Fields(line), " ")
	}
	if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
		t.Error(lineDiff(w, g))
	}

	// As a tar it is what Export writes.
	f, err := NewView(t.Context(), low, d).Find("", true)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var tarred bytes.Buffer
	if err := f.WriteTar(&tarred, ""); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(tarred.Bytes(), exportOf(t, d, low)) {
		t.Error("the tar of the root is not what Export writes")
	}
}

func TestViewFind(t *testing.T) {
	low := base(t)
	d := newDir(t, Info{})
	overlayMount(t, d, low, `
		mv usr/lib usr/moved; chmod 600 usr/moved/libc.so
		rm lib; ln -s /usr/moved lib; ln -s ../../../../etc up; ln -s . here; ln -s here/here/lib far
		ln -s loop loop; ln -s two one; ln -s one two; ln -s nowhere dangling
		rm -r var/spool; mkdir var/spool; rm etc/passwd; echo new >etc/conf.d/a`)
	v := NewView(t.Context(), low, d)
	for _, tt := range []struct {
		path string
		stay bool   // a link at the end is meant itself
		want string // where it is, or the error
	}{
		{"", false, ""}, {"/", false, ""}, {"..", false, ""}, {"/../..//.", false, ""},
		{"etc/shadow", false, "etc/shadow"}, {"/etc/../etc/./shadow", false, "etc/shadow"},
		{"/lib", false, "usr/moved"}, {"/lib", true, "lib"}, {"/lib/", true, "usr/moved"}, {"/lib/.", true, "usr/moved"},
		{"/lib/libm.so", true, "usr/moved/libm.so"}, {"/lib/../lib", true, "no such file or directory"},
		{"/far/libc.so", true, "usr/moved/libc.so"}, {"/up/shadow", true, "etc/shadow"},
		{"/usr/lib", true, "no such file or directory"}, {"/etc/passwd", true, "no such file or directory"},
		{"/var/spool/x", true, "no such file or directory"}, {"/var/spool", true, "var/spool"},
		{"/etc/shadow/", true, "not a directory"}, {"/etc/shadow/..", true, "not a directory"},
		{"/loop", true, "loop"}, {"/loop", false, "too many levels of symbolic links"}, {"/one/x", true, "too many levels of symbolic links"},
		{"/dangling", true, "dangling"}, {"/dangling", false, "no such file or directory"},
		{"/" + strings.Repeat("x", 300), true, "no such file or directory"}, {"/etc/a\x00b", true, "no such file or directory"},
		{strings.Repeat("here/", 40) + "etc", true, "etc"}, {strings.Repeat("here/", 41) + "etc", true, "too many levels of symbolic links"},
	} {
		f, err := v.Find(tt.path, !tt.stay)
		got := ""
		if err != nil {
			got = err.Error()[strings.LastIndex(err.Error(), ": ")+2:]
		} else {
			got = f.Path()
			f.Close()
		}
		if got != tt.want {
			t.Errorf("%q (stay %t): %q, want %q", tt.path, tt.stay, got, tt.want)
		}
	}
	for path, want := range map[string]string{"/etc/conf.d/a": "new\n", "/etc/shadow-": "secret", "/lib/libm.so": "math"} {
		f, err := v.Find(path, true)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if n, err := f.WriteTo(&b); err != nil || n != int64(b.Len()) || b.String() != want {
			t.Errorf("%s: %q, %d, %v", path, b.String(), n, err)
		}
		f.Close()
	}
	// A file of which the upper has the mode, and the image the data.
	f, err := v.Find("/far/libc.so", true)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b bytes.Buffer
	if n, err := f.WriteTo(&b); err != nil || n != 3000000 {
		t.Errorf("%d bytes, %v", n, err)
	}
	dir, err := v.Find("/usr", true)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	var tarred bytes.Buffer
	if err := dir.WriteTar(&tarred, "called"); err != nil {
		t.Fatal(err)
	}
	if got := tarNames(t, tarred.Bytes()); got != "called/\ncalled/moved/\ncalled/moved/libc.so\ncalled/moved/libm.so\n" {
		t.Errorf("tar:\n%s", got)
	}
	stop := errors.New("stop")
	if err := dir.List(true, func(Entry) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("list: %v", err)
	}
}

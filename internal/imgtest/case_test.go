package imgtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

// TestCasesAgainstUmoci unpacks every case with umoci, which shares no code
// with this project, and compares the trees: so what the cases want is what
// another tool makes, or the case says why not.
func TestCasesAgainstUmoci(t *testing.T) {
	Program(t, "umoci")
	Need(t, os.Geteuid() == 0, "root")
	for _, c := range Cases(t, "../../testdata") {
		t.Run(c.Name, func(t *testing.T) {
			m, err := NewImage(ImageSpec{Layers: c.Layers})
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			if err := m.WriteLayout(filepath.Join(dir, "image"), "latest"); err != nil {
				t.Fatal(err)
			}
			root := filepath.Join(dir, "root")
			out, err := exec.Command("umoci", "raw", "unpack", "--image", filepath.Join(dir, "image")+":latest", root).CombinedOutput()
			why := c.Differs["umoci"]
			var got string
			if err == nil {
				got = listHost(t, root)
			}
			same := err != nil && c.Error != "" || err == nil && c.Error == "" && got == comparable(c.Want)
			switch {
			case same && why != "":
				t.Errorf("umoci agrees, the case says it %s", why)
			case !same && why == "":
				t.Errorf("umoci: %v %s\n%s\nwant\n%s%s", err, out, got, comparable(c.Want), c.Error)
			}
		})
	}
}

var (
	dirLine = regexp.MustCompile(`(?m)^(\S+|".*") d (\d+ \d+:\d+) n\d+ @0( .*)?$`)
	dirLink = regexp.MustCompile(`(?m)^(\S+|".*") d (\d+ \d+:\d+) n\d+ `)
)

// comparable takes off a listing what a tree on a disk need not have: times of
// directories the tars do not contain, link counts of directories.
func comparable(list string) string {
	list = dirLine.ReplaceAllString(list, "$1 d $2 -$3")
	return dirLink.ReplaceAllString(list, "$1 d $2 ")
}

// listHost lists a directory as List does an index; directories that are newer
// than the cases have the time an unpacker gave them.
func listHost(t *testing.T, root string) string {
	t.Helper()
	var b strings.Builder
	first := map[uint64]string{}
	var walk func(path string)
	walk = func(path string) {
		host := root + path
		var st unix.Stat_t
		if err := unix.Lstat(host, &st); err != nil {
			t.Fatal(err)
		}
		typ := st.Mode & unix.S_IFMT
		if typ != unix.S_IFDIR && st.Nlink > 1 {
			if f, ok := first[st.Ino]; ok {
				fmt.Fprintf(&b, "%s = %s\n", quote(path), quote(f))
				return
			}
			first[st.Ino] = path
		}
		letter := map[uint32]string{unix.S_IFDIR: "d", unix.S_IFREG: "f", unix.S_IFLNK: "l", unix.S_IFCHR: "c", unix.S_IFBLK: "b", unix.S_IFIFO: "p"}[typ]
		fmt.Fprintf(&b, "%s %s %04o %d:%d", quote(path), letter, st.Mode&0o7777, st.Uid, st.Gid)
		if letter != "d" {
			fmt.Fprintf(&b, " n%d", st.Nlink)
		}
		switch recent := st.Mtim.Sec > 1750000000 && st.Mtim.Sec < 9000000000; {
		case letter == "d" && (recent || st.Mtim.Sec == 0 && st.Mtim.Nsec == 0):
			b.WriteString(" -")
		case st.Mtim.Nsec != 0:
			fmt.Fprintf(&b, " @%d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
		default:
			fmt.Fprintf(&b, " @%d", st.Mtim.Sec)
		}
		switch letter {
		case "f":
			content, err := os.ReadFile(host)
			if err != nil {
				t.Fatal(err)
			}
			if fmt.Fprintf(&b, " %d", len(content)); len(content) <= maxQuoted {
				fmt.Fprintf(&b, " %q", content)
			} else {
				fmt.Fprintf(&b, " %s", digestOf(content))
			}
		case "l":
			target, err := os.Readlink(host)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&b, " -> %s", quote(target))
		case "c", "b":
			fmt.Fprintf(&b, " %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		xattrs, err := listXattrs(host)
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for k, v := range xattrs {
			all = append(all, fmt.Sprintf(" %s=%q", quote(k), v))
		}
		sort.Strings(all)
		b.WriteString(strings.Join(all, "") + "\n")
		if letter != "d" {
			return
		}
		entries, err := os.ReadDir(host)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			walk(strings.TrimSuffix(path, "/") + "/" + e.Name())
		}
	}
	walk("/")
	return b.String()
}

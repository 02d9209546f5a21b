package fs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/imgtest"
	"golang.org/x/sys/unix"
)

// TestWalkOfLargeDirectories: a cold walk costs 1 + ceil(listing / buffer)
// READDIRPLUS per directory, whatever its size, and nothing else; a hot one
// costs nothing. (TestCountRequests has the reads.)
func TestWalkOfLargeDirectories(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	long := strings.Repeat("n", 200)
	listings := map[string]int{} // bytes of a directory's entries as READDIRPLUS has them
	entry := func(dir, name string) {
		listings[dir] += (128 + 24 + len(name) + 7) / 8 * 8 // fuse_entry_out, fuse_dirent, name
	}
	directory := func(name string) {
		if err := os.Mkdir(filepath.Join(root, name), 0o755); err != nil {
			t.Fatal(err)
		}
		entry("", name)
		entry(name, ".")
		entry(name, "..")
	}
	entry("", ".")
	entry("", "..")
	for i, n := range []int{0, 1, 20, 200, 3000} {
		for _, prefix := range []string{"f", long} {
			dir := fmt.Sprintf("dir-%d-%c", i, prefix[0])
			directory(dir)
			for j := range n {
				name := fmt.Sprintf("%s%d", prefix, j)
				entry(dir, name)
				if err := os.Symlink("x", filepath.Join(root, dir, name)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	p := pack(t, root, 1)
	dir := t.TempDir()
	s := serveCold(t, NewChain(p.img, p.data(), Options{}), dir, MountFlags{})

	// The kernel asks for as much as the reader has room for, older ones for a
	// page. The reply fills it but for less than an entry.
	const room = 32 << 10 // of find and ls
	fd, err := unix.Open(filepath.Join(dir, "dir-4-f"), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	before := s.Stats().Readdirs
	first := 0
	for _, e := range getdentsFrom(t, fd, room) {
		first += (128 + 24 + len(e.name) + 7) / 8 * 8
	}
	unix.Close(fd)
	if n := s.Stats().Readdirs - before; n != 1 {
		t.Fatalf("%d READDIRPLUS for one getdents", n)
	}
	buffer := 4096
	if first > buffer {
		buffer = room
	}
	if first > buffer || first <= buffer-168 {
		t.Errorf("a reply of %d bytes for a buffer of %d", first, buffer)
	}

	s = remount(t, p, dir, s)
	find := func() {
		t.Helper()
		out, err := exec.Command("find", dir, "-printf", "%p %s %m %T@ %i\n").Output()
		if n := strings.Count(string(out), "\n"); err != nil || n != 1+10+2*(0+1+20+200+3000) {
			t.Fatalf("%v: %d lines", err, n)
		}
	}
	want := 0
	for _, n := range listings {
		want += 1 + (n+buffer-1)/buffer
	}
	start := s.Stats()
	find()
	cold := s.Stats()
	if n := int(cold.Readdirs - start.Readdirs); n > want {
		t.Errorf("a cold walk cost %d READDIRPLUS, want %d at most", n, want)
	}
	// The first OPENDIR learns that there is none; the root is asked for once.
	if cold.Lookups != start.Lookups || cold.Opens-start.Opens > 1 || cold.Getattrs-start.Getattrs > 1 || cold.Xattrs != start.Xattrs {
		t.Errorf("a cold walk: %+v, before %+v", cold, start)
	}
	find()
	hot := s.Stats()
	hot.Statfs = cold.Statfs // find(1) asks once, and nobody keeps it
	if hot != cold {
		t.Errorf("a hot walk cost requests: %+v, before %+v", hot, cold)
	}
}

// TestOtherUsers: root's mounts are for everybody, and the kernel checks what
// the modes of the image allow.
func TestOtherUsers(t *testing.T) {
	needRoot(t)
	imgtest.Program(t, "setpriv")
	root := t.TempDir()
	for _, f := range []struct {
		name     string
		uid      int
		dir, own os.FileMode
	}{
		{"open/all", 0, 0o755, 0o644},
		{"open/root", 0, 0o755, 0o600},
		{"open/nobody", 65534, 0o755, 0o400},
		{"closed/all", 0, 0o700, 0o644},
	} {
		path := filepath.Join(root, f.name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			err = os.WriteFile(path, []byte(f.name), f.own)
		}
		if err == nil {
			err = os.Chown(path, f.uid, f.uid)
		}
		if err == nil {
			err = os.Chmod(filepath.Dir(path), f.dir)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	target := publicDir(t)
	p := pack(t, root, 1)
	serveOn(t, NewChain(p.img, p.data(), Options{}), target, MountFlags{})
	for name, want := range map[string]bool{"open/all": true, "open/root": false, "open/nobody": true, "closed/all": false} {
		out, err := exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat", filepath.Join(target, name)).Output()
		if (err == nil) != want || want && string(out) != name {
			t.Errorf("%s read by another user: %q, %v", name, out, err)
		}
		out, err = exec.Command("cat", filepath.Join(target, name)).Output()
		if err != nil || string(out) != name {
			t.Errorf("%s read by root: %q, %v", name, out, err)
		}
	}
}

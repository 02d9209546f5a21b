package fs

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// makeZoo makes a tree with one of everything.
func makeZoo(t testing.TB) string {
	t.Helper()
	needRoot(t)
	root := t.TempDir()
	at := func(name string) string { return filepath.Join(root, name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	content := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		return b
	}
	must(os.MkdirAll(at("dir/sub/deep"), 0o755))
	must(os.Mkdir(at("empty"), 0o700))
	for _, n := range []int{0, 1, 511, 512, 513, 4095, 4096, 4097, 131072, 1<<20 + 7, 5 << 20} {
		must(os.WriteFile(at(fmt.Sprintf("dir/size-%d", n)), content(n), 0o640))
	}
	must(os.Symlink("size-513", at("dir/link")))
	must(os.Symlink("/etc/passwd", at("absolute")))
	must(os.Symlink("../../../../../outside", at("dir/escape")))
	must(os.Symlink(strings.Repeat("x", 4000), at("long-link")))
	must(os.Link(at("dir/size-513"), at("dir/sub/hard")))
	must(os.Link(at("dir/size-513"), at("hard2")))
	must(unix.Mknod(at("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(unix.Mknod(at("block"), unix.S_IFBLK|0o600, int(unix.Mkdev(259, 300000))))
	must(unix.Mknod(at("zero-zero"), unix.S_IFCHR|0o600, 0))
	must(unix.Mkfifo(at("fifo"), 0o644))
	must(os.WriteFile(at(strings.Repeat("n", 255)), []byte("long name"), 0o644))
	must(os.WriteFile(at("not-utf8-\xff\xfe"), []byte("x"), 0o644))
	must(os.WriteFile(at("new\nline and blank"), []byte("x"), 0o644))
	must(os.WriteFile(at("suid"), []byte("#!/bin/sh\n"), 0o755))
	must(os.Chown(at("suid"), 12345, 1<<31))
	must(unix.Chmod(at("suid"), 0o6755))
	must(unix.Chmod(at("empty"), 0o1777))
	must(unix.Lsetxattr(at("suid"), "user.comment", []byte("a\x00b"), 0))
	must(unix.Lsetxattr(at("dir"), "trusted.thing", bytes.Repeat([]byte("v"), 500), 0))
	must(unix.Lsetxattr(at("dir/size-1"), "user.empty", nil, 0))
	f, err := os.Create(at("sparse"))
	must(err)
	_, err = f.WriteAt(content(4096), 1<<20)
	must(err)
	_, err = f.WriteAt(content(100), 3<<20)
	must(err)
	must(f.Truncate(4 << 20))
	must(f.Close())
	for i, ts := range []unix.Timespec{{Sec: -5, Nsec: 999999999}, {Sec: 1 << 33, Nsec: 1}, {Sec: 0, Nsec: 0}} {
		name := at(fmt.Sprintf("time-%d", i))
		must(os.WriteFile(name, nil, 0o644))
		must(unix.UtimesNanoAt(unix.AT_FDCWD, name, []unix.Timespec{ts, ts}, 0))
	}
	return root
}

func TestTree(t *testing.T) {
	root := makeZoo(t)
	p := pack(t, root, 3)
	dir, s := serve(t, p, MountFlags{})
	sameTree(t, root, dir)
	sameTree(t, root, dir) // now from the kernel's caches
	if e := s.Stats(); e.Errors != 0 || e.Opens > 2 || e.Lookups > 1 {
		t.Errorf("%+v", e)
	}

	t.Run("diff", func(t *testing.T) {
		// A fifo, and devices, diff compares by type alone.
		out, err := exec.Command("diff", "-r", "--no-dereference", root, dir).CombinedOutput()
		if s := string(out); err != nil && strings.Count(s, "\n") != strings.Count(s, " while file ") {
			t.Errorf("%v\n%s", err, s)
		}
	})
	t.Run("tar", func(t *testing.T) {
		sum := func(dir string) string {
			cmd := exec.Command("sh", "-c", `tar --sort=name --xattrs --pax-option=delete=atime,delete=ctime -C "$0" -cf - . | sha256sum`, dir)
			cmd.Stderr = os.Stderr
			b, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
		if got, want := sum(dir), sum(root); got != want {
			t.Errorf("tar of the mount: %s of the original: %s", got, want)
		}
	})
	t.Run("sparse", func(t *testing.T) {
		to := filepath.Join(t.TempDir(), "copy")
		if out, err := exec.Command("cp", "--sparse=auto", filepath.Join(dir, "sparse"), to).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		var was, is, is2 unix.Stat_t
		for path, st := range map[string]*unix.Stat_t{filepath.Join(root, "sparse"): &was, filepath.Join(dir, "sparse"): &is, to: &is2} {
			if err := unix.Stat(path, st); err != nil {
				t.Fatal(err)
			}
		}
		if is.Blocks != 16 { // two pieces of 4096 bytes
			t.Errorf("st_blocks %d, want 16", is.Blocks)
		}
		if is2.Blocks > was.Blocks {
			t.Errorf("the copy has %d blocks, the original %d", is2.Blocks, was.Blocks)
		}
		f, err := os.Open(filepath.Join(dir, "sparse"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for _, c := range []struct {
			off    int64
			whence int
			want   int64
		}{
			{0, unix.SEEK_DATA, 1 << 20}, {0, unix.SEEK_HOLE, 0},
			{1<<20 + 5, unix.SEEK_DATA, 1<<20 + 5}, {1<<20 + 5, unix.SEEK_HOLE, 1<<20 + 4096},
			{3<<20 + 4096, unix.SEEK_HOLE, 3<<20 + 4096}, {3<<20 + 4096, unix.SEEK_DATA, -1},
			{4 << 20, unix.SEEK_HOLE, -1}, {4<<20 - 1, unix.SEEK_HOLE, 4<<20 - 1},
		} {
			got, err := unix.Seek(int(f.Fd()), c.off, c.whence)
			if err == unix.ENXIO {
				got = -1
			} else if err != nil {
				t.Fatal(err)
			}
			if got != c.want {
				t.Errorf("seek(%d, %d) = %d, want %d", c.off, c.whence, got, c.want)
			}
		}
	})
	t.Run("read-only", func(t *testing.T) {
		for _, err := range []error{
			os.WriteFile(filepath.Join(dir, "dir/size-1"), nil, 0),
			os.WriteFile(filepath.Join(dir, "new"), nil, 0o644),
			os.Remove(filepath.Join(dir, "suid")),
			os.Chmod(filepath.Join(dir, "suid"), 0o644),
			unix.Lsetxattr(filepath.Join(dir, "suid"), "user.a", nil, 0),
			os.Rename(filepath.Join(dir, "suid"), filepath.Join(dir, "suid2")),
		} {
			if !isErrno(err, unix.EROFS) {
				t.Errorf("%v, want EROFS", err)
			}
		}
	})
	t.Run("statfs", func(t *testing.T) {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			t.Fatal(err)
		}
		if st.Bfree != 0 || st.Bavail != 0 || st.Namelen != 255 || st.Bsize != 4096 || st.Frsize != 4096 ||
			st.Blocks < 5<<20/4096 || st.Files != p.img.Inodes() || st.Ffree != 0 {
			t.Errorf("%+v", st)
		}
	})
	t.Run("inodes", func(t *testing.T) {
		// d_ino is st_ino, also of "." and "..", whose names only getdents shows.
		var rootStat unix.Stat_t
		if err := unix.Stat(dir, &rootStat); err != nil {
			t.Fatal(err)
		}
		if rootStat.Ino != uint64(p.img.Root()) {
			t.Errorf("st_ino of the root is %d, want its nid %d", rootStat.Ino, p.img.Root())
		}
		for _, sub := range []string{"", "dir", "dir/sub"} {
			for _, e := range getdents(t, filepath.Join(dir, sub), 4096) {
				var st unix.Stat_t
				path := filepath.Join(dir, sub) + "/" + e.name
				if sub == "" && e.name == ".." {
					path = dir
				}
				if err := unix.Lstat(path, &st); err != nil {
					t.Error(err)
				} else if st.Ino != e.ino || st.Mode>>12 != uint32(e.typ) {
					t.Errorf("%s: d_ino %d d_type %d, st_ino %d st_mode %o", path, e.ino, e.typ, st.Ino, st.Mode)
				}
			}
		}
	})
	t.Run("same inode after a remount", func(t *testing.T) {
		var before, after unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, "dir/sub/hard"), &before); err != nil {
			t.Fatal(err)
		}
		remount(t, p, dir, s)
		if err := unix.Stat(filepath.Join(dir, "hard2"), &after); err != nil {
			t.Fatal(err)
		}
		if before.Ino != after.Ino || after.Nlink != 3 {
			t.Errorf("ino %d then %d, nlink %d", before.Ino, after.Ino, after.Nlink)
		}
	})
}

// dirent is what getdents64 gives.
type dirent struct {
	ino  uint64
	off  int64
	typ  uint8
	name string
}

// getdents lists a directory with a buffer of the given size.
func getdents(t testing.TB, path string, size int) []dirent {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var all []dirent
	for {
		part := getdentsFrom(t, fd, size)
		if len(part) == 0 {
			return all
		}
		all = append(all, part...)
	}
}

func getdentsFrom(t testing.TB, fd, size int) []dirent {
	t.Helper()
	buf := make([]byte, size)
	n, err := unix.Getdents(fd, buf)
	if err != nil {
		t.Fatal(err)
	}
	var all []dirent
	for buf = buf[:n]; len(buf) > 0; {
		reclen := native.Uint16(buf[16:])
		name, _, _ := bytes.Cut(buf[19:reclen], []byte{0})
		all = append(all, dirent{native.Uint64(buf), int64(native.Uint64(buf[8:])), buf[18], string(name)})
		buf = buf[reclen:]
	}
	return all
}

func isErrno(err error, want unix.Errno) bool {
	var e unix.Errno
	return errors.As(err, &e) && e == want
}

func TestSeekdir(t *testing.T) {
	needRoot(t)
	const n = 100_000
	root := t.TempDir()
	for i := range n {
		if err := os.Symlink("x", filepath.Join(root, fmt.Sprintf("entry-%d", i))); err != nil {
			t.Fatal(err)
		}
	}
	dir, s := serve(t, pack(t, root, 1), MountFlags{})
	all := getdents(t, dir, 32<<10)
	if len(all) != n+2 {
		t.Fatalf("%d entries, want %d", len(all), n+2)
	}
	seen := map[string]bool{}
	for _, e := range all {
		if seen[e.name] {
			t.Fatalf("%s twice", e.name)
		}
		seen[e.name] = true
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	random := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		i := random.IntN(len(all) - 1)
		if _, err := unix.Seek(fd, all[i].off, 0); err != nil {
			t.Fatal(err)
		}
		if got := getdentsFrom(t, fd, 4096); len(got) == 0 || got[0] != all[i+1] {
			t.Fatalf("after seekdir behind %q: %+v, want %+v", all[i].name, got[:min(1, len(got))], all[i+1])
		}
	}
	if e := s.Stats(); e.Lookups != 0 || e.Errors != 0 {
		t.Errorf("%+v", e)
	}
}

func TestCountRequests(t *testing.T) {
	root := makeTree(t, 40, 30)
	p := pack(t, root, 2)
	dir, s := serve(t, p, MountFlags{})
	s = remount(t, p, dir, s)
	find := func() {
		t.Helper()
		out, err := exec.Command("find", dir, "-printf", "%p %s %m %T@ %i\n").CombinedOutput()
		if err != nil || bytes.Count(out, []byte("\n")) != 1+40+40*30 {
			t.Fatalf("%v: %d lines", err, bytes.Count(out, []byte("\n")))
		}
	}
	cat := func() {
		t.Helper()
		if out, err := exec.Command("sh", "-c", `find "$0" -type f -exec cat {} + >/dev/null`, dir).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	start := s.Stats()
	find()
	cold := s.Stats()
	// 30 entries fit one buffer: one request for it, one for the end.
	if n := cold.Readdirs - start.Readdirs; n > 2*41 {
		t.Errorf("a cold walk of 41 directories cost %d READDIRPLUS", n)
	}
	if cold.Lookups != start.Lookups {
		t.Errorf("a cold walk cost %d LOOKUP", cold.Lookups-start.Lookups)
	}
	if cold.Opens > 1 { // the one that learns that there is none
		t.Errorf("a cold walk cost %d OPENDIR", cold.Opens)
	}
	if cold.Getattrs > 1 { // the root
		t.Errorf("a cold walk cost %d GETATTR", cold.Getattrs)
	}
	cat()
	read := s.Stats()
	if n := read.Reads - cold.Reads; n != 40*30 {
		t.Errorf("reading %d small files cost %d READ", 40*30, n)
	}
	if n := read.Opens - cold.Opens; n > 1 {
		t.Errorf("reading cost %d OPEN", n)
	}
	hot := s.Stats()
	find()
	cat()
	got := s.Stats()
	got.Statfs = hot.Statfs
	if got != hot {
		t.Errorf("a hot walk and read cost requests: %+v, before %+v", got, hot)
	}
	// An absent name is asked for once.
	for range 3 {
		if _, err := os.Lstat(filepath.Join(dir, "absent")); !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	if n := s.Stats().Lookups - hot.Lookups; n != 1 {
		t.Errorf("an absent name cost %d LOOKUP", n)
	}
}

// makeTree makes dirs directories of files small files each.
func makeTree(t testing.TB, dirs, files int) string {
	t.Helper()
	needRoot(t)
	root := t.TempDir()
	for i := range dirs {
		d := filepath.Join(root, fmt.Sprintf("dir-%d", i))
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
		for j := range files {
			b := bytes.Repeat([]byte{byte(i), byte(j)}, 50*j+1)
			if err := os.WriteFile(filepath.Join(d, fmt.Sprintf("file-%d", j)), b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return root
}

func TestShortDataIsEIO(t *testing.T) {
	root := makeTree(t, 1, 3)
	if err := os.WriteFile(filepath.Join(root, "big"), bytes.Repeat([]byte("x"), 3<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	p := pack(t, root, 2)
	if err := p.files[0].f.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	dir, s := serve(t, p, MountFlags{})
	_, err := os.ReadFile(filepath.Join(dir, "big"))
	if !isErrno(err, unix.EIO) {
		t.Errorf("read of a truncated data file: %v, want EIO", err)
	}
	if st := s.Stats(); st.Errors == 0 || !strings.Contains(st.LastError, "data file ends at") {
		t.Errorf("%+v", st)
	}
	sameFile(t, filepath.Join(root, "dir-0/file-2"), filepath.Join(dir, "dir-0/file-2"))
}

func sameFile(t testing.TB, a, b string) {
	t.Helper()
	x, err1 := os.ReadFile(a)
	y, err2 := os.ReadFile(b)
	if err1 != nil || err2 != nil || !bytes.Equal(x, y) {
		t.Errorf("%s and %s differ: %v %v", a, b, err1, err2)
	}
}

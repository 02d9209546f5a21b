package overlay_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/imgtest"
	"golang.org/x/sys/unix"
)

// What people complain of in other unions, and what their suites found: a test
// each (notes on fuse-overlayfs, kernel overlayfs and mergerfs name them so).

// expect does operations and compares what they say.
func expect(t *testing.T, u *unionTarget, says ...[2]string) {
	t.Helper()
	for _, s := range says {
		if got := u.r.do(s[0]); got != s[1] {
			t.Errorf("%s: %s, want %s\n%s", s[0], got, s[1], &u.errs)
		}
	}
}

// open opens a file of the mount until the test ends.
func open(t *testing.T, u *unionTarget, path string, flags int) int {
	t.Helper()
	fd, err := u.r.at(path, flags, map[bool]uint32{true: 0o644}[flags&unix.O_CREAT != 0])
	if err != nil {
		t.Fatalf("%s: %v\n%s", path, err, &u.errs)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// TestMappedFileSeesCopyUp: a mapping of a lower file is the file that is
// written to, whichever was first, and writing through it is as good.
func TestMappedFileSeesCopyUp(t *testing.T) {
	u := start(t, asRoot, killChain())
	for _, how := range []struct {
		name string
		prot int
		flag int
	}{{"d/f2", unix.PROT_READ, unix.O_RDONLY}, {"d/f3", unix.PROT_READ | unix.PROT_WRITE, unix.O_RDWR}} {
		fd, err := u.r.at(how.name, how.flag, 0)
		must(t, err)
		m, err := unix.Mmap(fd, 0, 65536, how.prot, unix.MAP_SHARED)
		must(t, err, unix.Close(fd))
		old := slices.Clone(m)
		expect(t, u, [2]string{"chmod " + how.name + " 600", "ok"})
		if !bytes.Equal(m, old) {
			t.Errorf("%s: the mapping changed with the mode", how.name)
		}
		expect(t, u, [2]string{"write " + how.name + " 4096 4096 t", "ok"})
		copy(old[4096:], pattern("t", 4096, 4096))
		if !bytes.Equal(m, old) {
			t.Errorf("%s: the mapping does not show what was written", how.name)
		}
		if how.prot&unix.PROT_WRITE != 0 {
			copy(m[10000:], "through the mapping")
			copy(old[10000:], "through the mapping")
			must(t, unix.Msync(m, unix.MS_SYNC))
			expect(t, u, [2]string{"open 1 " + how.name + " r", "ok"}, [2]string{"get 1 0 65536", readAs(old)}, [2]string{"close 1", "ok"})
		}
		expect(t, u, [2]string{"empty " + how.name, "ok"})
		must(t, unix.Munmap(m))
	}
}

// TestWatchFollowsCopyUp: inotify on a lower file and its directory tells of
// what happens after the copy-up as well (moby #11705, docker/compose #11090).
func TestWatchFollowsCopyUp(t *testing.T) {
	u := start(t, asRoot, killChain())
	in, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	must(t, err)
	defer unix.Close(in)
	for _, p := range []string{"d/f2", "d"} {
		if _, err := unix.InotifyAddWatch(in, filepath.Join(u.at, p), unix.IN_MODIFY|unix.IN_ATTRIB|unix.IN_CREATE|unix.IN_MOVED_FROM|unix.IN_DELETE_SELF); err != nil {
			t.Fatal(err)
		}
	}
	event := func(mask uint32) {
		t.Helper()
		for {
			p := []unix.PollFd{{Fd: int32(in), Events: unix.POLLIN}}
			if n, err := unix.Poll(p, 10_000); n == 0 {
				t.Fatalf("no event %#x, %v", mask, err)
			}
			buf := make([]byte, 4096)
			n, err := unix.Read(in, buf)
			if err == unix.EINTR {
				continue
			}
			must(t, err)
			for b := buf[:n]; len(b) > 0; b = b[16+binary.NativeEndian.Uint32(b[12:]):] {
				if binary.NativeEndian.Uint32(b[4:])&mask != 0 {
					return
				}
			}
		}
	}
	for range 3 { // node --watch sees one change only
		expect(t, u, [2]string{"append d/f2 10 t", "ok"})
		event(unix.IN_MODIFY)
	}
	expect(t, u, [2]string{"chmod d/f2 600", "ok"})
	event(unix.IN_ATTRIB)
	expect(t, u, [2]string{"create d/new 644", "ok"})
	event(unix.IN_CREATE)
	expect(t, u, [2]string{"rename d d2", "ok"}, [2]string{"append d2/f2 10 t", "ok"})
	event(unix.IN_MODIFY)
	expect(t, u, [2]string{"unlink d2/f2", "ok"})
	event(unix.IN_DELETE_SELF)
}

// TestLocksFollowCopyUp: locks of all kinds, taken on a lower file, hold
// against who opens it to write.
func TestLocksFollowCopyUp(t *testing.T) {
	u := start(t, asRoot, killChain())
	lock := unix.Flock_t{Type: unix.F_RDLCK, Len: 10}
	a := open(t, u, "d/f2", unix.O_RDONLY)
	must(t, unix.Flock(a, unix.LOCK_EX), unix.FcntlFlock(uintptr(a), unix.F_OFD_SETLK, &lock))
	expect(t, u, [2]string{"chmod d/f2 666", "ok"})
	b := open(t, u, "d/f2", unix.O_RDWR)
	if _, err := unix.Write(b, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(b, unix.LOCK_EX|unix.LOCK_NB); err != unix.EWOULDBLOCK {
		t.Errorf("flock after copy-up: %v", err)
	}
	lock = unix.Flock_t{Type: unix.F_WRLCK, Len: 10}
	if err := unix.FcntlFlock(uintptr(b), unix.F_OFD_SETLK, &lock); err != unix.EAGAIN {
		t.Errorf("OFD lock after copy-up: %v", err)
	}
	must(t, unix.Flock(a, unix.LOCK_UN), unix.Flock(b, unix.LOCK_EX|unix.LOCK_NB))
}

// TestIdentity: st_ino and st_dev stay over copy-up, rename and remount; hard
// links stay together and count their names (podman #13123, moby #16813,
// fuse-overlayfs #435; tar's "file changed as we read it").
func TestIdentity(t *testing.T) {
	u := start(t, asRoot, killChain())
	before, err := takeSnapshot(u.r.fd, masks{})
	must(t, err)
	same := func(what string) {
		t.Helper()
		after, err := takeSnapshot(u.r.fd, masks{})
		must(t, err)
		for p, ino := range before.inos {
			if after.inos[p] != ino {
				t.Errorf("%s: %s has inode %d, had %d", what, p, after.inos[p], ino)
			}
		}
		if len(after.odd) > 0 {
			t.Errorf("%s: %s", what, after.odd)
		}
	}
	var dev unix.Stat_t
	must(t, unix.Stat(u.at, &dev))
	for p := range before.lines {
		var st unix.Stat_t
		must(t, unix.Lstat(u.at+p, &st))
		if st.Dev != dev.Dev {
			t.Errorf("%s: device %d, the root's is %d", p, st.Dev, dev.Dev)
		}
		if p != "" {
			expect(t, u, [2]string{"chown ." + p + " 5 5", "ok"})
		}
	}
	same("chown")
	expect(t, u, [2]string{"stat h1", "100644 5:5 nlink=3 size=5000"}, [2]string{"append h1 1 t", "ok"}, [2]string{"append d/f2 1 t", "ok"},
		[2]string{"stat h2", "100644 5:5 nlink=3 size=5001"}, [2]string{"stat d/sub/h3", "100644 5:5 nlink=3 size=5001"})
	same("append")
	expect(t, u, [2]string{"rename d dd", "ok"}, [2]string{"rename dd d", "ok"}, [2]string{"rename x xx", "ok"}, [2]string{"rename xx x", "ok"},
		[2]string{"rename m n exchange", "ok"}, [2]string{"rename m n exchange", "ok"})
	same("rename")
	must(t, u.remount())
	same("remount")
	expect(t, u, [2]string{"unlink h1", "ok"}, [2]string{"stat h2", "100644 5:5 nlink=2 size=5001"}, [2]string{"link h2 h5", "ok"}, [2]string{"stat d/sub/h3", "100644 5:5 nlink=3 size=5001"})
}

// TestUnlinkedOpen: an unlinked or replaced file that is open has no links,
// and is read, written and changed as ever, a lower one as well.
func TestUnlinkedOpen(t *testing.T) {
	for _, k := range []kind{asRoot, rootless} {
		t.Run(k.name, func(t *testing.T) {
			u := start(t, k, killChain())
			expect(t, u, [2]string{"create new 644", "ok"}, [2]string{"create over 644", "ok"})
			for _, s := range []struct{ name, how string }{
				{"x", "unlink x"}, {"y", "rename over y"}, {"new", "unlink new"}, {"d/f2", "rename d/f3 d/f2"},
			} {
				fd := open(t, u, s.name, unix.O_RDWR)
				var st unix.Stat_t
				must(t, unix.Fstat(fd, &st))
				size := st.Size
				expect(t, u, [2]string{s.how, "ok"})
				must(t, unix.Fstat(fd, &st))
				if st.Nlink != 0 || st.Size != size {
					t.Errorf("%s: nlink %d, size %d", s.how, st.Nlink, st.Size)
				}
				must(t, put(fd, size, 100, "t"), unix.Fchmod(fd, 0o600), unix.Fsetxattr(fd, "user.n", []byte("v"), 0), unix.Fsync(fd))
				must(t, unix.Fstat(fd, &st))
				if st.Size != size+100 || st.Mode != unix.S_IFREG|0o600 || st.Nlink != 0 {
					t.Errorf("after %s: mode %o, size %d, nlink %d", s.how, st.Mode, st.Size, st.Nlink)
				}
				b := make([]byte, 100)
				if n, err := unix.Pread(fd, b, size); n != 100 || !bytes.Equal(b, pattern("t", size, 100)) {
					t.Errorf("after %s: read %d, %v", s.how, n, err)
				}
				n, err := unix.Fgetxattr(fd, "user.n", b)
				if err != nil || string(b[:max(n, 0)]) != "v" {
					t.Errorf("after %s: getxattr %q, %v", s.how, b[:max(n, 0)], err)
				}
			}
		})
	}
}

// TestHoles: SEEK_DATA and SEEK_HOLE tell of a lower's holes, and copy-up
// keeps them (fuse-overlayfs makes them dense).
func TestHoles(t *testing.T) {
	u := start(t, asRoot, killChain())
	holes := func(fd int) string {
		var b strings.Builder
		for off := int64(0); ; {
			data, err := unix.Seek(fd, off, unix.SEEK_DATA)
			if err != nil {
				fmt.Fprint(&b, unix.ErrnoName(err.(unix.Errno)))
				return b.String()
			}
			hole, err := unix.Seek(fd, data, unix.SEEK_HOLE)
			must(t, err)
			fmt.Fprintf(&b, "%d-%d ", data/4096, (hole+4095)/4096)
			off = hole
		}
	}
	fd := open(t, u, "big", unix.O_RDWR)
	for _, how := range []string{"lower", "chmod big 600", "append big 1 t"} {
		want := "0-1 32-33 ENXIO"
		if how != "lower" {
			expect(t, u, [2]string{how, "ok"})
		}
		if strings.HasPrefix(how, "append") {
			want = "0-1 32-33 73-74 ENXIO"
		}
		if got := holes(fd); got != want {
			t.Errorf("%s: data at pages %s, want %s", how, got, want)
		}
	}
	var st unix.Stat_t
	must(t, unix.Fstat(fd, &st))
	if st.Blocks*512 > 6*4096 {
		t.Errorf("%d blocks after copy-up", st.Blocks)
	}
}

// TestLongNames: 255 bytes of name, for everything, and statfs says so
// (fuse-overlayfs dies of one opened for append, and says 251).
func TestLongNames(t *testing.T) {
	c := chain{"dir . mtime=1\ndir LONG mtime=1\nfile LONG/LONG size=5000 mtime=1\n"}
	u := start(t, asRoot, c)
	model, err := newModel(workDir(t), c)
	must(t, err)
	defer model.close()
	for _, op := range []string{"append LONG/LONG 10 t", "rename LONG/LONG LONG/b", "create LONG/LONG 644", "link LONG/LONG LONG/c", "unlink LONG/LONG",
		"check", "remount", "check", "rename LONG d", "mkdir LONG 755", "symlink LONG/LONG d", "open 1 LONG/l a", "unlink LONG/LONG", "rmdir LONG",
		"rename d LONG", "tmpfile LONG LONG/LONG t", "remount", "check", "rmtree LONG", "check", "remount", "check"} {
		if err := step(op, model, u, asRoot); err != nil {
			t.Errorf("%s: %v", op, err)
		}
	}
	expect(t, u, [2]string{"create LONGn 644", "ENAMETOOLONG"}, [2]string{"mkdir LONGn 755", "ENAMETOOLONG"}, [2]string{"stat LONGn", "ENAMETOOLONG"})
	var st unix.Statfs_t
	must(t, unix.Statfs(u.at, &st))
	if st.Namelen != 255 {
		t.Errorf("statfs: names of %d bytes", st.Namelen)
	}
}

// TestSymlinkIntoItself: attributes of a symlink that leads into the mount are
// the symlink's own: who followed it would ask itself (fuse-overlayfs hangs).
func TestSymlinkIntoItself(t *testing.T) {
	u := start(t, asRoot, killChain())
	expect(t, u, [2]string{"symlink into " + u.at + "/d/f1", "ok"}, [2]string{"symlink loop loop", "ok"})
	for _, name := range []string{"into", "loop", "s"} {
		expect(t, u, [2]string{"setxattr " + name + " trusted.x v", "ok"}, [2]string{"setxattr " + name + " user.x v", "EPERM"},
			[2]string{"chown " + name + " 7 7", "ok"}, [2]string{"times " + name + " 5", "ok"}, [2]string{"stat d/f1", "104755 1000:0 nlink=1 size=5000"})
		x, err := xattrsOf(u.at+"/"+name, true)
		if err != nil || x != ` trusted.x="v"` {
			t.Errorf("%s: %s %v", name, x, err)
		}
	}
	if x, err := xattrsOf(u.at+"/d/f1", true); strings.Contains(x, "trusted") {
		t.Errorf("d/f1: %s %v", x, err)
	}
}

// TestFifoAndDevices: special files of the lower are never opened by the server
// (fuse-overlayfs #21), devices work, and what would be a whiteout is refused,
// never taken and then lost.
func TestFifoAndDevices(t *testing.T) {
	c := chain{"dir . mtime=1\nfifo p mtime=1\nchar null 1:3 mtime=1 mode=0666\nchar zero 0:0 mtime=1\n"}
	u := start(t, asRoot, c)
	expect(t, u, [2]string{"chmod p 600", "ok"}, [2]string{"chown p 5 5", "ok"}, [2]string{"rename p q", "ok"}, [2]string{"link q q2", "ok"}, [2]string{"stat q2", "010600 5:5 nlink=2 size=0"},
		[2]string{"chmod null 600", "ok"}, [2]string{"rename null n", "ok"}, [2]string{"stat n", "020600 0:0 nlink=1 size=0"})
	fd, err := u.r.at("n", unix.O_RDWR, 0)
	must(t, err)
	if n, err := unix.Write(fd, []byte("gone")); n != 4 || err != nil {
		t.Errorf("write to the null device: %d, %v", n, err)
	}
	unix.Close(fd)
	if err := unix.Mknodat(u.r.fd, "w", unix.S_IFCHR, 0); err != unix.EPERM {
		t.Errorf("mknod c 0 0: %v", err)
	}
	expect(t, u, [2]string{"stat w", "ENOENT"}, [2]string{"create w 644", "ok"})
	// A device 0:0 of the image is one, as long as nobody changes it.
	for _, op := range []string{"chmod zero 600", "chown zero 5 5", "times zero 5", "rename zero z", "link zero z"} {
		got := u.r.do(op)
		if a, b := u.r.do("stat zero"), u.r.do("stat z"); a == "ENOENT" && b == "ENOENT" {
			t.Fatalf("%s: %s, and the device is gone", op, got)
		}
	}
	must(t, u.remount())
	if a, b := u.r.do("stat zero"), u.r.do("stat z"); a == "ENOENT" && b == "ENOENT" {
		t.Errorf("the device 0:0 is gone after a remount: %s %s", a, b)
	}
	expect(t, u, [2]string{"unlink q", "ok"}, [2]string{"unlink q2", "ok"})
}

// TestManyXattrs: a file's attributes all come along (fuse-overlayfs lost some).
func TestManyXattrs(t *testing.T) {
	var x strings.Builder
	for i := range 60 {
		fmt.Fprintf(&x, " xattr:user.attribute%d=%d", i, i*i)
	}
	c := chain{"dir . mtime=1\ndir d mtime=1" + x.String() + "\nfile d/f size=5000 mtime=1" + x.String() + "\n"}
	u := start(t, asRoot, c)
	model, err := newModel(workDir(t), c)
	must(t, err)
	defer model.close()
	for _, op := range []string{"check", "chmod d/f 600", "chmod d 700", "check", "append d/f 1 t", "rmxattr d/f user.attribute7", "rename d e", "remount", "check"} {
		if err := step(op, model, u, asRoot); err != nil {
			t.Errorf("%s: %v", op, err)
		}
	}
}

// TestCookies: telldir's cookies stay, whatever happened to the entries, also
// over a remount; a directory that is emptied while it is read gives each
// entry once (X 257, 471; fuse-overlayfs left undeletable directories).
func TestCookies(t *testing.T) {
	var text strings.Builder
	text.WriteString("dir . mtime=1\ndir d mtime=1\n")
	for i := range 300 {
		fmt.Fprintf(&text, "file d/lower%03d size=1 mtime=1\n", i)
	}
	u := start(t, asRoot, chain{text.String()})
	for i := range 300 {
		expect(t, u, [2]string{fmt.Sprintf("create d/upper%03d 644", i), "ok"})
	}
	fd, err := u.r.at("d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	first, err := listDir(fd)
	must(t, err)
	if len(first) != 602 {
		t.Fatalf("%d entries", len(first))
	}
	for i := 0; i < 300; i += 3 {
		expect(t, u, [2]string{fmt.Sprintf("chmod d/lower%03d 600", i), "ok"})
	}
	for i := 0; i < len(first)-1; i += 37 {
		_, err := unix.Seek(fd, first[i].off, 0)
		must(t, err)
		rest, err := readDir(fd, 512, 1)
		must(t, err)
		if len(rest) == 0 || rest[0].name != first[i+1].name {
			t.Fatalf("behind %s comes %v, was %s", first[i].name, rest, first[i+1].name)
		}
	}
	// Each entry that stays is seen once while others go.
	_, err = unix.Seek(fd, 0, 0)
	must(t, err)
	seen := map[string]int{}
	for n := 0; ; n++ {
		some, err := readDir(fd, 300, 1)
		must(t, err)
		if len(some) == 0 {
			break
		}
		for _, e := range some {
			seen[e.name]++
		}
		if n < 100 {
			expect(t, u, [2]string{fmt.Sprintf("unlink d/lower%03d", 299-n), "ok"})
		}
	}
	for i := range 300 {
		if name := fmt.Sprintf("upper%03d", i); seen[name] != 1 {
			t.Errorf("%s: seen %d times", name, seen[name])
		}
		if name := fmt.Sprintf("lower%03d", i); i < 200 && seen[name] != 1 || seen[name] > 1 {
			t.Errorf("%s: seen %d times", name, seen[name])
		}
	}
	unix.Close(fd)
	expect(t, u, [2]string{"rmtree d", "ok"}, [2]string{"stat d", "ENOENT"})
}

// TestPrivilegesFall: what a stranger writes loses set-uid, set-gid and
// capabilities, a lower file too (X 193, 683 to 688).
func TestPrivilegesFall(t *testing.T) {
	c := chain{"dir . mtime=1\n"}
	for _, n := range []string{"a", "b", "c", "d", "e"} {
		c[0] += "file " + n + " size=5000 mode=6777 mtime=1\n"
	}
	u := start(t, asRoot, c)
	capability := []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	for i, op := range []string{"append a 1 t", "truncate b 10", "empty c", "fallocate d 0 0 9000", "chown e 1000 1000"} {
		name := string(rune('a' + i))
		must(t, unix.Lsetxattr(u.at+"/"+name, "security.capability", capability, 0))
		if name != "e" {
			op = "as 1000 " + op
		}
		expect(t, u, [2]string{op, "ok"})
		if got := u.r.do("stat " + name); !strings.HasPrefix(got, "100777 ") {
			t.Errorf("%s: %s", op, got)
		}
		if x, err := xattrsOf(u.at+"/"+name, true); x != "" {
			t.Errorf("%s: %s %v", op, x, err)
		}
	}
}

// TestNoNoise: a mount and what is usual on it say nothing.
func TestNoNoise(t *testing.T) {
	u := start(t, asRoot, killChain())
	for _, op := range killOps() {
		u.r.do(op)
	}
	must(t, u.close())
	if u.errs.String() != "" {
		t.Errorf("the server says:\n%s", &u.errs)
	}
}

// TestAppendIsAtomic: two descriptors that append lose nothing of each other's.
func TestAppendIsAtomic(t *testing.T) {
	for _, k := range []kind{asRoot, rootless} {
		u := start(t, k, killChain())
		a, b := open(t, u, "x", unix.O_WRONLY|unix.O_APPEND), open(t, u, "x", unix.O_WRONLY|unix.O_APPEND)
		want := (&layerEntry{size: 5000}).content()
		for i := range 50 {
			for _, fd := range []int{a, b} {
				line := fmt.Appendf(nil, "line %d of %d\n", i, fd)
				_, err := unix.Write(fd, line)
				must(t, err)
				want = append(want, line...)
			}
		}
		expect(t, u, [2]string{"cat x", readAs(want)})
	}
}

// TestDirectIO: O_DIRECT reads and writes a file of either part.
func TestDirectIO(t *testing.T) {
	u := start(t, asRoot, killChain())
	want := imgtest.Pattern(70000)
	fd := open(t, u, "d/f2", unix.O_RDWR|unix.O_DIRECT)
	m, err := unix.Mmap(-1, 0, 65536, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned
	must(t, err)
	defer unix.Munmap(m)
	if n, err := unix.Pread(fd, m, 0); n != len(m) || !bytes.Equal(m, want[:len(m)]) {
		t.Errorf("read of the lower: %d, %v", n, err)
	}
	copy(m, pattern("t", 0, 4096))
	if n, err := unix.Pwrite(fd, m[:4096], 8192); n != 4096 {
		t.Errorf("write: %d, %v", n, err)
	}
	copy(want[8192:], pattern("t", 0, 4096))
	expect(t, u, [2]string{"cat d/f2", readAs(want)})
	if n, err := unix.Pread(fd, m, 0); n != len(m) || !bytes.Equal(m, want[:len(m)]) {
		t.Errorf("read of the upper: %d, %v", n, err)
	}
}

// TestExecuting: what runs cannot be opened to be written, and goes on when it
// is replaced.
func TestExecuting(t *testing.T) {
	u := start(t, asRoot, killChain())
	program, err := os.ReadFile(imgtest.Program(t, "sleep"))
	must(t, err)
	fd, err := u.r.at("sleep", unix.O_WRONLY|unix.O_CREAT, 0o755)
	must(t, err)
	_, err = unix.Write(fd, program)
	must(t, err, unix.Close(fd))
	c := exec.Command(u.at+"/sleep", "600")
	must(t, c.Start())
	expect(t, u, [2]string{"append sleep 1 t", "ETXTBSY"}, [2]string{"chmod sleep 700", "ok"}, [2]string{"rename x sleep", "ok"}, [2]string{"append sleep 1 t", "ok"})
	must(t, c.Process.Signal(unix.Signal(0)), c.Process.Kill())
	c.Wait()
}

// TestDirectoryLinks: find(1) believes a directory's link count, if it is not 1,
// to be that of its subdirectories.
func TestDirectoryLinks(t *testing.T) {
	u := start(t, asRoot, killChain())
	check := func() {
		t.Helper()
		must(t, filepath.WalkDir(u.at, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return err
			}
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); err != nil {
				return err
			}
			entries, err := os.ReadDir(path)
			n := uint64(2)
			for _, e := range entries {
				if e.IsDir() {
					n++
				}
			}
			if st.Nlink != 1 && uint64(st.Nlink) != n {
				t.Errorf("%s: nlink %d, and %d subdirectories", path, st.Nlink, n-2)
			}
			return err
		}))
	}
	check()
	expect(t, u, [2]string{"mkdir d/new 755", "ok"}, [2]string{"rename e d/e", "ok"}, [2]string{"rmdir d/e", "ok"}, [2]string{"unlink n/old/f", "ok"},
		[2]string{"rename n/old d/new", "ok"}, [2]string{"rename m d/m", "ok"}, [2]string{"rename d/m n exchange", "ok"})
	check()
	must(t, u.remount())
	check()
}

// TestRenameFlags: a whiteout is nothing that a user can ask for.
func TestRenameFlags(t *testing.T) {
	u := start(t, asRoot, killChain())
	for _, flags := range []uint{unix.RENAME_WHITEOUT, unix.RENAME_NOREPLACE | unix.RENAME_EXCHANGE, 1 << 7} {
		if err := unix.Renameat2(u.r.fd, "x", u.r.fd, "z", flags); err != unix.EINVAL {
			t.Errorf("rename with flags %#x: %v", flags, err)
		}
	}
	expect(t, u, [2]string{"stat x", "100644 0:0 nlink=1 size=5000"}, [2]string{"stat z", "ENOENT"},
		[2]string{"rename d d/sub/d", "EINVAL"}, [2]string{"rename d/sub d exchange", "EINVAL"}, [2]string{"rename x d", "EISDIR"}, [2]string{"rename d x", "ENOTDIR"},
		[2]string{"rename d m", "ENOTEMPTY"}, [2]string{"rename h1 h2", "ok"}, [2]string{"stat h1", "100644 0:0 nlink=3 size=5000"})
}

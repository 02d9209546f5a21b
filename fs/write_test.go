package fs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/imgfs/imgfs/internal/imgtest"
	"golang.org/x/sys/unix"
)

// sh runs a script in a directory, in another process: see settlePoll.
func sh(t testing.TB, dir, script string) string {
	t.Helper()
	cmd := exec.Command("sh", "-ec", `cd "$0"; `+script, dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// TestWritable: what is agreed on at INIT, for a server that may register
// files and for one that may not, and what it costs to write.
func TestWritable(t *testing.T) {
	for _, c := range []struct {
		name                   string
		admin, pass, writeback bool
	}{
		{"root", true, true, false},
		{"without CAP_SYS_ADMIN", false, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			needRoot(t)
			root := t.TempDir()
			l := newLoopback(t, root)
			l.pass = true
			dir := t.TempDir()
			s := serveAs(t, l, dir, MountFlags{Writable: true}, func(serve func()) {
				if c.admin {
					serve()
				} else {
					withoutAdmin(t, serve)
				}
			})
			if s.Passthrough() != c.pass || s.Writeback() != c.writeback || s.NoOpen() {
				t.Fatalf("passthrough %v, writeback %v, no open %v", s.Passthrough(), s.Writeback(), s.NoOpen())
			}
			if got := sh(t, dir, `echo one >a; echo two >>a; cat a; stat -c %s a; dd if=/dev/zero of=big bs=1M count=8 conv=fsync 2>/dev/null; stat -c %s big`); got != "one\ntwo\n8\n8388608\n" {
				t.Errorf("got %q", got)
			}
			st := s.Stats()
			if c.pass && st.Writes != 0 {
				t.Errorf("passed through, and %d WRITEs", st.Writes)
			}
			if !c.pass && (st.Writes > 12 || st.WriteBytes < 8<<20+8 || l.biggest.Load() != maxWrite) {
				t.Errorf("%d WRITEs of %d bytes, the largest of %d", st.Writes, st.WriteBytes, l.biggest.Load())
			}
			if st.Changes < 2 || st.Closes == 0 || st.Others > 3 || st.Errors != 0 {
				t.Errorf("%+v", st)
			}
			sh(t, root, `test "$(cat a)" = "$(printf 'one\ntwo')"; test $(stat -c %s big) = 8388608`)
		})
	}
}

// TestWriteThrough has files with handles but without passthrough: a WRITE is
// as large as the writer's, up to 1 MiB.
func TestWriteThrough(t *testing.T) {
	root := t.TempDir()
	l := newLoopback(t, root)
	dir, s := serveLoopback(t, l)
	sh(t, dir, `head -c 16M /dev/urandom >a; cp a b; dd if=a of=c bs=1M status=none; cmp a b; cmp a c`)
	sh(t, root, `cmp a b; cmp a c`)
	if n := l.biggest.Load(); n != maxWrite {
		t.Errorf("the largest WRITE has %d bytes", n)
	}
	before := s.Stats().Writes
	sh(t, dir, `dd if=a of=d bs=1M status=none`)
	if n := s.Stats().Writes - before; n != 16 {
		t.Errorf("%d WRITEs for 16 of 1 MiB each", n)
	}
	if s.NoOpen() {
		t.Error("OPEN was answered")
	}
}

// TestNoOpen has a writable file system that answers ENOSYS to OPEN, at some
// time: nothing asks again, files are truncated and written to all the same.
func TestNoOpen(t *testing.T) {
	root := t.TempDir()
	l := newLoopback(t, root)
	opens := 0
	l.open = func(*fuse.OpenIn) fuse.Status {
		if opens++; opens > 3 {
			return fuse.ENOSYS
		}
		return fuse.OK
	}
	dir, s := serveLoopback(t, l)
	sh(t, root, `echo long text >a`)
	if got := sh(t, dir, `cat a a a`); got != strings.Repeat("long text\n", 3) || s.NoOpen() {
		t.Fatalf("%q, %v", got, s.NoOpen())
	}
	if got := sh(t, dir, `cat a; echo short >a; cat a; echo more >>a; cat a`); got != "long text\nshort\nshort\nmore\n" {
		t.Errorf("got %q", got)
	}
	if !s.NoOpen() || opens != 4 {
		t.Errorf("no open %v after %d", s.NoOpen(), opens)
	}
}

// TestRootlessWritable: users write to mounts of their own, by fusermount3 and
// as root of a user namespace, the kernel checking the modes.
func TestRootlessWritable(t *testing.T) {
	needRoot(t)
	p := pack(t, makeTree(t, 1, 1), 1)
	for _, c := range []struct {
		name   string
		prefix func(*testing.T) []string
	}{
		{"fusermount3", asUser},
		{"unshare -Urm", func(*testing.T) []string { return []string{"unshare", "-Urm"} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			root, target := publicDir(t), publicDir(t)
			if c.name == "fusermount3" {
				_, err := findFusermount()
				imgtest.Need(t, err == nil, "fusermount3")
				for _, dir := range []string{root, target} {
					if err := os.Chown(dir, 65534, 65534); err != nil {
						t.Fatal(err)
					}
				}
			}
			cmd := helper(t, p, target, `cd "$FS_TARGET" && echo one >a && echo two >>a && cat a && chmod 400 a && stat -c %a,%u a && mkdir d && mv a d && head -c 3M /dev/zero >z && cksum <z && rm -r d z && ls && echo end`, c.prefix(t)...)
			cmd.Env = append(cmd.Env, "FS_LOOPBACK="+root)
			out, err := cmd.CombinedOutput()
			uid := "0"
			if c.name == "fusermount3" {
				uid = "65534"
			}
			if want := "one\ntwo\n400," + uid + "\n734892655 3145728\nend\n"; err != nil || string(out) != want {
				t.Errorf("%v: got %q, want %q", err, out, want)
			}
		})
	}
}

// TestLocks are the kernel's own, of all kinds and without a request.
func TestLocks(t *testing.T) {
	imgtest.Program(t, "flock")
	l := newLoopback(t, t.TempDir())
	dir, s := serveLoopback(t, l)
	sh(t, dir, `echo >a`)
	before := s.Stats().Others
	got := sh(t, dir, `exec 3<a; flock -x 3; flock -n a echo taken || echo refused; flock -u 3; flock -n a echo free`)
	if got != "refused\nfree\n" {
		t.Errorf("got %q", got)
	}
	if n := s.Stats().Others - before; n > 2 { // POLL, once, and the like
		t.Errorf("%d requests for locks", n)
	}
}

// TestGroupsOfTheCaller: who makes a name in a directory of one of their
// supplementary groups says so, in a longer request.
func TestGroupsOfTheCaller(t *testing.T) {
	imgtest.Program(t, "setpriv")
	root := t.TempDir()
	l := newLoopback(t, root)
	if err := errors.Join(os.Mkdir(filepath.Join(root, "shared"), 0o777), os.Chown(filepath.Join(root, "shared"), 0, 4242), os.Chmod(filepath.Join(root, "shared"), 0o777|os.ModeSetgid)); err != nil {
		t.Fatal(err)
	}
	dir, _ := serveLoopback(t, l)
	for _, c := range []struct {
		groups string
		member bool
	}{{"4242", true}, {"4243", false}} {
		for _, script := range []string{"mkdir d" + c.groups, "echo >f" + c.groups} {
			cmd := exec.Command("setpriv", "--reuid=1234", "--regid=1234", "--groups="+c.groups, "sh", "-c", script)
			cmd.Dir = filepath.Join(dir, "shared")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v %s", err, out)
			}
			if got := l.extended.Load() != 0; got != c.member {
				t.Errorf("%s with group %s: extension %v", script, c.groups, got)
			}
		}
	}
}

func ioctlBuffer(fd int, request uint32, buf []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(unsafe.Pointer(&buf[0])))
	if errno != 0 {
		return errno
	}
	return nil
}

// TestIoctl: a reply may be as large as an ioctl's number can say.
func TestIoctl(t *testing.T) {
	root := t.TempDir()
	l := newLoopback(t, root)
	dir, _ := serveLoopback(t, l)
	sh(t, dir, "echo >a")
	fd, err := unix.Open(filepath.Join(dir, "a"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	buf := make([]byte, 1<<14-1)
	const read = 2 << 30 // _IOC_READ
	if err := ioctlBuffer(fd, read|uint32(len(buf))<<16|0x77, buf); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(buf, bytes.Repeat([]byte{0x77}, len(buf))) {
		t.Errorf("got %x...", buf[:8])
	}
}

// TestPanics: whatever panics is one failed request.
func TestPanics(t *testing.T) {
	root := t.TempDir()
	l := newLoopback(t, root)
	dir, s := serveLoopback(t, l)
	sh(t, dir, `echo content >a; echo content >b`)
	for _, c := range []string{"stat x", "echo y >>a", "cat b"} {
		l.panics.Store(true)
		if out, err := exec.Command("sh", "-c", `cd "$0"; `+c, dir).CombinedOutput(); (err == nil) != (c == "cat b") || l.panics.Load() {
			t.Errorf("%s: %v %s", c, err, out) // a quick read that panicked is tried again
		}
	}
	if got := sh(t, dir, `cat a b`); got != "content\ncontent\n" {
		t.Errorf("got %q", got)
	}
	if s.Stats().Errors != 2 {
		t.Errorf("%+v", s.Stats())
	}
}

// device is the kernel's end of a connection whose requests a test makes up.
type device struct {
	t    *testing.T
	fd   int
	next uint64
}

// connect serves rfs on a made up connection.
func connect(t *testing.T, rfs fuse.RawFileSystem) (*device, *Server) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.SetsockoptInt(pair[0], unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 8<<20)
	d := &device{t: t, fd: pair[0]}
	t.Cleanup(func() { unix.Close(pair[0]) })
	hello := make([]byte, 64) // fuse_init_in
	native.PutUint32(hello, 7)
	native.PutUint32(hello[4:], 45)
	native.PutUint32(hello[12:], ^uint32(0)) // all flags
	native.PutUint32(hello[16:], ^uint32(0))
	d.send(opInit, hello)
	s, err := Serve(t.Context(), rfs, pair[1], Options{})
	if err != nil {
		t.Fatal(err)
	}
	d.answer()
	return d, s
}

func (d *device) send(op uint32, body []byte) (unique uint64) {
	d.next++
	b := make([]byte, inHeaderSize, inHeaderSize+len(body))
	native.PutUint32(b, uint32(inHeaderSize+len(body)))
	native.PutUint32(b[4:], op)
	native.PutUint64(b[8:], d.next)
	native.PutUint64(b[16:], fuse.FUSE_ROOT_ID)
	d.raw(append(b, body...))
	return d.next
}

func (d *device) raw(b []byte) {
	if _, err := unix.Write(d.fd, b); err != nil {
		d.t.Fatal(err)
	}
}

// answer returns the next reply.
func (d *device) answer() (unique uint64, errno unix.Errno) {
	d.t.Helper()
	unix.SetsockoptTimeval(d.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20})
	b := make([]byte, 4096)
	n, err := unix.Read(d.fd, b)
	if err != nil || n < outHeaderSize {
		d.t.Fatalf("%d bytes, %v", n, err)
	}
	return native.Uint64(b[8:]), unix.Errno(-int32(native.Uint32(b[4:])))
}

// TestOddRequests: too short, too long, cut off, of no known kind; the server
// answers what has a header and goes on.
func TestOddRequests(t *testing.T) {
	l := newLoopback(t, t.TempDir())
	d, s := connect(t, l)
	expect := func(what string, want unix.Errno) {
		t.Helper()
		if unique, errno := d.answer(); unique != d.next || errno != want {
			t.Errorf("%s: reply to %d of %d: %v, want %v", what, unique, d.next, errno, want)
		}
	}
	d.raw([]byte("short"))
	d.send(opWrite, nil)
	expect("a WRITE without a body", unix.EIO)
	d.send(opRead, make([]byte, 8))
	expect("a READ cut off", unix.EIO)
	read := make([]byte, 40)
	native.PutUint32(read[16:], 1<<31)
	d.send(opRead, read)
	expect("a READ of 2 GiB", unix.EIO)
	d.send(63, nil)
	expect("an unknown request", unix.ENOSYS)
	d.send(1<<30, nil)
	expect("a number that is none", unix.ENOSYS)
	d.send(opWrite, make([]byte, 40+maxWrite+4096))
	expect("a WRITE larger than agreed", unix.EIO)
	d.send(opMkdir, make([]byte, 9000))
	if unique, _ := d.answer(); unique != d.next {
		t.Errorf("reply to %d of %d", unique, d.next)
	}
	d.send(opGetattr, make([]byte, 16))
	expect("a GETATTR after all that", 0)
	s.Close()
}

// stuckWrites has WRITEs wait until they are let go.
type stuckWrites struct {
	*loopback
	begun chan int
	gone  chan struct{}
}

func (s *stuckWrites) Complete(uint64) bool { return false }

func (s *stuckWrites) Write(_ <-chan struct{}, _ *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	sum := 0
	for _, b := range data {
		sum += int(b)
	}
	s.begun <- sum
	<-s.gone
	for _, b := range data {
		sum -= int(b)
	}
	if sum != 0 {
		return 0, fuse.EIO // somebody else has read into our buffer
	}
	return uint32(len(data)), fuse.OK
}

// TestWaitingWrites has many large and small WRITEs wait at once: others go
// on, each keeps its bytes, and few buffers are large.
func TestWaitingWrites(t *testing.T) {
	w := &stuckWrites{newLoopback(t, t.TempDir()), make(chan int), make(chan struct{})}
	d, s := connect(t, w)
	body := func(size int, fill byte) []byte {
		b := append(make([]byte, 40), bytes.Repeat([]byte{fill}, size)...)
		native.PutUint32(b[16:], uint32(size))
		return b
	}
	const small = 20
	n := 0
	for i := range maxLarge - 1 {
		d.send(opWrite, body(maxWrite, byte(i)))
		if sum := <-w.begun; sum != i*maxWrite {
			t.Errorf("write %d: sum %d", i, sum)
		}
		n++
		d.send(opGetattr, make([]byte, 16))
		if unique, errno := d.answer(); unique != d.next || errno != 0 {
			t.Fatalf("%d large WRITEs wait, and GETATTR gets %d %v", i+1, unique, errno)
		}
	}
	for i := range small {
		d.send(opWrite, body(100, byte(i)))
		if sum := <-w.begun; sum != 100*i {
			t.Errorf("small write %d: sum %d", i, sum)
		}
		n++
	}
	if got := s.large.Load(); got != maxLarge-1 {
		t.Errorf("%d large buffers", got)
	}
	d.send(opGetattr, make([]byte, 16))
	if unique, errno := d.answer(); unique != d.next || errno != 0 {
		t.Fatalf("GETATTR gets %d %v", unique, errno)
	}
	close(w.gone)
	for range n {
		if _, errno := d.answer(); errno != 0 {
			t.Error(errno)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if got := s.large.Load(); got != 0 {
		t.Errorf("%d large buffers at the end", got)
	}
}

// endless has changes of size wait until they are interrupted.
type endless struct {
	*loopback
	begun chan struct{}
}

func (*endless) Complete(uint64) bool { return false }

func (e *endless) SetAttr(cancel <-chan struct{}, _ *fuse.SetAttrIn, _ *fuse.AttrOut) fuse.Status {
	e.begun <- struct{}{}
	<-cancel
	return fuse.EINTR
}

// TestInterrupt: who waits for a file to be copied can give up.
func TestInterrupt(t *testing.T) {
	e := &endless{newLoopback(t, t.TempDir()), make(chan struct{})}
	d, s := connect(t, e)
	body := make([]byte, 88)
	native.PutUint32(body, fuse.FATTR_SIZE)
	first := d.send(opSetattr, body)
	<-e.begun
	second := d.send(opSetattr, body)
	<-e.begun
	for _, unique := range []uint64{second, first} {
		interrupt := make([]byte, 8)
		native.PutUint64(interrupt, unique)
		d.send(opInterrupt, interrupt)
		if got, errno := d.answer(); got != unique || errno != unix.EINTR {
			t.Errorf("reply to %d: %v, want one to %d", got, errno, unique)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// waiting is a file system of which node 1 is complete.
type waiting struct{ *loopback }

func (waiting) Complete(node uint64) bool { return node == 1 }

// TestWaits: which requests are handed over.
func TestWaits(t *testing.T) {
	s := &Server{writable: true, quick: &loopback{}, rfs: waiting{}}
	request := func(node uint64, first uint32, size int) []byte {
		in := make([]byte, inHeaderSize+size)
		native.PutUint64(in[16:], node)
		native.PutUint32(in[inHeaderSize:], first)
		return in
	}
	synced := request(1, 0, 4096)
	native.PutUint32(synced[inHeaderSize+32:], unix.O_WRONLY|unix.O_SYNC)
	for _, c := range []struct {
		name string
		op   uint32
		in   []byte
		want bool
	}{
		{"WRITE to be synced", opWrite, synced, true},
		{"LOOKUP", opLookup, request(2, 0, 20), false},
		{"GETATTR", opGetattr, request(2, 0, 16), false},
		{"READ that is not quick", opRead, request(2, 0, 40), true},
		{"CREATE", opCreate, request(2, 0, 20), false},
		{"RENAME", opRename2, request(2, 0, 40), false},
		{"RELEASE", opRelease, request(2, 0, 24), false},
		{"FORGET", opForget, request(2, 0, 8), false},
		{"FSYNC", opFsync, request(1, 0, 16), true},
		{"small WRITE", opWrite, request(1, 0, 4096), false},
		{"large WRITE", opWrite, request(1, 0, 1<<20), true},
		{"small WRITE of a lower file", opWrite, request(2, 0, 4096), true},
		{"OPEN for reading", opOpen, request(2, unix.O_RDONLY, 8), false},
		{"OPEN for writing", opOpen, request(1, unix.O_RDWR, 8), false},
		{"OPEN for writing of a lower file", opOpen, request(2, unix.O_WRONLY, 8), true},
		{"SETATTR of the mode", opSetattr, request(2, fuse.FATTR_MODE, 88), false},
		{"SETATTR of the size", opSetattr, request(1, fuse.FATTR_SIZE, 88), true},
		{"SETATTR cut off", opSetattr, request(2, 0, 4)[:inHeaderSize+2], false},
	} {
		if got := s.waits(c.op, c.in); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
	if !s.asksKernel(opLseek) || s.asksKernel(opWrite) {
		t.Error("another request than LSEEK may ask the kernel")
	}
	in := request(1, 0, 20)
	s.took(opMkdir, 5*time.Millisecond)
	if !s.waits(opMkdir, in) || s.waits(opRmdir, in) {
		t.Error("a slow MKDIR is not handed over, or RMDIR is")
	}
	s.took(opMkdir, time.Microsecond)
	if s.waits(opMkdir, in) {
		t.Error("MKDIR is handed over though it is quick again")
	}
}

// TestParallelWriters: the content of files that many write at once, whatever
// worker takes which request.
func TestParallelWriters(t *testing.T) {
	root := t.TempDir()
	l := newLoopback(t, root)
	dir, _ := serveLoopback(t, l)
	var wait sync.WaitGroup
	for i := range 8 {
		wait.Go(func() {
			script := fmt.Sprintf(`for n in $(seq 30); do yes %d | head -c $((n * 40000)) >f%d; cat f%d | tr -d '%d\n' | wc -c; rm f%d; done | sort -u`, i, i, i, i, i)
			out, err := exec.Command("sh", "-c", `cd "$0"; `+script, dir).CombinedOutput()
			if err != nil || strings.TrimSpace(string(out)) != "0" {
				t.Errorf("writer %s: %v %s", strconv.Itoa(i), err, out)
			}
		})
	}
	wait.Wait()
}

// TestInvalidate: what was changed behind the kernel's back is seen.
func TestInvalidate(t *testing.T) {
	root := t.TempDir()
	l := newLoopback(t, root)
	dir, s := serveLoopback(t, l)
	sh(t, dir, `echo first >a`)
	if got := sh(t, dir, `cat a`); got != "first\n" {
		t.Fatal(got)
	}
	sh(t, root, `printf 'second one\n' >a`)
	if got := sh(t, dir, `head -c 6 a`); got != "first\n" {
		t.Errorf("the kernel asked though nothing expires: %q", got)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(root, "a"), &st); err != nil {
		t.Fatal(err)
	}
	if err := s.Invalidate(st.Ino, 0, 0); err != nil {
		t.Fatal(err)
	}
	if got := sh(t, dir, `cat a`); got != "second one\n" {
		t.Errorf("got %q", got)
	}
	if err := s.Invalidate(1<<50, 0, 0); err == nil {
		t.Error("an inode that there is not was forgotten")
	}
}

// TestCloseWhileFlushing: while the kernel writes back, the server answers.
func TestCloseWhileFlushing(t *testing.T) {
	dir, s := serveLoopback(t, newLoopback(t, t.TempDir()))
	s.flushing.RLock()
	closed := make(chan struct{})
	go func() {
		s.Close()
		close(closed)
	}()
	for s.Invalidate(1, 0, 0) != unix.ENODEV {
		time.Sleep(time.Millisecond)
	}
	if got := sh(t, dir, `echo there >a && cat a`); got != "there\n" {
		t.Errorf("got %q", got)
	}
	s.flushing.RUnlock()
	<-closed
}

package overlay_test

import (
	"context"
	"crypto/sha256"
	"maps"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imgfs/imgfs/union/overlay"
	"golang.org/x/sys/unix"
)

// TestRequests: what the kernel has been told it does not ask for again.
func TestRequests(t *testing.T) {
	m := startCounted(t, chain{"dir d\nfile d/low size=200000\nfile d/other size=10"}, nil)
	m.passthrough()
	m.write("d/up", strings.Repeat("x", 5000))
	m.write("d/large", strings.Repeat("x", 1<<20))
	m.stat("d/up")
	m.stat("d/low")
	fd := m.open("d/low", unix.O_WRONLY|unix.O_APPEND)
	m.pwrite(fd, "y", 0)
	m.close(fd)
	m.read("d/low")
	m.stat("d/other")
	m.stat("d/large")
	wr := m.open("d/up", unix.O_WRONLY)
	defer m.close(wr)
	m.pwrite(wr, "x", 0) // the first write after a GETATTR asks for security.capability
	readAll := func(name string, n int) {
		fd := m.open(name, unix.O_RDONLY)
		m.pread(fd, n, 0)
		m.close(fd)
	}
	big := strings.Repeat("z", 8<<20)
	for _, c := range []struct {
		what string
		do   func()
		want map[string]uint64
	}{
		{"stat of what is unchanged", func() { m.stat("d/large"); m.stat("d/other") }, nil},
		{"writes of an open file", func() {
			for i := range 100 {
				m.pwrite(wr, "abc", int64(4096*i))
			}
			m.pwrite(wr, big, 0)
		}, nil},
		{"stat after a write", func() { m.stat("d/up"); m.stat("d/up") }, map[string]uint64{"getattr": 1}},
		{"chmod", func() { m.must(unix.Chmod(m.path("d/other"), 0o600)); m.stat("d/other") }, map[string]uint64{"change": 1}},
		{"utimens", func() { m.must(unix.Utimes(m.path("d/other"), make([]unix.Timeval, 2))); m.stat("d/other") }, map[string]uint64{"change": 1}},
		{"fsync", func() { m.must(unix.Fsync(wr)) }, map[string]uint64{"sync": 1}},
		{"open, read and close of a large file of the upper", func() { readAll("d/large", 1<<20) }, map[string]uint64{"open": 1}},
		{"hot read of a copied-up file", func() { readAll("d/low", 200001) }, map[string]uint64{"open": 1}},
	} {
		if got := m.requests(c.do); !maps.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
}

// TestOpenBecomesFree: a mount that nobody writes to while it is young goes
// without OPEN, and can be written to after all.
func TestOpenBecomesFree(t *testing.T) {
	m := startCounted(t, chain{"dir d\nfile d/a size=100000\nfile d/b size=100000"}, nil)
	m.passthrough()
	kept := m.open("d/b", unix.O_RDONLY)
	was := m.read("d/a")
	for range 1100 {
		m.close(m.open("d/a", unix.O_RDONLY))
	}
	if !m.srv.NoOpen() {
		t.Fatal("OPEN is still asked for")
	}
	m.stat("d/a") // whose access time was asked for by the first read
	if got := m.requests(func() { m.read("d/a") }); len(got) != 0 {
		t.Errorf("hot read: %v", got)
	}
	fd := m.open("d/a", unix.O_RDWR)
	m.pwrite(fd, "new", 10)
	if got, want := m.pread(fd, 200000, 0), was[:10]+"new"+was[13:]; got != want {
		t.Error("a write is not read")
	}
	m.write("d/c", "made")
	m.must(unix.Unlink(m.path("d/c")))
	m.close(fd, kept)
	if got, want := m.read("d/a"), was[:10]+"new"+was[13:]; got != want {
		t.Error("a write is lost")
	}
}

// TestOpenStays: a mount that was written to keeps OPEN, and so passthrough.
func TestOpenStays(t *testing.T) {
	m := startCounted(t, chain{"dir d\nfile d/a size=100"}, nil)
	m.passthrough()
	m.must(unix.Mkdir(m.path("new"), 0o755))
	for range 1100 {
		m.close(m.open("d/a", unix.O_RDONLY))
	}
	if m.srv.NoOpen() {
		t.Error("OPEN is not asked for")
	}
	fd := m.open("new/f", unix.O_WRONLY|unix.O_CREAT)
	m.pwrite(fd, "x", 0)
	if got := m.requests(func() { m.pwrite(fd, "x", 0) }); len(got) != 0 {
		t.Errorf("write: %v", got)
	}
	m.close(fd)
}

// sparseLayer is a layer with a file of three pieces of data between holes.
const sparseLayer = "dir d mtime=5\n" +
	"file d/f size=300000 mtime=1000.25 mode=0640 uid=3 gid=4 xattr:user.a=b\n" +
	"file d/sparse sparse=1.0 size=1000000 map=65536+70000,600000+5000,900000+4096 mtime=7\n" +
	"file d/empty mtime=9"

// TestFill: copy-up by append and by chmod keeps the rest.
func TestFill(t *testing.T) {
	m := startCounted(t, chain{sparseLayer}, nil)
	was := m.read("d/f")
	m.must(unix.Chmod(m.path("d/f"), 0o600))
	if m.inUpper("d/f") {
		t.Error("chmod copied the data")
	}
	if st := m.stat("d/f"); st.Mode&0o7777 != 0o600 || st.Mtim != (unix.Timespec{Sec: 1000, Nsec: 250e6}) || st.Uid != 3 || st.Gid != 4 || st.Blocks == 0 {
		t.Errorf("after chmod: %+v", st)
	}
	if got := m.read("d/f"); got != was {
		t.Error("chmod changed the data")
	}
	fd := m.open("d/f", unix.O_WRONLY|unix.O_APPEND)
	if st := m.stat("d/f"); st.Mtim.Sec != 1000 {
		t.Errorf("open set the time: %v", st.Mtim)
	}
	m.pwrite(fd, "tail", 0)
	m.close(fd)
	if got := m.read("d/f"); got != was+"tail" {
		t.Error("append changed the data")
	}
	if !m.inUpper("d/f") {
		t.Error("the data is not in the upper")
	}
	buf := make([]byte, 10)
	if n, err := unix.Lgetxattr(m.path("d/f"), "user.a", buf); err != nil || string(buf[:n]) != "b" {
		t.Errorf("attribute: %q, %v", buf[:max(n, 0)], err)
	}

	m.must(unix.Lutimes(m.path("d/sparse"), []unix.Timeval{{Sec: 1}, {Sec: 2}}))
	sum, blocks, holes := sha256.Sum256([]byte(m.read("d/sparse"))), m.stat("d/sparse").Blocks, m.holes("d/sparse")
	fd = m.open("d/sparse", unix.O_RDWR)
	m.pwrite(fd, m.pread(fd, 5, 70000), 70000)
	m.close(fd)
	if got := sha256.Sum256([]byte(m.read("d/sparse"))); got != sum {
		t.Error("sparse file: other data")
	}
	if got := m.stat("d/sparse").Blocks; got > blocks+100 {
		t.Errorf("sparse file: %d blocks, had %d", got, blocks)
	}
	if got := m.holes("d/sparse"); len(got) != len(holes) {
		t.Errorf("holes at %v, were at %v", got, holes)
	}

	before := m.copied()
	m.write("d/f", "short")
	fd = m.open("d/empty", unix.O_WRONLY)
	m.pwrite(fd, "x", 5)
	m.close(fd)
	if got := m.read("d/f") + m.read("d/empty"); got != "short\x00\x00\x00\x00\x00x" || m.copied() != before {
		t.Errorf("%q, %d bytes were copied", got, m.copied()-before)
	}
}

// copied returns how many bytes of the lower were asked for.
func (m *counted) copied() (n int64) {
	for _, d := range m.data {
		n += d.bytes.Load()
	}
	return n
}

// holes returns where data and holes begin, in turn.
func (m *counted) holes(name string) (at []int64) {
	fd := m.open(name, unix.O_RDONLY)
	defer m.close(fd)
	off := int64(0)
	for whence := unix.SEEK_DATA; ; whence = unix.SEEK_DATA + unix.SEEK_HOLE - whence {
		next, err := unix.Seek(fd, off, whence)
		if err != nil {
			return at
		}
		at, off = append(at, next), next
	}
}

// TestTruncateCopiesNothing: nor does it copy what it cuts off.
func TestTruncateCopiesNothing(t *testing.T) {
	m := startCounted(t, chain{"file a size=300000\nfile b size=300000\nfile c size=300000\nfile e size=300000"}, nil)
	m.write("a", "new")
	m.must(unix.Truncate(m.path("b"), 0))
	if n := m.copied(); n != 0 {
		t.Errorf("%d bytes were copied", n)
	}
	was := m.read("c")
	before := m.copied()
	m.must(unix.Truncate(m.path("c"), 5000))
	if n := m.copied() - before; n != 5000 {
		t.Errorf("%d bytes were copied, 5000 stay", n)
	}
	m.must(unix.Truncate(m.path("e"), 300010))
	if a, b, c, e := m.read("a"), m.read("b"), m.read("c"), m.read("e"); a != "new" || b != "" || c != was[:5000] || e != was+strings.Repeat("\x00", 10) {
		t.Errorf("other data: %q %q %v %v", a, b, c == was[:5000], len(e))
	}
	for _, name := range []string{"a", "b", "c", "e"} {
		if !m.inUpper(name) {
			t.Errorf("%s: still a metacopy", name)
		}
	}
}

// TestCoherence: whoever has a file open or mapped when it is copied up sees what
// is written afterwards, by whatever means.
func TestCoherence(t *testing.T) {
	for _, k := range []kind{asRoot, rootless} {
		t.Run(k.name, func(t *testing.T) { coherence(t, k) })
	}
}

func coherence(t *testing.T, k kind) {
	for _, flags := range []int{unix.O_WRONLY | unix.O_APPEND, unix.O_RDWR, unix.O_WRONLY} {
		m := startApart(t, k, chain{"file f size=20000 mtime=7"})
		rd := m.open("f", unix.O_RDONLY)
		mapped, err := unix.Mmap(rd, 0, 20000, unix.PROT_READ, unix.MAP_SHARED)
		m.must(err)
		was := string(mapped)
		wr := m.open("f", flags)
		rw := m.open("f", unix.O_RDWR)
		shared, err := unix.Mmap(rw, 0, 20000, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		m.must(err)
		m.pwrite(wr, "one", 100)
		m.pwrite(rw, "two", 200)
		copy(shared[300:], "three")
		want := []byte(was)
		if flags&unix.O_APPEND != 0 {
			want = append(want, "one"...)
		} else {
			copy(want[100:], "one")
		}
		copy(want[200:], "two")
		copy(want[300:], "three")
		if got := string(mapped); got != string(want[:20000]) {
			t.Errorf("%#x: the mapping shows something else", flags)
		}
		if got := m.pread(rd, 30000, 0); got != string(want) {
			t.Errorf("%#x: the old descriptor shows something else", flags)
		}
		if got := m.read("f"); got != string(want) {
			t.Errorf("%#x: a new descriptor shows something else", flags)
		}
		m.must(unix.Msync(shared, unix.MS_SYNC))
		m.must(unix.Munmap(shared))
		m.must(unix.Munmap(mapped))
		m.close(rd, wr, rw)
		if got := m.read("f"); got != string(want) {
			t.Errorf("%#x: something else after all was closed", flags)
		}
		if st := m.stat("f"); st.Mtim.Sec < 1e9 {
			t.Errorf("%#x: time %v", flags, st.Mtim)
		}
	}
}

// TestModes: readers and writers that come and go in all orders never get an
// error nor stale data, as they would if one inode were passed through and
// cached at once.
func TestModes(t *testing.T) {
	m := startCounted(t, chain{"file f size=200000"}, nil)
	const turns = 300
	var last, done sync.Mutex
	n := int64(0)
	work := func(flags int) {
		for range turns {
			fd, err := unix.Open(m.path("f"), flags|unix.O_CLOEXEC, 0)
			if err != nil {
				done.Lock()
				t.Errorf("open %#x: %v", flags, err)
				done.Unlock()
				return
			}
			var buf [8]byte
			if flags&unix.O_ACCMODE != unix.O_RDONLY {
				last.Lock()
				n++
				for i := range buf {
					buf[i] = byte(n >> (8 * i))
				}
				_, err = unix.Pwrite(fd, buf[:], 8)
				last.Unlock()
			} else {
				last.Lock()
				_, err = unix.Pread(fd, buf[:], 8)
				got := int64(0)
				for i := range buf {
					got |= int64(buf[i]) << (8 * i)
				}
				if err == nil && n > 0 && got != n {
					t.Errorf("read %d, %d was written last", got, n)
				}
				last.Unlock()
			}
			if err != nil {
				t.Errorf("%#x: %v", flags, err)
			}
			unix.Close(fd)
		}
	}
	var wg sync.WaitGroup
	for _, flags := range []int{unix.O_RDONLY, unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR} {
		wg.Go(func() { work(flags) })
	}
	wg.Wait()
}

// TestAppends: two descriptors that append never write over each other.
func TestAppends(t *testing.T) {
	for _, keep := range []bool{false, true} {
		m := startCounted(t, chain{"file f hello"}, nil)
		if keep { // then the file is cached, not passed through
			fd := m.open("f", unix.O_RDONLY)
			defer m.close(fd)
		}
		var wg sync.WaitGroup
		for _, line := range []string{"aaaaaaa\n", "bbbbbbb\n"} {
			wg.Go(func() {
				fd := m.open("f", unix.O_WRONLY|unix.O_APPEND)
				for range 500 {
					m.pwrite(fd, line, 0)
				}
				m.close(fd)
			})
		}
		wg.Wait()
		got := m.read("f")
		if len(got) != 5+1000*8 || strings.Count(got, "aaaaaaa\n") != 500 || strings.Count(got, "bbbbbbb\n") != 500 {
			t.Errorf("kept open %v: %d bytes", keep, len(got))
		}
	}
}

// TestFillOnce: however many write at once, the data is copied once.
func TestFillOnce(t *testing.T) {
	m := startCounted(t, chain{"file f size=4000000"}, nil)
	was := m.read("f")
	before := m.copied()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			fd := m.open("f", unix.O_WRONLY)
			m.pwrite(fd, "x", int64(i))
			m.close(fd)
		})
	}
	wg.Wait()
	if n := m.copied() - before; n != 4000000 {
		t.Errorf("%d bytes were copied", n)
	}
	if m.read("f") != "xxxxxxxx"+was[8:] {
		t.Error("other data")
	}
}

// TestFillGivenUp: who is killed while the data he needs is awaited leaves
// nothing behind, and the next one begins again.
func TestFillGivenUp(t *testing.T) {
	began, wait := make(chan struct{}, 1), make(chan struct{})
	stopped := make(chan struct{}, 1)
	m := startCounted(t, chain{"file f size=100000"}, func(m *counted, _ *overlay.Options) {
		m.data[0].fill = func(ctx context.Context, off, n int64) error {
			select {
			case <-wait:
				return nil
			default:
			}
			began <- struct{}{}
			<-ctx.Done()
			stopped <- struct{}{}
			return ctx.Err()
		}
	})
	cmd := exec.Command("dd", "if=/dev/zero", "of="+m.path("f"), "bs=1", "count=1", "conv=notrunc")
	m.must(cmd.Start())
	<-began
	m.must(cmd.Process.Kill())
	cmd.Wait()
	<-stopped
	if m.inUpper("f") {
		t.Error("the file is whole")
	}
	close(wait)
	fd := m.open("f", unix.O_WRONLY)
	m.pwrite(fd, "x", 0)
	m.close(fd)
	if got := m.read("f"); got[0] != 'x' || len(got) != 100000 || !m.inUpper("f") {
		t.Error("the second copy-up is not whole")
	}
}

// TestMappedTimes: who writes through a mapping sets the time that stat shows.
func TestMappedTimes(t *testing.T) {
	for _, k := range []kind{asRoot, rootless} {
		t.Run(k.name, func(t *testing.T) { mappedTimes(t, k) })
	}
}

func mappedTimes(t *testing.T, k kind) {
	m := startApart(t, k, chain{"file low size=8192 mtime=7"})
	m.write("up", strings.Repeat("x", 8192))
	for _, name := range []string{"up", "low"} {
		m.must(unix.Utimes(m.path(name), []unix.Timeval{{Sec: 100}, {Sec: 100}}))
		fd := m.open(name, unix.O_RDWR)
		b, err := unix.Mmap(fd, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		m.must(err)
		if st := m.stat(name); st.Mtim.Sec != 100 {
			t.Errorf("%s: mapping it set the time %v", name, st.Mtim)
		}
		b[5000] = 'y'
		m.must(unix.Msync(b, unix.MS_SYNC))
		if st := m.stat(name); time.Since(time.Unix(st.Mtim.Unix())) > time.Hour {
			t.Errorf("%s: time %v after msync", name, st.Mtim)
		}
		m.must(unix.Munmap(b))
		m.close(fd)
		if st := m.stat(name); time.Since(time.Unix(st.Mtim.Unix())) > time.Hour {
			t.Errorf("%s: time %v after all", name, st.Mtim)
		}
	}
}

// TestCopyFileRange: from a file of the lower, holes and all, and from one of
// the upper.
func TestCopyFileRange(t *testing.T) {
	m := startCounted(t, chain{sparseLayer}, nil)
	for _, from := range []string{"d/f", "d/sparse"} {
		for _, up := range []bool{false, true} {
			if up {
				fd := m.open(from, unix.O_WRONLY)
				m.pwrite(fd, "z", 0)
				m.close(fd)
			}
			size := int(m.stat(from).Size)
			src, dst := m.open(from, unix.O_RDONLY), m.open("to", unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC)
			m.pwrite(dst, strings.Repeat("old", size/3), 0)
			for done := 0; done < size-10; {
				roff, woff := int64(10+done), int64(7+done)
				n, err := unix.CopyFileRange(src, &roff, dst, &woff, size, 0)
				if err != nil || n == 0 {
					t.Fatalf("copied %d: %d, %v", done, n, err)
				}
				done += n
			}
			if got, want := m.pread(dst, size-10, 7), m.read(from)[10:]; got != want {
				t.Errorf("%s (in the upper: %v): other data, %d bytes of %d", from, up, len(got), len(want))
			}
			m.close(src, dst)
		}
	}
}

// TestSeekUnwritten: what was written, and is still with the kernel, is no hole.
func TestSeekUnwritten(t *testing.T) {
	for _, k := range []kind{asRoot, rootless} {
		t.Run(k.name, func(t *testing.T) {
			m := startApart(t, k, chain{"file low size=8192\nfile sparse sparse=1.0 size=1000000 map=0+4096"})
			fd := m.open("new", unix.O_RDWR|unix.O_CREAT)
			m.pwrite(fd, "x", 1<<20)
			if off, err := unix.Seek(fd, 0, unix.SEEK_DATA); err != nil || off > 1<<20 || off == 0 {
				t.Errorf("data at %d, %v", off, err)
			}
			m.close(fd)
			fd = m.open("sparse", unix.O_RDWR)
			m.pwrite(fd, "x", 500000)
			if off, err := unix.Seek(fd, 8192, unix.SEEK_DATA); err != nil || off > 500000 || off < 400000 {
				t.Errorf("data at %d, %v", off, err)
			}
			m.close(fd)
		})
	}
}

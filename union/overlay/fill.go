package overlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/imgfs/imgfs/internal/erofs"
	"golang.org/x/sys/unix"
)

const (
	whole = math.MaxInt64 // as a limit: all of a file

	// copyStep is how many bytes are copied between two looks at whether
	// anybody still waits for them; each step is handed to the disk at once,
	// so that little is left to write when the copy is synced.
	copyStep = 8 << 20
)

// fills are the data copy-ups in progress, one per inode.
type fills struct {
	mu     sync.Mutex
	byNode map[uint64]*filling
	works  sync.WaitGroup
}

type filling struct {
	done   chan struct{}
	err    error // once done is closed
	cancel context.CancelFunc

	// Under fills.mu:
	waiters int   // with the last the work ends
	copying bool  // so that the file's times are not those on disk
	times   times // while copying: those that it has, and is to keep
	// likewise, its capability, which each write on disk takes; nil: none
	capability []byte
}

// caller is who waits for a request.
type caller struct {
	interrupt <-chan struct{}
	pid       uint32 // of the thread; 0: in another PID namespace
}

// dies reports whether the interrupt came because the caller is being killed. A
// signal that it handles does not make a write(2) to a file fail, and programs
// do not expect it to.
func (c caller) dies() bool {
	status, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(c.pid), 10) + "/status")
	if c.pid == 0 || err != nil {
		return true
	}
	for line := range bytes.Lines(status) {
		name, value, _ := bytes.Cut(line, []byte(":"))
		if string(name) != "SigPnd" && string(name) != "ShdPnd" {
			continue
		}
		// Whatever kills is turned into SIGKILL for each thread.
		pending, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 16, 64)
		if err != nil || pending&(1<<(unix.SIGKILL-1)) != 0 {
			return true
		}
	}
	return false
}

// fill has the data of n in the upper when it returns OK.
func (u *Union) fill(c caller, n *node) fuse.Status { return u.fillUpTo(c, n, whole) }

// fillUpTo is fill of a file that becomes limit bytes long, if it was longer: of
// the rest nothing is copied.
func (u *Union) fillUpTo(c caller, n *node, limit int64) fuse.Status {
	for !n.full.Load() {
		x := u.fills.join(n.id, func(ctx context.Context, x *filling) error { return u.copyData(ctx, x, n, limit) })
		s := u.await(c, x)
		u.fills.leave(x)
		if s != fuse.OK {
			return s
		}
	}
	return fuse.OK
}

// await waits for a copy-up; its failure is that of everybody who waits.
func (u *Union) await(c caller, x *filling) fuse.Status {
	for {
		select {
		case <-x.done:
			if x.err == errAbandoned {
				return fuse.OK // and is begun again
			}
			return u.status("copy-up", x.err)
		case <-c.interrupt:
			if c.dies() {
				return fuse.EINTR
			}
			c.interrupt = nil // there comes but one
		case <-u.gone:
			return fuse.EINTR
		}
	}
}

// errAbandoned says that nobody was waiting for a copy-up any more.
var errAbandoned = errors.New("copy-up abandoned")

// join waits for, or starts, the work for an inode.
func (s *fills) join(id uint64, work func(context.Context, *filling) error) *filling {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.byNode[id]; x != nil {
		x.waiters++
		return x
	}
	ctx, cancel := context.WithCancel(context.Background())
	x := &filling{done: make(chan struct{}), cancel: cancel, waiters: 1}
	if s.byNode == nil {
		s.byNode = map[uint64]*filling{}
	}
	s.byNode[id] = x
	s.works.Go(func() {
		err := work(ctx, x)
		if err != nil && ctx.Err() != nil {
			err = errAbandoned
		}
		s.mu.Lock()
		delete(s.byNode, id)
		s.mu.Unlock()
		x.err = err
		close(x.done)
		cancel()
	})
	return x
}

func (s *fills) leave(x *filling) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x.waiters--; x.waiters == 0 {
		x.cancel()
	}
}

// filled returns the node of id with its data in the upper.
func (u *Union) filled(c caller, id uint64) (*node, fuse.Status) {
	n := u.get(id)
	if n == nil || !n.full.Load() {
		var s fuse.Status
		if n, s = u.copyUp(id); s != fuse.OK {
			return nil, s
		}
		if !n.isRegular() {
			return nil, fuse.EINVAL
		}
		if s = u.fill(c, n); s != fuse.OK {
			return nil, s
		}
	}
	return n, fuse.OK
}

// copyData copies a metacopy's data and removes the mark, in an order that
// leaves a metacopy or a whole file wherever it is cut off. Of a failure
// nothing is left.
func (u *Union) copyData(ctx context.Context, x *filling, n *node, limit int64) (err error) {
	if n.full.Load() {
		return nil
	}
	f, err := u.acquire(n, true)
	if err != nil {
		return err
	}
	defer u.files.unpin(f)
	var st unix.Stat_t
	if err := u.beginCopy(x, f.fd, &st); err != nil {
		return err
	}
	u.o.Step("fill")
	size := min(st.Size, limit)
	if size > 0 {
		if err = u.copyLower(ctx, n.lower, 0, f.fd, 0, size, u.o.Volatile); err == nil && !u.o.Volatile {
			err = unix.Fdatasync(f.fd)
		}
		if err != nil {
			unix.Ftruncate(f.fd, 0)
			unix.Ftruncate(f.fd, st.Size)
		}
	}
	if e := u.endCopy(x, f.fd); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	if size < st.Size {
		u.o.Step("fill: truncate")
		if err := unix.Ftruncate(f.fd, size); err != nil {
			return err
		}
	}
	u.o.Step("fill: full")
	if err := u.format.ClearMetacopy(f.fd); err != nil {
		return err
	}
	n.full.Store(true)
	return nil
}

// To copy is not to change: from beginCopy to endCopy the file has, for all who
// ask, the times from before, or those that it was given since (retime), and
// then its capability again.

func (u *Union) beginCopy(x *filling, fd int, st *unix.Stat_t) error {
	u.fills.mu.Lock()
	defer u.fills.mu.Unlock()
	err := unix.Fstat(fd, st)
	if err == nil {
		x.capability, err = getXattr(fd, capability)
	}
	x.times, x.copying = times{st.Atim, st.Mtim}, err == nil
	return err
}

func (u *Union) endCopy(x *filling, fd int) error {
	u.fills.mu.Lock()
	defer u.fills.mu.Unlock()
	x.copying = false
	if x.capability != nil {
		err := u.change("setxattr", func() error { return unix.Fsetxattr(fd, capability, x.capability, 0) })
		if err != nil && err != unix.EPERM { // who may not: it is lost with the write that follows, too
			return err
		}
	}
	return u.setTimes(fd, x.times)
}

// setCapability has do set the capability of a node, or with nil remove it.
func (u *Union) setCapability(n *node, value []byte, do func() error) error {
	u.fills.mu.Lock()
	defer u.fills.mu.Unlock()
	err := do()
	if x := u.fills.byNode[n.id]; err == nil && x != nil && x.copying {
		x.capability = value
	}
	return err
}

// retime is utimensat(2) of a node, open as fd.
func (u *Union) retime(n *node, fd int, t times) error {
	if n.full.Load() {
		return u.setTimes(fd, t)
	}
	u.fills.mu.Lock()
	defer u.fills.mu.Unlock()
	x := u.fills.byNode[n.id]
	if x == nil || !x.copying {
		return u.setTimes(fd, t)
	}
	for i := range t {
		switch t[i].Nsec {
		case unix.UTIME_OMIT:
			t[i] = x.times[i]
		case unix.UTIME_NOW:
			t[i] = unix.NsecToTimespec(time.Now().UnixNano())
		}
	}
	x.times = t
	return u.setTimes(fd, t)
}

// statCopied is statLocked of a node whose data may be being copied.
//
// Preconditions: mu is held, at least for reading; n is not bare.
func (u *Union) statCopied(n *node, st *unix.Stat_t) error {
	u.fills.mu.Lock()
	defer u.fills.mu.Unlock()
	if err := u.statLocked(n, st); err != nil {
		return err
	}
	if x := u.fills.byNode[n.id]; x != nil && x.copying {
		st.Atim, st.Mtim = x.times[0], x.times[1]
	}
	return nil
}

// copyLower copies n bytes of a lower file to fd, whose range is a hole: so
// are those of the lower then. It copies less only if the lower ends.
func (u *Union) copyLower(ctx context.Context, nid erofs.NID, from int64, fd int, to, n int64, lazy bool) error {
	return u.extents(ctx, nid, from, n, func(src *os.File, at, done, n int64) error {
		if src == nil {
			return nil
		}
		err := copyRange(int(src.Fd()), at, fd, to+done, n)
		runtime.KeepAlive(src)
		if err != nil {
			return err
		}
		if !lazy {
			// Advice: what fails is written by the sync that follows.
			unix.SyncFileRange(fd, to+done, n, unix.SYNC_FILE_RANGE_WRITE)
		}
		return nil
	})
}

// extents calls do for the pieces, at most copyStep long, of a range of a lower
// file, with the bytes present: n of them at at of src, or in a hole if src
// is nil; done is how far from the range's begin. It ends where the file does.
func (u *Union) extents(ctx context.Context, nid erofs.NID, from, n int64, do func(src *os.File, at, done, n int64) error) error {
	for done := int64(0); done < n; {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, err := u.img.Extent(nid, uint64(from+done))
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("lower file: %w", err)
		}
		piece := n - done
		if e.Len < uint64(piece) {
			piece = int64(e.Len)
		}
		var src *os.File
		if !e.Hole {
			piece = min(piece, copyStep)
			d, err := u.low.Data(e.Device)
			if err != nil {
				return fmt.Errorf("lower file: %w", err)
			}
			if src, err = d.Fill(ctx, int64(e.Off), piece, int64(e.Off+e.Len)); err != nil {
				return err
			}
		}
		if err := do(src, int64(e.Off), done, piece); err != nil {
			return err
		}
		done += piece
	}
	return nil
}

// copyRange copies n bytes from one file to another, in the kernel where it can.
func copyRange(src int, from int64, dst int, to, n int64) error {
	for n > 0 {
		roff, woff := from, to
		got, err := unix.CopyFileRange(src, &roff, dst, &woff, int(n), 0)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EXDEV || err == unix.ENOSYS || err == unix.EOPNOTSUPP || err == unix.EINVAL:
			return copyBytes(src, from, dst, to, n)
		case err != nil:
			return err
		case got == 0:
			return fmt.Errorf("data file ends at %d, wanted %d bytes more: %w", from, n, io.ErrUnexpectedEOF)
		}
		from, to, n = from+int64(got), to+int64(got), n-int64(got)
	}
	return nil
}

// copyBytes is copyRange by hand.
func copyBytes(src int, from int64, dst int, to, n int64) error {
	buf := make([]byte, min(n, 1<<20))
	for n > 0 {
		got, err := unix.Pread(src, buf[:min(n, int64(len(buf)))], from)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if got == 0 {
			return fmt.Errorf("data file ends at %d, wanted %d bytes more: %w", from, n, io.ErrUnexpectedEOF)
		}
		if _, err := writeAll(dst, buf[:got], to, 0); err != nil {
			return err
		}
		from, to, n = from+int64(got), to+int64(got), n-int64(got)
	}
	return nil
}

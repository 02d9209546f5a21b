package overlay

import (
	"context"
	"os"
	"runtime"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/lower"
	"golang.org/x/sys/unix"
)

// lowerFile returns where the data of a regular file in the lower is; ok is
// false if it is in the upper.
func (u *Union) lowerFile(id uint64, n *node) (nid erofs.NID, ok bool) {
	switch {
	case n == nil:
		return u.low.NID(id), true
	case n.full.Load():
		return 0, false
	}
	return n.lower, true
}

// Read fills buf: of a file that is not full from the lower.
func (u *Union) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n := u.get(in.NodeId)
	if nid, ok := u.lowerFile(in.NodeId, n); ok {
		ctx := lower.NewRequest(cancel, u.gone)
		defer ctx.End()
		got, err := u.low.Read(ctx, nid, in.Offset, buf)
		if err != nil {
			return nil, u.status("read", err)
		}
		return fuse.ReadResultData(buf[:got]), fuse.OK
	}
	f, err := u.acquire(n, false)
	if err != nil {
		return nil, u.status("read", err)
	}
	defer u.files.unpin(f)
	got, err := readAll(f.fd, buf, int64(in.Offset))
	if err != nil {
		return nil, u.status("read", err)
	}
	return fuse.ReadResultData(buf[:got]), fuse.OK
}

// QuickRead is Read if that need not wait, neither for a lock nor for a disk.
func (u *Union) QuickRead(id, off uint64, buf []byte) (int, bool) {
	if !u.mu.TryRLock() {
		return 0, false
	}
	n := u.nodes[id]
	u.mu.RUnlock()
	if nid, ok := u.lowerFile(id, n); ok {
		return u.low.TryRead(&u.blind.lower, nid, off, buf)
	}
	if u.blind.upper.Load() {
		return 0, false
	}
	f := u.files.pinOpen(id)
	if f == nil {
		return 0, false
	}
	defer u.files.unpin(f)
	got, err := unix.Preadv2(f.fd, [][]byte{buf}, int64(off), unix.RWF_NOWAIT)
	switch {
	case err == unix.EOPNOTSUPP:
		u.blind.upper.Store(true)
		return 0, false
	case err != nil:
		return 0, false
	case got < len(buf):
		// The end of the file, or of what is in memory.
		var st unix.Stat_t
		if err := unix.Fstat(f.fd, &st); err != nil || int64(off)+int64(got) < st.Size {
			return 0, false
		}
	}
	return got, true
}

// Complete reports whether a file's data is in the upper, so that to change it
// needs no copy; false also where that cannot be told at once.
func (u *Union) Complete(id uint64) bool {
	if !u.mu.TryRLock() {
		return false
	}
	defer u.mu.RUnlock()
	n := u.nodes[id]
	return n != nil && n.full.Load()
}

// readAll reads until buf is full or the file ends.
func readAll(fd int, buf []byte, off int64) (done int, err error) {
	for done < len(buf) {
		got, err := unix.Pread(fd, buf[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, err
		}
		if got == 0 {
			break
		}
		done += got
	}
	return done, nil
}

// writeAll writes all of buf, or returns how much it could.
func writeAll(fd int, buf []byte, off int64, flags int) (done int, err error) {
	for done < len(buf) {
		var got int
		if flags == 0 {
			got, err = unix.Pwrite(fd, buf[done:], off+int64(done))
		} else {
			got, err = unix.Pwritev2(fd, [][]byte{buf[done:]}, off+int64(done), flags)
		}
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, err
		}
		done += got
	}
	return done, nil
}

// Write writes to a cached file; those in passthrough the kernel writes to
// itself. The offset of an appending write is the kernel's, which holds the
// inode's lock and knows the size.
func (u *Union) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	u.files.wrote()
	n, s := u.filled(caller{cancel, in.Pid}, in.NodeId)
	if s != fuse.OK {
		return 0, s
	}
	f, err := u.acquire(n, true)
	if err != nil {
		return 0, u.status("write", err)
	}
	defer u.files.unpin(f)
	if in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0 {
		if err := u.killPrivileges(f); err != nil {
			return 0, u.status("write", err)
		}
	}
	flags := 0
	switch {
	case u.o.Volatile:
	case in.Flags&unix.O_SYNC == unix.O_SYNC:
		flags = unix.RWF_SYNC
	case in.Flags&unix.O_DSYNC != 0:
		flags = unix.RWF_DSYNC
	}
	u.o.Step("write")
	done, err := writeAll(f.fd, data, int64(in.Offset), flags)
	if done > 0 && (err == nil || in.WriteFlags&fuse.WRITE_CACHE == 0) {
		return uint32(done), fuse.OK
	}
	// Of what it writes from its cache the kernel does not look at the count.
	return 0, u.status("write", err)
}

// Lseek finds data and holes.
func (u *Union) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return fuse.EINVAL
	}
	// What was written may still be with the kernel, in its cache or in a
	// mapping, and would be taken for a hole.
	flushed := u.writeback()
	if flushed {
		u.flush(in.NodeId, in.Offset)
	}
	off, size, err := u.seek(in.NodeId, in.Offset, in.Whence)
	hole := err == unix.ENXIO && in.Offset < size || err == nil && off != in.Offset
	if in.Whence == unix.SEEK_HOLE {
		hole = err == nil && off < size
	}
	if hole && !flushed && u.files.mayBeMapped(in.NodeId) {
		u.flush(in.NodeId, in.Offset)
		off, _, err = u.seek(in.NodeId, in.Offset, in.Whence)
	}
	out.Offset = off
	return u.status("lseek", err)
}

// maxFlushes is how many at once wait for the kernel, each with a thread.
const maxFlushes = 16

// flush has the kernel write what it keeps of a file from off on.
func (u *Union) flush(id, off uint64) {
	u.flushes <- struct{}{}
	defer func() { <-u.flushes }()
	u.invalidate(id, int64(off), 0)
}

// seek is lseek(2) of a file as it is here; with it comes the file's size.
func (u *Union) seek(id, off uint64, whence uint32) (at, size uint64, err error) {
	n := u.get(id)
	if nid, ok := u.lowerFile(id, n); ok {
		var a erofs.Attr
		if err := u.img.Stat(nid, &a); err != nil {
			return 0, 0, err
		}
		at, err = u.low.Seek(nid, off, whence)
		return at, a.Size, err
	}
	f, err := u.acquire(n, false)
	if err != nil {
		return 0, 0, err
	}
	defer u.files.unpin(f)
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return 0, 0, err
	}
	got, err := unix.Seek(f.fd, int64(off), int(whence))
	return uint64(max(got, 0)), uint64(st.Size), err
}

// Fallocate does what the upper's file system can.
func (u *Union) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	u.files.wrote()
	n, s := u.filled(caller{cancel, in.Pid}, in.NodeId)
	if s != fuse.OK {
		return s
	}
	f, err := u.acquire(n, true)
	if err != nil {
		return u.status("fallocate", err)
	}
	defer u.files.unpin(f)
	if err := u.killUnlessRoot(f, in.Uid); err != nil {
		return u.status("fallocate", err)
	}
	u.o.Step("fallocate")
	for {
		err := unix.Fallocate(f.fd, in.Mode, int64(in.Offset), int64(in.Length))
		if err != unix.EINTR || cancelled(cancel) {
			return u.status("fallocate", err)
		}
	}
}

func cancelled(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// copyMost bounds one COPY_FILE_RANGE: the caller goes on with the rest.
const copyMost = 1 << 30

// CopyFileRange copies between files of the mount, in the kernel.
func (u *Union) CopyFileRange(cancel <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	u.files.wrote()
	if in.Flags != 0 {
		return 0, fuse.EINVAL
	}
	dst, s := u.filled(caller{cancel, in.Pid}, in.NodeIdOut)
	if s != fuse.OK {
		return 0, s
	}
	to, err := u.acquire(dst, true)
	if err != nil {
		return 0, u.status("copy", err)
	}
	defer u.files.unpin(to)
	if err := u.killUnlessRoot(to, in.Uid); err != nil {
		return 0, u.status("copy", err)
	}
	u.o.Step("copy")
	ctx := lower.NewRequest(cancel, u.gone)
	defer ctx.End()
	n := min(int64(in.Len), copyMost)
	src := u.get(in.NodeId)
	var done int64
	if nid, ok := u.lowerFile(in.NodeId, src); ok {
		done, err = u.copyFromLower(ctx, nid, int64(in.OffIn), to.fd, int64(in.OffOut), n)
	} else {
		done, err = u.copyFromUpper(ctx, src, int64(in.OffIn), to.fd, int64(in.OffOut), n)
	}
	if done > 0 {
		return uint32(done), fuse.OK
	}
	return 0, u.status("copy", err)
}

func (u *Union) copyFromUpper(ctx context.Context, src *node, from int64, fd int, to, n int64) (done int64, err error) {
	f, err := u.acquire(src, false)
	if err != nil {
		return 0, err
	}
	defer u.files.unpin(f)
	for done < n && ctx.Err() == nil {
		roff, woff := from+done, to+done
		got, err := unix.CopyFileRange(f.fd, &roff, fd, &woff, int(min(n-done, 16*copyStep)), 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil || got == 0 {
			return done, err
		}
		done += int64(got)
	}
	return done, ctx.Err()
}

// copyFromLower copies a lower file's range over what is at to of fd.
func (u *Union) copyFromLower(ctx context.Context, nid erofs.NID, from int64, fd int, to, n int64) (done int64, err error) {
	err = u.extents(ctx, nid, from, n, func(src *os.File, at, begin, n int64) error {
		if src != nil {
			err = copyRange(int(src.Fd()), at, fd, to+begin, n)
			runtime.KeepAlive(src)
		} else {
			err = makeHole(fd, to+begin, n)
		}
		if err == nil {
			done = begin + n
		}
		return err
	})
	return done, err
}

// makeHole makes a range of a file zeros, which it may lie behind.
func makeHole(fd int, off, n int64) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if off < st.Size {
		err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		if err == unix.EOPNOTSUPP {
			err = writeZeros(fd, off, n)
		}
		if err != nil {
			return err
		}
	}
	if off+n > st.Size {
		return unix.Ftruncate(fd, off+n)
	}
	return nil
}

func writeZeros(fd int, off, n int64) error {
	zeros := make([]byte, min(n, 1<<20))
	for n > 0 {
		done, err := writeAll(fd, zeros[:min(n, int64(len(zeros)))], off, 0)
		if err != nil {
			return err
		}
		off, n = off+int64(done), n-int64(done)
	}
	return nil
}

package fs

import (
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/imgfs/imgfs/internal/lower"
	"golang.org/x/sys/unix"
)

// loopback shows a directory of the host, writable, with the promises of a
// Writer that its tests need and no more: inodes are never forgotten.
type loopback struct {
	fuse.RawFileSystem
	open   func(in *fuse.OpenIn) fuse.Status // what OPEN is answered; nil: OK
	pass   bool                              // pass files through that are opened for writing
	kernel Kernel

	mu      sync.Mutex
	nodes   map[uint64]int // O_PATH
	handles map[uint64]*handle
	inUse   map[uint64]*handle // by node: the backing id that all handles of a node share

	panics   atomic.Bool // the next request panics
	extended atomic.Uint32
	biggest  atomic.Int64 // bytes of the largest WRITE
}

type handle struct {
	fd   int
	id   int32
	uses int
}

func (*loopback) Writable() {}

func (*loopback) Complete(uint64) bool { return true }

func openLoopback(root string) (*loopback, error) {
	fd, err := unix.Open(root, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &loopback{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		nodes:         map[uint64]int{fuse.FUSE_ROOT_ID: fd},
		handles:       map[uint64]*handle{},
		inUse:         map[uint64]*handle{},
	}, nil
}

func newLoopback(t testing.TB, root string) *loopback {
	l, err := openLoopback(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, fd := range l.nodes {
			unix.Close(fd)
		}
	})
	return l
}

func (l *loopback) Attach(k Kernel) { l.kernel = k }

// QuickRead makes it one that waits in few requests alone.
func (l *loopback) QuickRead(uint64, uint64, []byte) (int, bool) {
	if l.panics.Swap(false) {
		panic("quick read")
	}
	return 0, false
}

func (l *loopback) node(id uint64) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.nodes[id]
}

func proc(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

func status(err error) fuse.Status { return fuse.ToStatus(err) }

func (l *loopback) entry(dir int, name string, out *fuse.EntryOut) fuse.Status {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return status(err)
	}
	l.attr(fd, &out.Attr)
	l.mu.Lock()
	if old, ok := l.nodes[out.Ino]; ok && l.same(old, fd) {
		unix.Close(fd)
	} else {
		l.nodes[out.Ino] = fd
	}
	l.mu.Unlock()
	out.NodeId, out.EntryValid, out.AttrValid = out.Ino, lower.Forever, lower.Forever
	return fuse.OK
}

func (l *loopback) same(a, b int) bool {
	var x, y unix.Stat_t
	return unix.Fstat(a, &x) == nil && unix.Fstat(b, &y) == nil && x.Ino == y.Ino
}

func (l *loopback) attr(fd int, out *fuse.Attr) {
	var st unix.Stat_t
	unix.Fstat(fd, &st)
	*out = fuse.Attr{
		Ino: st.Ino, Size: uint64(st.Size), Blocks: uint64(st.Blocks), Mode: st.Mode, Nlink: uint32(st.Nlink), Blksize: 4096,
		Owner: fuse.Owner{Uid: st.Uid, Gid: st.Gid}, Rdev: uint32(st.Rdev),
		Atime: uint64(st.Atim.Sec), Mtime: uint64(st.Mtim.Sec), Ctime: uint64(st.Ctim.Sec),
		Atimensec: uint32(st.Atim.Nsec), Mtimensec: uint32(st.Mtim.Nsec), Ctimensec: uint32(st.Ctim.Nsec),
	}
}

func (l *loopback) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if l.panics.Swap(false) {
		panic("lookup")
	}
	s := l.entry(l.node(in.NodeId), name, out)
	if s == fuse.ENOENT {
		out.EntryValid = lower.Forever
		return fuse.OK // node 0: not there, for ever
	}
	return s
}

func (l *loopback) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	l.attr(l.node(in.NodeId), &out.Attr)
	out.AttrValid = lower.Forever
	return fuse.OK
}

func (l *loopback) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	path := proc(l.node(in.NodeId))
	if m, ok := in.GetMode(); ok {
		if err := unix.Chmod(path, m); err != nil {
			return status(err)
		}
	}
	if n, ok := in.GetSize(); ok {
		if err := unix.Truncate(path, int64(n)); err != nil {
			return status(err)
		}
	}
	if t, ok := in.GetMTime(); ok {
		if err := os.Chtimes(path, t, t); err != nil {
			return status(err)
		}
	}
	l.attr(l.node(in.NodeId), &out.Attr)
	out.AttrValid = lower.Forever
	return fuse.OK
}

func (l *loopback) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	l.extended.Store(uint32(in.TotalExtlen))
	dir := l.node(in.NodeId)
	if err := unix.Mkdirat(dir, name, in.Mode&^in.Umask); err != nil {
		return status(err)
	}
	return l.entry(dir, name, out)
}

func (l *loopback) Unlink(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return status(unix.Unlinkat(l.node(in.NodeId), name, 0))
}

func (l *loopback) Rmdir(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return status(unix.Unlinkat(l.node(in.NodeId), name, unix.AT_REMOVEDIR))
}

func (l *loopback) Rename(_ <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	return status(unix.Renameat2(l.node(in.NodeId), from, l.node(in.Newdir), to, uint(in.Flags)))
}

func (l *loopback) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	l.extended.Store(uint32(in.TotalExtlen))
	dir := l.node(in.NodeId)
	fd, err := unix.Openat(dir, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NOFOLLOW, in.Mode&^in.Umask&0o7777)
	if err != nil {
		return status(err)
	}
	if s := l.entry(dir, name, &out.EntryOut); s != fuse.OK {
		return s
	}
	if l.open != nil && l.kernel.NoOpen() { // there will be no RELEASE
		return status(unix.Close(fd))
	}
	return l.opened(out.NodeId, fd, true, &out.OpenOut)
}

func (l *loopback) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if l.open != nil {
		if s := l.open(in); s != fuse.OK {
			return s
		}
	}
	write := in.Flags&unix.O_ACCMODE != unix.O_RDONLY
	how := unix.O_RDONLY
	if write {
		how = unix.O_RDWR
	}
	fd, err := unix.Open(proc(l.node(in.NodeId)), how|unix.O_CLOEXEC, 0)
	if err != nil {
		return status(err)
	}
	return l.opened(in.NodeId, fd, write, out)
}

func (l *loopback) opened(node uint64, fd int, write bool, out *fuse.OpenOut) fuse.Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.inUse[node]
	if h == nil {
		h = &handle{fd: fd}
		if l.pass && write && l.kernel.Passthrough() {
			id, err := l.kernel.OpenBacking(fd)
			if err != nil {
				return status(err)
			}
			h.id = id
		}
		l.inUse[node] = h
		l.handles[node] = h
	} else {
		unix.Close(fd)
	}
	h.uses++
	out.Fh = node
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	if h.id != 0 {
		out.OpenFlags, out.BackingID = fuse.FOPEN_PASSTHROUGH, h.id
	}
	return fuse.OK
}

func (l *loopback) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.handles[in.Fh]
	if h.uses--; h.uses > 0 {
		return
	}
	delete(l.handles, in.Fh)
	delete(l.inUse, in.Fh)
	if h.id != 0 {
		l.kernel.CloseBacking(h.id)
	}
	unix.Close(h.fd)
}

// with runs do with a descriptor of the inode.
func (l *loopback) with(node, fh uint64, do func(fd int) error) fuse.Status {
	l.mu.Lock()
	h := l.handles[fh]
	l.mu.Unlock()
	if h != nil && fh != 0 {
		return status(do(h.fd))
	}
	fd, err := unix.Open(proc(l.node(node)), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return status(err)
	}
	defer unix.Close(fd)
	return status(do(fd))
}

func (l *loopback) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n := 0
	s := l.with(in.NodeId, in.Fh, func(fd int) (err error) { n, err = unix.Pread(fd, buf, int64(in.Offset)); return err })
	return fuse.ReadResultData(buf[:max(n, 0)]), s
}

func (l *loopback) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	if l.panics.Swap(false) {
		panic("write")
	}
	for n := int64(len(data)); ; {
		old := l.biggest.Load()
		if n <= old || l.biggest.CompareAndSwap(old, n) {
			break
		}
	}
	n := 0
	s := l.with(in.NodeId, in.Fh, func(fd int) (err error) { n, err = unix.Pwrite(fd, data, int64(in.Offset)); return err })
	return uint32(max(n, 0)), s
}

func (l *loopback) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return l.with(in.NodeId, in.Fh, unix.Fsync)
}

func (l *loopback) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }
func (l *loopback) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status {
	return fuse.ENOSYS
}
func (l *loopback) GetXAttr(<-chan struct{}, *fuse.InHeader, string, []byte) (uint32, fuse.Status) {
	return 0, fuse.ENODATA
}

func (l *loopback) Ioctl(_ <-chan struct{}, in *fuse.IoctlIn, data []byte, out *fuse.IoctlOut, reply []byte) fuse.Status {
	for i := range reply {
		reply[i] = byte(in.Cmd) // whatever is asked for
	}
	return fuse.OK
}

func (l *loopback) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	dir := l.node(in.NodeId)
	names, err := os.ReadDir(proc(dir))
	if err != nil {
		return status(err)
	}
	for i, e := range names {
		if uint64(i) < in.Offset {
			continue
		}
		var st unix.Stat_t
		if unix.Fstatat(dir, e.Name(), &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
			continue
		}
		entry := out.AddDirLookupEntry(fuse.DirEntry{Name: e.Name(), Mode: st.Mode, Ino: st.Ino, Off: uint64(i) + 1})
		if entry == nil {
			break
		}
		l.entry(dir, e.Name(), entry)
	}
	return fuse.OK
}

func (l *loopback) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	*out = fuse.StatfsOut{Blocks: 1 << 30, Bfree: 1 << 30, Bavail: 1 << 30, Bsize: 4096, NameLen: 255, Frsize: 4096}
	return fuse.OK
}

// serveLoopback mounts l for writing.
func serveLoopback(t testing.TB, l *loopback) (string, *Server) {
	t.Helper()
	needRoot(t)
	dir := publicDir(t)
	return dir, serveCold(t, l, dir, MountFlags{Writable: true, Suid: true})
}

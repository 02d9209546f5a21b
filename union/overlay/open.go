package overlay

import (
	"runtime"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// What OPEN is answered. A handle makes passthrough possible, and costs each
// open and close of a small file several times what it takes without: ENOSYS,
// once, and the kernel asks no more. So a mount that is only read goes without
// handles, for good; one that was written to while it was young keeps them.
const (
	undecided int32 = iota
	handles
	noHandles
)

const (
	// readsUntil is how many files are opened, of a mount that nobody writes
	// to, until it goes without handles.
	readsUntil = 1024

	// passthroughFrom is the size, in bytes, from which a file of the upper is
	// passed through to those who only read: for less, registering it costs
	// more than reading it through the page cache.
	passthroughFrom = 128 << 10
)

// kernel is package fs's Kernel.
type kernel = interface {
	OpenBacking(fd int) (id int32, err error)
	CloseBacking(id int32) error
	Passthrough() bool
	NoOpen() bool
	Writeback() bool
}

// invalidator is a kernel that can be told to forget attributes (off < 0), or
// these and an inode's pages from off on (length 0: to the end).
type invalidator interface {
	Invalidate(node uint64, off, length int64) error
}

// Attach is told which kernel the union is mounted in, before the first
// request.
func (u *Union) Attach(k kernel) {
	u.kernel = k
	u.files.policy.Store(undecided) // what New does to a fresh upper is nobody's write
	if !k.Passthrough() {
		u.files.policy.Store(noHandles)
	}
}

// Writable says that this file system can be changed; see package fs.
func (u *Union) Writable() {}

// passes reports whether files can be passed through.
func (u *Union) passes() bool { return u.kernel != nil && u.kernel.Passthrough() }

func (u *Union) writeback() bool { return u.kernel != nil && u.kernel.Writeback() }

// invalidate has the kernel forget what it knows of an inode; see invalidator.
func (u *Union) invalidate(id uint64, off, length int64) {
	if k, ok := u.kernel.(invalidator); ok {
		k.Invalidate(id, off, length) // of an inode that the kernel does not have there is nothing to forget
	}
}

// wrote notes that the mount is being changed.
func (t *openFiles) wrote() {
	if t.policy.Load() == undecided {
		t.policy.CompareAndSwap(undecided, handles)
	}
}

// decide returns what OPEN is to be answered from now on.
func (t *openFiles) decide(write bool) int32 {
	if p := t.policy.Load(); p != undecided {
		return p
	}
	if write {
		t.wrote()
		return t.policy.Load()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.opens++; t.opens > readsUntil && t.policy.CompareAndSwap(undecided, noHandles) {
		// No RELEASE will come for the handles there are. None of them is of
		// passthrough, which begins with the first write.
		for id, f := range t.byNode {
			f.handles, f.mapped = 0, 0
			if f.users == 0 && f.fd < 0 {
				delete(t.byNode, id)
			}
		}
	}
	return t.policy.Load()
}

// Open answers with a handle that says nothing: all that is known of an open
// file is known by its node. O_TRUNC does not come here, but as a SETATTR after
// this, so that nothing of a lower file is copied before it is written to.
func (u *Union) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	write := in.Flags&unix.O_ACCMODE != unix.O_RDONLY
	if u.files.decide(write) == noHandles {
		return fuse.ENOSYS
	}
	if write && in.Flags&unix.O_APPEND != 0 && u.passes() && !u.isOpen(in.NodeId) {
		// Nobody truncates what he appends to: it is needed in the upper, and
		// in passthrough from the start.
		if _, s := u.filled(caller{cancel, in.Pid}, in.NodeId); s != fuse.OK {
			return s
		}
		u.invalidate(in.NodeId, -1, 0)
	}
	f := u.files.pin(in.NodeId)
	defer u.files.unpin(f)
	f.change.Lock()
	defer f.change.Unlock()
	m, backing := f.mode, f.backing
	if f.handles == 0 {
		m, backing = u.choose(f, in.NodeId, write)
	}
	u.files.mu.Lock()
	if u.files.policy.Load() == noHandles {
		u.files.mu.Unlock()
		return fuse.ENOSYS
	}
	f.handles++
	f.mode, f.backing = m, backing
	first := false
	if in.Flags&unix.O_ACCMODE == unix.O_RDWR {
		f.mapped++
		first = f.mapped == 1 && m == passthrough
	}
	u.files.mu.Unlock()
	if first {
		// From here on only we know the times.
		u.invalidate(in.NodeId, -1, 0)
	}
	opened(out, m, backing)
	return fuse.OK
}

func opened(out *fuse.OpenOut, m mode, backing int32) {
	if m == passthrough {
		// Without KEEP_CACHE the kernel drops the pages it has: nobody looks
		// after them until the last RELEASE.
		out.OpenFlags |= fuse.FOPEN_PASSTHROUGH
		out.BackingID = backing
		return
	}
	out.OpenFlags |= fuse.FOPEN_KEEP_CACHE
}

func (u *Union) isOpen(id uint64) bool {
	u.files.mu.Lock()
	defer u.files.mu.Unlock()
	f := u.files.byNode[id]
	return f != nil && f.handles > 0
}

// choose decides on the mode of an inode that nobody has open.
//
// Preconditions: f.change is held, and f is pinned.
func (u *Union) choose(f *file, id uint64, write bool) (mode, int32) {
	if u.files.policy.Load() != handles || !u.passes() {
		return cached, 0
	}
	n := u.get(id)
	if n == nil || !n.isRegular() || !n.full.Load() {
		return cached, 0
	}
	var st unix.Stat_t
	if err := u.stat(n, &st); err != nil {
		return cached, 0
	}
	if st.Size < passthroughFrom && !write || killable(st.Mode) {
		return cached, 0
	}
	if err := u.openLocked(f, n, false); err != nil {
		return cached, 0
	}
	return u.register(f.fd)
}

// register makes fd known to the kernel. Where that cannot be, as for a file
// of a stacked file system, the file is cached: never an error.
//
// The kernel will write to the file as the one who registered it. That is
// somebody without CAP_FSETID, so that a file that becomes set-uid while it is
// open does not stay so when it is written to.
func (u *Union) register(fd int) (mode, int32) {
	var backing int32
	err := withoutCapability(unix.CAP_FSETID, func() (err error) {
		backing, err = u.kernel.OpenBacking(fd)
		return err
	})
	if err != nil {
		return cached, 0
	}
	return passthrough, backing
}

// withoutCapability calls do as a thread that lacks an effective capability.
func withoutCapability(c uint, do func() error) error {
	runtime.LockOSThread()
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var had [2]unix.CapUserData
	err := unix.Capget(&head, &had[0])
	if err != nil || had[0].Effective&(1<<c) == 0 {
		runtime.UnlockOSThread()
		if err != nil {
			return err
		}
		return do()
	}
	lacks := had
	lacks[0].Effective &^= 1 << c
	if err = unix.Capset(&head, &lacks[0]); err == nil {
		err = do()
		if unix.Capset(&head, &had[0]) != nil {
			return err // the thread is of no use any more: it ends with its goroutine
		}
	}
	runtime.UnlockOSThread()
	return err
}

// Release counts.
func (u *Union) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	f := u.files.pin(in.NodeId)
	defer u.files.unpin(f)
	f.change.Lock()
	defer f.change.Unlock()
	u.files.mu.Lock()
	var backing int32
	if f.handles > 0 {
		f.handles--
		if in.Flags&unix.O_ACCMODE == unix.O_RDWR && f.mapped > 0 {
			f.mapped--
		}
		if f.handles == 0 {
			backing = f.backing
			f.mode, f.backing, f.mapped = cached, 0, 0
		}
	}
	u.files.mu.Unlock()
	if backing != 0 {
		u.kernel.CloseBacking(backing)
	}
}

// newFile makes fd, open on a file that was just made, the descriptor of its
// node, and says in out how it is open. It takes fd.
func (u *Union) newFile(n *node, fd int, in *fuse.CreateIn, out *fuse.CreateOut) {
	policy := u.files.decide(true)
	f := u.files.pin(n.id)
	defer u.files.unpin(f)
	f.change.Lock()
	defer f.change.Unlock()
	m, backing := cached, int32(0)
	if policy == handles && u.passes() && !killable(out.Attr.Mode) {
		m, backing = u.register(fd)
	}
	u.files.mu.Lock()
	f.fd = fd
	if policy == handles {
		f.handles++
		f.mode, f.backing = m, backing
		if in.Flags&unix.O_ACCMODE == unix.O_RDWR {
			f.mapped++
		}
	}
	u.files.mu.Unlock()
	opened(&out.OpenOut, m, backing)
	if m == passthrough && in.Flags&unix.O_ACCMODE == unix.O_RDWR {
		out.AttrValid = 0
	}
}

// unseen reports whether the attributes of an inode with a mode may change
// without FUSE noticing, by who writes to the file in the upper.
func (u *Union) unseen(id uint64, mode uint32) bool {
	t := &u.files
	if t.policy.Load() != handles {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.byNode[id]
	return f != nil && f.mode == passthrough && (f.mapped > 0 || killable(mode))
}

// mayBeMapped reports whether the pages of an inode that the kernel caches may
// have been written to by a mapping. Without handles nobody says.
func (t *openFiles) mayBeMapped(id uint64) bool {
	if t.policy.Load() == noHandles {
		return true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.byNode[id]
	return f != nil && f.mode == cached && f.mapped > 0
}

// Flush is nothing to be asked for at each close(2).
func (u *Union) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

package fs

import (
	"fmt"
	"log/slog"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// QuickReader is a file system that can often answer a READ without waiting.
type QuickReader interface {
	// QuickRead is Read into buf; ok is false if it would have to wait.
	QuickRead(node, off uint64, buf []byte) (n int, ok bool)
}

// Writer is a file system that can be changed. It owes the kernel what
// [Serve] promises for it:
//
//   - It clears set-uid, set-gid and capabilities at a WRITE, a SETATTR of the
//     size, an OPEN or a CREATE that carries the flag for it, and at every
//     change of owner (HANDLE_KILLPRIV_V2).
//   - It applies umask and default ACLs, whose requests carry the umask, and
//     keeps the ACLs, which come as extended attributes; the kernel checks them.
//   - A request that makes a name has TotalExtlen != 0 if the caller is in the
//     directory's group but by none of the IDs in the request
//     (CREATE_SUPP_GROUP); nothing else is ever in such an extension.
//   - OPEN comes without O_TRUNC, a SETATTR of the size follows.
//   - Locks, of all three kinds, are the kernel's own and never come here.
type Writer interface{ Writable() }

// Attacher is a file system that wants to know its kernel. Attach is called
// once, before the first request.
type Attacher interface{ Attach(k Kernel) }

// Kernel is what a file system may ask of the kernel that it is mounted in.
// It is an alias so that a file system need not import this package.
type Kernel = interface {
	// OpenBacking registers a regular file for OPEN's and CREATE's replies
	// with FOPEN_PASSTHROUGH; the descriptor may be closed after. The kernel
	// keeps the file until CloseBacking and the last RELEASE.
	OpenBacking(fd int) (id int32, err error)
	CloseBacking(id int32) error
	// Passthrough tells whether OpenBacking can work here; for a file on a
	// stacked file system it fails with ELOOP all the same.
	Passthrough() bool
	// NoOpen tells whether an OPEN has been answered ENOSYS: the kernel sends
	// none after that.
	NoOpen() bool
	// Writeback tells whether the kernel keeps what was written, and size and
	// times of files with it, until it sees fit.
	Writeback() bool
}

// Completer is a [Writer] that knows of which files the data is where it is
// written to: their small WRITEs and their OPENs need not wait for a copy.
type Completer interface {
	Complete(node uint64) bool
}

// Failer is a file system that can tell how often and why it failed last.
type Failer interface {
	Failures() (uint64, string)
}

// privileged tells whether the kernel lets this process register files for
// passthrough: CAP_SYS_ADMIN, in the initial user namespace.
func privileged() bool {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	err := unix.Capget(&head, &data[0])
	return err == nil && data[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0 && InInitialUserNamespace()
}

func (s *Server) mountOptions() *fuse.MountOptions {
	o := &fuse.MountOptions{
		Name:                 subtype,
		MaxWrite:             maxWrite, // go-fuse derives max_pages from it, the limit of READ as well
		MaxBackground:        background,
		EnableSymlinkCaching: true,
		// Nobody else changes anything: no invalidation by mtime, which would
		// also ask for attributes whenever a cached directory is read again.
		ExplicitDataCacheControl: true,
		ExtraCapabilities:        fuse.CAP_NO_OPENDIR_SUPPORT | fuse.CAP_ASYNC_DIO,
		// Useless to a read-only file system, which answers no OPEN, and it
		// would forbid a second stacked file system above.
		DisabledCapabilities: fuse.CAP_PASSTHROUGH,
		MaxStackDepth:        1,
		Logger:               slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		PanicHandler: func(v any) fuse.Status {
			s.log.Error("file system: panic", "value", v)
			return fuse.EIO
		},
	}
	if !s.writable {
		return o
	}
	// Without ATOMIC_O_TRUNC the kernel takes ENOSYS to OPEN and still
	// truncates; without POSIX_LOCKS and FLOCK_LOCKS it keeps all locks
	// itself, as nobody else sees the files.
	o.EnableAcl = true
	o.ExtraCapabilities |= fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_DONT_MASK | fuse.CAP_SETXATTR_EXT | fuse.CAP_CREATE_SUPP_GROUP
	// Never both: what is cached for one file and passed through for another
	// would have two sets of times.
	if s.passthrough {
		o.DisabledCapabilities &^= fuse.CAP_PASSTHROUGH
	} else {
		o.ExtraCapabilities |= fuse.CAP_WRITEBACK_CACHE
	}
	return o
}

// settle completes the reply to INIT, a fuse_init_out, and takes from it what
// has been agreed on.
func (s *Server) settle(body []byte) {
	const maxReadahead, flags, maxWriteAt, flags2 = 8, 12, 20, 32
	// The kernel takes the lesser of max_readahead and what the mount's owner
	// has set (Mount does); go-fuse would repeat the kernel's offer.
	native.PutUint32(body[maxReadahead:], maxRead)
	if !s.writable {
		// The least there is: each input buffer must be as large.
		native.PutUint32(body[maxWriteAt:], 4096)
		return
	}
	agreed := uint64(native.Uint32(body[flags:]))
	if len(body) >= flags2+4 {
		agreed |= uint64(native.Uint32(body[flags2:])) << 32
	}
	s.passthrough = agreed&fuse.CAP_PASSTHROUGH != 0
	s.writeback = agreed&fuse.CAP_WRITEBACK_CACHE != 0
}

// probeBacking finds out whether passthrough works.
//
// Preconditions: INIT has been answered, and no request been read since.
func (s *Server) probeBacking() {
	if !s.passthrough {
		return
	}
	s.passthrough = false
	fd, err := unix.MemfdCreate(subtype, unix.MFD_CLOEXEC)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	id, err := s.OpenBacking(fd)
	if err != nil {
		s.log.Info("file system: no passthrough", "err", err)
		return
	}
	s.passthrough = s.CloseBacking(id) == nil
}

// The ioctls of /dev/fuse: _IOW(229, 1, struct fuse_backing_map), _IOW(229, 2, uint32_t).
const (
	iocBackingOpen  = 0x4010e501
	iocBackingClose = 0x4004e502
)

// OpenBacking is for the file system, see [Kernel].
func (s *Server) OpenBacking(fd int) (int32, error) {
	m := struct {
		fd      int32
		flags   uint32
		padding uint64
	}{fd: int32(fd)}
	id, err := s.ioctl(iocBackingOpen, unsafe.Pointer(&m))
	if err != nil {
		return 0, fmt.Errorf("register a file: %w", err)
	}
	return int32(id), nil
}

// CloseBacking is for the file system, see [Kernel].
func (s *Server) CloseBacking(id int32) error {
	if _, err := s.ioctl(iocBackingClose, unsafe.Pointer(&id)); err != nil {
		return fmt.Errorf("release a file: %w", err)
	}
	return nil
}

// ioctl asks the mount's device, unless that is closed: its number may be
// another file's by then.
func (s *Server) ioctl(request uintptr, arg unsafe.Pointer) (uintptr, error) {
	s.closing.RLock()
	defer s.closing.RUnlock()
	if s.released {
		return 0, unix.ENODEV
	}
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s.fd), request, uintptr(arg))
	if errno != 0 {
		return 0, errno
	}
	return r, nil
}

// Invalidate has the kernel forget an inode's attributes and, unless off is
// negative, its pages from off on: length bytes, or all with length 0. Those
// that it has not written back it writes first, by WRITEs that this waits for,
// and those that a READ or WRITE in progress is about it waits for: where
// there may be any, only LSEEK may ask for it, which always hands over. It is an error if the kernel knows no such inode.
func (s *Server) Invalidate(node uint64, off, length int64) error {
	const notifyInvalInode = 2
	var b [outHeaderSize + 24]byte // fuse_out_header, fuse_notify_inval_inode_out
	native.PutUint32(b[:], uint32(len(b)))
	native.PutUint32(b[4:], notifyInvalInode)
	native.PutUint64(b[outHeaderSize:], node)
	native.PutUint64(b[outHeaderSize+8:], uint64(off))
	native.PutUint64(b[outHeaderSize+16:], uint64(length))
	if off >= 0 {
		if !s.flushing.TryRLock() {
			return unix.ENODEV
		}
		defer s.flushing.RUnlock()
	}
	s.closing.RLock()
	defer s.closing.RUnlock()
	if s.released {
		return unix.ENODEV
	}
	_, err := unix.Write(s.fd, b[:])
	return err
}

// Passthrough is for the file system, see [Kernel].
func (s *Server) Passthrough() bool { return s.passthrough }

// NoOpen is for the file system, see [Kernel].
func (s *Server) NoOpen() bool { return s.noOpen.Load() }

// Writeback is for the file system, see [Kernel].
func (s *Server) Writeback() bool { return s.writeback }

package overlay

import (
	"encoding/binary"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// flagsShown are the inode flags (chattr(1)) that users may see and set:
	// such as change how a file is stored. Those that forbid changes would
	// forbid them to us.
	flagsShown = flagSecrm | flagUnrm | flagCompr | flagSync | flagNodump | flagNoatime | flagDirsync | flagTopdir | flagNocow

	flagSecrm, flagUnrm, flagCompr, flagSync               = 0x1, 0x2, 0x4, 0x8
	flagImmutable, flagAppend, flagNodump                  = 0x10, 0x20, 0x40
	flagNoatime, flagDirsync, flagTopdir, flagNocow        = 0x80, 0x10000, 0x20000, 0x800000
	iocFsGetXattr                                   uint32 = 0x801c581f
	xattrSize                                              = 28 // struct fsxattr
)

// Ioctl knows the inode flags, as lsattr(1) and chattr(1) have them; any other
// request is not for this kind of file. Nothing is handed to the file system
// on disk that is not understood here.
func (u *Union) Ioctl(cancel <-chan struct{}, in *fuse.IoctlIn, inbuf []byte, out *fuse.IoctlOut, outbuf []byte) fuse.Status {
	switch in.Cmd {
	case unix.FS_IOC_GETFLAGS:
		if len(outbuf) < 4 {
			return fuse.EINVAL
		}
		flags, err := u.inodeFlags(in.NodeId)
		clear(outbuf)
		binary.NativeEndian.PutUint32(outbuf, flags&flagsShown)
		return u.status("ioctl", err)
	case unix.FS_IOC_SETFLAGS:
		if len(inbuf) < 4 {
			return fuse.EINVAL
		}
		return u.setInodeFlags(in.NodeId, binary.NativeEndian.Uint32(inbuf))
	case iocFsGetXattr:
		if len(outbuf) < xattrSize {
			return fuse.EINVAL
		}
		clear(outbuf) // no extended flags, no project
		return fuse.OK
	}
	return fuse.Status(unix.ENOTTY)
}

// inodeFlags returns those of an inode: none of one of the chain, which does
// not record any.
func (u *Union) inodeFlags(id uint64) (uint32, error) {
	n, low := u.inLower(id)
	if low || !n.isRegular() && !n.isDir() {
		return 0, nil
	}
	flags := uint32(0)
	err := u.withOpen(n, func(fd int) (err error) {
		flags, err = getFlags(fd)
		return err
	})
	if err == unix.ENOTTY || err == unix.EOPNOTSUPP {
		err = nil
	}
	return flags, err
}

func (u *Union) setInodeFlags(id uint64, flags uint32) fuse.Status {
	u.files.wrote()
	if flags&^flagsShown != 0 {
		return fuse.Status(unix.EOPNOTSUPP)
	}
	n, s := u.copyUp(id)
	if s != fuse.OK {
		return s
	}
	if !n.isRegular() && !n.isDir() {
		return fuse.Status(unix.ENOTTY)
	}
	return u.status("ioctl", u.withOpen(n, func(fd int) error {
		old, err := getFlags(fd)
		if err != nil || old&flagsShown == flags {
			return err
		}
		return u.change("chattr", func() error { return setFlags(fd, old&^flagsShown|flags) })
	}))
}

// withOpen calls do with a descriptor of the upper's file or directory.
func (u *Union) withOpen(n *node, do func(fd int) error) error {
	if n.isRegular() {
		f, err := u.acquire(n, false)
		if err != nil {
			return err
		}
		defer u.files.unpin(f)
		return do(f.fd)
	}
	fd, err := u.openUpper(n, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return do(fd)
}

func getFlags(fd int) (uint32, error) {
	v, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
	return v, err
}

func setFlags(fd int, flags uint32) error {
	v := int64(flags) // the kernel reads an int, some file systems a long
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.FS_IOC_SETFLAGS, uintptr(unsafe.Pointer(&v)))
	if errno != 0 {
		return errno
	}
	return nil
}

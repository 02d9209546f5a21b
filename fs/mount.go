package fs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/imgfs/imgfs/internal/fault"
	"golang.org/x/sys/unix"
)

// MountFlags are the choices of a mount. The zero value is read-only and
// forbids set-uid programs and device nodes.
type MountFlags struct {
	Writable bool // what is served is a [Writer]
	Suid     bool // honour set-uid, set-gid and file capabilities; root only
	Dev      bool // honour device nodes; root only
	NonEmpty bool // allow a directory that is not empty, whose content is hidden
	// Checked: target is what CheckTarget returned, perhaps long ago. It is
	// refused if a symlink has come into it, which would lead elsewhere.
	Checked bool
}

func (o MountFlags) bits() uintptr {
	var f uintptr = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV
	if o.Writable {
		f &^= unix.MS_RDONLY
	}
	if o.Suid {
		f &^= unix.MS_NOSUID
	}
	if o.Dev {
		f &^= unix.MS_NODEV
	}
	return f
}

// attributes are the bits as fsmount(2) has them.
func (o MountFlags) attributes() int {
	attrs := 0
	if !o.Writable {
		attrs |= unix.MOUNT_ATTR_RDONLY
	}
	if !o.Suid {
		attrs |= unix.MOUNT_ATTR_NOSUID
	}
	if !o.Dev {
		attrs |= unix.MOUNT_ATTR_NODEV
	}
	return attrs
}

const fuseDevice = "/dev/fuse"

// Mount mounts a FUSE file system at target, an existing directory, in the
// caller's namespaces, and returns the descriptor to be given to [Serve], here
// or in another process. Until then whoever touches target waits. Source is
// the first column of /proc/mounts.
//
// Where the caller may mount (root, also of a user namespace with a mount
// namespace of its own) it does so itself, for all users, permissions checked
// by the kernel; otherwise by fusermount3, for the calling user alone.
func Mount(target, source string, o MountFlags) (fd int, err error) {
	dir, err := openTarget(target, o)
	if err != nil {
		return -1, err
	}
	defer dir.Close()
	fd, err = mountDirect(dir, source, o)
	if err == nil {
		if at, err := MountAt(dir.path); err == nil && at != nil && at.Imgfs() {
			raiseReadAhead(at.Dev)
		}
		return fd, nil
	}
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
		return -1, err
	}
	if os.Geteuid() == 0 && InInitialUserNamespace() {
		return -1, fault.WithHint(err, "root lacks CAP_SYS_ADMIN: run in a container with --cap-add SYS_ADMIN --device /dev/fuse")
	}
	if o.Suid || o.Dev {
		return -1, fault.WithHint(fault.New(fault.Denied, "mount %s: set-uid programs and device nodes need root", target),
			"leave out --suid and --dev, or run as root")
	}
	return fusermount(dir, source, o.Writable)
}

// CheckTarget returns dir, absolute and free of symlinks, if Mount would take
// it, or why not. It is for those who have much to do before they mount.
func CheckTarget(dir string, nonEmpty bool) (string, error) {
	m, err := openTarget(dir, MountFlags{NonEmpty: nonEmpty})
	if err != nil {
		return "", err
	}
	return m.path, m.Close()
}

// mountpoint is a directory to be mounted on.
type mountpoint struct {
	*os.File        // O_PATH
	path     string // canonical
}

// proc is a path to the directory that no rename can change.
func (m *mountpoint) proc() string { return fmt.Sprintf("/proc/self/fd/%d", m.Fd()) }

func openTarget(target string, o MountFlags) (*mountpoint, error) {
	if target == "" {
		return nil, fault.New(fault.Invalid, "empty directory name")
	}
	path, err := filepath.Abs(target)
	if err != nil {
		return nil, fmt.Errorf("mountpoint: %w", err)
	}
	f, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, fault.WithHint(fault.New(fault.NotFound, "%s: no such directory", target), "mkdir -p %s", fault.Word(path))
	case errors.Is(err, unix.ENOTDIR):
		return nil, fault.WithHint(fault.New(fault.Invalid, "%s: not a directory", target), "an image is mounted on an empty directory")
	case errors.Is(err, unix.ENOTCONN):
		return nil, deadMount(target, path)
	case errors.Is(err, unix.EACCES):
		return nil, fault.New(fault.Denied, "%s: permission denied", target)
	case err != nil:
		return nil, fmt.Errorf("mountpoint: %w", err)
	}
	m := &mountpoint{File: f}
	if m.path, err = os.Readlink(m.proc()); err != nil {
		f.Close()
		return nil, fault.WithHint(fmt.Errorf("mountpoint: %w", err), "mount -t proc proc /proc")
	}
	if o.Checked && m.path != target {
		f.Close()
		return nil, fault.New(fault.Conflict, "%s: has been replaced and is %s now", target, m.path)
	}
	if err := m.check(target, o.NonEmpty); err != nil {
		f.Close()
		return nil, err
	}
	return m, nil
}

func deadMount(target, path string) error {
	return fault.WithHint(fault.New(fault.Conflict, "%s: the mount here has lost its server", target),
		"imgfs umount %s", fault.Word(path))
}

// check refuses a mountpoint that is one already or that is not empty.
func (m *mountpoint) check(target string, nonEmpty bool) error {
	at, err := MountAt(m.path)
	if err != nil {
		return err
	}
	if at != nil && at.Imgfs() {
		var st unix.Statfs_t
		if unix.Statfs(m.proc(), &st) == unix.ENOTCONN {
			return deadMount(target, m.path)
		}
		return fault.WithHint(fault.New(fault.Conflict, "%s: imgfs has mounted %s here already", target, at.Source),
			"imgfs umount %s", fault.Word(m.path))
	}
	if nonEmpty {
		return nil
	}
	d, err := os.Open(m.proc())
	if err != nil {
		if errors.Is(err, unix.ENOTCONN) {
			return deadMount(target, m.path)
		}
		return fault.New(fault.Denied, "%s: %w", target, errors.Unwrap(err))
	}
	defer d.Close()
	switch names, err := d.Readdirnames(1); {
	case len(names) > 0:
		return fault.WithHint(fault.New(fault.Conflict, "%s: not empty", target),
			"take an empty directory, or hide what is there with --nonempty")
	case err != nil && err != io.EOF:
		return fmt.Errorf("mountpoint: %w", err)
	}
	return nil
}

// mountDirect is mount(2). EPERM and EACCES, wrapped, mean: try fusermount.
func mountDirect(dir *mountpoint, source string, o MountFlags) (int, error) {
	fd, err := openFuse()
	if err != nil {
		return -1, err
	}
	data := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,default_permissions,allow_other,max_read=%d",
		fd, unix.S_IFDIR, os.Geteuid(), os.Getegid(), maxRead)
	if err := unix.Mount(source, dir.proc(), "fuse."+subtype, o.bits(), data); err != nil {
		unix.Close(fd)
		if err == unix.ENODEV {
			return -1, noFuse(err)
		}
		if err == unix.EPERM || err == unix.EACCES {
			return -1, fault.New(fault.Denied, "mount %s: %w", dir.path, err)
		}
		return -1, fmt.Errorf("mount %s: %w", dir.path, err)
	}
	return fd, nil
}

func noFuse(err error) error {
	return fault.WithHint(fault.New(fault.Unavailable, "%s: %w", fuseDevice, err),
		"modprobe fuse; in a container: --device /dev/fuse")
}

// raiseReadAhead lets the kernel read 1 MiB ahead instead of 128 KiB. Only root
// may; it comes to nothing elsewhere. It must precede INIT, as the kernel
// takes the lesser of the two. Nothing here touches the mount itself.
func raiseReadAhead(dev string) {
	name := filepath.Join("/sys/class/bdi", dev, "read_ahead_kb")
	if f, err := os.OpenFile(name, os.O_WRONLY, 0); err == nil {
		f.WriteString(strconv.Itoa(maxRead >> 10))
		f.Close()
	}
}

// InInitialUserNamespace reports whether the caller's uid map is the identity
// over the full range, which only the initial user namespace has unless
// somebody went out of their way to look like it. Without /proc it is false.
func InInitialUserNamespace() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false
	}
	f := strings.Fields(string(b))
	return len(f) == 3 && f[0] == "0" && f[1] == "0" && f[2] == "4294967295"
}

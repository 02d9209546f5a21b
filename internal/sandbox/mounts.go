package sandbox

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/fault"
)

// cloneTree returns a detached copy of the mounts at path and below, and
// whether path is a directory.
func cloneTree(dirfd int, path string, readOnly bool) (fd int, dir bool, err error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_RECURSIVE)
	if path == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	if fd, err = unix.OpenTree(dirfd, path, flags); err != nil {
		return -1, false, err
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil && readOnly {
		err = setAttr(fd, unix.MOUNT_ATTR_RDONLY)
	}
	if err != nil {
		unix.Close(fd)
		return -1, false, err
	}
	return fd, st.Mode&unix.S_IFMT == unix.S_IFDIR, nil
}

// setAttr sets an attribute of a mount and all below it.
func setAttr(fd int, attr uint64) error {
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: attr}); err != nil {
		if err == unix.ENOSYS {
			return fault.New(fault.Unavailable, "mount_setattr: %w; this needs Linux 5.12", err)
		}
		return fmt.Errorf("mount attributes: %w", err)
	}
	return nil
}

// inert are the attributes of file systems that are there to be looked at.
const inert = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC

// fresh returns a new file system, mounted nowhere yet. Options are key and
// value by turns.
func fresh(fstype string, attrs int, options ...string) (int, error) {
	ctx, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("%s: %w", fstype, err)
	}
	defer unix.Close(ctx)
	err = unix.FsconfigSetString(ctx, "source", fstype)
	for i := 0; i+1 < len(options) && err == nil; i += 2 {
		err = unix.FsconfigSetString(ctx, options[i], options[i+1])
	}
	if err == nil {
		err = unix.FsconfigCreate(ctx)
	}
	if err != nil {
		return -1, fmt.Errorf("%s: %w", fstype, err)
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return -1, fmt.Errorf("%s: %w", fstype, err)
	}
	return fd, nil
}

// attach mounts what fd holds upon at, an O_PATH descriptor.
func attach(fd, at int) error {
	return unix.MoveMount(fd, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// attachIn mounts what fd holds upon name in a directory of a file system of
// ours, in which there are no symlinks to fear.
func attachIn(fd, dir int, name string) error {
	return unix.MoveMount(fd, "", dir, name, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// absent reports whether err says that there is no such file or file system.
func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO)
}

// procSys mounts /proc and /sys.
func (t *tree) procSys() error {
	proc, err := fresh("proc", inert)
	if errors.Is(err, unix.EPERM) {
		err = fault.WithHint(fault.New(fault.Denied, "%w", err), "parts of this machine's /proc are covered, as in a container: run as root, or with them uncovered")
	}
	if err != nil {
		return err
	}
	if err := t.special("proc", proc); err != nil {
		return err
	}
	sys, err := fresh("sysfs", inert|unix.MOUNT_ATTR_RDONLY)
	whole := err != nil
	if whole { // sysfs belongs to the network namespace, which is the host's
		sys, _, err = cloneTree(unix.AT_FDCWD, "/sys", true)
	}
	if err != nil {
		return fmt.Errorf("/sys: %w", err)
	}
	if err := t.special("sys", sys); err != nil {
		return err
	}
	if !whole {
		if cg, _, err := cloneTree(unix.AT_FDCWD, "/sys/fs/cgroup", true); err == nil {
			// A kernel without cgroups has no place for it.
			_ = attachIn(cg, sys, "fs/cgroup")
			unix.Close(cg)
		}
	}
	t.proc, t.sys = proc, sys
	return nil
}

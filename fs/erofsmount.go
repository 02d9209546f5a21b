package fs

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/imgfs/imgfs/internal/fault"
	"golang.org/x/sys/unix"
)

const erofsType = "erofs"

// MountErofs has the kernel mount a chain index at target, an existing
// directory, in the caller's namespaces. Devices are the data files of the
// index's devices, in order; all must hold every byte, for the kernel reads a
// hole as zeros. It needs root and Linux 6.12.
//
// It uses fsopen(2) and its kin, as mount(2) takes its options in one page,
// which ends at about 40 devices. The mount's source is the index's path.
func MountErofs(target, index string, devices []string, o MountFlags) error {
	dir, err := openTarget(target, o)
	if err != nil {
		return err
	}
	defer dir.Close()
	ctx, err := unix.Fsopen(erofsType, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return erofsError("fsopen", -1, err)
	}
	defer unix.Close(ctx)
	if err := unix.FsconfigSetFlag(ctx, "ro"); err != nil {
		return erofsError("option ro", ctx, err)
	}
	if err := unix.FsconfigSetString(ctx, "source", index); err != nil {
		return erofsError("index "+index, ctx, err)
	}
	for _, d := range devices {
		if err := unix.FsconfigSetString(ctx, "device", d); err != nil {
			return erofsError("device "+d, ctx, err)
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return erofsError("index "+index, ctx, err)
	}
	attrs := unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOATIME
	if !o.Suid {
		attrs |= unix.MOUNT_ATTR_NOSUID
	}
	if !o.Dev {
		attrs |= unix.MOUNT_ATTR_NODEV
	}
	mnt, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return erofsError("fsmount", ctx, err)
	}
	defer unix.Close(mnt)
	err = unix.MoveMount(mnt, "", int(dir.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	if err != nil {
		return erofsError("move_mount", ctx, err)
	}
	return nil
}

// erofsError says why the kernel refused at a step, in the kernel's own words
// where the context ctx (-1: none) has any.
func erofsError(step string, ctx int, err error) error {
	hint := "imgfs mount --driver fuse"
	said := contextLog(ctx)
	switch {
	case errors.Is(err, unix.EPERM):
		return fault.WithHint(fault.New(fault.Denied, "driver erofs: %s: %w: the kernel mounts EROFS for root alone", step, err), "%s", hint)
	case errors.Is(err, unix.ENODEV):
		return fault.WithHint(fault.New(fault.Unavailable, "driver erofs: this kernel has no EROFS"), "modprobe erofs, or %s", hint)
	case errors.Is(err, unix.ENOSYS):
		return fault.WithHint(fault.New(fault.Unavailable, "driver erofs: this kernel has no %s", step), "%s", hint)
	case errors.Is(err, unix.ENOTBLK):
		return fault.WithHint(fault.New(fault.Unavailable,
			"driver erofs: this kernel (%s) mounts EROFS from block devices alone; from files it takes Linux 6.12", release()), "%s", hint)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		if said == "" {
			said = "the kernel (" + release() + ") gives no reason; blocks of 512 bytes and files as devices take Linux 6.12"
		}
		return fault.WithHint(fault.New(fault.Unavailable, "driver erofs: %s: %w: %s", step, err, said), "%s", hint)
	case said != "":
		return fault.WithHint(fmt.Errorf("driver erofs: %s: %w: %s", step, err, said), "%s", hint)
	}
	return fault.WithHint(fmt.Errorf("driver erofs: %s: %w", step, err), "%s", hint)
}

// contextLog returns what the kernel wrote to a file system context: lines
// "e erofs: cannot find valid erofs superblock", one per read.
func contextLog(ctx int) string {
	if ctx < 0 {
		return ""
	}
	var said []string
	buf := make([]byte, 1024)
	for len(said) < 8 {
		n, err := unix.Read(ctx, buf)
		if err != nil || n <= 0 {
			break
		}
		line := strings.TrimSpace(string(buf[:n]))
		if len(line) > 2 && line[1] == ' ' {
			line = line[2:]
		}
		said = append(said, line)
	}
	return strings.Join(said, "; ")
}

// release returns the kernel's version.
func release() string {
	b, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "of unknown version"
	}
	return strings.TrimSpace(string(b))
}

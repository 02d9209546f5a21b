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
// hole as zeros. It needs root and Linux 6.12. The mount's source is the
// index's path.
func MountErofs(target, index string, devices []string, o MountFlags) error {
	dir, err := openTarget(target, o)
	if err != nil {
		return err
	}
	defer dir.Close()
	mnt, err := MountErofsDetached(index, devices, o)
	if err != nil {
		return err
	}
	defer mnt.Close()
	return attach(mnt, dir)
}

// MountErofsDetached is MountErofs without a place; see [MountDetached].
func MountErofsDetached(index string, devices []string, o MountFlags) (*os.File, error) {
	o.Writable = false
	mnt, no := newMount(erofsType, o.attributes()|unix.MOUNT_ATTR_NOATIME, func(c *creation) {
		c.flag("ro")
		c.set("source", index)
		for _, d := range devices {
			c.set("device", d)
		}
	})
	if no != nil {
		return nil, erofsError(no)
	}
	return mnt, nil
}

// erofsError says why the kernel refused, in its own words where it has any.
func erofsError(no *refusal) error {
	const hint = "imgfs mount --driver fuse"
	step, err, said := no.step, no.err, no.said
	switch {
	case errors.Is(err, unix.EPERM):
		return fault.WithHint(fault.New(fault.Denied, "driver erofs: %s: %w: the kernel mounts EROFS for root alone", step, err), hint)
	case errors.Is(err, unix.ENODEV):
		return fault.WithHint(fault.New(fault.Unavailable, "driver erofs: this kernel has no EROFS"), "modprobe erofs, or "+hint)
	case errors.Is(err, unix.ENOSYS):
		return fault.WithHint(fault.New(fault.Unavailable, "driver erofs: this kernel has no %s", step), hint)
	case errors.Is(err, unix.ENOTBLK):
		return fault.WithHint(fault.New(fault.Unavailable,
			"driver erofs: this kernel (%s) mounts EROFS from block devices alone; from files it takes Linux 6.12", release()), hint)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		if said == "" {
			said = "the kernel (" + release() + ") gives no reason; blocks of 512 bytes and files as devices take Linux 6.12"
		}
		return fault.WithHint(fault.New(fault.Unavailable, "driver erofs: %s: %w: %s", step, err, said), hint)
	case said != "":
		return fault.WithHint(fmt.Errorf("driver erofs: %s: %w: %s", step, err, said), hint)
	}
	return fault.WithHint(fmt.Errorf("driver erofs: %s: %w", step, err), hint)
}

// release returns the kernel's version.
func release() string {
	b, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "of unknown version"
	}
	return strings.TrimSpace(string(b))
}

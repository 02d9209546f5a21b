package fs

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/imgfs/imgfs/internal/fault"
	"golang.org/x/sys/unix"
)

const (
	overlayType   = "overlay"
	overlaySource = "imgfs:" // how the source of an overlayfs mount of ours begins
)

// Overlay is what kernel overlayfs is to show.
type Overlay struct {
	Lower    *os.File // the mount below, of MountDetached or MountErofsDetached; it may be closed after
	Upper    string   // a directory with diff and work in it, both of one file system
	User     bool     // keep overlayfs' attributes under user.overlay. instead of trusted.overlay.
	Volatile bool     // nothing need survive a crash
}

// MountOverlay has the kernel mount an upper over a lower at target, an
// existing directory, in the caller's namespaces. Only the result is visible
// there, and the lower is gone when it is unmounted. The mount's source is
// "imgfs:" and the given one.
//
// Outside of the initial user namespace only the attributes of User can be
// written, and metacopies and redirects, which somebody might have forged, are
// not followed.
func MountOverlay(target, source string, l Overlay, o MountFlags) error {
	dir, err := openTarget(target, o)
	if err != nil {
		return err
	}
	defer dir.Close()
	upper, work, err := openUpper(l.Upper)
	if err != nil {
		return err
	}
	defer upper.Close()
	defer work.Close()
	o.Writable = true
	create := func() (*os.File, *refusal) {
		return newMount(overlayType, o.attributes(), func(c *creation) {
			c.set("source", overlaySource+source)
			c.dir("lowerdir", "lowerdir+", l.Lower)
			c.dir("upperdir", "upperdir", upper)
			c.dir("workdir", "workdir", work)
			if l.User {
				c.flag("userxattr")
			} else {
				c.set("redirect_dir", "on")
				c.set("metacopy", "on")
			}
			c.set("index", "off")
			if l.Volatile {
				c.flag("volatile")
			}
		})
	}
	mnt, no := create()
	if no != nil && no.err == unix.EINVAL {
		// Before Linux 6.15 overlayfs takes no detached mount as its lower: it
		// stands at the target for as long as it takes. Overlayfs has a mount
		// of its own of it after.
		if err := attach(l.Lower, dir); err == nil {
			mnt, no = create()
			if err := unix.Unmount(dir.path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && no == nil {
				mnt.Close()
				return fmt.Errorf("unmount %s: %w", dir.path, err)
			}
		}
	}
	if no != nil {
		return overlayError(no)
	}
	defer mnt.Close()
	return attach(mnt, dir)
}

// dir sets an option whose value is a directory: where the kernel takes no
// descriptor (before Linux 6.13), as a path to it that no rename can change.
func (c *creation) dir(key, fdKey string, d *os.File) {
	c.do(fdKey+" "+d.Name(), func() error {
		if err := unix.FsconfigSetFd(c.fd, fdKey, int(d.Fd())); err == nil {
			return nil
		}
		contextLog(c.fd)
		return unix.FsconfigSetString(c.fd, key, fmt.Sprintf("/proc/self/fd/%d", d.Fd()))
	})
}

// openUpper opens the directories of an upper, which no symlink may lead out of.
func openUpper(path string) (upper, work *os.File, err error) {
	at, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("upper %s: %w", path, err)
	}
	defer unix.Close(at)
	open := func(name string) *os.File {
		if err != nil {
			return nil
		}
		fd, e := unix.Openat(at, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if e != nil {
			err = fmt.Errorf("upper %s: %s: %w", path, name, e)
			return nil
		}
		return os.NewFile(uintptr(fd), path+"/"+name)
	}
	upper, work = open("diff"), open("work")
	if err == nil {
		var u, w unix.Stat_t
		unix.Fstat(int(upper.Fd()), &u)
		unix.Fstat(int(work.Fd()), &w)
		if u.Dev != w.Dev {
			err = fault.New(fault.Invalid, "upper %s: diff and work are on different file systems", path)
		}
	}
	if err != nil {
		upper.Close()
		work.Close()
		return nil, nil, err
	}
	return upper, work, nil
}

// overlayError says why the kernel refused, in its own words where it has any.
func overlayError(no *refusal) error {
	const hint = "imgfs mount --driver fuse"
	step, err, said := no.step, no.err, strings.TrimPrefix(no.said, "overlay: ")
	if said == "" {
		said = "the kernel (" + release() + ") gives no reason; its log may (dmesg)"
	}
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fault.WithHint(fault.New(fault.Denied, "driver overlay: %s: %w: only root mounts, here or in a user namespace", step, err),
			hint+", or within unshare -Urm")
	case errors.Is(err, unix.ENODEV):
		return fault.WithHint(fault.New(fault.Unavailable, "driver overlay: this kernel has no overlayfs"), "modprobe overlay, or "+hint)
	case errors.Is(err, unix.ENOSYS):
		return fault.WithHint(fault.New(fault.Unavailable, "driver overlay: this kernel has no %s", step), hint)
	case errors.Is(err, unix.EBUSY):
		return fault.WithHint(fault.New(fault.Conflict, "driver overlay: %s: the upper is in use by another mount", step), "imgfs mounts")
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ELOOP):
		return fault.WithHint(fault.New(fault.Unavailable, "driver overlay: %s: %w: %s", step, err, said), hint)
	}
	return fault.WithHint(fmt.Errorf("driver overlay: %s: %w: %s", step, err, said), hint)
}

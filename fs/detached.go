package fs

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/imgfs/imgfs/internal/fault"
	"golang.org/x/sys/unix"
)

// MountDetached makes a FUSE mount as [Mount] does, but in no tree of
// directories: it is for [MountOverlay] to stand on, and gone when mnt is
// closed and nothing stands on it any more. The descriptor fd is for [Serve],
// which must have returned before anything is done with mnt. It needs root, be
// it of a user namespace.
func MountDetached(source string, o MountFlags) (mnt *os.File, fd int, err error) {
	fd, err = openFuse()
	if err != nil {
		return nil, -1, err
	}
	mnt, no := newMount("fuse", o.attributes(), func(c *creation) {
		c.set("source", source)
		c.set("subtype", subtype)
		c.set("fd", strconv.Itoa(fd))
		c.set("rootmode", strconv.FormatUint(unix.S_IFDIR, 8))
		c.set("user_id", strconv.Itoa(os.Geteuid()))
		c.set("group_id", strconv.Itoa(os.Getegid()))
		c.set("max_read", strconv.Itoa(maxRead))
		c.flag("default_permissions")
		c.flag("allow_other")
	})
	if no != nil {
		unix.Close(fd)
		return nil, -1, overlayError(no)
	}
	// The inode of the root is there without a request.
	var st unix.Statx_t
	if unix.Statx(int(mnt.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &st) == nil {
		raiseReadAhead(fmt.Sprintf("%d:%d", st.Dev_major, st.Dev_minor))
	}
	return mnt, fd, nil
}

// openFuse opens the device that makes a connection.
func openFuse() (int, error) {
	fd, err := unix.Open(fuseDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch err {
	case nil:
		return fd, nil
	case unix.ENOENT, unix.ENODEV, unix.ENXIO:
		return -1, noFuse(err)
	}
	return -1, fault.New(fault.Denied, "%s: %w", fuseDevice, err)
}

// creation is a file system context (fsopen(2)) that is told its options.
// After the first refusal nothing more is done.
type creation struct {
	fd   int
	step string // what was done last
	err  error  // and what came of it
}

func (c *creation) do(step string, err func() error) {
	if c.err == nil {
		c.step, c.err = step, err()
	}
}

func (c *creation) set(key, value string) {
	c.do(key+" "+value, func() error { return unix.FsconfigSetString(c.fd, key, value) })
}

func (c *creation) flag(key string) {
	c.do("option "+key, func() error { return unix.FsconfigSetFlag(c.fd, key) })
}

// refusal is the kernel's answer to a step of making a mount.
type refusal struct {
	step string
	err  error
	said string // the kernel's own words, or ""
}

// newMount makes a detached mount of a file system that options describes. It
// uses fsopen(2) and its kin, as mount(2) takes all options in one page.
func newMount(fstype string, attributes int, options func(*creation)) (*os.File, *refusal) {
	ctx, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, &refusal{step: "fsopen", err: err}
	}
	defer unix.Close(ctx)
	c := &creation{fd: ctx}
	options(c)
	made := c.err == nil
	c.do("create", func() error { return unix.FsconfigCreate(ctx) })
	var mnt int
	c.do("fsmount", func() (err error) { mnt, err = unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, attributes); return err })
	if c.err != nil {
		if made && c.step == "create" {
			c.step = "mount"
		}
		return nil, &refusal{step: c.step, err: c.err, said: contextLog(ctx)}
	}
	return os.NewFile(uintptr(mnt), fstype), nil
}

// attach puts a detached mount on a directory.
func attach(mnt *os.File, dir *mountpoint) error {
	err := unix.MoveMount(int(mnt.Fd()), "", int(dir.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("mount %s: %w", dir.path, err)
	}
	return nil
}

// contextLog returns what the kernel wrote to a file system context: lines
// "e erofs: cannot find valid erofs superblock", one per read.
func contextLog(ctx int) string {
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

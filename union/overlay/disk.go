package overlay

import (
	"strconv"

	"github.com/imgfs/imgfs/internal/upperdir"
	"golang.org/x/sys/unix"
)

// The changes on disk. Each is announced to Options.Step, and repeated when a
// signal of the runtime's interrupts it.

func (u *Union) change(what string, do func() error) error {
	u.files.wrote()
	u.o.Step(what)
	for {
		if err := do(); err == nil || !u.again(err) {
			return err
		}
	}
}

// again reports whether a system call is to be repeated, which has not done
// anything: a signal came, or there were no descriptors, and are now.
func (u *Union) again(err error) bool {
	switch err {
	case unix.EINTR:
		return true
	case unix.EMFILE, unix.ENFILE:
		files, dirs := u.files.shed(), u.dirs.shed()
		return files+dirs > 0
	}
	return false
}

func (u *Union) rename(from int, name string, to int, newName string, flags uint) error {
	return u.change("rename", func() error { return unix.Renameat2(from, name, to, newName, flags) })
}

func (u *Union) unlink(dirfd int, name string) error {
	return u.change("unlink", func() error { return unix.Unlinkat(dirfd, name, 0) })
}

func (u *Union) rmdir(dirfd int, name string) error {
	return u.change("rmdir", func() error { return unix.Unlinkat(dirfd, name, unix.AT_REMOVEDIR) })
}

// sharedWhiteout is in stage/ the inode that whiteouts are links of: making one
// for each takes the file system ten times as long.
const sharedWhiteout = "whiteout"

// whiteout hides a name.
//
// Preconditions: mu is held exclusively.
func (u *Union) whiteout(dirfd int, name string) error {
	return u.change("whiteout", func() error {
		link := func() error { return unix.Linkat(u.up.Stage(), sharedWhiteout, dirfd, name, 0) }
		err := link()
		switch err {
		case unix.EMLINK: // this one is full
			if err := unix.Unlinkat(u.up.Stage(), sharedWhiteout, 0); err != nil {
				return err
			}
			fallthrough
		case unix.ENOENT:
			if err := upperdir.MkWhiteout(u.up.Stage(), sharedWhiteout); err != nil {
				return err
			}
			err = link()
		}
		if err == unix.EPERM || err == unix.EOPNOTSUPP { // no links of devices here
			return upperdir.MkWhiteout(dirfd, name)
		}
		return err
	})
}

// linkFrom gives an inode, found as place says, a further name.
func (u *Union) linkFrom(dirfd int, name string, to int, newName string) error {
	return u.change("link", func() error {
		if name == "" {
			return unix.Linkat(unix.AT_FDCWD, procPath(dirfd), to, newName, unix.AT_SYMLINK_FOLLOW)
		}
		return unix.Linkat(dirfd, name, to, newName, 0)
	})
}

// staged returns a fresh name in stage/.
//
// Preconditions: mu is held exclusively.
func (u *Union) staged() string {
	u.temp++
	return "s" + strconv.FormatUint(u.temp, 36)
}

// discard removes what is in stage/; the next mount would do it as well.
func (u *Union) discard(name string, dir bool) {
	if dir {
		u.rmdir(u.up.Stage(), name)
		return
	}
	u.unlink(u.up.Stage(), name)
}

// clear removes a directory in stage/ that has nothing but whiteouts in it.
func (u *Union) clear(name string, whiteouts []string) {
	fd, err := u.openPath(u.up.Stage(), name, unix.O_DIRECTORY)
	if err != nil {
		return
	}
	for _, w := range whiteouts {
		u.unlink(fd, w)
	}
	unix.Close(fd)
	u.discard(name, true)
}

// times are the access and modification times of an inode.
type times [2]unix.Timespec

// timesOf returns those of an open inode.
func timesOf(fd int) (times, error) {
	var st unix.Stat_t
	err := unix.Fstatat(fd, "", &st, unix.AT_EMPTY_PATH)
	return times{st.Atim, st.Mtim}, err
}

// setTimes sets those of an open inode, be it a symlink.
func (u *Union) setTimes(fd int, t times) error {
	return u.change("times", func() error { return unix.UtimesNanoAt(unix.AT_FDCWD, procPath(fd), t[:], 0) })
}

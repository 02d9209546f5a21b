package upperdir

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The prefixes of overlayfs' attributes: with CAP_SYS_ADMIN in the initial
// user namespace, and without.
const (
	trustedPrefix = "trusted.overlay."
	userPrefix    = "user.overlay."
)

// The values of Info.Xattrs.
const (
	Trusted = "trusted"
	User    = "user"
)

// ErrDamaged is returned (wrapped) for what breaks the format.
var ErrDamaged = errors.New("damaged upper")

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

// Format is how an upper's tree is read and written. A descriptor given to its
// methods may be open by O_PATH, unless they say otherwise.
type Format struct {
	Prefix   string // of overlayfs' attributes, with the dot
	Override bool   // attributes that cannot be set on disk stand in an override
	UID, GID uint32 // with Override: what on disk stands for 0 and 0
}

// Stat is lstat(2) of an entry, overrides applied; name "" is dirfd itself.
func (f Format) Stat(dirfd int, name string, st *unix.Stat_t) error {
	if err := unix.Fstatat(dirfd, name, st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	if !f.Override {
		return nil
	}
	v, ok := []byte(nil), false
	if canOverride(st.Mode) {
		var err error
		v, ok, err = xattr(procName(dirfd, name), overrideName, name == "")
		// With an override the owner can read everything: what he cannot read
		// was left by a kernel's overlayfs, and has none.
		if err != nil && err != unix.EACCES {
			return err
		}
	}
	if !ok {
		st.Uid, st.Gid = f.owner(st)
		return nil
	}
	a, err := parseOverride(string(v))
	if err != nil {
		return err
	}
	return a.apply(st)
}

// canOverride reports whether an inode can have attributes of users.
func canOverride(mode uint32) bool {
	t := mode & unix.S_IFMT
	return t == unix.S_IFREG || t == unix.S_IFDIR
}

// owner returns the owner that one on disk stands for.
func (f Format) owner(st *unix.Stat_t) (uid, gid uint32) {
	uid, gid = st.Uid, st.Gid
	if uid == f.UID {
		uid = 0
	}
	if gid == f.GID {
		gid = 0
	}
	return uid, gid
}

// apply puts an override over the attributes on disk.
func (a Attr) apply(st *unix.Stat_t) error {
	kind, disk := a.Mode&unix.S_IFMT, st.Mode&unix.S_IFMT
	switch kind {
	case 0, disk:
		kind = disk
	case unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK:
		if disk != unix.S_IFREG {
			return damaged("override %q of what is no regular file", a)
		}
		st.Size, st.Blocks, st.Rdev = 0, 0, a.Rdev
	default:
		return damaged("override %q of an inode of another type", a)
	}
	st.Mode = kind | a.Mode&0o7777
	st.Uid, st.Gid = a.UID, a.GID
	return nil
}

// Mknod makes a regular file, fifo, socket or device of mode and rdev, as it
// is kept on disk: with an override, all but regular files are regular files
// that SetStat, to be called next, says the type of.
func (f Format) Mknod(dirfd int, name string, mode uint32, rdev uint64) error {
	if (Attr{Mode: mode, Rdev: rdev}).whiteout() {
		return unix.EPERM
	}
	kind, perm := mode&unix.S_IFMT, mode&0o7777
	if f.Override {
		kind, perm, rdev = unix.S_IFREG, 0o600, 0
	}
	return unix.Mknodat(dirfd, name, kind|perm, int(rdev))
}

// SetStat gives an inode an owner, a mode and, with an override, a type: on disk
// where that can be, else by an override. It changes only what differs. What
// reads the inode while it is changed sees the old attributes or the new ones.
// A symlink whose owner cannot be set keeps it, without an error.
func (f Format) SetStat(fd int, want Attr) error {
	if want.whiteout() {
		return unix.EPERM
	}
	var st unix.Stat_t
	if err := unix.Fstatat(fd, "", &st, unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	if want.Mode&unix.S_IFMT == 0 {
		want.Mode |= st.Mode & unix.S_IFMT
	}
	if !f.Override {
		return setReal(fd, &st, want)
	}
	if !canOverride(st.Mode) {
		if want.UID == 0 {
			want.UID = f.UID
		}
		if want.GID == 0 {
			want.GID = f.GID
		}
		err := setReal(fd, &st, want)
		if st.Mode&unix.S_IFMT == unix.S_IFLNK && (err == unix.EPERM || err == unix.EINVAL) {
			return nil
		}
		return err
	}
	perm := want.Mode&0o777 | 0o600
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		perm |= 0o700
	}
	if st.Mode&0o600 != 0o600 { // or the attribute could not be set
		if err := unix.Chmod(procPath(fd), st.Mode&0o7777|0o600); err != nil {
			return err
		}
		st.Mode |= 0o600
	}
	_, has, err := fdXattr(fd, overrideName)
	if err != nil {
		return err
	}
	uid, gid := f.owner(&st)
	if has || uid != want.UID || gid != want.GID || want.Mode != st.Mode&unix.S_IFMT|perm {
		if err := setFdXattr(fd, overrideName, want.String()); err != nil {
			return err
		}
	}
	if st.Mode&0o7777 != perm {
		return unix.Chmod(procPath(fd), perm)
	}
	return nil
}

// setReal sets owner and mode on disk.
func setReal(fd int, st *unix.Stat_t, want Attr) error {
	chown := st.Uid != want.UID || st.Gid != want.GID
	if chown {
		if err := unix.Fchownat(fd, "", int(want.UID), int(want.GID), unix.AT_EMPTY_PATH); err != nil {
			return err
		}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK || !chown && (st.Mode^want.Mode)&0o7777 == 0 {
		return nil
	}
	return unix.Chmod(procPath(fd), want.Mode&0o7777) // after chown, which clears bits of it
}

// Whiteout reports whether an entry, as Stat or lstat tells it, is a whiteout.
func (f Format) Whiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// MkWhiteout makes a whiteout; EEXIST where there is something.
func MkWhiteout(dirfd int, name string) error {
	return unix.Mknodat(dirfd, name, unix.S_IFCHR, 0)
}

// Opaque reports whether a directory hides all that is below it.
func (f Format) Opaque(fd int) (bool, error) {
	v, ok, err := fdXattr(fd, f.Prefix+"opaque")
	return ok && string(v) == "y", err
}

// SetOpaque makes a directory opaque.
func (f Format) SetOpaque(fd int) error { return setFdXattr(fd, f.Prefix+"opaque", "y") }

// Redirect returns where below a directory or metacopy file is to be looked
// for, "" if at its own name: an absolute path, or, written by the kernel, a
// name in the lower of its directory. Either is proper: see checkRedirect.
func (f Format) Redirect(fd int) (string, error) {
	v, ok, err := fdXattr(fd, f.Prefix+"redirect")
	if err != nil || !ok {
		return "", err
	}
	return string(v), checkRedirect(string(v))
}

// checkRedirect returns an error unless s is a name, or an absolute path
// without empty, "." or ".." elements; the root is none.
func checkRedirect(s string) error {
	names := []string{s}
	if strings.HasPrefix(s, "/") {
		names = strings.Split(s[1:], "/")
	}
	for _, n := range names {
		if n == "" || n == "." || n == ".." || len(n) > 255 || strings.ContainsAny(n, "/\x00") {
			return damaged("redirect %q", s)
		}
	}
	return nil
}

// SetRedirect sets a redirect; path is as Redirect returns it.
func (f Format) SetRedirect(fd int, path string) error {
	if err := checkRedirect(path); err != nil {
		return err
	}
	return setFdXattr(fd, f.Prefix+"redirect", path)
}

// ClearRedirect removes a redirect.
func (f Format) ClearRedirect(fd int) error { return removeFdXattr(fd, f.Prefix+"redirect") }

// Metacopy reports whether a regular file's data is in the lower. The lower
// file is the one that Redirect tells.
func (f Format) Metacopy(fd int) (bool, error) {
	_, ok, err := fdXattr(fd, f.Prefix+"metacopy")
	return ok, err
}

// SetMetacopy marks a regular file, which is not yet in diff/, as a metacopy
// of the lower file at path.
func (f Format) SetMetacopy(fd int, path string) error {
	if err := f.SetRedirect(fd, path); err != nil {
		return err
	}
	return setFdXattr(fd, f.Prefix+"metacopy", "")
}

// ClearMetacopy says that a file's data is its own.
//
// Preconditions: the data is there, and synced.
func (f Format) ClearMetacopy(fd int) error {
	if err := removeFdXattr(fd, f.Prefix+"metacopy"); err != nil {
		return err
	}
	return f.ClearRedirect(fd)
}

// NID returns the inode of the chain that a non-directory was copied up from.
func (f Format) NID(fd int) (nid uint64, ok bool, err error) {
	v, ok, err := fdXattr(fd, f.Prefix+"imgfs.nid")
	if err != nil || !ok {
		return 0, false, err
	}
	nid, err = strconv.ParseUint(string(v), 10, 64)
	if err != nil {
		return 0, false, damaged("inode number %q", v)
	}
	return nid, true, nil
}

// SetNID records where a non-directory was copied up from. What can have no
// attributes, a symlink or device of a rootless upper, goes without.
func (f Format) SetNID(fd int, nid uint64) error {
	err := setFdXattr(fd, f.Prefix+"imgfs.nid", strconv.FormatUint(nid, 10))
	if err == unix.EPERM && f.Prefix == userPrefix {
		var st unix.Stat_t
		if unix.Fstatat(fd, "", &st, unix.AT_EMPTY_PATH) == nil && !canOverride(st.Mode) {
			return nil
		}
	}
	return err
}

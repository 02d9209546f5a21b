package upperdir

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// overrideName is the attribute that stands for what cannot be set on disk, as
// containers/storage and fuse-overlayfs have it:
//
//	uid ":" gid ":" octal mode [ ":" type ]
//	type = "file" | "dir" | "symlink" | "pipe" | "socket" | ("block" | "char") "-" major "-" minor
const overrideName = "user.containers.override_stat"

// Attr is what an override can say of an inode.
type Attr struct {
	UID, GID uint32
	Mode     uint32 // type and permission bits; type 0: that of the inode on disk
	Rdev     uint64 // of devices
}

// parseOverride reads an override.
func parseOverride(v string) (Attr, error) {
	var a Attr
	f := strings.Split(v, ":")
	if len(f) < 3 {
		return a, damaged("override %q has no three fields", v)
	}
	uid, err1 := strconv.ParseUint(f[0], 10, 32)
	gid, err2 := strconv.ParseUint(f[1], 10, 32)
	mode, err3 := strconv.ParseUint(f[2], 8, 32)
	if err1 != nil || err2 != nil || err3 != nil {
		return a, damaged("override %q is not uid:gid:mode", v)
	}
	a.UID, a.GID, a.Mode = uint32(uid), uint32(gid), uint32(mode)&0o7777
	if len(f) == 3 {
		return a, nil
	}
	kind, number, _ := strings.Cut(f[3], "-")
	switch kind {
	case "file":
		a.Mode |= unix.S_IFREG
	case "dir":
		a.Mode |= unix.S_IFDIR
	case "symlink":
		a.Mode |= unix.S_IFLNK
	case "pipe":
		a.Mode |= unix.S_IFIFO
	case "socket":
		a.Mode |= unix.S_IFSOCK
	case "block", "char":
		a.Mode |= unix.S_IFBLK
		if kind == "char" {
			a.Mode ^= unix.S_IFBLK ^ unix.S_IFCHR
		}
		n := strings.Split(number, "-")
		if len(n) < 2 {
			return Attr{}, damaged("override %q has no device number", v)
		}
		major, err1 := strconv.ParseUint(n[0], 10, 32)
		minor, err2 := strconv.ParseUint(n[1], 10, 32)
		if err1 != nil || err2 != nil {
			return Attr{}, damaged("override %q has no device number", v)
		}
		a.Rdev = unix.Mkdev(uint32(major), uint32(minor))
		if a.whiteout() {
			// Nothing but a real device is a whiteout, and nothing else may
			// look like one.
			return Attr{}, damaged("override %q is that of a whiteout", v)
		}
	default:
		return Attr{}, damaged("override %q has an unknown type", v)
	}
	return a, nil
}

// String is the inverse of parseOverride.
func (a Attr) String() string {
	kind := ""
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		kind = ":file"
	case unix.S_IFDIR:
		kind = ":dir"
	case unix.S_IFLNK:
		kind = ":symlink"
	case unix.S_IFIFO:
		kind = ":pipe"
	case unix.S_IFSOCK:
		kind = ":socket"
	case unix.S_IFBLK:
		kind = fmt.Sprintf(":block-%d-%d", unix.Major(a.Rdev), unix.Minor(a.Rdev))
	case unix.S_IFCHR:
		kind = fmt.Sprintf(":char-%d-%d", unix.Major(a.Rdev), unix.Minor(a.Rdev))
	}
	return fmt.Sprintf("%d:%d:%04o%s", a.UID, a.GID, a.Mode&0o7777, kind)
}

func (a Attr) whiteout() bool { return a.Mode&unix.S_IFMT == unix.S_IFCHR && a.Rdev == 0 }

package upperdir

import (
	"bytes"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// procPath names what fd is open on, be it by O_PATH. The system calls for
// attributes follow it to the inode itself, also to that of a symlink.
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// procName names an entry of a directory, for the calls that do not follow it.
func procName(dirfd int, name string) string {
	if name == "" {
		return procPath(dirfd)
	}
	return procPath(dirfd) + "/" + name
}

// absent reports whether an error says that the inode has no such attribute,
// or its file system none at all.
func absent(err error) bool { return err == unix.ENODATA || err == unix.EOPNOTSUPP }

// xattr returns the value of an attribute of what path names; ok is false if
// there is none. follow is for procPath.
func xattr(path, name string, follow bool) (v []byte, ok bool, err error) {
	get := unix.Lgetxattr
	if follow {
		get = unix.Getxattr
	}
	buf := make([]byte, 256)
	for {
		n, err := get(path, name, buf)
		switch {
		case err == nil:
			return buf[:n], true, nil
		case absent(err):
			return nil, false, nil
		case err == unix.EINTR:
			continue
		case err != unix.ERANGE:
			return nil, false, err
		}
		if n, err = get(path, name, nil); err == nil {
			buf = make([]byte, n+64)
		}
	}
}

// fdXattr is xattr of an inode.
func fdXattr(fd int, name string) ([]byte, bool, error) { return xattr(procPath(fd), name, true) }

func setFdXattr(fd int, name, value string) error {
	return unix.Setxattr(procPath(fd), name, []byte(value), 0)
}

func removeFdXattr(fd int, name string) error {
	if err := unix.Removexattr(procPath(fd), name); err != nil && !absent(err) {
		return err
	}
	return nil
}

// listXattrs returns the names of an inode's attributes as they are on disk.
func listXattrs(fd int) ([]string, error) {
	buf := make([]byte, 1024)
	for {
		n, err := unix.Listxattr(procPath(fd), buf)
		switch {
		case err == nil:
			var names []string
			for name := range bytes.SplitSeq(buf[:n], []byte{0}) {
				if len(name) > 0 {
					names = append(names, string(name))
				}
			}
			return names, nil
		case absent(err):
			return nil, nil
		case err == unix.EINTR:
			continue
		case err != unix.ERANGE:
			return nil, err
		}
		if n, err = unix.Listxattr(procPath(fd), nil); err == nil {
			buf = make([]byte, n+256)
		}
	}
}

// Private reports whether an attribute's name is refused to users (EPERM) and
// never shown to them: what other tools keep beside the format's own.
func Private(name string) bool {
	return name == overrideName || strings.HasPrefix(name, "user.fuseoverlayfs.")
}

// escape stands behind the prefix in names that users gave, so that an
// overlayfs, or an imgfs, can be nested.
const escape = "overlay."

// Escape returns the name under which a user's attribute is kept on disk.
func (f Format) Escape(name string) string {
	if rest, own := strings.CutPrefix(name, f.Prefix); own {
		return f.Prefix + escape + rest
	}
	return name
}

// Unescape returns the name by which users know an attribute on disk; ok is
// false if they do not know it at all.
func (f Format) Unescape(disk string) (name string, ok bool) {
	rest, own := strings.CutPrefix(disk, f.Prefix)
	if !own {
		return disk, !Private(disk)
	}
	if rest, own = strings.CutPrefix(rest, escape); own {
		return f.Prefix + rest, true
	}
	return "", false
}

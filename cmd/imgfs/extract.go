package main

import (
	"archive/tar"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/fault"
)

// extraction writes the tar of a tree to the host. Every name is made in the
// directory that was made, or opened, for the one before it: no link, in the
// tar or on the host, is ever followed, and no path leads out.
type extraction struct {
	archive bool // owners, all modes, attributes, devices
	root    bool // whether this user may set them
	skipped func(name, what string)

	bytes int64     // of files that were written
	dirs  []openDir // that are being filled, each in the one before
	from  string    // the name of all in the tar
	as    string    // what it becomes
}

// openDir is a directory that is being filled.
type openDir struct {
	path string      // in the tar's tree, below what is copied; "" is the destination
	fd   int         // open
	mode *tar.Header // what it is to have at the end; nil: it stays as it is
}

// run copies the tar of one file or directory to dest; contents says that of a
// directory it is what is in it that goes there.
func (x *extraction) run(r *tar.Reader, dest string, contents bool) (err error) {
	h, err := r.Next()
	if err != nil {
		return err
	}
	dir := h.Typeflag == tar.TypeDir
	x.from = strings.TrimSuffix(h.Name, "/")
	if x.from == "." {
		x.from = ""
	}
	parent, as, err := place(dest, x.from, dir, contents)
	if err != nil {
		return err
	}
	x.as = as
	fd, err := unix.Open(parent, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: parent, Err: err}
	}
	x.dirs = []openDir{{fd: fd}}
	defer func() {
		for len(x.dirs) > 0 {
			err = errors.Join(err, x.leave(err == nil))
		}
	}()
	for ; err == nil; h, err = r.Next() {
		if err := x.entry(h, r); err != nil {
			return err
		}
	}
	if err == io.EOF {
		err = nil
	}
	return err
}

// name returns where an entry of the tar goes.
func (x *extraction) name(tarred string) (string, error) {
	name := strings.TrimSuffix(strings.TrimPrefix(tarred, "./"), "/")
	rest := name
	if x.from != "" {
		var ok bool
		if rest, ok = strings.CutPrefix(name, x.from); !ok || rest != "" && rest[0] != '/' {
			return "", fault.New(fault.Integrity, "the archive has a name that does not belong to it: %q", tarred)
		}
		rest = strings.TrimPrefix(rest, "/")
	}
	for part := range strings.SplitSeq(rest, "/") {
		if rest != "" && (part == "" || part == "." || part == ".." || strings.IndexByte(part, 0) >= 0) {
			return "", fault.New(fault.Integrity, "the archive has a name that leads elsewhere: %q", tarred)
		}
	}
	return path.Join(x.as, rest), nil
}

// entry writes one entry of the tar.
func (x *extraction) entry(h *tar.Header, data io.Reader) error {
	name, err := x.name(h.Name)
	if err != nil {
		return err
	}
	if name == "" { // the destination, which is there
		return nil
	}
	dir, last := path.Split(name)
	for dir = strings.TrimSuffix(dir, "/"); x.top().path != dir; {
		if len(x.dirs) == 1 {
			return fault.New(fault.Integrity, "the archive has %q before its directory", h.Name)
		}
		if err := x.leave(true); err != nil {
			return err
		}
	}
	if err := x.make(h, name, last, data); err != nil {
		return naming(name, err)
	}
	return nil
}

// naming puts a path before an errno.
func naming(name string, err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return fmt.Errorf("%s: %w", name, err)
	}
	return err
}

func (x *extraction) top() *openDir { return &x.dirs[len(x.dirs)-1] }

// make makes one entry in the last directory.
func (x *extraction) make(h *tar.Header, name, last string, data io.Reader) error {
	at := x.top().fd
	switch h.Typeflag {
	case tar.TypeDir:
		return x.enter(h, name, last)
	case tar.TypeReg:
		return x.file(h, name, last, data)
	case tar.TypeSymlink:
		return x.put(name, last, func(tmp string) error {
			if err := unix.Symlinkat(h.Linkname, at, tmp); err != nil {
				return err
			}
			return x.finish(h, at, tmp)
		})
	case tar.TypeLink:
		return x.link(h, name, last)
	case tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
		mode, dev := uint32(unix.S_IFIFO), 0
		if h.Typeflag != tar.TypeFifo {
			if !x.archive || !x.root {
				x.skipped(name, "a device, which takes -a, and root")
				return nil
			}
			mode, dev = unix.S_IFCHR, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
			if h.Typeflag == tar.TypeBlock {
				mode = unix.S_IFBLK
			}
		}
		return x.put(name, last, func(tmp string) error {
			if err := unix.Mknodat(at, tmp, mode|0o600, dev); err != nil {
				return err
			}
			return x.finish(h, at, tmp)
		})
	}
	return fault.New(fault.Integrity, "the archive has an entry of type %q: %q", h.Typeflag, h.Name)
}

// enter makes a directory, or opens the one that is there, to be filled.
func (x *extraction) enter(h *tar.Header, name, last string) error {
	err := unix.Mkdirat(x.top().fd, last, 0o700)
	made := err == nil
	if err != nil && err != unix.EEXIST {
		return err
	}
	fd, err := unix.Openat(x.top().fd, last, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == unix.ENOTDIR || err == unix.ELOOP {
		return fault.New(fault.Conflict, "cannot overwrite non-directory %q with directory %q", name, h.Name)
	}
	if err != nil {
		return err
	}
	d := openDir{path: name, fd: fd}
	if made || x.archive {
		d.mode = h
	}
	x.dirs = append(x.dirs, d)
	return nil
}

// leave ends the last directory; whole says that all of it is there.
func (x *extraction) leave(whole bool) error {
	d := x.top()
	x.dirs = x.dirs[:len(x.dirs)-1]
	var err error
	if d.mode != nil && whole {
		err = naming(d.path, x.finish(d.mode, d.fd, ""))
	}
	unix.Close(d.fd)
	return err
}

// file writes a regular file, which appears when it is whole.
func (x *extraction) file(h *tar.Header, name, last string, data io.Reader) error {
	at := x.top().fd
	return x.put(name, last, func(tmp string) error {
		fd, err := unix.Openat(at, tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), name)
		n, err := io.Copy(f, data)
		x.bytes += n
		if err == nil {
			err = x.finish(h, fd, "")
		}
		return errors.Join(err, f.Close())
	})
}

// link makes a further name of a file that was written before.
func (x *extraction) link(h *tar.Header, name, last string) error {
	old, err := x.name(h.Linkname)
	if err != nil {
		return err
	}
	dir, oldLast := path.Split(old)
	fd, err := unix.Openat2(x.dirs[0].fd, "./"+dir, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	at := x.top().fd
	if err := x.clear(name, last); err != nil {
		return err
	}
	return unix.Linkat(fd, oldLast, at, last, 0)
}

// clear makes room for a link: rename(2) does nothing where both names are the
// same file's already.
func (x *extraction) clear(name, last string) error {
	switch err := unix.Unlinkat(x.top().fd, last, 0); err {
	case nil, unix.ENOENT:
		return nil
	case unix.EISDIR:
		return fault.New(fault.Conflict, "cannot overwrite directory %q with non-directory", name)
	default:
		return err
	}
}

// put has something made under a name of its own in the last directory, and then
// takes it to its place, over what may be there.
func (x *extraction) put(name, last string, do func(tmp string) error) error {
	at := x.top().fd
	tmp := ".imgfs-" + strings.ToLower(rand.Text())
	err := do(tmp)
	if err == nil {
		err = unix.Renameat(at, tmp, at, last)
	}
	if err == nil {
		return nil
	}
	unix.Unlinkat(at, tmp, 0)
	if err == unix.EISDIR {
		return fault.New(fault.Conflict, "cannot overwrite directory %q with non-directory", name)
	}
	return err
}

// finish gives an inode, name in dirfd or dirfd itself, what the tar says of it.
func (x *extraction) finish(h *tar.Header, dirfd int, name string) error {
	itself := name == ""
	if x.archive && x.root {
		flags := unix.AT_SYMLINK_NOFOLLOW
		if itself {
			flags |= unix.AT_EMPTY_PATH
		}
		if err := unix.Fchownat(dirfd, name, h.Uid, h.Gid, flags); err != nil {
			return err
		}
	}
	mode := uint32(h.Mode) & 0o7777
	if !x.archive {
		mode &^= unix.S_ISUID | unix.S_ISGID
	}
	switch {
	case itself:
		if err := unix.Fchmod(dirfd, mode); err != nil {
			return err
		}
		if x.archive {
			if err := setXattrs(h, dirfd); err != nil {
				return err
			}
		}
	case h.Typeflag != tar.TypeSymlink:
		// Made a moment ago, in a directory that is perhaps not ours alone: what
		// stands there now is not followed.
		fd, err := unix.Openat(dirfd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Chmod(procFd(fd), mode); err != nil {
			return err
		}
	}
	return setTime(h, dirfd, name)
}

// procFd is a path to what is open, for calls that take no descriptor.
func procFd(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// setXattrs sets attributes as far as the file system has them and this user
// may.
func setXattrs(h *tar.Header, fd int) error {
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, "SCHILY.xattr.")
		if !ok {
			continue
		}
		switch err := unix.Fsetxattr(fd, name, []byte(v), 0); err {
		case nil, unix.EPERM, unix.EOPNOTSUPP:
		default:
			return err
		}
	}
	return nil
}

// setTime sets the time of the last change.
func setTime(h *tar.Header, dirfd int, name string) error {
	t, err := unix.TimeToTimespec(h.ModTime)
	if err != nil {
		return err
	}
	if name == "" {
		return unix.UtimesNanoAt(unix.AT_FDCWD, procFd(dirfd), []unix.Timespec{t, t}, 0)
	}
	return unix.UtimesNanoAt(dirfd, name, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW)
}

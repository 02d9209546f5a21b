package sandbox

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/fault"
)

// tree is the root directory to be, with what has been mounted in it.
type tree struct {
	proc, sys, dev int        // their mounts, once attached
	root           int        // O_PATH
	made           []made     // in the order of their making
	attached       []attached // likewise
	grouped        bool       // setgroups(2) is allowed
}

// made is a place that the tree did not have.
type made struct {
	parent int // O_PATH
	name   string
	dir    bool
	times  []unix.Timespec // of the parent before: atime, mtime
}

// attached is a mount.
type attached struct {
	fd  int
	dir bool
}

// open returns the mounted tree.
func (o *outside) open() (*tree, error) {
	t, err := openTree(o.target)
	if err != nil {
		return nil, err
	}
	// In a user namespace that has root alone it is not.
	setgroups, err := os.ReadFile("/proc/self/setgroups")
	t.grouped = !strings.HasPrefix(string(setgroups), "deny")
	return t, err
}

func openTree(dir string) (*tree, error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("root directory: %w", err)
	}
	return &tree{root: root}, nil
}

// build mounts in the tree whatever the command needs.
func (o *outside) build(t *tree, spec *Spec) error {
	if err := t.procSys(); err != nil {
		return err
	}
	if err := t.devices(); err != nil {
		return err
	}
	if spec.Confined {
		if err := t.restrict(); err != nil {
			return err
		}
	}
	for i, f := range spec.Files {
		if err := o.file(t, i, f); err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
	}
	// One below another must come after it.
	slices.SortStableFunc(o.binds, func(a, b source) int {
		depth := func(s source) int { return strings.Count(path.Clean(s.Target), "/") }
		return cmp.Compare(depth(a), depth(b))
	})
	for _, b := range o.binds {
		at, err := t.place(b.Target, b.dir)
		if err == nil {
			err = t.attach(b.fd, at)
		}
		if err != nil {
			return fmt.Errorf("volume %s: %w", b.Target, err)
		}
	}
	return nil
}

// file mounts a copy of f's data. Where the tree has no place for it and
// takes none, being read-only, it goes without.
func (o *outside) file(t *tree, i int, f File) error {
	at, err := t.place(f.Path, false)
	if errors.Is(err, unix.EROFS) {
		return nil
	}
	if err != nil {
		return err
	}
	name := "file-" + strconv.Itoa(i)
	fd, err := unix.Openat(o.staging, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	w := os.NewFile(uintptr(fd), f.Path)
	_, err = w.Write(f.Data)
	if err := errors.Join(err, w.Chmod(0o644), w.Close()); err != nil {
		return err
	}
	src, _, err := cloneTree(o.staging, name, false)
	if err != nil {
		return err
	}
	return t.attach(src, at)
}

// attach mounts fd, which the tree takes over, upon at.
func (t *tree) attach(fd, at int) error {
	if err := attach(fd, at); err != nil {
		unix.Close(fd)
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	t.attached = append(t.attached, attached{fd, st.Mode&unix.S_IFMT == unix.S_IFDIR})
	return nil
}

// special mounts fd upon one of the directories that must be just that.
func (t *tree) special(name string, fd int) error {
	const flags, resolve = unix.O_PATH | unix.O_DIRECTORY, unix.RESOLVE_NO_SYMLINKS
	at, err := t.open(name, flags, resolve)
	if err == unix.ENOENT {
		if err = t.make(t.root, name, true); err == nil {
			at, err = t.open(name, flags, resolve)
		}
	}
	switch err {
	case nil:
		return t.attach(fd, at)
	case unix.EROFS:
		return fault.WithHint(fault.New(fault.Failed, "the tree has no directory /%s, and none can be made as it is read-only", name), "leave out --ro")
	case unix.ELOOP, unix.ENOTDIR:
		return fault.New(fault.Integrity, "/%s of the tree is not a directory", name)
	}
	return fmt.Errorf("/%s: %w", name, err)
}

// open opens a path in the tree; its symlinks lead nowhere else.
func (t *tree) open(name string, flags int, resolve uint64) (int, error) {
	how := &unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | resolve,
	}
	const most = 128
	for range most {
		fd, err := unix.Openat2(t.root, name, how)
		if err != unix.EAGAIN && err != unix.EINTR { // somebody renames beside us
			return fd, err
		}
	}
	return -1, unix.EAGAIN
}

// place returns an O_PATH descriptor of a path in the tree, which it makes, a
// directory or an empty file, with its parents, where there is none. Dangling
// symlinks are followed like others.
func (t *tree) place(name string, dir bool) (int, error) {
	steps := 0
	return t.placeIn(name, dir, &steps)
}

func (t *tree) placeIn(name string, dir bool, steps *int) (int, error) {
	for {
		if *steps++; *steps > 255 {
			return -1, unix.ELOOP
		}
		fd, err := t.open(name, unix.O_PATH, 0)
		if err == nil {
			return t.checked(fd, dir)
		}
		if err != unix.ENOENT {
			return -1, err
		}
		up, last := path.Split(strings.TrimRight(name, "/"))
		parent, err := t.placeIn(cmp.Or(up, "/"), true, steps)
		if err != nil {
			return -1, err
		}
		if last == "" || last == "." || last == ".." {
			continue
		}
		target, err := readlinkat(parent, last)
		switch err {
		case nil: // a dangling one
			if !path.IsAbs(target) {
				target = up + "/" + target
			}
			name = target
			continue
		case unix.EINVAL: // somebody has made it meanwhile
			continue
		case unix.ENOENT:
		default:
			return -1, err
		}
		if err := t.make(parent, last, dir); err != nil && err != unix.EEXIST {
			return -1, err
		}
	}
}

// checked returns fd if it is, or is not, a directory, as wanted.
func (t *tree) checked(fd int, dir bool) (int, error) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	if err == nil && (st.Mode&unix.S_IFMT == unix.S_IFDIR) != dir {
		err = unix.EISDIR
		if dir {
			err = unix.ENOTDIR
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (t *tree) make(parent int, name string, dir bool) error {
	var st unix.Stat_t
	if err := unix.Fstat(parent, &st); err != nil {
		return err
	}
	if dir {
		if err := unix.Mkdirat(parent, name, 0o755); err != nil {
			return err
		}
	} else {
		fd, err := unix.Openat(parent, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
		if err != nil {
			return err
		}
		unix.Close(fd)
	}
	t.made = append(t.made, made{parent, name, dir, []unix.Timespec{st.Atim, st.Mtim}})
	return nil
}

func readlinkat(dirfd int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dirfd, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// enter makes the tree the root of this process and gives up the old one.
func (t *tree) enter() error {
	old, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("root directory: %w", err)
	}
	defer unix.Close(old)
	if err := unix.Fchdir(t.root); err != nil {
		return fmt.Errorf("root directory: %w", err)
	}
	switch err := unix.PivotRoot(".", "."); err {
	case nil:
		// Both are mounted upon each other now; the old one goes.
		if err := unix.Fchdir(old); err != nil {
			return fmt.Errorf("old root directory: %w", err)
		}
		if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
			return fmt.Errorf("old root directory: %w", err)
		}
	case unix.EINVAL: // the host's root is its initramfs, which cannot go
		if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("root directory: %w", err)
		}
		if err := unix.Chroot("."); err != nil {
			return fmt.Errorf("root directory: %w", err)
		}
	default:
		return fmt.Errorf("pivot_root: %w", err)
	}
	return os.Chdir("/")
}

// tidy takes away again what was made to be mounted upon: it is not of the
// command's doing.
func (t *tree) tidy() error {
	var errs []error
	for _, a := range slices.Backward(t.attached) {
		// By the mount's own root, whatever the command has done to paths. The
		// first one attached, and so the last to go, is /proc.
		name := fmt.Sprintf("/proc/self/fd/%d", a.fd)
		if a.dir {
			if err := unix.Fchdir(a.fd); err != nil {
				errs = append(errs, err)
				continue
			}
			name = "."
		}
		errs = append(errs, unix.Unmount(name, unix.MNT_DETACH))
	}
	for _, m := range slices.Backward(t.made) {
		flags := 0
		if m.dir {
			flags = unix.AT_REMOVEDIR // fails if the command has filled it
		} else if !emptyFile(m.parent, m.name) {
			continue
		}
		if err := unix.Unlinkat(m.parent, m.name, flags); err != nil {
			errs = append(errs, err)
			continue
		}
		// The last one to go was the first to come, so these are the oldest.
		errs = append(errs, unix.UtimesNanoAt(m.parent, "", m.times, unix.AT_EMPTY_PATH))
	}
	return errors.Join(append(errs, unix.Chdir("/"))...)
}

func emptyFile(dirfd int, name string) bool {
	var st unix.Stat_t
	err := unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == 0
}

package overlay_test

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// snapshot is all of a tree that is compared: a line for each path, and apart
// from it the inode numbers, which no two file systems share.
type snapshot struct {
	lines map[string]string
	inos  map[string]uint64
	// nowhere: names of which the listing and stat(2) say different things.
	odd []string
}

// masks are the attributes not compared, because a target cannot have them
// like the model.
type masks struct {
	links  bool // nlink, and which names share an inode
	inodes bool // that readdir tells the inode, and that it stays
	owners bool // of symlinks
	times  bool // of anything
	dirs   bool // times of directories
}

// fresh is when a time counts as "now": what the operations set themselves
// differs from tree to tree, and lies in the hour of the test.
func fresh(sec int64) bool {
	d := time.Now().Unix() - sec
	return d > -60 && d < 3600
}

// retry repeats what a signal of the runtime interrupted.
func retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// takeSnapshot walks below root without os.Open, whose poller asks the server
// of the mount, which may be this process.
func takeSnapshot(root int, m masks) (*snapshot, error) {
	s := &snapshot{lines: map[string]string{}, inos: map[string]uint64{}}
	groups := map[uint64][]string{}
	var walk func(dir int, path string) error
	walk = func(dir int, path string) error {
		var st unix.Stat_t
		if err := unix.Fstat(dir, &st); err != nil {
			return err
		}
		if err := s.add(path, dir, "", &st, m); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		entries, err := listDir(dir)
		if err != nil {
			return fmt.Errorf("%s: readdir: %w", path, err)
		}
		for _, e := range entries {
			if e.name == "." || e.name == ".." {
				continue
			}
			name := path + "/" + e.name
			var st unix.Stat_t
			if err := retry(func() error { return unix.Fstatat(dir, e.name, &st, unix.AT_SYMLINK_NOFOLLOW) }); err != nil {
				return fmt.Errorf("%s: listed, but: %w", name, err)
			}
			if e.ino != st.Ino || uint32(e.typ)<<12 != st.Mode&unix.S_IFMT {
				s.odd = append(s.odd, fmt.Sprintf("%s: readdir says ino %d type %o, stat %d %o", name, e.ino, e.typ, st.Ino, st.Mode>>12))
			}
			if st.Mode&unix.S_IFMT == unix.S_IFDIR {
				fd, err := openat(dir, e.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				err = walk(fd, name)
				unix.Close(fd)
				if err != nil {
					return err
				}
				continue
			}
			if err := s.add(name, dir, e.name, &st, m); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if st.Nlink > 1 && !m.links {
				groups[st.Ino] = append(groups[st.Ino], name)
			}
		}
		return nil
	}
	fd, err := openat(root, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	err = walk(fd, "")
	for _, names := range groups {
		for _, n := range names {
			s.lines[n] += " =" + slices.Min(names)
		}
	}
	return s, err
}

func openat(dir int, name string, flags int) (fd int, err error) {
	err = retry(func() error {
		fd, err = unix.Openat(dir, name, flags|unix.O_CLOEXEC, 0)
		return err
	})
	return fd, err
}

// add describes dir/name, or dir itself.
func (s *snapshot) add(path string, dir int, name string, st *unix.Stat_t, m masks) error {
	typ := st.Mode & unix.S_IFMT
	var b strings.Builder
	fmt.Fprintf(&b, "%06o", st.Mode)
	if typ != unix.S_IFLNK || !m.owners {
		fmt.Fprintf(&b, " %d:%d", st.Uid, st.Gid)
	}
	switch {
	case m.times || m.dirs && typ == unix.S_IFDIR:
	case fresh(st.Mtim.Sec):
		b.WriteString(" now")
	default:
		fmt.Fprintf(&b, " %d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
	}
	if typ != unix.S_IFDIR && !m.links {
		fmt.Fprintf(&b, " nlink=%d", st.Nlink)
	}
	proc := "/proc/self/fd/" + strconv.Itoa(dir)
	if name != "" {
		proc += "/" + name
	}
	switch typ {
	case unix.S_IFREG:
		sum, err := sumFile(dir, name)
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, " size=%d %s", st.Size, sum)
	case unix.S_IFLNK:
		buf := make([]byte, 8192)
		n, err := unix.Readlinkat(dir, name, buf)
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, " size=%d -> %s", st.Size, buf[:n])
	case unix.S_IFCHR, unix.S_IFBLK:
		fmt.Fprintf(&b, " dev=%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	x, err := xattrsOf(proc, name != "")
	if err != nil {
		return err
	}
	b.WriteString(x)
	s.lines[path], s.inos[path] = b.String(), st.Ino
	return nil
}

func sumFile(dir int, name string) (string, error) {
	fd, err := openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NOATIME)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	h := sha256.New()
	buf := make([]byte, 256<<10)
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("read: %w", err)
		}
		if n == 0 {
			return fmt.Sprintf("%x", h.Sum(nil)[:6]), nil
		}
		h.Write(buf[:n])
	}
}

// xattrsOf lists the attributes but the overlay's own, which kernel overlayfs
// hides and a plain directory does not have.
func xattrsOf(path string, nofollow bool) (string, error) {
	list, get := unix.Listxattr, unix.Getxattr
	if nofollow {
		list, get = unix.Llistxattr, unix.Lgetxattr
	}
	buf := make([]byte, 64<<10)
	n, err := list(path, buf)
	if err == unix.EOPNOTSUPP {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("listxattr: %w", err)
	}
	names := strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 })
	slices.Sort(names)
	var b strings.Builder
	for _, name := range names {
		n, err := get(path, name, buf)
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		fmt.Fprintf(&b, " %s=%q", name, buf[:n])
	}
	return b.String(), nil
}

type dirent struct {
	ino  uint64
	off  int64
	typ  byte
	name string
}

// listDir reads a whole directory from its beginning, in its order.
func listDir(fd int) ([]dirent, error) {
	if _, err := unix.Seek(fd, 0, 0); err != nil {
		return nil, err
	}
	return readDir(fd, 32<<10, 1<<30)
}

// readDir goes on reading a directory, in at most so many calls.
func readDir(fd, size, calls int) ([]dirent, error) {
	var all []dirent
	buf := make([]byte, size)
	for range calls {
		n, err := unix.Getdents(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			break
		}
		for b := buf[:n]; len(b) > 0; {
			size := binary.NativeEndian.Uint16(b[16:])
			name, _, _ := strings.Cut(string(b[19:size]), "\x00")
			all = append(all, dirent{binary.NativeEndian.Uint64(b), int64(binary.NativeEndian.Uint64(b[8:])), b[18], name})
			b = b[size:]
		}
	}
	return all, nil
}

// differences lists where two trees differ, at most a few.
func differences(want, got map[string]string) string {
	names := maps.Clone(want)
	maps.Copy(names, got)
	var b strings.Builder
	n := 0
	for _, p := range slices.Sorted(maps.Keys(names)) {
		w, g := want[p], got[p]
		if w == g {
			continue
		}
		if n++; n > 8 {
			b.WriteString("...\n")
			break
		}
		show := func(s string) string {
			if s == "" {
				return "(absent)"
			}
			return s
		}
		fmt.Fprintf(&b, "%q\n  model %s\n  here  %s\n", "/"+strings.TrimPrefix(p, "/"), show(w), show(g))
	}
	return b.String()
}

package imgtest

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ListDir writes out the tree of a directory, as [List] does that of an index:
// what lstat, readlink, listxattr, getxattr and read tell. Names come in the
// order of their bytes, and a directory's type of an entry is compared with
// lstat's. The process must not be the one that serves the tree.
func ListDir(root string) (string, error) {
	l := dirLister{root: root, first: map[uint64]string{}}
	if err := l.entry("/"); err != nil {
		return "", err
	}
	return l.out.String(), nil
}

type dirLister struct {
	root  string
	first map[uint64]string // path of the first name of inodes that have several
	out   strings.Builder
}

func (l *dirLister) entry(name string) error {
	path := filepath.Join(l.root, name)
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	typ := st.Mode & unix.S_IFMT
	if typ != unix.S_IFDIR && st.Nlink > 1 {
		if first, ok := l.first[st.Ino]; ok {
			fmt.Fprintf(&l.out, "%s = %s\n", quote(name), quote(first))
			return nil
		}
		l.first[st.Ino] = name
	}
	letter := map[uint32]string{unix.S_IFDIR: "d", unix.S_IFREG: "f", unix.S_IFLNK: "l", unix.S_IFCHR: "c", unix.S_IFBLK: "b", unix.S_IFIFO: "p"}[typ]
	fmt.Fprintf(&l.out, "%s %s %04o %d:%d n%d @%d", quote(name), letter, st.Mode&0o7777, st.Uid, st.Gid, st.Nlink, st.Mtim.Sec)
	if st.Mtim.Nsec != 0 {
		fmt.Fprintf(&l.out, ".%09d", st.Mtim.Nsec)
	}
	var err error
	switch letter {
	case "f":
		err = l.content(path, st.Size)
	case "l":
		var target string
		if target, err = os.Readlink(path); err == nil && int64(len(target)) != st.Size {
			err = fmt.Errorf("%s: target of %d bytes, size %d", path, len(target), st.Size)
		}
		fmt.Fprintf(&l.out, " -> %s", quote(target))
	case "c", "b":
		fmt.Fprintf(&l.out, " %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	if err != nil {
		return err
	}
	xattrs, err := listXattrs(path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	var all []string
	for k, v := range xattrs {
		all = append(all, fmt.Sprintf(" %s=%q", quote(k), v))
	}
	slices.Sort(all)
	l.out.WriteString(strings.Join(all, "") + "\n")
	if letter != "d" {
		return nil
	}
	children, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, c := range children {
		child := strings.TrimSuffix(name, "/") + "/" + c.Name()
		fi, err := os.Lstat(filepath.Join(path, c.Name()))
		if err != nil {
			return err
		}
		if fi.Mode().Type() != c.Type() {
			return fmt.Errorf("%s: d_type says %v, lstat %v", child, c.Type(), fi.Mode().Type())
		}
		if err := l.entry(child); err != nil {
			return err
		}
	}
	return nil
}

func (l *dirLister) content(path string, size int64) error {
	fmt.Fprintf(&l.out, " %d", size)
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	small := make([]byte, maxQuoted)
	n, err := io.ReadFull(f, small)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return err
	}
	h.Write(small[:n])
	rest, err := io.Copy(h, f)
	if err != nil {
		return err
	}
	if got := int64(n) + rest; got != size {
		return fmt.Errorf("%s: %d bytes read, size %d", path, got, size)
	}
	if size <= maxQuoted {
		fmt.Fprintf(&l.out, " %q", small[:n])
	} else {
		fmt.Fprintf(&l.out, " sha256:%x", h.Sum(nil))
	}
	return nil
}

package overlay_test

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A root is a tree that operations are done in. They are lines of text, so
// that a failing sequence can be cut, printed and kept:
//
//	create P MODE          a new file; mkdir P MODE, rmdir P, unlink P
//	write P OFF LEN TAG    LEN bytes that TAG and the offset determine; append P LEN TAG
//	truncate P SIZE        empty P opens with O_TRUNC
//	rename P Q [FLAG]      noreplace, exchange
//	link P Q   linkfd P Q  (the second through /proc/self/fd, as for O_TMPFILE)
//	symlink P TARGET       mknod P TYPE MODE   chmod P MODE   chown P UID GID
//	times P SECONDS        setxattr P NAME VALUE, rmxattr P NAME, acl P NAME MODE
//	tmpfile DIR P TAG      O_TMPFILE, written, synced, linked to P
//	fallocate P MODE OFF LEN   copy P Q OFF LEN   stat P   list P   cat P
//	open S P FLAGS         a descriptor for: put S OFF LEN TAG, get S OFF LEN,
//	                       size S N, punch S OFF LEN, sync S, fstat S, close S
//	rmtree P               as rm -rf: deletes while it reads the directory
//	as UID OP...           with the permissions of a user
//
// Paths are resolved inside the root; what an operation says is text as well:
// an errno's name, or what it read.
type root struct {
	fd    int // of the root directory
	slots map[string]int
}

func openRoot(dir string) (*root, error) {
	fd, err := openat(unix.AT_FDCWD, dir, unix.O_PATH|unix.O_DIRECTORY)
	return &root{fd: fd, slots: map[string]int{}}, err
}

// closeSlots closes what is open, as before an unmount.
func (r *root) closeSlots() {
	for _, fd := range r.slots {
		unix.Close(fd)
	}
	clear(r.slots)
}

func (r *root) close() {
	r.closeSlots()
	unix.Close(r.fd)
}

// do does one operation and returns what it said.
func (r *root) do(op string) string {
	words := strings.Fields(expand(op))
	if words[0] == "as" {
		id, _ := strconv.Atoi(words[1])
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		unix.Setfsgid(id)
		unix.Setfsuid(id)
		defer unix.Setfsgid(0)
		defer unix.Setfsuid(0)
		words = words[2:]
	}
	said := "ok"
	err := retry(func() (err error) {
		said, err = r.op(words)
		return err
	})
	if err == nil {
		return said
	}
	if no, ok := err.(unix.Errno); ok {
		return unix.ErrnoName(no)
	}
	return err.Error()
}

func (r *root) op(w []string) (string, error) {
	for len(w) < 6 {
		w = append(w, "")
	}
	num := func(i int) int64 { n, _ := strconv.ParseInt(w[i], 10, 64); return n }
	mode := func(i int) uint32 { n, _ := strconv.ParseUint(w[i], 8, 32); return uint32(n) }
	switch w[0] {
	case "create":
		return r.with(w[1], unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, mode(2), func(int) error { return nil })
	case "write":
		return r.with(w[1], unix.O_WRONLY, 0, func(fd int) error { return put(fd, num(2), num(3), w[4]) })
	case "append":
		return r.with(w[1], unix.O_WRONLY|unix.O_APPEND, 0, func(fd int) error { return put(fd, -1, num(2), w[3]) })
	case "truncate":
		return r.with(w[1], unix.O_WRONLY, 0, func(fd int) error { return unix.Ftruncate(fd, num(2)) })
	case "empty":
		return r.with(w[1], unix.O_WRONLY|unix.O_TRUNC, 0, func(int) error { return nil })
	case "fallocate":
		return r.with(w[1], unix.O_WRONLY, 0, func(fd int) error { return unix.Fallocate(fd, uint32(num(2)), num(3), num(4)) })
	case "copy":
		return r.copy(w[1], w[2], num(3), num(4))
	case "tmpfile":
		return r.tmpfile(w[1], w[2], w[3])
	case "open":
		return r.open(w[1], w[2], w[3])
	case "put", "get", "size", "punch", "sync", "fstat", "close":
		return r.slot(w[0], w[1], num(2), num(3), w[4])
	case "cat":
		var said string
		_, err := r.with(w[1], unix.O_RDONLY|unix.O_NONBLOCK, 0, func(fd int) error {
			var err error
			said, err = get(fd, 0, 1<<20)
			return err
		})
		return said, err
	case "list":
		return r.list(w[1])
	case "rmtree":
		return "ok", r.rmtree(w[1])
	case "rename", "link", "linkfd":
		return "ok", r.two(w[0], w[1], w[2], w[3])
	case "times", "setxattr", "rmxattr", "acl", "chmod":
		return "ok", r.attribute(w)
	}
	dir, name, err := r.parent(w[1])
	if err != nil {
		return "", err
	}
	defer unix.Close(dir)
	switch w[0] {
	case "mkdir":
		return "ok", unix.Mkdirat(dir, name, mode(2))
	case "rmdir":
		return "ok", unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
	case "unlink":
		return "ok", unix.Unlinkat(dir, name, 0)
	case "symlink":
		return "ok", unix.Symlinkat(w[2], dir, name)
	case "mknod":
		t := map[string]uint32{"fifo": unix.S_IFIFO, "char": unix.S_IFCHR, "sock": unix.S_IFSOCK, "file": unix.S_IFREG}[w[2]]
		dev := uint64(0)
		if t == unix.S_IFCHR {
			dev = unix.Mkdev(1, 3)
		}
		return "ok", unix.Mknodat(dir, name, t|mode(3), int(dev))
	case "chown":
		return "ok", unix.Fchownat(dir, name, int(num(2)), int(num(3)), unix.AT_SYMLINK_NOFOLLOW)
	case "stat":
		var st unix.Stat_t
		err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		return statLine(&st), err
	}
	return "", fmt.Errorf("unknown operation %q", w[0])
}

func statLine(st *unix.Stat_t) string {
	s := fmt.Sprintf("%06o %d:%d", st.Mode, st.Uid, st.Gid)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		s += fmt.Sprintf(" nlink=%d size=%d", st.Nlink, st.Size)
	}
	return s
}

// at opens a path inside the root. O_NOFOLLOW is the caller's choice.
func (r *root) at(p string, flags int, mode uint32) (fd int, err error) {
	err = retry(func() error {
		fd, err = unix.Openat2(r.fd, p, &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Mode: uint64(mode), Resolve: unix.RESOLVE_IN_ROOT})
		return err
	})
	if err == unix.EAGAIN { // a rename elsewhere made ".." uncertain
		return r.at(p, flags, mode)
	}
	return fd, err
}

// parent opens the directory of a path.
func (r *root) parent(p string) (fd int, name string, err error) {
	dir, name := path.Split(path.Clean(p))
	fd, err = r.at("./"+dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	return fd, name, err
}

func (r *root) with(p string, flags int, mode uint32, f func(fd int) error) (string, error) {
	fd, err := r.at(p, flags|unix.O_NONBLOCK, mode) // a fifo does not make it wait
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	if t := st.Mode & unix.S_IFMT; t != unix.S_IFREG && t != unix.S_IFDIR {
		return "special", nil
	}
	return "ok", f(fd)
}

// pattern is the content that a tag writes at an offset.
func pattern(tag string, off, n int64) []byte {
	h := sha256.Sum256([]byte(tag))
	b := make([]byte, n)
	for i := range b {
		o := off + int64(i)
		b[i] = h[o&31] + byte(o>>5)
	}
	return b
}

// put writes at an offset, or where the descriptor stands.
func put(fd int, off, n int64, tag string) error {
	b := pattern(tag, max(off, 0), n)
	for len(b) > 0 {
		var n int
		var err error
		if off < 0 {
			n, err = unix.Write(fd, b)
		} else {
			n, err = unix.Pwrite(fd, b, off)
			off += int64(n)
		}
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func get(fd int, off, n int64) (string, error) {
	b := make([]byte, n)
	total := 0
	for total < len(b) {
		n, err := unix.Pread(fd, b[total:], off+int64(total))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return "", err
		}
		if n == 0 {
			break
		}
		total += n
	}
	return readAs(b[:total]), nil
}

// readAs is how reading says what it read.
func readAs(b []byte) string {
	h := sha256.Sum256(b)
	return fmt.Sprintf("%d bytes %x", len(b), h[:6])
}

func (r *root) copy(from, to string, off, n int64) (string, error) {
	return r.with(from, unix.O_RDONLY, 0, func(src int) error {
		_, err := r.with(to, unix.O_WRONLY, 0, func(dst int) error {
			woff := off / 2
			for n > 0 {
				m, err := unix.CopyFileRange(src, &off, dst, &woff, int(n), 0)
				if err == unix.EINTR {
					continue
				}
				if err != nil || m == 0 {
					return err
				}
				n -= int64(m)
			}
			return nil
		})
		return err
	})
}

func (r *root) tmpfile(dir, to, tag string) (string, error) {
	fd, err := r.at(dir, unix.O_TMPFILE|unix.O_RDWR, 0o640)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	if err := put(fd, 0, 5000, tag); err != nil {
		return "", err
	}
	if err := unix.Setxattr(proc(fd), "user.tmp", []byte(tag), 0); err != nil {
		return "", err
	}
	if err := unix.Fsync(fd); err != nil {
		return "", err
	}
	return "ok", r.linkTo(fd, to)
}

func proc(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

func (r *root) linkTo(fd int, to string) error {
	d, name, err := r.parent(to)
	if err != nil {
		return err
	}
	defer unix.Close(d)
	return unix.Linkat(unix.AT_FDCWD, proc(fd), d, name, unix.AT_SYMLINK_FOLLOW)
}

func (r *root) open(slot, p, flags string) (string, error) {
	f := map[string]int{"r": unix.O_RDONLY, "w": unix.O_WRONLY, "rw": unix.O_RDWR, "a": unix.O_WRONLY | unix.O_APPEND, "c": unix.O_RDWR | unix.O_CREAT}[flags]
	fd, err := r.at(p, f|unix.O_NONBLOCK, map[bool]uint32{true: 0o644}[flags == "c"])
	if err != nil {
		return "", err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return "not a file", err
	}
	if old, ok := r.slots[slot]; ok {
		unix.Close(old)
	}
	r.slots[slot] = fd
	return "ok", nil
}

func (r *root) slot(verb, slot string, off, n int64, tag string) (string, error) {
	fd, ok := r.slots[slot]
	if !ok {
		return "closed", nil
	}
	switch verb {
	case "put":
		return "ok", put(fd, off, n, tag)
	case "get":
		return get(fd, off, n)
	case "size":
		return "ok", unix.Ftruncate(fd, off)
	case "punch":
		return "ok", unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	case "sync":
		return "ok", unix.Fsync(fd)
	case "fstat":
		var st unix.Stat_t
		err := unix.Fstat(fd, &st)
		return statLine(&st), err
	}
	delete(r.slots, slot)
	return "ok", unix.Close(fd)
}

func (r *root) list(p string) (string, error) {
	fd, err := r.at(p, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	entries, err := listDir(fd)
	var names []string
	for _, e := range entries {
		names = append(names, fmt.Sprintf("%s/%d", e.name, e.typ))
	}
	slices.Sort(names)
	return strings.Join(names, " "), err
}

func (r *root) rmtree(p string) error {
	dir, name, err := r.parent(p)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return removeTree(dir, name)
}

// removeTree removes what it may, whatever the order in which it finds it.
func removeTree(dir int, name string) error {
	err := unix.Unlinkat(dir, name, 0)
	if err != unix.EISDIR {
		return err
	}
	fd, err := openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	left := false
	for {
		some, err := readDir(fd, 280, 1) // one long name at a time
		if err != nil {
			return err
		}
		if len(some) == 0 {
			break
		}
		for _, e := range some {
			if e.name == "." || e.name == ".." {
				continue
			}
			switch err := removeTree(fd, e.name); err {
			case nil:
			case unix.EACCES, unix.EPERM:
				left = true
			default:
				return err
			}
		}
	}
	if left {
		return unix.EPERM
	}
	return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
}

func (r *root) two(verb, from, to, flag string) error {
	a, an, err := r.parent(from)
	if err != nil {
		return err
	}
	defer unix.Close(a)
	if verb == "linkfd" {
		fd, err := openat(a, an, unix.O_PATH|unix.O_NOFOLLOW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return r.linkTo(fd, to)
	}
	b, bn, err := r.parent(to)
	if err != nil {
		return err
	}
	defer unix.Close(b)
	if verb == "link" {
		return unix.Linkat(a, an, b, bn, 0)
	}
	return unix.Renameat2(a, an, b, bn, map[string]uint{"noreplace": unix.RENAME_NOREPLACE, "exchange": unix.RENAME_EXCHANGE}[flag])
}

// attribute changes a file, of a symlink the link itself.
func (r *root) attribute(w []string) error {
	if w[0] == "chmod" {
		fd, err := r.at(w[1], unix.O_PATH, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		m, _ := strconv.ParseUint(w[2], 8, 32)
		return unix.Chmod(proc(fd), uint32(m))
	}
	dir, name, err := r.parent(w[1])
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	p := proc(dir) + "/" + name
	switch w[0] {
	case "times":
		sec, _ := strconv.ParseInt(w[2], 10, 64)
		ts := unix.Timespec{Sec: sec, Nsec: 123456789}
		return unix.UtimesNanoAt(dir, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	case "setxattr":
		return unix.Lsetxattr(p, w[2], []byte(w[3]), 0)
	case "rmxattr":
		return unix.Lremovexattr(p, w[2])
	}
	m, _ := strconv.ParseUint(w[3], 8, 32)
	return unix.Lsetxattr(p, "system.posix_acl_"+w[2], aclOf(uint32(m)), 0)
}

// aclOf is an ACL with a mode, an entry for user 1000 and a mask.
func aclOf(mode uint32) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range [][3]uint32{{1, mode >> 6 & 7, 1<<32 - 1}, {2, 7, 1000}, {4, mode >> 3 & 7, 1<<32 - 1}, {16, 5, 1<<32 - 1}, {32, mode & 7, 1<<32 - 1}} {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return b
}

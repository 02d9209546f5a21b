package overlay

import (
	"container/list"
	"fmt"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// maxDirs is how many descriptors of directories are kept for the next use.
const maxDirs = 256

// dirfds keeps O_PATH descriptors of the upper's directories, the most
// recently used ones. None is kept per node for good: an upper may have more
// directories than a process may have descriptors.
type dirfds struct {
	root heldDir
	mu   sync.Mutex
	lru  list.List // of *heldDir, the most recently used first
}

// heldDir is an open directory.
type heldDir struct {
	fd    int
	refs  int
	n     *node // nil: root, orphan
	place *list.Element
}

func (d *dirfds) init(root int) {
	d.root.fd = root
	d.lru.Init()
}

// openDir returns the descriptor of a directory in the upper, to be given to
// dirs.release.
//
// Preconditions: mu is held, at least for reading.
func (u *Union) openDir(n *node) (*heldDir, error) {
	if n == u.root {
		return &u.dirs.root, nil
	}
	if n.orphan >= 0 {
		return &heldDir{fd: n.orphan}, nil
	}
	if h := u.dirs.take(n); h != nil {
		return h, nil
	}
	if n.parent == nil {
		return nil, unix.ENOENT
	}
	p, err := u.openDir(n.parent)
	if err != nil {
		return nil, err
	}
	fd, err := u.openPath(p.fd, n.name, unix.O_DIRECTORY)
	u.dirs.release(p)
	if err != nil {
		return nil, err
	}
	return u.dirs.put(n, fd), nil
}

// take returns the open directory of n, if there is one.
func (d *dirfds) take(n *node) *heldDir {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n.held == nil {
		return nil
	}
	n.held.refs++
	d.lru.MoveToFront(n.held.place)
	return n.held
}

// put keeps fd for n and takes it, unless somebody else has put one.
func (d *dirfds) put(n *node, fd int) *heldDir {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n.held != nil {
		unix.Close(fd)
		n.held.refs++
		return n.held
	}
	h := &heldDir{fd: fd, refs: 1, n: n}
	h.place = d.lru.PushFront(h)
	n.held = h
	for e := d.lru.Back(); e != nil && d.lru.Len() > maxDirs; {
		old := e.Value.(*heldDir)
		e = e.Prev()
		if old.refs == 0 {
			d.forget(old)
			unix.Close(old.fd)
		}
	}
	return h
}

func (d *dirfds) forget(h *heldDir) {
	d.lru.Remove(h.place)
	h.place = nil
	h.n.held = nil
}

func (d *dirfds) release(h *heldDir) {
	if h.n == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	h.refs--
	if h.refs == 0 && h.place == nil {
		unix.Close(h.fd)
	}
}

// drop forgets the descriptor of n: it is gone, or another inode now.
func (d *dirfds) drop(n *node) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if h := n.held; h != nil {
		d.forget(h)
		if h.refs == 0 {
			unix.Close(h.fd)
		}
	}
}

// shed closes the descriptors that nobody uses, and returns how many.
func (d *dirfds) shed() (closed int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for e := d.lru.Back(); e != nil; {
		h := e.Value.(*heldDir)
		e = e.Prev()
		if h.refs == 0 {
			d.forget(h)
			unix.Close(h.fd)
			closed++
		}
	}
	return closed
}

// openPath opens an inode without touching it.
func (u *Union) openPath(dirfd int, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dirfd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC|flags, 0)
		if err == nil || !u.again(err) {
			return fd, err
		}
	}
}

// freesLong is from how many bytes on it may take long to free a file.
const freesLong = 16 << 20

// closeLast closes what may be the last descriptor of an unlinked inode, which
// frees it: of a large file, while others work.
func closeLast(fd int) {
	var st unix.Stat_t
	if unix.Fstatat(fd, "", &st, unix.AT_EMPTY_PATH) == nil && st.Nlink == 0 && st.Blocks*512 >= freesLong {
		go unix.Close(fd)
		return
	}
	unix.Close(fd)
}

// procPath names what fd is open on, be it by O_PATH.
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// place says where the upper inode of n is: an entry of dirfd, or with name ""
// dirfd itself (AT_EMPTY_PATH, or procPath). Until done is called mu is held
// for reading: do not take it again.
func (u *Union) place(n *node) (dirfd int, name string, done func(), err error) {
	u.mu.RLock()
	dirfd, name, release, err := u.placeLocked(n)
	if err != nil {
		u.mu.RUnlock()
		return -1, "", nil, err
	}
	return dirfd, name, func() { release(); u.mu.RUnlock() }, nil
}

// placeLocked is place.
//
// Preconditions: mu is held, at least for reading, until done.
func (u *Union) placeLocked(n *node) (dirfd int, name string, done func(), err error) {
	switch {
	case n == u.root:
		return u.up.Root(), "", func() {}, nil
	case n.orphan >= 0:
		return n.orphan, "", func() {}, nil
	case n.parent == nil:
		return -1, "", nil, fmt.Errorf("node %#x has no part in the upper", n.id)
	}
	h, err := u.openDir(n.parent)
	if err != nil {
		return -1, "", nil, fmt.Errorf("upper directory: %w", err)
	}
	return h.fd, n.name, func() { u.dirs.release(h) }, nil
}

// openUpper opens the upper inode of n, of a regular file or directory, for
// its data.
func (u *Union) openUpper(n *node, flags int) (fd int, err error) {
	dirfd, name, done, err := u.place(n)
	if err != nil {
		return -1, err
	}
	defer done()
	return u.reopen(dirfd, name, flags)
}

func (u *Union) reopen(dirfd int, name string, flags int) (int, error) {
	flags |= unix.O_CLOEXEC | unix.O_NOCTTY
	path := name
	if name == "" {
		dirfd, path = unix.AT_FDCWD, procPath(dirfd)
	} else {
		flags |= unix.O_NOFOLLOW
	}
	for {
		fd, err := unix.Openat(dirfd, path, flags, 0)
		if err == nil || !u.again(err) {
			return fd, err
		}
	}
}

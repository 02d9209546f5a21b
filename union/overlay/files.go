package overlay

import (
	"container/list"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// dataHalf is the part of Union that is about data and attributes.
type dataHalf struct {
	kernel kernel // nil until Attach
	files  openFiles
	fills  fills
	// flushes has a token for each flush in progress.
	flushes chan struct{}
	blind   struct{ lower, upper atomic.Bool } // where the file system cannot tell whether a read would wait
}

// maxOpen is how many descriptors of regular files are kept for the next use.
const maxOpen = 512

// openFiles knows what is open: by the kernel, whose handles are only counted,
// and here, where a regular file of the upper has at most one descriptor.
// Those that nobody uses at the moment are kept, the most recently used ones.
type openFiles struct {
	policy atomic.Int32 // what OPEN is answered; see open.go

	mu     sync.Mutex
	byNode map[uint64]*file // by node ID: with a handle, a descriptor or a user
	unused list.List        // of *file with a descriptor and no user, the most recently used first
	opens  int              // read-only ones, until the policy is decided
}

// file is what is open of one inode. It has no pointer to its node: one that
// is pure lower has none.
type file struct {
	id uint64

	// change is held while a descriptor is opened and while the mode changes.
	change sync.Mutex

	// Under openFiles.mu; fd also stays while there is a user.
	fd       int // -1: none
	readOnly bool
	users    int
	place    *list.Element // in openFiles.unused
	gone     bool          // the inode was forgotten

	// Under change, and openFiles.mu.
	handles int   // OPEN and CREATE answered, less RELEASE
	mapped  int   // of them, those that can write through a mapping (O_RDWR)
	mode    mode  // of all handles
	backing int32 // what the kernel knows the file as, in passthrough
}

// mode is how the kernel reads and writes an open inode: one of the two for
// all handles, from the first OPEN to the last RELEASE.
type mode uint8

const (
	cached      mode = iota // through its page cache, filled by READ and emptied by WRITE
	passthrough             // straight from and to the file in the upper
)

// pin returns the file of a node and keeps it.
func (t *openFiles) pin(id uint64) *file {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.pinLocked(id)
}

func (t *openFiles) pinLocked(id uint64) *file {
	f := t.byNode[id]
	if f == nil {
		if t.byNode == nil {
			t.byNode = map[uint64]*file{}
		}
		f = &file{id: id, fd: -1}
		t.byNode[id] = f
	}
	t.useLocked(f)
	return f
}

// pinOpen is pin of a file with a descriptor; nil if it has none.
func (t *openFiles) pinOpen(id uint64) *file {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.byNode[id]
	if f == nil || f.fd < 0 {
		return nil
	}
	t.useLocked(f)
	return f
}

func (t *openFiles) useLocked(f *file) {
	f.users++
	if f.place != nil {
		t.unused.Remove(f.place)
		f.place = nil
	}
}

// unpin undoes pin. It may close descriptors.
func (t *openFiles) unpin(f *file) {
	t.mu.Lock()
	f.users--
	shut := t.settleLocked(f)
	t.mu.Unlock()
	if shut >= 0 {
		unix.Close(shut)
	}
}

// settleLocked puts a file where it belongs after a change, and returns a
// descriptor to close, or -1.
//
// Preconditions: mu is held.
func (t *openFiles) settleLocked(f *file) (shut int) {
	shut = -1
	switch {
	case f.users > 0:
		return -1
	case f.gone:
		shut, f.fd = f.fd, -1
		return shut
	case f.fd >= 0 && f.place == nil:
		f.place = t.unused.PushFront(f)
		if t.unused.Len() <= maxOpen {
			return -1
		}
		f = t.unused.Back().Value.(*file)
		t.unused.Remove(f.place)
		f.place = nil
		shut, f.fd = f.fd, -1
	}
	if f.fd < 0 && f.handles == 0 {
		delete(t.byNode, f.id)
	}
	return shut
}

// shed closes the descriptors that nobody uses, and returns how many.
func (t *openFiles) shed() (closed int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for e := t.unused.Front(); e != nil; e = t.unused.Front() {
		f := t.unused.Remove(e).(*file)
		unix.Close(f.fd)
		f.fd, f.place = -1, nil
		if f.handles == 0 {
			delete(t.byNode, f.id)
		}
		closed++
	}
	return closed
}

// forget closes what is open of an inode that the kernel has forgotten.
func (t *openFiles) forget(id uint64) {
	t.mu.Lock()
	f := t.byNode[id]
	shut := -1
	if f != nil {
		delete(t.byNode, id)
		f.gone = true
		if f.place != nil {
			t.unused.Remove(f.place)
			f.place = nil
		}
		shut = t.settleLocked(f)
	}
	t.mu.Unlock()
	if shut >= 0 {
		closeLast(shut)
	}
}

// close closes what nobody uses, at the end.
func (t *openFiles) close() {
	t.mu.Lock()
	ids := make([]uint64, 0, len(t.byNode))
	for id := range t.byNode {
		ids = append(ids, id)
	}
	t.mu.Unlock()
	for _, id := range ids {
		t.forget(id)
	}
}

// acquire opens the upper file of n, for writing too where write is set. The
// caller gives it back with files.unpin.
func (u *Union) acquire(n *node, write bool) (*file, error) {
	u.files.mu.Lock()
	f := u.files.pinLocked(n.id)
	ready := f.fd >= 0 && !(write && f.readOnly)
	u.files.mu.Unlock()
	if !ready {
		f.change.Lock()
		err := u.openLocked(f, n, write)
		f.change.Unlock()
		if err != nil {
			u.files.unpin(f)
			return nil, err
		}
	}
	return f, nil
}

// openLocked gives f a descriptor.
//
// Preconditions: f.change is held, and f is pinned.
func (u *Union) openLocked(f *file, n *node, write bool) error {
	u.files.mu.Lock()
	done := f.fd >= 0 && !(write && f.readOnly)
	u.files.mu.Unlock()
	if done {
		return nil
	}
	fd, err := u.openUpper(n, unix.O_RDWR)
	readOnly := false
	if err != nil && !write && f.fd < 0 {
		// Nobody's file to write to: immutable, or being executed from the
		// upper's own directory.
		fd, err = u.openUpper(n, unix.O_RDONLY)
		readOnly = true
	}
	if err != nil {
		return err
	}
	u.files.mu.Lock()
	defer u.files.mu.Unlock()
	f.readOnly = readOnly
	if f.fd < 0 {
		f.fd = fd
		return nil
	}
	// In the place of the read-only one, by which somebody may be reading.
	defer unix.Close(fd)
	return unix.Dup3(fd, f.fd, unix.O_CLOEXEC)
}

package overlay

import (
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/lower"
	"github.com/imgfs/imgfs/internal/upperdir"
	"golang.org/x/sys/unix"
)

// Options are what a Union may be told. The zero value works.
type Options struct {
	Logger   *slog.Logger // nil discards
	Volatile bool         // nothing need survive: data is not synced
	// Foreign: the upper was made over another chain, so that inode numbers
	// it has recorded mean nothing.
	Foreign bool
	IDs     *IDs // nil: the users and groups of the wire are the tree's
	// Step is called before each change on disk, and may not return. Tests
	// end the process in it. nil: nothing.
	Step func(what string)
}

// Union is the file system.
type Union struct {
	fuse.RawFileSystem // ENOSYS to what neither half implements
	dataHalf

	low    *lower.Tree
	img    *erofs.Image // of low
	up     *upperdir.Dir
	format upperdir.Format
	o      Options
	faults *lower.Faults
	euid   uint32
	egid   uint32

	mu        sync.RWMutex
	nodes     map[uint64]*node  // by node ID; pure lower ones are not in it
	others    map[uint64]uint64 // node IDs of st_inos beyond 40 bits, or that a node was left with
	given     uint64            // how many were given out
	loadedAll bool              // every directory of the upper is loaded
	root      *node
	gen       uint64 // the next generation
	temp      uint64 // the next name in stage/
	names     reverse
	dirs      dirfds

	once sync.Once
	gone chan struct{} // closed by OnUnmount
}

// node is an inode with a part in the upper, or an unlinked one.
type node struct {
	id   uint64
	gen  uint64
	ino  uint64 // st_ino of the upper's file system; 0: bare
	mode uint32 // S_IFMT

	// lower is what a directory is merged with, or where a regular file's data
	// is until it is full; 0: nothing.
	lower erofs.NID
	// full: a regular file's data is in the upper.
	full atomic.Bool
	// lookups the kernel has not yet forgotten. A node that was pure lower has
	// had others before, until all are forgotten: it is inexact.
	lookups atomic.Int64
	inexact atomic.Bool
	// early: it was pure lower before. A FORGET about references of that time
	// may come late, so that nobody knows when the kernel has none.
	early bool
	// placed counts the names it got, synced those of them that were known to
	// be on disk when somebody last made sure.
	placed, synced atomic.Uint64

	// Under Union.mu.
	parent *node      // directory of name, in the upper; nil: root, orphan or bare
	name   string     //
	links  []link     // further names that are known
	dir    *directory // of a directory, once loaded
	orphan int        // O_PATH descriptor of an inode without a known name; -1: none
	bare   bool       // unlinked, and in the lower only
	// redirected: what is on disk says where lower is, wherever it is moved.
	redirected bool
	opaque     bool     // of a directory: marked so on disk
	held       *heldDir // of a directory: under dirfds.mu
}

// link is a name of an inode in the upper.
type link struct {
	parent *node
	name   string
}

func (n *node) isDir() bool     { return n.mode == unix.S_IFDIR }
func (n *node) isRegular() bool { return n.mode == unix.S_IFREG }

// New returns the file system of up over low. Both must stay open until it is
// unmounted.
func New(low *lower.Tree, up *upperdir.Dir, o Options) (*Union, error) {
	if o.Step == nil {
		o.Step = func(string) {}
	}
	u := &Union{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		low:           low,
		img:           low.Image(),
		up:            up,
		format:        up.Format(),
		o:             o,
		faults:        lower.NewFaults(o.Logger),
		euid:          uint32(os.Geteuid()),
		egid:          uint32(os.Getegid()),
		nodes:         map[uint64]*node{},
		others:        map[uint64]uint64{},
		gen:           uint64(time.Now().UnixNano()),
		gone:          make(chan struct{}),
	}
	u.flushes = make(chan struct{}, maxFlushes)
	u.dirs.init(up.Root())
	u.root = &node{id: lower.Root, gen: 1, mode: unix.S_IFDIR, lower: u.img.Root(), orphan: -1}
	u.nodes[lower.Root] = u.root
	if err := u.openRoot(); err != nil {
		return nil, fmt.Errorf("upper: %w", err)
	}
	return u, nil
}

// get returns the state of a node, nil if it is pure lower. A bare node has no
// part in the upper either; copyUp gives it one.
func (u *Union) get(id uint64) *node {
	u.mu.RLock()
	defer u.mu.RUnlock()
	return u.nodes[id]
}

// ino returns the st_ino of a node.
func (u *Union) ino(n *node) uint64 {
	if n == u.root {
		return u.low.Ino(u.img.Root())
	}
	return n.id
}

// Forget is told that the kernel gave up n of its references to a node.
func (u *Union) Forget(id, n uint64) {
	u.mu.RLock()
	x := u.nodes[id]
	over := x != nil && (x.forget(int64(n)) || x.isUnseen())
	u.mu.RUnlock()
	if over {
		u.mu.Lock()
		switch {
		case u.nodes[id] != x:
		case !x.isReferred():
			u.dropLocked(x)
			u.unloadLocked(x)
		case x.isUnseen():
			u.dirs.drop(x)
			unix.Close(x.orphan)
			x.orphan, x.bare = -1, true
		}
		u.mu.Unlock()
	}
}

// isUnseen reports whether n is a removed directory that the kernel may well
// have had no references to when it was copied up, for the sake of a hard link
// in it: then no FORGET will ever be of more than were counted. It is as if it
// had been removed from the lower.
//
// Preconditions: mu is held, at least for reading.
func (n *node) isUnseen() bool {
	return n.early && n.orphan >= 0 && n.isDir() && n.lookups.Load() == 0
}

// forget reports whether the kernel has no reference left. More than were
// counted are all there were, also those before it became a node.
func (n *node) forget(count int64) bool {
	for {
		have := n.lookups.Load()
		left := max(0, have-count)
		if !n.lookups.CompareAndSwap(have, left) {
			continue
		}
		if count > have {
			n.inexact.Store(false)
		}
		return left == 0 && !n.inexact.Load()
	}
}

// dropLocked ends an inode that has no name and no references.
//
// Preconditions: mu is held exclusively.
func (u *Union) dropLocked(n *node) {
	if n == u.root || n.parent != nil {
		return
	}
	delete(u.nodes, n.id)
	if u.others[n.ino] == n.id {
		delete(u.others, n.ino)
	}
	if n.orphan >= 0 {
		closeLast(n.orphan)
		n.orphan = -1
	}
	u.dirs.drop(n)
	u.files.forget(n.id)
}

// unloadLocked gives up what is known of the names in a directory that the
// kernel has forgotten: it is on disk. What it still refers to stays.
//
// Preconditions: mu is held exclusively.
func (u *Union) unloadLocked(n *node) {
	if n == u.root || n.parent == nil || n.dir == nil {
		return
	}
	for _, e := range n.dir.names {
		c := e.n
		if c == nil {
			continue
		}
		if c.isReferred() || c.early || c.dir != nil || c.parent != n || len(c.links) > 0 || u.files.busy(c.id) {
			return
		}
	}
	for _, e := range n.dir.names {
		if c := e.n; c != nil {
			c.parent = nil
			u.dropLocked(c)
		}
	}
	n.dir = nil
	u.loadedAll = false
}

// busy reports whether an inode is open, or used at the moment.
func (t *openFiles) busy(id uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.byNode[id]
	return f != nil && (f.users > 0 || f.handles > 0)
}

// OnUnmount ends the requests that still wait.
func (u *Union) OnUnmount() { u.once.Do(func() { close(u.gone) }) }

// Close closes the union's descriptors, not the upper's.
//
// Preconditions: its server is done.
func (u *Union) Close() {
	u.fills.works.Wait() // nobody waits for them any more, so they end
	u.mu.Lock()
	defer u.mu.Unlock()
	u.files.close()
	for _, n := range u.nodes {
		if n.orphan >= 0 {
			unix.Close(n.orphan)
			n.orphan = -1
		}
		u.dirs.drop(n)
	}
}

// String names the file system.
func (u *Union) String() string { return "imgfs" }

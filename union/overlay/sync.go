package overlay

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const fdatasync = 1 << 0 // of FsyncIn.FsyncFlags

// Fsync makes a file, and that it has its name, survive the machine.
func (u *Union) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	n, low := u.inLower(in.NodeId)
	if low || u.o.Volatile {
		return fuse.OK
	}
	if n.isRegular() {
		f, err := u.acquire(n, false)
		if err != nil {
			return u.status("fsync", err)
		}
		defer u.files.unpin(f)
		if in.FsyncFlags&fdatasync != 0 {
			err = unix.Fdatasync(f.fd)
		} else {
			err = unix.Fsync(f.fd)
		}
		if err != nil {
			return u.status("fsync", err)
		}
	}
	return u.status("fsync", u.syncName(n))
}

// FsyncDir makes the names in a directory survive.
func (u *Union) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	n, low := u.inLower(in.NodeId)
	if low || u.o.Volatile {
		return fuse.OK
	}
	if err := u.syncDir(n); err != nil {
		return u.status("fsyncdir", err)
	}
	return u.status("fsyncdir", u.syncName(n))
}

func (u *Union) syncDir(n *node) error {
	fd, err := u.openUpper(n, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Fsync(fd)
}

// syncName syncs the directories, up to the root, in which n or one of them got
// its place since they were last synced. What it did counts when all is done:
// who comes here meanwhile syncs as well.
func (u *Union) syncName(n *node) error {
	type place struct {
		n *node
		v uint64
	}
	var done []place
	for n != u.root {
		placed := n.placed.Load()
		if n.synced.Load() >= placed {
			break
		}
		u.mu.RLock()
		p := n.parent
		u.mu.RUnlock()
		if p == nil {
			return nil // without a name: nothing to keep
		}
		if err := u.syncDir(p); err != nil {
			return err
		}
		done = append(done, place{n, placed})
		n = p
	}
	for _, d := range done {
		for was := d.n.synced.Load(); was < d.v && !d.n.synced.CompareAndSwap(was, d.v); was = d.n.synced.Load() {
		}
	}
	return nil
}

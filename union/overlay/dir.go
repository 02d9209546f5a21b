package overlay

import (
	"encoding/binary"
	"fmt"
	"sort"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/lower"
	"golang.org/x/sys/unix"
)

// Cookies of READDIR. The lower's entries come first, with the index's own
// cookies, also those that the upper replaces; what only the upper has follows
// in the order in which it came to be known. Neither moves while the directory
// is loaded, so a cookie means the same however much is removed meanwhile.
const (
	upperCookie = 1 << 62
	cookieDot   = 1 // of a directory without a lower
	cookieDots  = 2
)

// directory is what the upper has in one directory, loaded.
type directory struct {
	names map[string]*entry // whiteouts included
	// order has the entries that the lower has no name for, by seq; with a nil
	// where one was removed.
	order  []slot
	gone   int    // nils in order
	seq    uint64 // of the last one in order
	unread int    // entries that were not yet looked at
}

// entry is a name in the upper.
type entry struct {
	name  string
	seq   uint64 // in order; 0: the lower has the name as well
	state entryState
	n     *node // entryNode
	err   error // entryDamaged
}

type slot struct {
	seq uint64
	e   *entry
}

type entryState uint8

const (
	entryUnread entryState = iota
	entryNode
	entryWhiteout
	entryDamaged
)

func newDirectory() *directory { return &directory{names: map[string]*entry{}} }

// add adds a name; inLower says that the lower has it, too.
func (d *directory) add(name string, inLower bool) *entry {
	e := &entry{name: name}
	if !inLower {
		d.seq++
		e.seq = d.seq
		d.order = append(d.order, slot{e.seq, e})
	}
	d.names[name] = e
	d.unread++
	return e
}

// settle says what a name is: a node, or with nil a whiteout.
func (d *directory) settle(e *entry, n *node) {
	if e.state == entryUnread {
		d.unread--
	}
	e.n, e.err, e.state = n, nil, entryNode
	if n == nil {
		e.state = entryWhiteout
	}
}

// remove forgets a name.
func (d *directory) remove(e *entry) {
	delete(d.names, e.name)
	if e.state == entryUnread {
		d.unread--
	}
	if e.seq == 0 {
		return
	}
	i := d.after(e.seq - 1)
	d.order[i].e = nil
	d.gone++
	if d.gone > 32 && d.gone > len(d.order)/2 {
		kept := d.order[:0]
		for _, s := range d.order {
			if s.e != nil {
				kept = append(kept, s)
			}
		}
		clear(d.order[len(kept):])
		d.order, d.gone = kept, 0
	}
}

// after returns the place in order of the first slot with a greater seq.
func (d *directory) after(seq uint64) int {
	return sort.Search(len(d.order), func(i int) bool { return d.order[i].seq > seq })
}

// whiteouts lists the whiteouts.
func (d *directory) whiteouts() []string {
	var names []string
	for _, e := range d.names {
		if e.state == entryWhiteout {
			names = append(names, e.name)
		}
	}
	return names
}

// loadLocked reads the names of a directory that is in the upper.
//
// Preconditions: mu is held exclusively.
func (u *Union) loadLocked(n *node) (*directory, error) {
	if n.dir != nil {
		return n.dir, nil
	}
	if !n.isDir() {
		return nil, unix.ENOTDIR
	}
	h, err := u.openDir(n)
	if err != nil {
		return nil, fmt.Errorf("upper directory: %w", err)
	}
	defer u.dirs.release(h)
	d := newDirectory()
	err = u.readNames(h.fd, func(name string, kind uint8) error {
		inLower, _, err := u.lowerLookup(n, name)
		if err != nil {
			return err
		}
		e := d.add(name, inLower != 0)
		if kind != unix.DT_CHR && kind != unix.DT_UNKNOWN {
			return nil
		}
		var st unix.Stat_t
		if err := unix.Fstatat(h.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if u.format.Whiteout(&st) {
			d.settle(e, nil)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("upper directory: %w", err)
	}
	n.dir = d
	return d, nil
}

// readNames calls found for the entries of an open directory.
func (u *Union) readNames(dirfd int, found func(name string, kind uint8) error) error {
	fd, err := u.reopen(dirfd, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	buf := make([]byte, 32<<10)
	const inoSize, offSize, fixed = 8, 8, 8 + 8 + 2 + 1
	for {
		n, err := unix.Getdents(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n <= 0 {
			return nil
		}
		for b := buf[:n]; len(b) > fixed; {
			size := int(binary.NativeEndian.Uint16(b[inoSize+offSize:]))
			if size <= fixed || size > len(b) {
				return fmt.Errorf("getdents: record of %d bytes", size)
			}
			name := unix.ByteSliceToString(b[fixed:size])
			kind := b[fixed-1]
			b = b[size:]
			if name == "." || name == ".." {
				continue
			}
			if err := found(name, kind); err != nil {
				return err
			}
		}
	}
}

// child is what a name leads to: a node, else an inode of the chain that has
// no state, else nothing.
type child struct {
	n   *node
	nid erofs.NID
}

func (c child) none() bool { return c.n == nil && c.nid == 0 }

// childLocked resolves a name in a directory that is in the upper.
//
// Preconditions: mu is held exclusively.
func (u *Union) childLocked(p *node, name string) (child, error) {
	d, err := u.loadLocked(p)
	if err != nil {
		return child{}, err
	}
	if e := d.names[name]; e != nil && e.state == entryUnread {
		u.readLocked(p, e)
	}
	c, _, err := u.peek(p, name)
	return c, err
}

// peek is childLocked as far as it changes nothing: ok is false where it would.
//
// Preconditions: mu is held, at least for reading.
func (u *Union) peek(p *node, name string) (c child, ok bool, err error) {
	if p.dir == nil {
		return child{}, false, nil
	}
	if e := p.dir.names[name]; e != nil {
		switch e.state {
		case entryUnread:
			return child{}, false, nil
		case entryDamaged:
			return child{}, true, e.err
		}
		return child{n: e.n}, true, nil
	}
	nid, _, err := u.lowerLookup(p, name)
	if err != nil || nid == 0 {
		return child{}, true, err
	}
	return u.lowerChild(nid), true, nil
}

// lowerChild is the inode that a name of the lower leads to. It may have become
// a node by another of its names.
func (u *Union) lowerChild(nid erofs.NID) child {
	if n := u.nodes[u.low.Node(nid)]; n != nil {
		return child{n: n}
	}
	return child{nid: nid}
}

// entry tells the kernel of an inode.
//
// Preconditions: mu is held, at least for reading.
func (u *Union) entry(c child, out *fuse.EntryOut) error {
	if c.n == nil {
		err := u.low.Entry(c.nid, out)
		u.squash(&out.Owner)
		return err
	}
	var err error
	if out.AttrValid, err = u.attrFor(c.n, &out.Attr); err != nil {
		return err
	}
	out.NodeId, out.Generation = c.n.id, c.n.gen
	out.EntryValid = lower.Forever
	c.n.lookups.Add(1)
	return nil
}

// Lookup resolves a name.
func (u *Union) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if len(name) > maxName { // the kernel's FUSE asks up to 1024
		return fuse.Status(unix.ENAMETOOLONG)
	}
	u.mu.RLock()
	p := u.nodes[in.NodeId]
	if p == nil && name != "." && name != ".." {
		defer u.mu.RUnlock()
		err := u.low.Lookup(u.low.NID(in.NodeId), name, out)
		if out.NodeId != 0 {
			u.squash(&out.Owner)
		}
		return u.status("lookup", err)
	}
	if name != "." && name != ".." {
		if c, ok, err := u.peek(p, name); ok {
			defer u.mu.RUnlock()
			return u.found(c, err, out)
		}
	}
	u.mu.RUnlock()
	u.mu.Lock()
	defer u.mu.Unlock()
	c, err := u.resolveLocked(in.NodeId, name)
	return u.found(c, err, out)
}

func (u *Union) found(c child, err error, out *fuse.EntryOut) fuse.Status {
	if err == nil && c.none() {
		out.EntryValid = lower.Forever
		return fuse.OK
	}
	if err == nil {
		err = u.entry(c, out)
	}
	return u.status("lookup", err)
}

// resolveLocked resolves a name in any directory, also "." of any inode and
// ".." of a directory, which file handles (open_by_handle_at) ask for.
//
// Preconditions: mu is held exclusively.
func (u *Union) resolveLocked(dir uint64, name string) (child, error) {
	p := u.nodes[dir]
	switch {
	case name == "." && p != nil:
		return child{n: p}, nil
	case name == "." || name == ".." && p == nil:
		nid, _, err := u.img.Lookup(u.low.NID(dir), []byte(name))
		if name == "." {
			nid, err = u.low.NID(dir), nil
		}
		if err != nil {
			return child{}, err
		}
		return u.lowerChild(nid), nil
	case name == "..":
		if p.parent == nil {
			return child{n: p}, nil
		}
		return child{n: p.parent}, nil
	case p == nil:
		nid, _, err := u.img.Lookup(u.low.NID(dir), []byte(name))
		if err == erofs.ErrNotExist {
			return child{}, nil
		}
		return child{nid: nid}, err
	}
	return u.childLocked(p, name)
}

// ReadDir lists names.
func (u *Union) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return u.readDir(in, false, out)
}

// ReadDirPlus lists entries with their attributes.
func (u *Union) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return u.readDir(in, true, out)
}

func (u *Union) readDir(in *fuse.ReadIn, plus bool, out *fuse.DirEntryList) fuse.Status {
	u.mu.RLock()
	p := u.nodes[in.NodeId]
	switch {
	case p == nil && u.o.IDs == nil:
		defer u.mu.RUnlock()
		return u.status("readdir", u.low.ReadDir(u.low.NID(in.NodeId), in.Offset, plus, out))
	case p == nil:
		defer u.mu.RUnlock()
		p = &node{id: in.NodeId, lower: u.low.NID(in.NodeId), dir: newDirectory()}
		return u.status("readdir", u.list(p, in.Offset, plus, out))
	case p.dir != nil && p.dir.unread == 0:
		defer u.mu.RUnlock()
		return u.status("readdir", u.list(p, in.Offset, plus, out))
	}
	u.mu.RUnlock()
	u.mu.Lock()
	defer u.mu.Unlock()
	d, err := u.loadLocked(p)
	if err != nil {
		return u.status("readdir", err)
	}
	for _, e := range d.names {
		if e.state == entryUnread {
			u.readLocked(p, e)
		}
	}
	return u.status("readdir", u.list(p, in.Offset, plus, out))
}

// list fills out with the entries behind a cookie.
//
// Preconditions: mu is held, at least for reading; p is loaded and read.
func (u *Union) list(p *node, cookie uint64, plus bool, out *fuse.DirEntryList) error {
	d := p.dir
	full := false
	put := func(name []byte, c child, kind uint32, next uint64) bool {
		full = !u.put(out, plus, name, c, kind, next)
		return !full
	}
	dots := func(name []byte) child {
		if len(name) == 1 || p.parent == nil {
			return child{n: p}
		}
		return child{n: p.parent}
	}
	switch {
	case cookie >= upperCookie:
	case p.lower == 0:
		if cookie < cookieDot && !put([]byte("."), dots([]byte(".")), unix.S_IFDIR, cookieDot) {
			return nil
		}
		if cookie < cookieDots && !put([]byte(".."), dots([]byte("..")), unix.S_IFDIR, cookieDots) {
			return nil
		}
	default:
		err := u.img.ReadDir(p.lower, cookie, func(l *erofs.Dirent) bool {
			if isDots(l.Name) {
				c := dots(l.Name)
				if p.parent == nil && p != u.root {
					c = child{nid: l.NID}
				}
				return put(l.Name, c, unix.S_IFDIR, l.Next)
			}
			e := d.names[unsafe.String(unsafe.SliceData(l.Name), len(l.Name))]
			switch {
			case e == nil:
				return put(l.Name, u.lowerChild(l.NID), uint32(l.Type)<<12, l.Next)
			case e.state == entryWhiteout:
				return true
			case e.state == entryDamaged:
				return put(l.Name, child{}, 0, l.Next)
			}
			return put(l.Name, child{n: e.n}, e.n.mode, l.Next)
		})
		if err != nil || full {
			return err
		}
	}
	i := 0
	if cookie >= upperCookie {
		i = d.after(cookie - upperCookie)
	}
	for ; i < len(d.order); i++ {
		e := d.order[i].e
		if e == nil || e.state == entryWhiteout {
			continue
		}
		c, kind := child{}, uint32(0)
		if e.state == entryNode {
			c, kind = child{n: e.n}, e.n.mode
		}
		if !put([]byte(e.name), c, kind, e.seq+upperCookie) {
			break
		}
	}
	return nil
}

func isDots(name []byte) bool { return string(name) == "." || string(name) == ".." }

// put adds one entry to a listing; false: there is no room.
func (u *Union) put(out *fuse.DirEntryList, plus bool, name []byte, c child, kind uint32, next uint64) bool {
	e := fuse.DirEntry{
		Name: unsafe.String(unsafe.SliceData(name), len(name)),
		Mode: kind,
		Off:  next,
	}
	switch {
	case c.n != nil:
		e.Ino = u.ino(c.n)
	case c.nid != 0:
		e.Ino = u.low.Ino(c.nid)
	default: // damaged: it has a name, and LOOKUP says EIO
		e.Ino = damagedIno
	}
	if !plus {
		return out.AddDirEntry(e)
	}
	entry := out.AddDirLookupEntry(e)
	if entry == nil {
		return false
	}
	if isDots(name) || c.none() {
		return true
	}
	if err := u.entry(c, entry); err != nil {
		// Without a node the kernel takes the name alone and asks about it,
		// and gets the error, when somebody wants it.
		*entry = fuse.EntryOut{}
	}
	return true
}

// damagedIno is the d_ino of what cannot be read: readdir(3) leaves out 0.
const damagedIno = 1<<lower.TreeShift | lower.NIDMask

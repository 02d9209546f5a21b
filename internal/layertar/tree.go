package layertar

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"unsafe"

	"github.com/imgfs/imgfs/internal/erofs"
	"golang.org/x/sys/unix"
)

// tree is the layer so far. Names and inodes are apart, so that hard links are
// names of one inode. Both live in flat slices and refer to each other by
// number; 0 is none. Nothing is freed: [Limits.Entries] bounds what was ever
// made, and a name used again finds its old place.
type tree struct {
	seed     maphash.Seed // per Indexer: names cannot be chosen to collide
	names    []dentry     // 1 is the root
	inodes   []inode      // 1 is the root's
	slots    []uint32     // hash table over names, open addressing, a power of two
	arena    []byte       // tail of the block that strings are cut from
	mem      int64        // bytes held, see Limits.Memory
	xattrs   [][]erofs.Xattr
	maps     [][]segment
	layouts  []layout      // of maps, from Finish on
	chunkBuf []erofs.Chunk // scratch
	pending  []uint32      // inodes that stand for a link's target not seen so far

	path, target, linkDir []byte    // scratch: cleaned names
	rest                  [2][]byte // scratch: what is left to walk, in turns
	absent                [][]byte  // scratch: components walked that do not exist
	kill                  []uint32  // scratch: names to drop
	parentPath            []byte    // the last parent, found without following links,
	parent                uint32    // and its name; 0: unknown
}

// dentry is a name in a directory.
type dentry struct {
	name  string
	dir   uint32 // dentry of the directory
	inode uint32 // 0: the name is free
	next  uint32 // next name of the directory
	// hides says that whatever lower layers have under this name is hidden: a
	// whiteout was here, or something that is not a directory.
	hides  bool
	listed bool // in the directory's list
}

const (
	flagImplied = 1 << iota // a directory the tar did not contain
	flagOpaque              // lower entries are hidden
	flagPending             // stands for a link's target; target is its path
	flagSparse              // data is maps[data]
)

type inode struct {
	mode     uint32 // st_mode
	uid, gid uint32
	rdev     uint32
	size     int64
	mtime    int64
	nsec     uint32
	names    uint32 // of it in the tree
	data     int64  // offset of the data in the stream, or index of maps
	first    uint32 // directories: first name; pending links: the inode found, if any
	xattrs   uint32 // index+1 of tree.xattrs; 0: none
	target   string
	depth    uint16 // directories: the root is 0
	flags    uint8
}

const root = 1 // both as dentry and as inode

func (t *tree) init(seed maphash.Seed) {
	t.seed = seed
	t.slots = make([]uint32, 256)
	t.names = make([]dentry, 2, 128)
	t.inodes = make([]inode, 2, 128)
	t.xattrs = [][]erofs.Xattr{}
	t.names[root].inode = root
	t.inodes[root] = inode{mode: unix.S_IFDIR | 0o755, flags: flagImplied, names: 1}
}

// str copies b into long-lived memory without an allocation of its own.
func (t *tree) str(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	t.mem += int64(len(b))
	if len(b) > cap(t.arena)-len(t.arena) {
		t.arena = make([]byte, 0, max(64<<10, len(b)))
	}
	n := len(t.arena)
	t.arena = append(t.arena, b...)
	// The arena's used part is never written again, so it may be a string.
	return unsafe.String(&t.arena[n], len(b))
}

func (t *tree) hash(dir uint32, name []byte) uint64 {
	// A multiplication spreads the directory over the bits the table uses.
	return maphash.Bytes(t.seed, name) ^ uint64(dir)*0x9e3779b97f4a7c15
}

// find returns the dentry of name in dir, 0 if there never was one, and the
// slot where it is or belongs.
func (t *tree) find(dir uint32, name []byte) (d uint32, slot uint64) {
	mask := uint64(len(t.slots) - 1)
	slot = t.hash(dir, name)
	slot = (slot ^ slot>>32) & mask
	for {
		d := t.slots[slot]
		if d == 0 || t.names[d].dir == dir && t.names[d].name == string(name) {
			return d, slot
		}
		slot = (slot + 1) & mask
	}
}

// child returns the name's dentry if it is in use, by an inode or a whiteout.
func (t *tree) child(dir uint32, name []byte) uint32 {
	if d, _ := t.find(dir, name); d != 0 && t.names[d].listed {
		return d
	}
	return 0
}

// add returns the dentry of name in dir, making it if need be.
func (x *Indexer) add(dir uint32, name []byte) (uint32, error) {
	d, slot := x.find(dir, name)
	if d == 0 {
		if len(name) > maxName {
			return 0, fmt.Errorf("name of %d bytes (limit %d)", len(name), maxName)
		}
		if len(x.names) > x.limits.Entries {
			return 0, fmt.Errorf("more than %d entries", x.limits.Entries)
		}
		x.mem += dentryCost
		d = uint32(len(x.names))
		x.names = append(x.names, dentry{name: x.str(name), dir: dir})
		x.slots[slot] = d
		if len(x.names) > len(x.slots)/4*3 {
			x.grow()
		}
	}
	if e := &x.names[d]; !e.listed {
		e.listed = true
		in := &x.inodes[x.names[dir].inode]
		e.next, in.first = in.first, d
	}
	return d, nil
}

func (t *tree) grow() {
	t.slots = make([]uint32, 2*len(t.slots))
	mask := uint64(len(t.slots) - 1)
	for d := root + 1; d < len(t.names); d++ {
		e := &t.names[d]
		var slot uint64
		h := maphash.String(t.seed, e.name) ^ uint64(e.dir)*0x9e3779b97f4a7c15
		for slot = (h ^ h>>32) & mask; t.slots[slot] != 0; slot = (slot + 1) & mask {
		}
		t.slots[slot] = uint32(d)
	}
}

// drop frees a name and, if it is a directory's, all below it.
func (t *tree) drop(d uint32) {
	t.parent = 0
	t.kill = append(t.kill[:0], d)
	for len(t.kill) > 0 {
		d := t.kill[len(t.kill)-1]
		t.kill = t.kill[:len(t.kill)-1]
		e := &t.names[d]
		if e.inode == 0 {
			continue
		}
		in := &t.inodes[e.inode]
		e.inode = 0
		in.names--
		if !in.isDir() {
			continue
		}
		for c := in.first; c != 0; {
			child := &t.names[c]
			child.listed, child.hides = false, false
			t.kill = append(t.kill, c)
			c, child.next = child.next, 0
		}
		in.first = 0
	}
}

// isDir says whether in is a directory.
func (in *inode) isDir() bool { return in.mode&unix.S_IFMT == unix.S_IFDIR }

// put gives the name d a new inode. A directory put on a directory replaces
// its attributes and keeps its entries; anything else replaces all.
func (x *Indexer) put(d uint32, in inode) {
	e := &x.names[d]
	if e.inode != 0 {
		if old := &x.inodes[e.inode]; old.isDir() && in.isDir() {
			in.first, in.depth, in.names = old.first, old.depth, 1
			in.flags |= old.flags & flagOpaque
			*old = in
			return
		}
		x.drop(d)
	}
	in.names = 1
	x.mem += inodeCost
	e.inode = uint32(len(x.inodes))
	e.hides = e.hides || !in.isDir()
	x.inodes = append(x.inodes, in)
}

var (
	errNotDir = errors.New("its parent is not a directory")
	errLoop   = errors.New("too many symbolic links in its path")
)

// walk goes along path, a cleaned one, from the root. Symbolic links of this
// layer are followed within the root, the last component's too. It returns the
// deepest directory that exists, and leaves in t.absent the components below
// it that do not. A name that is no directory ends in errNotDir.
func (x *Indexer) walk(path []byte) (uint32, error) {
	at := uint32(root)
	x.absent = x.absent[:0]
	if p := x.parent; p != 0 && bytes.HasPrefix(path, x.parentPath) {
		switch n := len(x.parentPath); {
		case len(path) == n:
			return p, nil
		case path[n] == '/' && n > 0:
			at, path = p, path[n+1:]
		}
	}
	links, expanded := 0, 0
	for steps := 0; len(path) > 0; steps++ {
		if steps > maxSteps {
			return 0, errLoop
		}
		name := path
		if i := bytes.IndexByte(path, '/'); i >= 0 {
			name, path = path[:i], path[i+1:]
		} else {
			path = nil
		}
		switch {
		case len(name) == 0 || string(name) == ".":
			continue
		case string(name) == "..":
			if n := len(x.absent); n > 0 {
				x.absent = x.absent[:n-1]
			} else if at != root {
				at = x.names[at].dir
			}
			continue
		case len(x.absent) > 0:
			x.absent = append(x.absent, name)
			continue
		}
		d := x.child(at, name)
		if d == 0 || x.names[d].inode == 0 {
			x.absent = append(x.absent, name)
			continue
		}
		in := &x.inodes[x.names[d].inode]
		switch in.mode & unix.S_IFMT {
		case unix.S_IFDIR:
			at = d
		case unix.S_IFLNK:
			if links++; links > maxLinks {
				return 0, errLoop
			}
			if in.target[0] == '/' {
				at = root
			}
			buf := &x.rest[links%2] // path may lie in the other one
			*buf = append(append(append((*buf)[:0], in.target...), '/'), path...)
			path = *buf
			if expanded += len(path); expanded > maxExpanded {
				return 0, errLoop
			}
		default:
			return 0, errNotDir
		}
	}
	return at, nil
}

// dir returns the directory path, making what of it does not exist.
func (x *Indexer) dir(path []byte) (uint32, error) {
	if x.parent != 0 && bytes.Equal(path, x.parentPath) {
		return x.parent, nil
	}
	at, err := x.walk(path)
	if err != nil {
		return 0, err
	}
	for _, name := range x.absent {
		depth := x.inodes[x.names[at].inode].depth + 1
		if int(depth) > x.limits.Depth {
			return 0, fmt.Errorf("directories nested deeper than %d", x.limits.Depth)
		}
		if at, err = x.add(at, name); err != nil {
			return 0, err
		}
		x.put(at, inode{mode: unix.S_IFDIR | 0o755, flags: flagImplied, depth: depth})
	}
	if x.spells(at, path) {
		x.parentPath = append(x.parentPath[:0], path...)
		x.parent = at
	}
	return at, nil
}

// spells says whether path is at's own path, without symbolic links on the way.
func (t *tree) spells(at uint32, path []byte) bool {
	for at != root {
		name := t.names[at].name
		if !bytes.HasSuffix(path, unsafe.Slice(unsafe.StringData(name), len(name))) {
			return false
		}
		path = path[:len(path)-len(name)]
		at = t.names[at].dir
		if at == root {
			break
		}
		if len(path) == 0 || path[len(path)-1] != '/' {
			return false
		}
		path = path[:len(path)-1]
	}
	return len(path) == 0
}

// appendPath appends the path of d, without a leading slash.
func (t *tree) appendPath(b []byte, d uint32) []byte {
	var up []uint32
	for ; d != root; d = t.names[d].dir {
		up = append(up, d)
	}
	for i := len(up) - 1; i >= 0; i-- {
		b = append(b, t.names[up[i]].name...)
		if i > 0 {
			b = append(b, '/')
		}
	}
	return b
}

// clean appends name to dst, made relative to the root: no leading slash, no
// empty, "." or ".." component; ".." at the root stays there. The root is "".
func clean(dst, name []byte) []byte {
	start := len(dst)
	for len(name) > 0 {
		part := name
		if i := bytes.IndexByte(name, '/'); i >= 0 {
			part, name = name[:i], name[i+1:]
		} else {
			name = nil
		}
		switch {
		case len(part) == 0 || len(part) == 1 && part[0] == '.':
		case len(part) == 2 && binary.LittleEndian.Uint16(part) == '.'|'.'<<8:
			i := bytes.LastIndexByte(dst[start:], '/')
			dst = dst[:start+max(i, 0)]
		default:
			if len(dst) > start {
				dst = append(dst, '/')
			}
			dst = append(dst, part...)
		}
	}
	return dst
}

// cut splits a cleaned path into directory and last component.
func cut(path []byte) (dir, base []byte) {
	if i := bytes.LastIndexByte(path, '/'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return nil, path
}

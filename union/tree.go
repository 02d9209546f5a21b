package union

import (
	"hash/maphash"

	"github.com/imgfs/imgfs/internal/erofs"
)

// Places in the arrays of tree. 0 is none in all three.
type (
	entryID uint32
	inodeID uint32
	dirID   uint32
)

// entry is a name in a directory. It stays when the name is removed and is
// used again when the name comes back, so lists are only ever added to.
type entry struct {
	name  string // lies in an image
	dir   dirID
	next  entryID // of the same directory, oldest first
	inode inodeID // 0: no such name now
	layer uint32  // that gave it its inode last
}

// inode is where a file's attributes and data are: nid of image. An implied
// directory has nid 0. A directory's attributes may change, its dir does not,
// except when it becomes opaque.
type inode struct {
	nid   erofs.NID
	image uint32
	dir   dirID  // directories only
	attrs uint32 // what goes before the attributes of nid, the newest; 0 nothing
	kind  kind
}

// attrs is where the entry of a hard link has attributes for its target.
type attrs struct {
	nid   erofs.NID
	image uint32
	next  uint32 // the next older; 0 none
}

// kind is what the merge has to know of a file's type.
type kind uint8

const (
	kindOther kind = iota
	kindDir
	kindSymlink
	kindWhiteout // in layers only
	kindLink     // an inode whose target is yet to be found
)

// directory holds names. Its parent is the directory that it was made in.
type directory struct {
	head    entryID
	tail    entryID
	parent  dirID  // of the root, itself
	touched uint32 // the last layer that put something here or below
	pruned  uint32 // the last layer that removed everything lower from here
}

// rootInode is the root's place in inodes.
const rootInode inodeID = 1

// tree is the merged state. Removing a directory detaches it: its names stay in
// the arrays, out of reach, because a directory's place is never used again.
type tree struct {
	entries []entry
	inodes  []inode
	dirs    []directory
	attrs   []attrs

	// Open-addressed hash table over all entries, by directory and name: the
	// upper half of a slot is the upper half of the hash, the lower the entry.
	slots []uint64
	seed  maphash.Seed
}

// newTree returns a tree of a root without attributes, with room for names.
func newTree(names int) *tree {
	slots := 64
	for slots*3 < (names+2)*4 {
		slots *= 2
	}
	t := &tree{
		entries: make([]entry, 1, names+1),
		inodes:  make([]inode, 1, names+2),
		dirs:    make([]directory, 1, names/8+2),
		attrs:   make([]attrs, 1),
		slots:   make([]uint64, slots),
		seed:    maphash.MakeSeed(),
	}
	t.newInode(inode{kind: kindDir, dir: t.newDir(1, 0)})
	return t
}

// addAttrs sets further attributes of inode n, in place of those it has.
func (t *tree) addAttrs(n inodeID, nid erofs.NID, image uint32) {
	t.attrs = append(t.attrs, attrs{nid, image, t.inodes[n].attrs})
	t.inodes[n].attrs = uint32(len(t.attrs) - 1)
}

func (t *tree) root() dirID { return t.inodes[rootInode].dir }

func (t *tree) newDir(parent dirID, layer uint32) dirID {
	t.dirs = append(t.dirs, directory{parent: parent, touched: layer})
	return dirID(len(t.dirs) - 1)
}

func (t *tree) newInode(n inode) inodeID {
	t.inodes = append(t.inodes, n)
	return inodeID(len(t.inodes) - 1)
}

// hash spreads the directories: names repeat across them.
func (t *tree) hash(d dirID, name string) uint64 {
	h := maphash.String(t.seed, name) ^ uint64(d)*0x9e3779b97f4a7c15
	h ^= h >> 32
	return h * 0xd6e8feb86659fd93
}

// find returns the entry of name in d, alive or not, and else the slot for it.
func (t *tree) find(d dirID, name string) (id entryID, slot int, h uint64) {
	h = t.hash(d, name)
	mask := uint64(len(t.slots) - 1)
	for i := h >> 16 & mask; ; i = (i + 1) & mask {
		s := t.slots[i]
		if s == 0 {
			return 0, int(i), h
		}
		if s>>32 == h>>32 {
			if e := &t.entries[uint32(s)]; e.dir == d && e.name == name {
				return entryID(uint32(s)), 0, h
			}
		}
	}
}

// lookup returns the entry of name in d, or 0 if there is no such name now.
func (t *tree) lookup(d dirID, name string) entryID {
	if id, _, _ := t.find(d, name); t.entries[id].inode != 0 {
		return id
	}
	return 0
}

// open returns the entry of name in d, made if need be; it may have no inode.
func (t *tree) open(d dirID, name string) entryID {
	id, slot, h := t.find(d, name)
	if id != 0 {
		return id
	}
	id = entryID(len(t.entries))
	t.entries = append(t.entries, entry{name: name, dir: d})
	if dir := &t.dirs[d]; dir.head == 0 {
		dir.head, dir.tail = id, id
	} else {
		t.entries[dir.tail].next, dir.tail = id, id
	}
	t.slots[slot] = h>>32<<32 | uint64(id)
	if len(t.entries)*4 > len(t.slots)*3 {
		t.grow()
	}
	return id
}

func (t *tree) grow() {
	t.slots = make([]uint64, 2*len(t.slots))
	mask := uint64(len(t.slots) - 1)
	for id := 1; id < len(t.entries); id++ {
		e := &t.entries[id]
		h := t.hash(e.dir, e.name)
		i := h >> 16 & mask
		for t.slots[i] != 0 {
			i = (i + 1) & mask
		}
		t.slots[i] = h>>32<<32 | uint64(id)
	}
}

// put gives an entry an inode on behalf of a layer.
func (t *tree) put(e entryID, n inodeID, layer uint32) {
	t.entries[e].inode, t.entries[e].layer = n, layer
}

// dirOf returns the directory that an entry is, or 0.
func (t *tree) dirOf(e entryID) dirID { return t.inodes[t.entries[e].inode].dir }

// kindOf returns the kind of an entry's inode; of none, kindOther.
func (t *tree) kindOf(e entryID) kind { return t.inodes[t.entries[e].inode].kind }

// touch marks d and all above it as having something of a layer.
func (t *tree) touch(d dirID, layer uint32) {
	for t.dirs[d].touched != layer {
		t.dirs[d].touched = layer
		d = t.dirs[d].parent
	}
}

// remove takes away what an entry has of layers before this one.
func (t *tree) remove(e entryID, layer uint32) {
	if d := t.dirOf(e); d != 0 && t.dirs[d].touched == layer {
		t.prune(d, layer)
	} else if d != 0 || t.entries[e].layer != layer {
		t.entries[e].inode = 0
	}
}

// hide takes away what is in a directory of layers before this one.
func (t *tree) hide(n inodeID, layer uint32) {
	old := t.inodes[n].dir
	if t.dirs[old].touched == layer {
		t.prune(old, layer)
		return
	}
	d := t.newDir(t.dirs[old].parent, layer)
	if n == rootInode {
		t.dirs[d].parent = d
	}
	t.inodes[n].dir = d
}

// prune takes away what d has of layers before this one. All that is lower goes
// at the first time, so further times cost nothing.
func (t *tree) prune(d dirID, layer uint32) {
	for stack := []dirID{d}; len(stack) > 0; {
		d := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if t.dirs[d].pruned == layer {
			continue
		}
		t.dirs[d].pruned = layer
		for e := t.dirs[d].head; e != 0; e = t.entries[e].next {
			if t.entries[e].inode == 0 {
				continue
			}
			if sub := t.dirOf(e); sub != 0 && t.dirs[sub].touched == layer {
				stack = append(stack, sub)
			} else if sub != 0 || t.entries[e].layer != layer {
				t.entries[e].inode = 0
			}
		}
	}
}

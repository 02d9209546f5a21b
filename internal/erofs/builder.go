package erofs

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Builder collects a tree and writes it as an image. It keeps the inodes in
// their final form and the names in flat storage without pointers: about 110
// bytes an entry. It is for one goroutine.
type Builder struct {
	devices []Device
	ends    []uint64 // by device: the block behind the last one that a chunk uses
	label   string
	err     error // of the arguments of NewBuilder

	text  arena
	nodes []node
	links []link // in order of Link; by directory and name after sortLinks
}

// node is an inode: where its record is, and what is known of it besides. The
// record is the 64 bytes of the inode, its inline xattrs, and, of a regular
// file, padding up to 8 bytes and the chunk indexes, of a symlink, the target.
type node struct {
	record place
	size   uint32 // of the record
	xattrs uint32 // size of the inline xattrs
	first  uint32 // of a directory: index of its first link, after sortLinks
	nlink  uint32 // counted by WriteTo
	nid    uint32 // given by WriteTo; 0 is an inode that was not reached
	kind   uint8  // EROFS_FT_*
	marked uint8  // xattrsForeign, nodeParent
}

const (
	xattrsForeign = 1 << iota // has an xattr that is no marker
	nodeParent                // a directory that has its place in the tree
)

// link is a directory entry.
type link struct {
	dir, child Ref
	name       place // length 1, name
}

// NewBuilder returns a Builder for an image that has these devices and the
// volume name label, of at most 16 bytes.
func NewBuilder(devices []Device, label string) *Builder {
	b := &Builder{devices: slices.Clone(devices), ends: make([]uint64, len(devices)), label: label}
	// The root directory lies behind the device table, and the superblock has 16
	// bits for it.
	if metadataStart(len(devices))>>slotBits > math.MaxUint16 {
		b.err = fmt.Errorf("%w: %d devices", ErrLimit, len(devices))
	}
	if len(label) > maxLabel || strings.IndexByte(label, 0) >= 0 {
		b.err = fmt.Errorf("%w: label %q", ErrLimit, label)
	}
	return b
}

// SetDevice replaces device i: a layer's digest and size may be known last.
func (b *Builder) SetDevice(i int, d Device) { b.devices[i] = d }

// Add adds an inode, which Link then gives a name. The first one is the root
// directory. What does not fit the format is ErrLimit. Add keeps nothing of in.
func (b *Builder) Add(in *Inode) (Ref, error) {
	kind := fileType(in.Mode)
	switch {
	case b.err != nil:
		return 0, b.err
	case len(b.nodes) == math.MaxUint32:
		return 0, fmt.Errorf("%w: number of inodes", ErrLimit)
	case kind == 0 || in.Mode > math.MaxUint16:
		return 0, fmt.Errorf("erofs inode: mode %#o", in.Mode)
	case len(b.nodes) == 0 && in.Mode&modeType != modeDir:
		return 0, fmt.Errorf("erofs inode: the root is not a directory (mode %#o)", in.Mode)
	case in.MtimeNsec > 999_999_999:
		return 0, fmt.Errorf("erofs inode: %d nanoseconds", in.MtimeNsec)
	}
	n := node{kind: kind}
	attrs, size, err := sortXattrs(in.Xattrs)
	if err != nil {
		return 0, err
	}
	n.xattrs = uint32(size)
	body := inodeSize + uint64(size)
	layout, union, length := layoutPlain, uint32(0), uint64(0)
	switch in.Mode & modeType {
	case modeRegular:
		if err := b.checkChunks(in); err != nil {
			return 0, err
		}
		length = in.Size
		union = math.MaxUint32 // no block
		if in.Size > 0 {
			layout, union = layoutChunks, uint32(chunkIndexes|in.ChunkBits)
			body = alignUp(body, chunkIndexSize) + uint64(len(in.Chunks))*chunkIndexSize
		}
	case modeSymlink:
		if n := len(in.Target); n == 0 || n > maxTarget || strings.IndexByte(in.Target, 0) >= 0 {
			return 0, fmt.Errorf("%w: symlink target of %d bytes", ErrLimit, n)
		}
		length = uint64(len(in.Target))
		body += length
	case modeChar, modeBlock:
		union = in.Rdev
	}
	if body > math.MaxUint32 {
		return 0, fmt.Errorf("%w: inode of %d bytes", ErrLimit, body)
	}
	n.size = uint32(body)
	var raw []byte
	n.record, raw = b.text.alloc(int(body))
	le.PutUint16(raw[inFormat:], uint16(formatExtended|layout<<1))
	if size > 0 {
		le.PutUint16(raw[inXattrs:], uint16((size-xattrHeader)/4+1))
	}
	le.PutUint16(raw[inMode:], uint16(in.Mode))
	le.PutUint64(raw[inSize:], length)
	le.PutUint32(raw[inUnion:], union)
	le.PutUint32(raw[inUID:], in.UID)
	le.PutUint32(raw[inGID:], in.GID)
	le.PutUint64(raw[inMtime:], uint64(in.Mtime))
	le.PutUint32(raw[inNsec:], in.MtimeNsec)
	if putXattrs(raw[inodeSize:inodeSize+size], attrs) {
		n.marked |= xattrsForeign
	}
	if in.Mode&modeType == modeRegular {
		for i, c := range in.Chunks {
			e := raw[int(body)-(len(in.Chunks)-i)*chunkIndexSize:]
			le.PutUint32(e[4:], c.Block)
			if c.Block != HoleBlock {
				le.PutUint16(e[2:], uint16(c.Device+1))
			}
		}
	}
	copy(raw[int(body)-len(in.Target):], in.Target) // empty unless a symlink
	b.nodes = append(b.nodes, n)
	ref := Ref(len(b.nodes) - 1)
	if kind == fileType(modeDir) {
		b.addLink(ref, ".", ref)
		if ref == 0 {
			b.nodes[0].marked |= nodeParent
			b.addLink(0, "..", 0)
		}
	}
	return ref, nil
}

// checkChunks checks a regular file's chunks and notes which blocks they use.
func (b *Builder) checkChunks(in *Inode) error {
	if in.Size > math.MaxInt64 {
		return fmt.Errorf("%w: file of %d bytes", ErrLimit, in.Size)
	}
	if in.Size == 0 {
		if len(in.Chunks) > 0 {
			return fmt.Errorf("erofs inode: %d chunks of an empty file", len(in.Chunks))
		}
		return nil
	}
	if in.ChunkBits > chunkBitsMask {
		return fmt.Errorf("%w: chunk bits %d", ErrLimit, in.ChunkBits)
	}
	bits := in.ChunkBits + blockBits
	if want := (in.Size-1)>>bits + 1; uint64(len(in.Chunks)) != want {
		return fmt.Errorf("erofs inode: %d chunks, want %d", len(in.Chunks), want)
	}
	for i, c := range in.Chunks {
		if c.Block == HoleBlock {
			continue
		}
		if c.Device < 0 || c.Device >= len(b.devices) {
			return fmt.Errorf("erofs inode: chunk on device %d of %d", c.Device, len(b.devices))
		}
		length := min(1<<bits, in.Size-uint64(i)<<bits)
		end := uint64(c.Block) + alignUp(length, BlockSize)>>blockBits
		b.ends[c.Device] = max(b.ends[c.Device], end)
	}
	return nil
}

// Link gives child a name in directory dir. Any inode but a directory can have
// many; a directory has one. That no directory has a name twice is checked by
// WriteTo. Inodes that cannot be reached from the root are not written.
func (b *Builder) Link(dir Ref, name string, child Ref) error {
	if int(dir) >= len(b.nodes) || int(child) >= len(b.nodes) {
		return fmt.Errorf("erofs link %q: no such inode", name)
	}
	if name == "" || len(name) > maxName || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("%w: name %q", ErrLimit, name)
	}
	if b.nodes[dir].kind != fileType(modeDir) {
		return fmt.Errorf("erofs link %q: into what is not a directory", name)
	}
	if c := &b.nodes[child]; c.kind == fileType(modeDir) {
		if c.marked&nodeParent != 0 {
			return fmt.Errorf("erofs link %q: the directory has a name", name)
		}
		c.marked |= nodeParent
		b.addLink(child, "..", dir)
	}
	b.addLink(dir, name, child)
	return nil
}

func (b *Builder) addLink(dir Ref, name string, child Ref) {
	p, raw := b.text.alloc(1 + len(name))
	raw[0] = uint8(len(name))
	copy(raw[1:], name)
	b.links = append(b.links, link{dir, child, p})
}

func (b *Builder) name(l *link) []byte {
	raw := b.text.at(l.name)
	return raw[1 : 1+int(raw[0])]
}

// sortXattrs returns the attributes sorted by name and the size of their
// inline form.
func sortXattrs(in []Xattr) ([]Xattr, int, error) {
	if len(in) == 0 {
		return nil, 0, nil
	}
	attrs := in
	byName := func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) }
	if !slices.IsSortedFunc(attrs, byName) {
		attrs = slices.Clone(in)
		slices.SortFunc(attrs, byName)
	}
	size := xattrHeader
	for i, x := range attrs {
		_, rest, ok := splitXattr(x.Name)
		if !ok || len(x.Name) > maxName || strings.IndexByte(rest, 0) >= 0 {
			return nil, 0, fmt.Errorf("%w: attribute name %q", ErrLimit, x.Name)
		}
		if i > 0 && attrs[i-1].Name == x.Name {
			return nil, 0, fmt.Errorf("erofs inode: attribute %q twice", x.Name)
		}
		if len(x.Value) > maxXattrValue {
			return nil, 0, fmt.Errorf("%w: attribute %q of %d bytes", ErrLimit, x.Name, len(x.Value))
		}
		size += xattrEntry + int(alignUp(uint64(len(rest)+len(x.Value)), 4))
	}
	if size > maxXattrArea {
		return nil, 0, fmt.Errorf("%w: %d bytes of attributes", ErrLimit, size)
	}
	return attrs, size, nil
}

// putXattrs fills in the inline xattrs and reports whether one is no marker.
func putXattrs(raw []byte, attrs []Xattr) (foreign bool) {
	if len(attrs) == 0 {
		return false
	}
	raw = raw[xattrHeader:]
	for _, x := range attrs {
		index, rest, _ := splitXattr(x.Name)
		raw[0], raw[1] = uint8(len(rest)), index
		le.PutUint16(raw[2:], uint16(len(x.Value)))
		n := xattrEntry + copy(raw[xattrEntry:], rest)
		n += copy(raw[n:], x.Value)
		raw = raw[alignUp(uint64(n), 4):]
		foreign = foreign || !strings.HasPrefix(x.Name, MarkerPrefix)
	}
	return foreign
}

// arena is storage that grows without moving what it holds.
type arena struct {
	slabs [][]byte
	free  []byte // rest of the last slab
}

// place is where an allocation begins: slab << 32 | offset.
type place uint64

const slabSize = 1 << 20

// alloc returns n zero bytes and their place.
func (a *arena) alloc(n int) (place, []byte) {
	if n > len(a.free) {
		a.free = make([]byte, max(slabSize, n))
		a.slabs = append(a.slabs, a.free)
	}
	last := len(a.slabs) - 1
	p := place(last)<<32 | place(len(a.slabs[last])-len(a.free))
	b := a.free[:n:n]
	a.free = a.free[n:]
	return p, b
}

// at returns the bytes from p to the end of its slab.
func (a *arena) at(p place) []byte { return a.slabs[p>>32][uint32(p):] }

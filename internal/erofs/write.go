package erofs

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"io"
	"math"
	"slices"
)

var _ io.WriterTo = (*Builder)(nil)

// metadataStart returns the offset of the root's inode: the block behind the
// device table, so that the superblock's checksum covers no inode.
func metadataStart(devices int) uint64 {
	return alignUp(deviceTable+uint64(devices)*deviceSize, BlockSize)
}

// WriteTo writes the image. Its bytes depend on the tree, the devices and the
// label, not on the order of Add and Link.
func (b *Builder) WriteTo(w io.Writer) (int64, error) {
	if b.err != nil {
		return 0, b.err
	}
	if len(b.nodes) == 0 {
		return 0, fmt.Errorf("erofs image: no root directory")
	}
	for i, d := range b.devices {
		if len(d.Tag) > maxTag {
			return 0, fmt.Errorf("%w: tag of device %d has %d bytes", ErrLimit, i, len(d.Tag))
		}
		if b.ends[i] > uint64(d.Blocks) {
			return 0, fmt.Errorf("erofs image: chunk up to block %d of device %d, which has %d", b.ends[i], i, d.Blocks)
		}
	}
	if err := b.sortLinks(); err != nil {
		return 0, err
	}
	l, err := b.arrange()
	if err != nil {
		return 0, err
	}
	c := &countWriter{w: w}
	out := bufio.NewWriterSize(c, 256<<10)
	out.Write(b.header(l))
	b.writeInodes(out, l)
	b.writeBlocks(out, l)
	if err := out.Flush(); err != nil {
		return c.n, fmt.Errorf("erofs image: %w", err)
	}
	if uint64(c.n) != l.end {
		return c.n, fmt.Errorf("erofs image: wrote %d bytes, meant %d", c.n, l.end)
	}
	return c.n, nil
}

type countWriter struct {
	w io.Writer
	n int64
}

func (c *countWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// sortLinks sorts the links by directory and name, and finds names used twice.
func (b *Builder) sortLinks() error {
	slices.SortFunc(b.links, func(x, y link) int {
		if c := cmp.Compare(x.dir, y.dir); c != 0 {
			return c
		}
		return bytes.Compare(b.name(&x), b.name(&y))
	})
	for i := range b.links {
		l := &b.links[i]
		if i == 0 || b.links[i-1].dir != l.dir {
			b.nodes[l.dir].first = uint32(i)
		} else if bytes.Equal(b.name(&b.links[i-1]), b.name(l)) {
			return fmt.Errorf("erofs image: name %q twice in a directory", b.name(l))
		}
	}
	return nil
}

// entries returns the sorted links of a directory.
func (b *Builder) entries(dir Ref) []link {
	from := int(b.nodes[dir].first)
	to := from
	for to < len(b.links) && b.links[to].dir == dir {
		to++
	}
	return b.links[from:to]
}

// arrangement is where everything goes. The nodes and records hold the rest.
type arrangement struct {
	order  []Ref  // of the inodes
	blocks uint64 // offset of the blocks behind the metadata
	end    uint64 // size of the image
	xattrs bool
}

// arrange walks the tree and gives each inode its place. The order is that of
// use: the root, then, for a directory, all its children that have no place
// yet, by name, then the same for each of its subdirectories.
func (b *Builder) arrange() (arrangement, error) {
	if len(b.links) > math.MaxUint32 {
		return arrangement{}, fmt.Errorf("%w: number of names", ErrLimit)
	}
	for i := range b.nodes {
		b.nodes[i].nid, b.nodes[i].nlink = 0, 0
	}
	l := arrangement{order: make([]Ref, 0, len(b.nodes))}
	pos, blocks := metadataStart(len(b.devices)), uint64(0)
	put := func(r Ref) error {
		pos = b.put(r, pos, &blocks)
		l.xattrs = l.xattrs || b.nodes[r].marked&xattrsForeign != 0
		l.order = append(l.order, r)
		if pos>>slotBits > math.MaxUint32 {
			return fmt.Errorf("%w: size of the metadata", ErrLimit)
		}
		return nil
	}
	if err := put(0); err != nil {
		return arrangement{}, err
	}
	stack := []Ref{0}
	for len(stack) > 0 {
		dir := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		deeper := len(stack)
		for _, e := range b.entries(dir) {
			c := &b.nodes[e.child]
			c.nlink++
			if c.nid != 0 {
				continue
			}
			if err := put(e.child); err != nil {
				return arrangement{}, err
			}
			if c.kind == fileType(modeDir) {
				stack = append(stack, e.child)
			}
		}
		slices.Reverse(stack[deeper:])
	}
	l.blocks = alignUp(pos, BlockSize)
	l.end = l.blocks + blocks<<blockBits
	if l.end>>blockBits > math.MaxUint32 {
		return arrangement{}, fmt.Errorf("%w: image of %d bytes", ErrLimit, l.end)
	}
	return l, nil
}

// put places the inode r at the first fit from pos and returns the offset
// behind it. It fills in the record's format and size, and leaves the number of
// the first block that it takes, counted from l.blocks, in its union. A directory's
// tail or a symlink's target goes behind the inode where that costs no more
// padding than a block of its own would.
func (b *Builder) put(r Ref, pos uint64, blocks *uint64) uint64 {
	n := &b.nodes[r]
	raw := b.text.at(n.record)
	pos = fitInode(pos)
	size := le.Uint64(raw[inSize:])
	switch n.kind {
	default:
		n.nid = uint32(pos >> slotBits)
		return pos + uint64(n.size)
	case fileType(modeDir):
		size = b.directorySize(r)
		le.PutUint64(raw[inSize:], size)
	case fileType(modeSymlink):
	}
	head := inodeSize + uint64(n.xattrs)
	tail := size % BlockSize
	layout := layoutPlain
	if n.kind == fileType(modeDir) || size < BlockSize {
		if at, ok := fitTail(pos, head, tail); ok {
			layout, pos = layoutInline, at
		}
	}
	le.PutUint16(raw[inFormat:], uint16(formatExtended|layout<<1))
	le.PutUint32(raw[inUnion:], uint32(*blocks))
	n.nid = uint32(pos >> slotBits)
	pos += head
	if layout == layoutInline {
		*blocks += size >> blockBits
		return pos + tail
	}
	*blocks += alignUp(size, BlockSize) >> blockBits
	return pos
}

// fitInode returns the next offset for an inode that does not cross a block.
func fitInode(pos uint64) uint64 {
	pos = alignUp(pos, slotSize)
	if pos%BlockSize > BlockSize-inodeSize {
		pos = alignUp(pos, BlockSize)
	}
	return pos
}

// fitTail returns the first offset from pos for an inode of head bytes whose
// tail does not cross a block, and false if the tail is better off in a block.
func fitTail(pos, head, tail uint64) (uint64, bool) {
	if tail == 0 {
		return pos, false
	}
	for at := pos; at-pos <= BlockSize-tail; at = fitInode(at + slotSize) {
		if (at+head)%BlockSize+tail <= BlockSize {
			return at, true
		}
	}
	return pos, false
}

// directorySize returns the size of a directory's entries: whole blocks, and a
// last one that ends with its last name.
func (b *Builder) directorySize(dir Ref) uint64 {
	size, used := uint64(0), uint64(0)
	entries := b.entries(dir)
	for i := range entries {
		n := direntSize + uint64(b.text.at(entries[i].name)[0])
		if used+n > BlockSize {
			size, used = size+BlockSize, 0
		}
		used += n
	}
	return size + used
}

// fillBlock writes the dirents of the next block into block and returns the
// entries that remain and the bytes used.
func (b *Builder) fillBlock(block *[BlockSize]byte, entries []link) ([]link, int) {
	count, used := 0, 0
	for count < len(entries) {
		n := direntSize + int(b.text.at(entries[count].name)[0])
		if used+n > BlockSize {
			break
		}
		used += n
		count++
	}
	name := count * direntSize
	for i := range count {
		e := block[i*direntSize:]
		child := &b.nodes[entries[i].child]
		le.PutUint64(e, uint64(child.nid))
		le.PutUint16(e[8:], uint16(name))
		e[10], e[11] = child.kind, 0
		name += copy(block[name:], b.name(&entries[i]))
	}
	clear(block[name:])
	return entries[count:], used
}

// header returns what lies before the root's inode.
func (b *Builder) header(l arrangement) []byte {
	h := make([]byte, metadataStart(len(b.devices)))
	copy(h, bootMark)
	if l.xattrs {
		le.PutUint32(h[bootFlags:], flagXattrs)
	}
	le.PutUint32(h[bootCRC:], bootChecksum(h))

	sb := h[superOffset : superOffset+BlockSize]
	le.PutUint32(sb[sbMagic:], superMagic)
	le.PutUint32(sb[sbCompat:], featureChecksum|featureMtime)
	sb[sbBlockBits] = blockBits
	le.PutUint16(sb[sbRoot:], uint16(b.nodes[0].nid))
	le.PutUint64(sb[sbInodes:], uint64(len(l.order)))
	le.PutUint32(sb[sbBlocks:], uint32(l.end>>blockBits))
	copy(sb[sbLabel:sbLabel+maxLabel], b.label)
	incompat := uint32(featureChunked)
	uuid := sha256.New()
	fmt.Fprintf(uuid, "%q\n", b.label)
	if len(b.devices) > 0 {
		incompat |= featureDeviceTable
		le.PutUint16(sb[sbDevices:], uint16(len(b.devices)))
		le.PutUint16(sb[sbDeviceSlot:], deviceTable/deviceSize)
		for i, d := range b.devices {
			slot := h[deviceTable+i*deviceSize:]
			copy(slot[:maxTag], d.Tag)
			le.PutUint32(slot[maxTag:], d.Blocks)
			fmt.Fprintf(uuid, "%q\n", d.Tag)
		}
	}
	le.PutUint32(sb[sbIncompat:], incompat)
	id := sb[sbUUID : sbUUID+16]
	copy(id, uuid.Sum(nil))
	id[6] = id[6]&0x0f | 0x80 // version 8: of the maker's own kind
	id[8] = id[8]&0x3f | 0x80
	le.PutUint32(sb[sbChecksum:], superChecksum(sb))
	return h
}

// writeInodes writes the metadata. Errors stay in out.
func (b *Builder) writeInodes(out *bufio.Writer, l arrangement) {
	var zeros [2 * BlockSize]byte
	var block [BlockSize]byte
	pos := metadataStart(len(b.devices))
	base := uint32(l.blocks >> blockBits)
	for i, r := range l.order {
		n := &b.nodes[r]
		at := uint64(n.nid) << slotBits
		out.Write(zeros[:at-pos])
		raw := b.text.at(n.record)[:n.size]
		le.PutUint32(raw[inSerial:], uint32(i+1))
		le.PutUint32(raw[inNlink:], n.nlink)
		size, inline := le.Uint64(raw[inSize:]), le.Uint16(raw[inFormat:]) == formatExtended|layoutInline<<1
		switch n.kind {
		case fileType(modeSymlink):
			le.PutUint32(raw[inUnion:], base+le.Uint32(raw[inUnion:]))
			if !inline {
				raw = raw[:inodeSize+n.xattrs]
			}
		case fileType(modeDir):
			le.PutUint32(raw[inUnion:], base+le.Uint32(raw[inUnion:]))
		}
		out.Write(raw)
		pos = at + uint64(len(raw))
		if n.kind == fileType(modeDir) && inline {
			used, rest := 0, b.entries(r)
			for len(rest) > 0 {
				rest, used = b.fillBlock(&block, rest)
			}
			out.Write(block[:size%BlockSize])
			pos += uint64(used)
		}
	}
	out.Write(zeros[:l.blocks-pos])
}

// writeBlocks writes the blocks behind the metadata. Errors stay in out.
func (b *Builder) writeBlocks(out *bufio.Writer, l arrangement) {
	var block [BlockSize]byte
	for _, r := range l.order {
		n := &b.nodes[r]
		raw := b.text.at(n.record)[:n.size]
		inline := le.Uint16(raw[inFormat:]) == formatExtended|layoutInline<<1
		switch n.kind {
		case fileType(modeDir):
			count := le.Uint64(raw[inSize:]) >> blockBits
			if !inline {
				count = alignUp(le.Uint64(raw[inSize:]), BlockSize) >> blockBits
			}
			rest := b.entries(r)
			for ; count > 0; count-- {
				rest, _ = b.fillBlock(&block, rest)
				out.Write(block[:])
			}
		case fileType(modeSymlink):
			if !inline {
				clear(block[:])
				target := raw[inodeSize+n.xattrs:]
				out.Write(target)
				out.Write(block[:alignUp(uint64(len(target)), BlockSize)-uint64(len(target))])
			}
		}
	}
}

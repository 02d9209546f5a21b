package erofs

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Image is an open image. Its methods are safe for concurrent use and allocate
// nothing unless they say so. Byte slices that they return alias the image.
type Image struct {
	b       []byte // whole blocks
	root    NID
	inodes  uint64
	devices []Device
	label   string
	xattrs  bool
	mapped  []byte    // what Close unmaps; nil after New
	dirents sync.Pool // *Dirent, handed to ReadDir's callers
}

// Open maps the image at path. It costs the same whatever the image's size.
//
// The file must never be truncated while it is mapped, because a read of the
// missing pages kills the process (SIGBUS). Index files are written under
// another name, renamed into place, and replaced or removed but never
// changed, so that this cannot happen short of a failing disk; the fault is not
// turned into an error, since that takes a deferred recover in every method.
func Open(path string) (*Image, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("erofs image: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("erofs image: %w", err)
	}
	if st.Size() < superOffset+BlockSize || st.Size() > math.MaxInt {
		return nil, fmt.Errorf("%w: %s: size %d", ErrCorrupt, path, st.Size())
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("erofs image: map %s: %w", path, err)
	}
	m, err := New(b)
	if err != nil {
		unix.Munmap(b)
		return nil, fmt.Errorf("%w (%s)", err, path)
	}
	m.mapped = b
	return m, nil
}

// prefetchMost bytes are read ahead at the most: the index of some 130,000 files.
const prefetchMost = 16 << 20

// Prefetch has the kernel begin to read the image's file into the page cache,
// in large pieces and without waiting. Its first walk would else fault it in
// page by page; the kernel's EROFS even reads it so, a block at a time.
func (m *Image) Prefetch() {
	if n := min(len(m.mapped), prefetchMost); n > 0 {
		unix.Madvise(m.mapped[:n], unix.MADV_WILLNEED) // advice: what fails is read later
	}
}

// New returns the image that b holds. It does not copy b, which must not change.
func New(b []byte) (*Image, error) {
	if len(b) < superOffset+BlockSize {
		return nil, fmt.Errorf("%w: %d bytes", ErrCorrupt, len(b))
	}
	sb := b[superOffset : superOffset+BlockSize]
	if le.Uint32(sb[sbMagic:]) != superMagic {
		return nil, fmt.Errorf("%w: not an EROFS image", ErrCorrupt)
	}
	if sb[sbBlockBits] != blockBits || sb[sbExtSlots] != 0 || sb[sbDirBits] != 0 ||
		sb[sbPrefixCount] != 0 || le.Uint32(sb[sbMetaBlock:]) != 0 {
		return nil, fmt.Errorf("%w: not an index of this form", ErrCorrupt)
	}
	if f := le.Uint32(sb[sbIncompat:]); f&^(featureChunked|featureDeviceTable) != 0 {
		return nil, fmt.Errorf("%w: unknown features %#x", ErrCorrupt, f)
	}
	if le.Uint32(sb[sbCompat:])&featureChecksum == 0 {
		return nil, fmt.Errorf("%w: no superblock checksum", ErrCorrupt)
	}
	zeroed := [BlockSize]byte(sb)
	le.PutUint32(zeroed[sbChecksum:], 0)
	if superChecksum(zeroed[:]) != le.Uint32(sb[sbChecksum:]) {
		return nil, fmt.Errorf("%w: superblock checksum", ErrCorrupt)
	}
	size := uint64(le.Uint32(sb[sbBlocks:])) << blockBits
	if size > uint64(len(b)) || size < superOffset+BlockSize {
		return nil, fmt.Errorf("%w: %d of %d bytes", ErrCorrupt, len(b), size)
	}
	m := &Image{
		b:      b[:size:size],
		root:   NID(le.Uint16(sb[sbRoot:])),
		inodes: le.Uint64(sb[sbInodes:]),
		label:  string(bytes.TrimRight(sb[sbLabel:sbLabel+maxLabel], "\x00")),
		xattrs: true,
	}
	m.dirents.New = func() any { return new(Dirent) }
	if boot := b[:bootSize]; string(boot[:bootFlags]) == bootMark {
		if bootChecksum(boot) != le.Uint32(boot[bootCRC:]) {
			return nil, fmt.Errorf("%w: boot area checksum", ErrCorrupt)
		}
		m.xattrs = le.Uint32(boot[bootFlags:])&flagXattrs != 0
	}
	if err := m.readDevices(sb); err != nil {
		return nil, err
	}
	in, err := m.inode(m.root)
	if err != nil {
		return nil, err
	}
	if in.mode()&modeType != modeDir {
		return nil, fmt.Errorf("%w: the root is not a directory", ErrCorrupt)
	}
	return m, nil
}

func (m *Image) readDevices(sb []byte) error {
	n := int(le.Uint16(sb[sbDevices:]))
	if n == 0 {
		return nil
	}
	if le.Uint32(sb[sbIncompat:])&featureDeviceTable == 0 {
		return fmt.Errorf("%w: devices without a device table", ErrCorrupt)
	}
	table, ok := m.bytes(uint64(le.Uint16(sb[sbDeviceSlot:]))*deviceSize, uint64(n)*deviceSize)
	if !ok {
		return fmt.Errorf("%w: device table", ErrCorrupt)
	}
	m.devices = make([]Device, n)
	for i := range m.devices {
		slot := table[i*deviceSize:][:deviceSize]
		m.devices[i] = Device{
			Tag:    string(bytes.TrimRight(slot[:maxTag], "\x00")),
			Blocks: le.Uint32(slot[maxTag:]),
		}
	}
	return nil
}

// Close unmaps the image. No method may be running or be called afterwards,
// and no slice that one returned may be used: whoever shares an image counts
// its users.
func (m *Image) Close() error {
	b := m.mapped
	m.mapped, m.b = nil, nil
	if b == nil {
		return nil
	}
	if err := unix.Munmap(b); err != nil {
		return fmt.Errorf("erofs image: unmap: %w", err)
	}
	return nil
}

// Root returns the root directory's inode.
func (m *Image) Root() NID { return m.root }

// Devices returns the devices in order. The slice is shared: read it only.
func (m *Image) Devices() []Device { return m.devices }

// Inodes returns the number of inodes.
func (m *Image) Inodes() uint64 { return m.inodes }

// Label returns the volume name.
func (m *Image) Label() string { return m.label }

// Size returns the image's size in bytes.
func (m *Image) Size() int64 { return int64(len(m.b)) }

// HasXattrs reports whether an inode has an extended attribute whose name does
// not begin with MarkerPrefix.
func (m *Image) HasXattrs() bool { return m.xattrs }

// bytes returns n bytes at off, and whether they lie in the image.
func (m *Image) bytes(off, n uint64) ([]byte, bool) {
	size := uint64(len(m.b))
	if off > size || n > size-off {
		return nil, false
	}
	return m.b[off : off+n : off+n], true
}

// inode is a checked inode: its 64 bytes and inline xattrs lie in the image,
// its form and mode are known, and its size is below 2^63.
type inode struct {
	raw    *[inodeSize]byte
	nid    NID
	off    uint64 // of the inode
	tail   uint64 // offset behind the inline xattrs
	layout uint16
}

func (in *inode) mode() uint32 { return uint32(le.Uint16(in.raw[inMode:])) }
func (in *inode) size() uint64 { return le.Uint64(in.raw[inSize:]) }

func (m *Image) inode(n NID) (inode, error) {
	// The comparison also keeps n << slotBits from overflowing.
	if uint64(n) > uint64(len(m.b))>>slotBits || n < 2 {
		return inode{}, corrupt(n, "inode out of range")
	}
	in := inode{nid: n, off: uint64(n) << slotBits}
	raw, ok := m.bytes(in.off, inodeSize)
	if !ok {
		return inode{}, corrupt(n, "inode out of range")
	}
	in.raw = (*[inodeSize]byte)(raw)
	format := le.Uint16(in.raw[inFormat:])
	in.layout = format >> 1
	if format&formatExtended == 0 || in.layout != layoutPlain && in.layout != layoutInline && in.layout != layoutChunks {
		return inode{}, corrupt(n, "unknown inode form")
	}
	if fileType(in.mode()) == 0 {
		return inode{}, corrupt(n, "unknown file type")
	}
	if in.size() > math.MaxInt64 {
		return inode{}, corrupt(n, "size")
	}
	in.tail = in.off + inodeSize + xattrArea(le.Uint16(in.raw[inXattrs:]))
	if in.tail > uint64(len(m.b)) {
		return inode{}, corrupt(n, "attributes out of range")
	}
	return in, nil
}

// xattrArea returns the size of the inline xattrs by i_xattr_icount.
func xattrArea(count uint16) uint64 {
	if count == 0 {
		return 0
	}
	return xattrHeader + 4*(uint64(count)-1)
}

func corrupt(n NID, what string) error {
	return fmt.Errorf("%w: nid %d: %s", ErrCorrupt, uint64(n), what)
}

// Stat fills a in.
func (m *Image) Stat(n NID, a *Attr) error {
	in, err := m.inode(n)
	if err != nil {
		return err
	}
	raw := in.raw
	a.Mode = in.mode()
	a.UID, a.GID = le.Uint32(raw[inUID:]), le.Uint32(raw[inGID:])
	a.Nlink, a.Rdev = le.Uint32(raw[inNlink:]), 0
	a.Size, a.Blocks = in.size(), 0
	a.Mtime, a.MtimeNsec = int64(le.Uint64(raw[inMtime:])), le.Uint32(raw[inNsec:])
	a.Xattrs = le.Uint16(raw[inXattrs:]) != 0
	switch a.Mode & modeType {
	case modeChar, modeBlock:
		a.Rdev = le.Uint32(raw[inUnion:])
	case modeDir, modeSymlink:
		a.Blocks = alignUp(a.Size, BlockSize) >> blockBits
	case modeRegular:
		c, err := m.chunks(&in)
		if err != nil {
			return err
		}
		for i := range c.count {
			if _, block := c.at(i); block != HoleBlock {
				a.Blocks += alignUp(c.length(i), BlockSize) >> blockBits
			}
		}
	}
	return nil
}

// chunkTable is a regular file's chunk indexes.
type chunkTable struct {
	index []byte // count * 8 bytes
	count uint64
	size  uint64 // of the file
	bits  uint8  // a chunk has 1 << bits bytes
}

// chunks returns a regular file's chunk indexes: none for a size of 0.
func (m *Image) chunks(in *inode) (chunkTable, error) {
	c := chunkTable{size: in.size()}
	if in.mode()&modeType != modeRegular {
		return c, corrupt(in.nid, "not a regular file")
	}
	if c.size == 0 {
		return c, nil
	}
	format := le.Uint16(in.raw[inUnion:])
	if in.layout != layoutChunks || format&^chunkBitsMask != chunkIndexes {
		return c, corrupt(in.nid, "not chunk-based")
	}
	c.bits = uint8(format&chunkBitsMask) + blockBits
	c.count = (c.size-1)>>c.bits + 1
	if c.count > uint64(len(m.b))/chunkIndexSize {
		return c, corrupt(in.nid, "chunk indexes out of range")
	}
	var ok bool
	if c.index, ok = m.bytes(alignUp(in.tail, chunkIndexSize), c.count*chunkIndexSize); !ok {
		return c, corrupt(in.nid, "chunk indexes out of range")
	}
	return c, nil
}

// at returns the device, from 1, and the first block of chunk i.
func (c *chunkTable) at(i uint64) (device uint16, block uint32) {
	e := c.index[i*chunkIndexSize:][:chunkIndexSize]
	return le.Uint16(e[2:]), le.Uint32(e[4:])
}

// length returns the number of bytes of the file in chunk i.
func (c *chunkTable) length(i uint64) uint64 {
	return min(1<<c.bits, c.size-i<<c.bits)
}

// chunk returns chunk i, checked to lie in its device.
func (m *Image) chunk(n NID, c *chunkTable, i uint64) (Chunk, error) {
	device, block := c.at(i)
	if block == HoleBlock {
		return Chunk{Block: HoleBlock}, nil
	}
	if device == 0 || int(device) > len(m.devices) {
		return Chunk{}, corrupt(n, "unknown device")
	}
	end := uint64(block) + alignUp(c.length(i), BlockSize)>>blockBits
	if end > uint64(m.devices[device-1].Blocks) {
		return Chunk{}, corrupt(n, "chunk beyond its device")
	}
	return Chunk{Device: int(device) - 1, Block: block}, nil
}

// Extent returns the run of data that begins at byte off of regular file n: the
// rest of off's chunk. It returns io.EOF at or past the file's size.
func (m *Image) Extent(n NID, off uint64) (Extent, error) {
	in, err := m.inode(n)
	if err != nil {
		return Extent{}, err
	}
	c, err := m.chunks(&in)
	if err != nil {
		return Extent{}, err
	}
	if off >= c.size {
		return Extent{}, io.EOF
	}
	i := off >> c.bits
	place, err := m.chunk(n, &c, i)
	if err != nil {
		return Extent{}, err
	}
	skip := off - i<<c.bits
	e := Extent{Len: c.length(i) - skip}
	if place.Block == HoleBlock {
		e.Hole = true
		return e, nil
	}
	e.Device = place.Device
	e.Off = uint64(place.Block)<<blockBits + skip
	return e, nil
}

// Chunks returns the chunks of regular file n, as Inode has them: bits is the
// ChunkBits. It allocates; a file of size 0 has none.
func (m *Image) Chunks(n NID) (bits uint8, chunks []Chunk, err error) {
	in, err := m.inode(n)
	if err != nil {
		return 0, nil, err
	}
	c, err := m.chunks(&in)
	if err != nil || c.count == 0 {
		return 0, nil, err
	}
	chunks = make([]Chunk, c.count)
	for i := range chunks {
		if chunks[i], err = m.chunk(n, &c, uint64(i)); err != nil {
			return 0, nil, err
		}
	}
	return c.bits - blockBits, chunks, nil
}

// ReadLink returns the target of symlink n.
func (m *Image) ReadLink(n NID) ([]byte, error) {
	in, err := m.inode(n)
	if err != nil {
		return nil, err
	}
	size := in.size()
	if in.mode()&modeType != modeSymlink || size == 0 || size > maxTarget {
		return nil, corrupt(n, "not a symlink")
	}
	off := in.tail
	switch {
	case in.layout == layoutPlain:
		off = uint64(le.Uint32(in.raw[inUnion:])) << blockBits
	case in.layout != layoutInline || size > BlockSize-off%BlockSize:
		// Our writer puts a target into one place.
		return nil, corrupt(n, "symlink's form")
	}
	b, ok := m.bytes(off, size)
	if !ok {
		return nil, corrupt(n, "symlink out of range")
	}
	return b, nil
}

package erofs

import "bytes"

// directory is a checked directory inode.
type directory struct {
	in     inode
	size   uint64
	blocks uint64
	head   uint64 // offset of the blocks of the image that hold it
}

func (m *Image) directory(n NID) (directory, error) {
	in, err := m.inode(n)
	if err != nil {
		return directory{}, err
	}
	if in.mode()&modeType != modeDir {
		return directory{}, corrupt(n, "not a directory")
	}
	d := directory{in: in, size: in.size(), head: uint64(le.Uint32(in.raw[inUnion:])) << blockBits}
	if d.size > uint64(len(m.b)) || in.layout == layoutChunks {
		return directory{}, corrupt(n, "directory's form")
	}
	d.blocks = alignUp(d.size, BlockSize) >> blockBits
	return d, nil
}

// dirBlock is a checked block of a directory: it has at least one entry, and
// the first name lies behind the entries. Other entries are not yet checked.
type dirBlock struct {
	b     []byte
	count int
}

// block returns block i, which must be below d.blocks.
func (m *Image) block(d *directory, i uint64) (dirBlock, error) {
	n := min(BlockSize, d.size-i<<blockBits)
	off := d.head + i<<blockBits
	if d.in.layout == layoutInline && i == d.size>>blockBits {
		off = d.in.tail
	}
	b, ok := m.bytes(off, n)
	if !ok || n < direntSize {
		return dirBlock{}, corrupt(d.in.nid, "directory out of range")
	}
	names := int(le.Uint16(b[8:]))
	if names < direntSize || names%direntSize != 0 || names >= len(b) {
		return dirBlock{}, corrupt(d.in.nid, "directory entries")
	}
	return dirBlock{b, names / direntSize}, nil
}

// name returns the name of entry i, or nil if it breaks the format.
func (k dirBlock) name(i int) []byte {
	from := int(le.Uint16(k.b[i*direntSize+8:]))
	to := len(k.b)
	if i+1 < k.count {
		to = int(le.Uint16(k.b[(i+1)*direntSize+8:]))
	}
	if from < k.count*direntSize || from >= to || to > len(k.b) {
		return nil
	}
	name := k.b[from:to]
	if i+1 == k.count { // zeros pad the block
		if n := bytes.IndexByte(name, 0); n >= 0 {
			name = name[:n]
		}
	}
	if len(name) == 0 || len(name) > maxName {
		return nil
	}
	return name[:len(name):len(name)]
}

func (k dirBlock) nid(i int) NID { return NID(le.Uint64(k.b[i*direntSize:])) }

// dtype returns the DT_* of entry i, 0 (DT_UNKNOWN) if the format has none.
func (k dirBlock) dtype(i int) uint8 {
	if t := int(k.b[i*direntSize+10]); t > 0 && t <= len(direntTypes) {
		return direntTypes[t-1]
	}
	return 0
}

// Lookup returns the inode and the DT_* type of a name in directory dir, or
// ErrNotExist. "." and ".." are names like others. It searches by halves, the
// blocks and then one block, so its work is bounded by the logarithm of the
// directory's size even where the order is broken; a name may then be missed.
func (m *Image) Lookup(dir NID, name []byte) (NID, uint8, error) {
	d, err := m.directory(dir)
	if err != nil {
		return 0, 0, err
	}
	if d.blocks == 0 {
		return 0, 0, ErrNotExist
	}
	// The last block whose first name is not after the name.
	var found dirBlock
	lo, hi := uint64(0), d.blocks
	for lo < hi {
		mid := lo + (hi-lo)/2
		k, err := m.block(&d, mid)
		if err != nil {
			return 0, 0, err
		}
		first := k.name(0)
		if first == nil {
			return 0, 0, corrupt(dir, "directory name")
		}
		switch c := bytes.Compare(first, name); {
		case c == 0:
			return k.nid(0), k.dtype(0), nil
		case c < 0:
			found, lo = k, mid+1
		default:
			hi = mid
		}
	}
	i, j := 1, found.count // entry 0 was compared; count 0 if no block was found
	for i < j {
		mid := i + (j-i)/2
		entry := found.name(mid)
		if entry == nil {
			return 0, 0, corrupt(dir, "directory name")
		}
		switch c := bytes.Compare(entry, name); {
		case c == 0:
			return found.nid(mid), found.dtype(mid), nil
		case c < 0:
			i = mid + 1
		default:
			j = mid
		}
	}
	return 0, 0, ErrNotExist
}

// ReadDir calls yield for the entries of directory dir in the order of their
// names, "." and ".." included, until it returns false. It begins at a cookie:
// 0 for the first entry, or the Next of an entry to go on behind it, then or
// later, by this process or another. Next is never 0. A cookie that no entry
// had gives some of the entries. The Dirent is valid during the call of yield.
func (m *Image) ReadDir(dir NID, cookie uint64, yield func(*Dirent) bool) error {
	d, err := m.directory(dir)
	if err != nil {
		return err
	}
	e := m.dirents.Get().(*Dirent)
	defer func() {
		e.Name = nil
		m.dirents.Put(e)
	}()
	// A cookie is the place of an entry: its block * 512 + its index * 12.
	i := int(cookie % BlockSize / direntSize)
	for block := cookie >> blockBits; block < d.blocks; block++ {
		k, err := m.block(&d, block)
		if err != nil {
			return err
		}
		for ; i < k.count; i++ {
			e.Name = k.name(i)
			if e.Name == nil {
				return corrupt(dir, "directory name")
			}
			e.NID, e.Type = k.nid(i), k.dtype(i)
			e.Next = block<<blockBits + uint64(i+1)*direntSize
			if i+1 == k.count {
				e.Next = (block + 1) << blockBits
			}
			if !yield(e) {
				return nil
			}
		}
		i = 0
	}
	return nil
}

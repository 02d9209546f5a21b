package erofs

// xattrIter walks an inode's inline xattrs.
type xattrIter struct {
	rest  []byte // entries not yet seen
	index uint8
	name  []byte // without its prefix
	value []byte
}

// xattrs returns an iterator over in's xattrs. Shared xattrs, which our writer
// does not make, are corruption.
func (m *Image) xattrIter(in *inode) (xattrIter, error) {
	from := in.off + inodeSize
	area, ok := m.bytes(from, in.tail-from)
	if !ok || len(area) == 0 {
		return xattrIter{}, nil
	}
	if area[4] != 0 {
		return xattrIter{}, corrupt(in.nid, "shared attributes")
	}
	return xattrIter{rest: area[xattrHeader:]}, nil
}

// next moves to the next xattr. It returns false at the end, or with a rest
// left if that breaks the format.
func (it *xattrIter) next() bool {
	if len(it.rest) < xattrEntry {
		return false
	}
	nameLen, valueLen := int(it.rest[0]), int(le.Uint16(it.rest[2:]))
	end := xattrEntry + nameLen + valueLen
	next := int(alignUp(uint64(end), 4))
	if next > len(it.rest) {
		return false
	}
	it.index = it.rest[1]
	it.name = it.rest[xattrEntry : xattrEntry+nameLen]
	it.value = it.rest[xattrEntry+nameLen : end : end]
	it.rest = it.rest[next:]
	return true
}

// Xattr returns the value of the attribute name of inode n, or ErrNotExist. An
// empty value is not nil.
func (m *Image) Xattr(n NID, name string) ([]byte, error) {
	in, err := m.inode(n)
	if err != nil {
		return nil, err
	}
	index, rest, ok := splitXattr(name)
	if !ok {
		return nil, ErrNotExist
	}
	it, err := m.xattrIter(&in)
	if err != nil {
		return nil, err
	}
	for it.next() {
		if it.index == index && string(it.name) == rest {
			return it.value, nil
		}
	}
	if len(it.rest) != 0 {
		return nil, corrupt(n, "attributes")
	}
	return nil, ErrNotExist
}

// Xattrs calls yield for the attributes of inode n, sorted by name, until it
// returns false. It allocates the names.
func (m *Image) Xattrs(n NID, yield func(name string, value []byte) bool) error {
	in, err := m.inode(n)
	if err != nil {
		return err
	}
	it, err := m.xattrIter(&in)
	if err != nil {
		return err
	}
	for it.next() {
		prefix := ""
		for i := range xattrPrefixes {
			if p := &xattrPrefixes[i]; p.index == it.index && p.whole == (len(it.name) == 0) {
				prefix = p.prefix
			}
		}
		if prefix == "" {
			return corrupt(n, "attribute's name")
		}
		if !yield(prefix+string(it.name), it.value) {
			return nil
		}
	}
	if len(it.rest) != 0 {
		return corrupt(n, "attributes")
	}
	return nil
}

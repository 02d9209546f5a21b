package layertar

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/imgfs/imgfs/internal/erofs"
	"golang.org/x/sys/unix"
)

// Attributes that mark entries of a layer index, see the package documentation.
const (
	MarkWhiteout = "trusted.imgfs.whiteout"
	MarkOpaque   = "trusted.imgfs.opaque"
	MarkImplied  = "trusted.imgfs.implied"
	MarkLink     = "trusted.imgfs.link"
)

// Names with a meaning in layers.
const (
	whiteoutPrefix = ".wh."
	opaqueRest     = ".wh..opq"     // behind the prefix
	aufsPrefix     = ".wh..wh."     // at the root: aufs' own files
	aufsLinks      = ".wh..wh.plnk" // aufs' pseudo links: the first names of hard-linked files
	opaqueName     = ".wh..wh..opq"
)

// data is where an entry's payload lies.
type data struct {
	off, size int64 // bytes
	sparse    bool
	segs      []segment // sparse only; valid for the call
}

// apply enters one entry into the tree. A single one holds no more than the
// limits of paths, attributes and maps, so checking the sum afterwards will do.
func (x *Indexer) apply(h *header, d data) error {
	if err := x.enter(h, d); err != nil {
		return err
	}
	if x.mem > x.limits.Memory {
		return fmt.Errorf("names and attributes of more than %d bytes", x.limits.Memory)
	}
	return nil
}

func (x *Indexer) enter(h *header, d data) error {
	x.path = clean(x.path[:0], h.name)
	path := x.path
	if len(path) > x.limits.Path {
		return fmt.Errorf("path of %d bytes (limit %d)", len(path), x.limits.Path)
	}
	x.sum.Headers++
	if h.typ == typeDumpDir {
		h.typ = typeDir
	}
	if h.typ == typeLabel || h.pax != nil && h.pax.socket {
		x.sum.Skipped++
		return nil
	}
	if len(path) == 0 { // the root can be nothing but a directory; containerd ignores the rest too
		if h.typ != typeDir {
			x.sum.Skipped++
			return nil
		}
		in, err := x.inodeOf(h, d)
		if err == nil {
			x.put(root, in)
		}
		return err
	}
	parent, base := cut(path)
	if bytes.HasPrefix(path, []byte(aufsPrefix)) && string(path) != opaqueName {
		first, _, below := bytes.Cut(path, []byte("/"))
		if !below || string(first) != aufsLinks || headerOnly(h.typ) && h.typ != typeLink {
			x.sum.Skipped++
			return nil
		}
	} else if rest, ok := bytes.CutPrefix(base, []byte(whiteoutPrefix)); ok {
		return x.whiteout(parent, rest)
	}
	dir, err := x.dir(parent)
	if err != nil {
		return err
	}
	if h.typ == typeLink {
		return x.link(h, dir, base)
	}
	in, err := x.inodeOf(h, d)
	if err != nil {
		return err
	}
	if in.isDir() {
		depth := x.inodes[x.names[dir].inode].depth + 1
		if int(depth) > x.limits.Depth {
			return fmt.Errorf("directories nested deeper than %d", x.limits.Depth)
		}
		in.depth = depth
	}
	name, err := x.add(dir, base)
	if err != nil {
		return err
	}
	x.put(name, in)
	return nil
}

// whiteout hides rest in the directory parent, or all that is in it.
func (x *Indexer) whiteout(parent, rest []byte) error {
	switch string(rest) {
	case "", ".", "..":
		return errors.New("whiteout of nothing, the directory itself or its parent")
	}
	dir, err := x.dir(parent)
	if err != nil {
		return err
	}
	if string(rest) == opaqueRest {
		x.inodes[x.names[dir].inode].flags |= flagOpaque
		return nil
	}
	name, err := x.add(dir, rest)
	if err != nil {
		return err
	}
	x.names[name].hides = true
	return nil
}

// link makes base in dir a further name of the entry's target. The attributes
// of the entry are set on the inode, as docker and containerd do.
func (x *Indexer) link(h *header, dir uint32, base []byte) error {
	x.target = clean(x.target[:0], h.link)
	if len(x.target) > x.limits.Path {
		return fmt.Errorf("hard link to a path of %d bytes (limit %d)", len(x.target), x.limits.Path)
	}
	target, err := x.lookup()
	if err != nil {
		return fmt.Errorf("hard link to %.200q: %w", h.link, err)
	}
	name, err := x.add(dir, base)
	if err != nil {
		return err
	}
	e := &x.names[name]
	if target != 0 {
		if e.inode != target {
			if e.inode != 0 {
				x.drop(name)
			}
			e.inode, e.hides = target, true
			x.inodes[target].names++
		}
		return x.setAttributes(&x.inodes[target], h)
	}
	x.mem += 4
	in := inode{mode: unix.S_IFREG, flags: flagPending, target: x.str(x.target)}
	if err := x.setAttributes(&in, h); err != nil {
		return err
	}
	x.put(name, in)
	x.pending = append(x.pending, e.inode)
	return nil
}

// lookup returns the inode of the path in x.target, 0 if this layer has none;
// then x.target becomes the path with this layer's symbolic links resolved.
// Preconditions: x.target is cleaned.
func (x *Indexer) lookup() (uint32, error) {
	if len(x.target) == 0 {
		return 0, errLinkDir
	}
	parent, base := cut(x.target)
	at, err := x.walk(parent)
	if err != nil {
		return 0, err
	}
	if len(x.absent) == 0 {
		if d := x.child(at, base); d != 0 && x.names[d].inode != 0 {
			n := x.names[d].inode
			if x.inodes[n].isDir() {
				return 0, errLinkDir
			}
			return n, nil
		}
	}
	x.linkDir = x.appendPath(x.linkDir[:0], at)
	for _, name := range append(x.absent, base) {
		if len(x.linkDir) > 0 {
			x.linkDir = append(x.linkDir, '/')
		}
		x.linkDir = append(x.linkDir, name...)
	}
	if len(x.linkDir) > x.limits.Path {
		return 0, fmt.Errorf("path of %d bytes (limit %d)", len(x.linkDir), x.limits.Path)
	}
	x.target, x.linkDir = x.linkDir, x.target
	return 0, nil
}

var errLinkDir = errors.New("a directory")

// inodeOf makes the inode of an entry that is not a hard link.
func (x *Indexer) inodeOf(h *header, d data) (inode, error) {
	var in inode
	switch h.typ {
	case typeDir:
		in.mode = unix.S_IFDIR
	case typeSymlink:
		in.mode = unix.S_IFLNK
		if len(h.link) == 0 || len(h.link) > maxTarget {
			return in, fmt.Errorf("symbolic link to %d bytes (1 to %d are possible)", len(h.link), maxTarget)
		}
		in.target = x.str(h.link)
	case typeChar, typeBlock:
		in.mode = unix.S_IFCHR
		if h.typ == typeBlock {
			in.mode = unix.S_IFBLK
		}
		in.rdev = rdev(h.major, h.minor)
	case typeFifo:
		in.mode = unix.S_IFIFO
	default: // types unknown here are files, says POSIX
		in.mode = unix.S_IFREG
		in.size, in.data = d.size, d.off
		if d.sparse {
			in.flags |= flagSparse
			in.data = int64(len(x.maps))
			x.maps = append(x.maps, append([]segment(nil), d.segs...))
			x.mem += int64(len(d.segs))*24 + 24
		}
	}
	return in, x.setAttributes(&in, h)
}

// setAttributes sets owner, mode, time and extended attributes from h. The
// attributes an inode already has from another name of it stay, unless h has them too.
func (x *Indexer) setAttributes(in *inode, h *header) error {
	if in.mode&unix.S_IFMT == unix.S_IFLNK {
		in.mode = unix.S_IFLNK | 0o777
	} else {
		in.mode = in.mode&unix.S_IFMT | uint32(h.mode)&0o7777
	}
	var err error
	if in.uid, err = owner(h.uid); err != nil {
		return err
	}
	if in.gid, err = owner(h.gid); err != nil {
		return err
	}
	in.mtime, in.nsec = h.mtime, h.nsec
	if h.pax == nil {
		return nil
	}
	x.sum.DroppedXattrs += h.pax.undecodable
	if len(h.pax.xattrs) == 0 {
		return nil
	}
	return x.setXattrs(in, h.pax.xattrs)
}

// setXattrs adds what an index can hold and an image may set.
func (x *Indexer) setXattrs(in *inode, raw []rawXattr) error {
	var set []erofs.Xattr
	if in.xattrs != 0 {
		set = append(set, x.xattrs[in.xattrs-1]...)
	}
	for i := range raw {
		r := &raw[i]
		if !keeps(in.mode, r) {
			x.sum.DroppedXattrs++
			continue
		}
		if len(r.name) > maxName || len(r.value) > maxXattr {
			return fmt.Errorf("extended attribute %.64q: name of %d and value of %d bytes (limits %d and %d)", r.name, len(r.name), len(r.value), maxName, maxXattr)
		}
		set = append(set, erofs.Xattr{Name: x.str(r.name), Value: bytes.Clone(r.value)})
		x.mem += int64(len(r.value))
	}
	slices.SortStableFunc(set, func(a, b erofs.Xattr) int { return strings.Compare(a.Name, b.Name) })
	n := 0
	for i := range set {
		if i+1 == len(set) || set[i].Name != set[i+1].Name { // the last of a name
			set[n] = set[i]
			n++
		}
	}
	set = set[:n]
	total := 0
	for i := range set {
		total += 8 + len(set[i].Name) + len(set[i].Value)
	}
	if total > x.limits.Xattrs {
		return fmt.Errorf("extended attributes of %d bytes (limit %d)", total, x.limits.Xattrs)
	}
	if len(set) == 0 {
		return nil
	}
	x.mem += int64(len(set))*40 + 24
	x.xattrs = append(x.xattrs, set)
	in.xattrs = uint32(len(x.xattrs))
	return nil
}

// keeps says whether an attribute of a file of this mode goes into the index:
// not the ones that are ours or an overlay's to interpret, not those of name
// spaces the format has no number for, and not those Linux refuses.
func keeps(mode uint32, r *rawXattr) bool {
	name := string(r.name)
	for _, p := range [...]string{"trusted.imgfs.", "trusted.overlay.", "user.overlay.", "user.fuseoverlayfs."} {
		if strings.HasPrefix(name, p) {
			return false
		}
	}
	typ := mode & unix.S_IFMT
	switch name {
	case "system.posix_acl_access", "system.posix_acl_default":
		// Version 2 in 4 bytes, then entries of 8.
		return typ != unix.S_IFLNK && len(r.value)%8 == 4 && string(r.value[:4]) == "\x02\x00\x00\x00"
	}
	prefix, rest, _ := strings.Cut(name, ".")
	switch prefix {
	case "user": // only of files and directories, xattr(7); unpackers drop the others too
		return rest != "" && (typ == unix.S_IFREG || typ == unix.S_IFDIR)
	case "trusted", "security":
		return rest != ""
	}
	return false
}

// owner returns an ID as chown(2) would set it: -1 leaves the one that root,
// who unpacks, gives.
func owner(id int64) (uint32, error) {
	if id < math.MinInt32 || id > math.MaxUint32 {
		return 0, fmt.Errorf("owner %d does not fit 32 bits", id)
	}
	if uint32(id) == math.MaxUint32 {
		return 0, nil
	}
	return uint32(id), nil
}

// rdev encodes a device number as Linux does inside (new_encode_dev), cut to
// the 12 and 20 bits there are, as mknod(2) does.
func rdev(major, minor int64) uint32 {
	ma, mi := uint32(major), uint32(minor)
	return mi&0xff | ma&0xfff<<8 | mi&0xfff00<<12
}

package union

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/layertar"
	"golang.org/x/sys/unix"
)

// Label is the volume name of a chain index.
const Label = "imgfs.chain.1"

// Stats says what a chain index contains.
type Stats struct {
	Layers int   // devices
	Names  int   // directory entries, the root included
	Inodes int   // files, hard links counted once
	Size   int64 // bytes written
}

// Merge writes to w the chain index of layers, given the lowest first. It
// neither closes the images nor refers to them once it has returned.
//
// A layer that breaks the format, or contradicts those below it (a hard link
// without a target), is a fault.Integrity that names the layer; so is what
// exceeds the format's limits (erofs.ErrLimit).
func Merge(w io.Writer, layers []*erofs.Image) (Stats, error) {
	return merge(w, nil, layers)
}

// Extend writes the chain index of parent's layers and those of top above them,
// the lowest first: what Merge gives for all of them together.
func Extend(w io.Writer, parent *erofs.Image, top []*erofs.Image) (Stats, error) {
	return merge(w, parent, top)
}

func merge(w io.Writer, parent *erofs.Image, top []*erofs.Image) (Stats, error) {
	names, largest := 0, 0
	for _, img := range append([]*erofs.Image{parent}, top...) {
		if img != nil {
			n := int(min(img.Inodes(), uint64(img.Size()/inodeSize)))
			names, largest = names+n, max(largest, n)
		}
	}
	m := &merger{tree: newTree(min(names, maxEntries)), src: layerTree{items: make([]item, 0, largest+1)}}
	var devices []erofs.Device
	if parent != nil {
		devices = append(devices, parent.Devices()...)
		err := checkLabel(parent, Label)
		if err == nil {
			err = m.apply(parent, false)
		}
		if err != nil {
			return Stats{}, fault.New(fault.Integrity, "chain index: %w", err)
		}
	}
	for i, img := range top {
		devices = append(devices, img.Devices()...)
		err := checkLabel(img, layertar.Label)
		if err == nil && len(img.Devices()) != 1 {
			err = corrupt("a layer has one device")
		}
		if err == nil {
			err = m.apply(img, true)
		}
		if err != nil {
			return Stats{}, fault.New(fault.Integrity, "%s: %w", layerName(parent, i, img), err)
		}
	}
	m.src = layerTree{} // for the collector: the builder needs the room
	b := erofs.NewBuilder(devices, Label)
	stats, err := m.emit(b)
	if err != nil {
		return Stats{}, fault.New(fault.Integrity, "chain index: %w", err)
	}
	stats.Layers = len(devices)
	stats.Size, err = b.WriteTo(w)
	if errors.Is(err, erofs.ErrLimit) {
		return Stats{}, fault.New(fault.Integrity, "chain index: %w", err)
	}
	if err != nil {
		return Stats{}, fmt.Errorf("chain index: %w", err)
	}
	return stats, nil
}

func checkLabel(img *erofs.Image, want string) error {
	if l := img.Label(); l != want {
		return corrupt(fmt.Sprintf("label %q, not %q", l, want))
	}
	return nil
}

// layerName names layer i of top: its place in the chain, from 1, and its tag.
func layerName(parent *erofs.Image, i int, img *erofs.Image) string {
	if parent != nil {
		i += len(parent.Devices())
	}
	if d := img.Devices(); len(d) > 0 && len(d[0].Tag) >= 12 {
		return fmt.Sprintf("layer %d (%.12s)", i+1, d[0].Tag)
	}
	return fmt.Sprintf("layer %d", i+1)
}

// emit adds the tree to b.
func (m *merger) emit(b *erofs.Builder) (Stats, error) {
	e := emitter{m: m, b: b, refs: make([]erofs.Ref, len(m.inodes)), added: make([]bool, len(m.inodes))}
	e.sources(m.images)
	if _, err := e.add(rootInode); err != nil {
		return Stats{}, err
	}
	type job struct {
		dir dirID
		ref erofs.Ref
	}
	names := 1
	queue := []job{{m.root(), e.refs[rootInode]}}
	for i := 0; i < len(queue); i++ {
		j := queue[i]
		for id := m.dirs[j.dir].head; id != 0; id = m.entries[id].next {
			entry := &m.entries[id]
			if entry.inode == 0 {
				continue
			}
			ref, err := e.add(entry.inode)
			if err != nil {
				return Stats{}, err
			}
			if err := b.Link(j.ref, entry.name, ref); err != nil {
				return Stats{}, err
			}
			names++
			if d := m.inodes[entry.inode].dir; d != 0 {
				queue = append(queue, job{d, ref})
			}
		}
	}
	return Stats{Names: names, Inodes: e.count}, nil
}

// emitter copies inodes from the images to a builder.
type emitter struct {
	m     *merger
	b     *erofs.Builder
	refs  []erofs.Ref // by inodeID
	added []bool      // by inodeID
	count int
	src   []source // by image

	in erofs.Inode // the one being added
}

// source is an image being copied from.
type source struct {
	img    *erofs.Image
	device int   // of the chain, which device 0 of the image is
	budget int64 // bytes of chunk indexes that it can still have
}

func (e *emitter) sources(images []*erofs.Image) {
	device := 0
	for _, img := range images {
		e.src = append(e.src, source{img, device, img.Size()})
		device += len(img.Devices())
	}
}

// add adds inode n, the first time.
func (e *emitter) add(n inodeID) (erofs.Ref, error) {
	if e.added[n] {
		return e.refs[n], nil
	}
	if err := e.fill(&e.m.inodes[n]); err != nil {
		return 0, e.inLayer(n, err)
	}
	ref, err := e.b.Add(&e.in)
	if err != nil {
		return 0, e.inLayer(n, err)
	}
	e.refs[n], e.added[n] = ref, true
	e.count++
	return ref, nil
}

// inLayer says which layer inode n is from; of a parent chain's, nothing.
func (e *emitter) inLayer(n inodeID, err error) error {
	if s := &e.src[e.m.inodes[n].image]; s.img.Label() != Label {
		return fmt.Errorf("layer %d: %w", s.device+1, err)
	}
	return err
}

// fill sets e.in to what inode n is.
func (e *emitter) fill(n *inode) error {
	xattrs := e.in.Xattrs[:0]
	e.in = erofs.Inode{Mode: unix.S_IFDIR | 0o755}
	if n.nid == 0 { // an implied directory
		return nil
	}
	s := &e.src[n.image]
	var a erofs.Attr
	if err := s.img.Stat(n.nid, &a); err != nil {
		return err
	}
	e.in = erofs.Inode{Mode: a.Mode, Rdev: a.Rdev, Xattrs: xattrs}
	if err := e.attributes(n, &a); err != nil {
		return err
	}
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		target, err := s.img.ReadLink(n.nid)
		if err != nil {
			return err
		}
		e.in.Target = alias(target)
	case unix.S_IFREG:
		e.in.Size = a.Size
		var err error
		if e.in.ChunkBits, e.in.Chunks, err = s.img.Chunks(n.nid); err != nil {
			return err
		}
		// In a sound image chunk indexes do not overlap.
		if s.budget -= int64(len(e.in.Chunks)) * chunkIndexSize; s.budget < 0 {
			return corrupt("chunk indexes overlap")
		}
		for i := range e.in.Chunks {
			if c := &e.in.Chunks[i]; c.Block != erofs.HoleBlock {
				c.Device += s.device
			}
		}
	}
	return nil
}

// attributes sets the attributes of e.in: those of n, whose own are a, and
// before them those that the entries of hard links brought, the newest first. Of
// extended attributes that is a union. A symlink's mode does not change.
func (e *emitter) attributes(n *inode, a *erofs.Attr) error {
	e.common(a)
	if n.attrs != 0 {
		var newest erofs.Attr
		o := e.m.attrs[n.attrs]
		if err := e.src[o.image].img.Stat(o.nid, &newest); err != nil {
			return err
		}
		e.common(&newest)
		if a.Mode&unix.S_IFMT != unix.S_IFLNK {
			e.in.Mode = a.Mode&unix.S_IFMT | newest.Mode&^unix.S_IFMT
		}
	}
	for i := n.attrs; i != 0; i = e.m.attrs[i].next {
		o := e.m.attrs[i]
		if err := e.xattrs(e.src[o.image].img, o.nid); err != nil {
			return err
		}
	}
	if !a.Xattrs {
		return nil
	}
	return e.xattrs(e.src[n.image].img, n.nid)
}

func (e *emitter) common(a *erofs.Attr) {
	e.in.UID, e.in.GID, e.in.Mtime, e.in.MtimeNsec = a.UID, a.GID, a.Mtime, a.MtimeNsec
}

// xattrs adds the extended attributes of an inode that e.in does not have yet.
func (e *emitter) xattrs(img *erofs.Image, nid erofs.NID) error {
	have := e.in.Xattrs
	return img.Xattrs(nid, func(name string, value []byte) bool {
		if !isMark(name) && !slices.ContainsFunc(have, func(x erofs.Xattr) bool { return x.Name == name }) {
			e.in.Xattrs = append(e.in.Xattrs, erofs.Xattr{Name: name, Value: value})
		}
		return true
	})
}

// Sizes in an image, in bytes.
const (
	chunkIndexSize = 8
	inodeSize      = 64 // at least
)

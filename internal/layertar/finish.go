package layertar

import (
	"errors"
	"fmt"
	"io"
	"math/bits"

	"github.com/imgfs/imgfs/internal/erofs"
	"golang.org/x/sys/unix"
)

// Label is the volume name of a layer index.
const Label = "imgfs.layer.1"

// Summary tells what a stream held.
type Summary struct {
	StreamSize int64  // bytes written, or as SetSize said
	DataSize   int64  // bytes of the data file: the stream rounded up to a record, and the annex
	Annex      []Copy // what the owner of the data file has to copy; nil in nearly all layers

	Headers       int   // entries of the tar
	Entries       int   // names in the index, the root not counted
	Files         int   // regular files, hard links counted once
	Content       int64 // bytes of regular files, hard links counted once
	Whiteouts     int   // names hidden
	Opaque        int   // directories whose lower entries are hidden
	Links         int   // hard links whose target another layer has
	Skipped       int   // entries that make nothing: sockets, labels, aufs' own
	DroppedXattrs int   // extended attributes not taken
}

// Copy is a run of bytes of the data file that is needed in a second place.
// Places between copies are holes.
type Copy struct{ From, To, Len int64 }

// Finish ends the stream and writes the layer index. tag names the one device,
// the data file: the layer's diffID in hexadecimal.
func (x *Indexer) Finish(w io.Writer, tag string) (Summary, error) {
	if x.err != nil {
		return Summary{}, x.err
	}
	end := x.end
	if x.added {
		end = x.checkSize
	}
	if err := end(); err != nil {
		return Summary{}, x.refuse(err)
	}
	x.entry = x.entry[:0]
	if err := x.resolvePending(); err != nil {
		return Summary{}, x.refuse(err)
	}
	x.sum.StreamSize = x.size
	x.sum.DataSize = (x.size + blockSize - 1) &^ (blockSize - 1)
	if err := x.place(); err != nil {
		return Summary{}, x.refuse(err)
	}
	x.entry = x.entry[:0]
	b := erofs.NewBuilder([]erofs.Device{{Tag: tag, Blocks: uint32(x.sum.DataSize / blockSize)}}, Label)
	if err := x.fill(b); err != nil {
		return Summary{}, x.refuse(err)
	}
	x.err = errors.New("layer index: already finished")
	if _, err := b.WriteTo(w); err != nil {
		return Summary{}, fmt.Errorf("layer index: %w", err)
	}
	return x.sum, nil
}

// resolvePending looks again for the targets of hard links that stood before
// them. What is still not found stays a link to another layer.
func (x *Indexer) resolvePending() error {
	for _, n := range x.pending {
		in := &x.inodes[n]
		if in.names == 0 {
			continue
		}
		x.target = append(x.target[:0], in.target...)
		target, err := x.lookup()
		if err != nil {
			x.entry = append(x.entry[:0], in.target...)
			return fmt.Errorf("target of a hard link: %w", err)
		}
		if target = x.real(target); target != 0 && target != n {
			in.first = target
		}
	}
	return nil
}

// real follows a resolved link to the inode it is a name of.
func (t *tree) real(n uint32) uint32 {
	for n != 0 && t.inodes[n].flags&flagPending != 0 && t.inodes[n].first != 0 {
		n = t.inodes[n].first
	}
	return n
}

// fill gives the builder all inodes and names.
func (x *Indexer) fill(b *erofs.Builder) error {
	refs := make([]erofs.Ref, len(x.inodes)) // +1; 0: not added
	add := func(n uint32, hides bool) (erofs.Ref, error) {
		if refs[n] != 0 {
			return refs[n] - 1, nil
		}
		ref, err := x.addInode(b, n, hides)
		refs[n] = ref + 1
		return ref, err
	}
	type dir struct {
		name uint32
		ref  erofs.Ref
	}
	top, err := add(root, false)
	if err != nil {
		return err
	}
	for stack := []dir{{root, top}}; len(stack) > 0; {
		d := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for c := x.inodes[x.names[d.name].inode].first; c != 0; c = x.names[c].next {
			e := &x.names[c]
			if d.name == root && e.name == aufsLinks {
				continue
			}
			var ref erofs.Ref
			var err error
			n := x.real(e.inode)
			switch {
			case n != 0:
				ref, err = add(n, e.hides)
			case e.hides:
				x.sum.Whiteouts++
				ref, err = b.Add(&erofs.Inode{Mode: unix.S_IFCHR, Xattrs: []erofs.Xattr{{Name: MarkWhiteout}}})
			default:
				continue
			}
			if err == nil {
				err = b.Link(d.ref, e.name, ref)
			}
			if err != nil {
				x.entry = x.appendPath(x.entry[:0], c)
				return err
			}
			x.sum.Entries++
			if n != 0 && x.inodes[n].isDir() {
				stack = append(stack, dir{c, ref})
			}
		}
	}
	return nil
}

// addInode adds one inode; hides says that a directory's name was used before.
func (x *Indexer) addInode(b *erofs.Builder, n uint32, hides bool) (erofs.Ref, error) {
	in := &x.inodes[n]
	out := erofs.Inode{Mode: in.mode, UID: in.uid, GID: in.gid, Rdev: in.rdev, Mtime: in.mtime, MtimeNsec: in.nsec}
	if in.xattrs != 0 {
		set := x.xattrs[in.xattrs-1]
		out.Xattrs = set[:len(set):len(set)] // marks are appended to a copy
	}
	mark := func(name, value string) {
		out.Xattrs = append(out.Xattrs, erofs.Xattr{Name: name, Value: []byte(value)})
	}
	switch {
	case in.isDir():
		if in.flags&flagImplied != 0 && !hides { // else nothing lower is left to take after
			mark(MarkImplied, "")
		}
		if in.flags&flagOpaque != 0 || hides {
			x.sum.Opaque++
			mark(MarkOpaque, "")
		}
	case in.mode&unix.S_IFMT == unix.S_IFLNK:
		out.Target = in.target
	case in.flags&flagPending != 0:
		x.sum.Links++
		mark(MarkLink, in.target)
	case in.mode&unix.S_IFMT == unix.S_IFREG:
		x.sum.Files++
		x.sum.Content += in.size
		out.Size = uint64(in.size)
		if in.size > 0 {
			out.ChunkBits, out.Chunks = x.chunks(in)
		}
	}
	return b.Add(&out)
}

// chunks says where the data of a non-empty file is. The slice is for the next
// call to use again.
func (x *Indexer) chunks(in *inode) (uint8, []erofs.Chunk) {
	if in.flags&flagSparse != 0 {
		l := &x.layouts[in.data]
		return l.bits, l.chunks
	}
	shift := chunkBits(in.size)
	chunks := x.chunkBuf[:0]
	for off := int64(0); off < in.size; off += blockSize << shift {
		chunks = append(chunks, erofs.Chunk{Block: uint32((in.data + off) / blockSize)})
	}
	x.chunkBuf = chunks
	return shift, chunks
}

// chunkBits is the smallest chunk, as a power of two of blocks, that holds size
// bytes, or the largest the format has (1 TiB).
func chunkBits(size int64) uint8 {
	blocks := uint64(size+blockSize-1) / blockSize
	return uint8(min(bits.Len64(max(blocks, 1)-1), 31))
}

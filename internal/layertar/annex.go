package layertar

import (
	"fmt"
	"math/bits"

	"github.com/imgfs/imgfs/internal/erofs"
)

// layout is a sparse file's place.
type layout struct {
	bits   uint8
	chunks []erofs.Chunk
}

// place finds a place for every sparse file still in the tree: in the stream
// if its segments allow, else in the annex, which grows by whole chunks that
// hold data.
func (x *Indexer) place() error {
	x.layouts = make([]layout, len(x.maps))
	// In the order of the stream: inodes are numbered in it.
	for n := range x.inodes {
		in := &x.inodes[n]
		if in.names == 0 || in.flags&flagSparse == 0 || in.size == 0 {
			continue
		}
		segs := x.maps[in.data]
		l, ok := inStream(in.size, segs)
		if !ok {
			l = x.toAnnex(in.size, segs)
		}
		if x.sum.DataSize > x.limits.Device {
			x.entry = x.entry[:0]
			return fmt.Errorf("sparse files need more than the %d bytes an index can address", x.limits.Device)
		}
		// 8 bytes here and 8 in the builder; copies are at most as many as segments and chunks.
		if x.mem += int64(len(l.chunks))*16 + int64(len(segs))*24; x.mem > x.limits.Memory {
			return fmt.Errorf("names and attributes of more than %d bytes", x.limits.Memory)
		}
		x.layouts[in.data] = l
	}
	return nil
}

// inStream finds the largest chunks of which each is all hole, or lies in one
// segment at a record's border. There must not be more than maxChunks.
func inStream(size int64, segs []segment) (layout, bool) {
	var borders uint64 // every place where data starts or ends, or-ed
	for _, s := range segs {
		if s.phys%blockSize != 0 {
			return layout{}, false
		}
		borders |= uint64(s.off)
		if s.off+s.n != size {
			borders |= uint64(s.off + s.n)
		}
	}
	shift := int(chunkBits(size))
	if borders != 0 {
		shift = min(shift, bits.TrailingZeros64(borders)-9)
	}
	if shift < 0 || (size-1)>>(9+shift) >= maxChunks {
		return layout{}, false
	}
	l := layout{bits: uint8(shift), chunks: holes(size, shift)}
	for _, s := range segs {
		for off := s.off; off < s.off+s.n; off += blockSize << shift {
			l.chunks[off>>(9+shift)].Block = uint32((s.phys + off - s.off) / blockSize)
		}
	}
	return l, true
}

// toAnnex lays a file out anew: chunks of at least a page, few of them, each
// with data appended to the annex.
func (x *Indexer) toAnnex(size int64, segs []segment) layout {
	shift := 3
	for (size-1)>>(9+shift) >= maxChunks {
		shift++
	}
	chunk := int64(blockSize) << shift
	l := layout{bits: uint8(shift), chunks: holes(size, shift)}
	for _, s := range segs {
		for s.n > 0 {
			i := s.off / chunk
			c := &l.chunks[i]
			if c.Block == erofs.HoleBlock {
				c.Block = uint32(x.sum.DataSize / blockSize)
				left := size - i*chunk
				x.sum.DataSize += (min(chunk, left) + blockSize - 1) &^ (blockSize - 1)
				if x.sum.DataSize > x.limits.Device {
					return l
				}
			}
			n := min(s.n, (i+1)*chunk-s.off)
			x.sum.Annex = append(x.sum.Annex, Copy{From: s.phys, To: int64(c.Block)*blockSize + s.off - i*chunk, Len: n})
			s.off, s.n, s.phys = s.off+n, s.n-n, s.phys+n
		}
	}
	return l
}

func holes(size int64, shift int) []erofs.Chunk {
	chunks := make([]erofs.Chunk, (size-1)>>(9+shift)+1)
	for i := range chunks {
		chunks[i].Block = erofs.HoleBlock
	}
	return chunks
}

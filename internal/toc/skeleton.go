package toc

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"

	"github.com/imgfs/imgfs/internal/layertar"
	"github.com/klauspost/compress/zstd"
)

// A skeleton is a tar stream without its payload: everything that a
// layertar.Indexer records, at its place, and the stream's size. Replayed, it
// gives the very index of the stream; compared piece by piece, it proves that
// the stream is the one it was made from. It is our own table of contents, on
// disk and beside an image, about 12 bytes for each file.
//
// It is a header and blocks, each compressed by itself:
//
//	header  "imgfs skeleton 1\n", uvarint size of the stream
//	block   uvarint bytes when decoded, uvarint bytes here, a zstd frame
//
// A block holds pieces in columns: column c is uvarint length and so many bytes,
// c from 0 to columns-1. Columns are read in step, so that like stands beside
// like and compresses well. What a column starts from is new in each block.

const (
	skeletonMagic = "imgfs skeleton 1\n"

	maxSkeleton = 256 << 20 // bytes of an encoded skeleton
	blockTarget = 1 << 20   // bytes after which a block is closed
	maxBlock    = 16 << 20  // bytes of a block when decoded: a piece may be large
	maxPieces   = 8 << 20   // whoever keeps a proof pays 24 bytes for each
	maxPiece    = 1 << 20   // bytes: what layertar accepts of an extended header or map

	// maxHeaders is how many bytes may belong to one entry: who reads a byte of
	// its payload compares all of them.
	maxHeaders = 4 << 20
)

// SkeletonWriter makes a skeleton of what an Indexer records. Its Record is to
// be given to [layertar.Indexer.Record].
type SkeletonWriter struct {
	out    []byte // finished blocks
	count  int    // of pieces
	entry  int    // bytes of the pieces that belong to one entry
	cols   [columns][]byte
	layout layout
	prev   fields
	zstd   *zstd.Encoder
	err    error
}

// NewSkeleton returns a SkeletonWriter for one stream.
func NewSkeleton() *SkeletonWriter { return &SkeletonWriter{prev: newFields()} }

// Record takes the next piece of the stream that is not payload.
func (w *SkeletonWriter) Record(off int64, p []byte, first bool) {
	if w.err != nil {
		return
	}
	if first {
		w.entry = 0
	}
	if w.entry += len(p); w.entry > maxHeaders {
		w.err = fmt.Errorf("skeleton: headers of %d bytes for one entry (limit %d)", w.entry, maxHeaders)
		return
	}
	if w.count++; w.count > maxPieces || len(p) > maxPiece {
		w.err = fmt.Errorf("skeleton: headers of %d bytes, %d so far (limits %d and %d)", len(p), w.count, maxPiece, maxPieces)
		return
	}
	op := byte(0)
	if !first {
		op |= opWithin
	}
	if !isRecord(off, p) {
		op |= opBody
	}
	if off != w.layout.next {
		op |= opPlaced
		w.cols[colPlace] = binary.AppendVarint(w.cols[colPlace], off-w.layout.next)
	}
	if op&opBody == 0 {
		w.prev.append(&w.cols, (*[blockSize]byte)(p))
	} else {
		if int64(len(p)) != w.layout.body {
			op |= opSized
			w.cols[colSize] = binary.AppendUvarint(w.cols[colSize], uint64(len(p)))
		}
		w.cols[colBody] = append(w.cols[colBody], p...)
	}
	w.cols[colOp] = append(w.cols[colOp], op)
	w.layout.pass(off, p, op&opBody == 0)

	size := 0
	for _, c := range w.cols {
		size += len(c)
	}
	if size >= blockTarget {
		w.flush()
	}
}

// flush closes the block.
func (w *SkeletonWriter) flush() {
	if len(w.cols[colOp]) == 0 || w.err != nil {
		return
	}
	if w.zstd == nil {
		w.zstd, w.err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true),
			zstd.WithWindowSize(blockTarget), zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderCRC(false))
		if w.err != nil {
			return
		}
	}
	var raw []byte
	for i, c := range w.cols {
		raw = binary.AppendUvarint(raw, uint64(len(c)))
		raw = append(raw, c...)
		w.cols[i] = c[:0]
	}
	packed := w.zstd.EncodeAll(raw, nil)
	w.out = binary.AppendUvarint(w.out, uint64(len(raw)))
	w.out = binary.AppendUvarint(w.out, uint64(len(packed)))
	w.out = append(w.out, packed...)
	w.prev = newFields()
	if len(w.out) > maxSkeleton {
		w.err = fmt.Errorf("skeleton: more than %d bytes", maxSkeleton)
	}
}

// Finish returns the skeleton of a stream of size bytes.
func (w *SkeletonWriter) Finish(size int64) ([]byte, error) {
	w.flush()
	if w.err != nil {
		return nil, w.err
	}
	head := binary.AppendUvarint([]byte(skeletonMagic), uint64(size))
	return append(head, w.out...), nil
}

// Skeleton is a parsed skeleton. It is immutable.
type Skeleton struct {
	size   int64
	blocks []byte
}

// parseSkeleton reads what Finish returned. It keeps b. Blocks are read, and
// refused, when they are replayed.
func parseSkeleton(b []byte) (*Skeleton, error) {
	rest, ok := bytes.CutPrefix(b, []byte(skeletonMagic))
	if !ok {
		return nil, fmt.Errorf("%w: not a skeleton", ErrCorrupt)
	}
	size, n := binary.Uvarint(rest)
	if n <= 0 || size > math.MaxInt64/2 || len(b) > maxSkeleton {
		return nil, fmt.Errorf("%w: skeleton of %d bytes", ErrCorrupt, len(b))
	}
	return &Skeleton{size: int64(size), blocks: rest[n:]}, nil
}

// Size returns the size of the stream.
func (s *Skeleton) Size() int64 { return s.size }

// Fill replays the skeleton into x, as if the stream were written. It refuses
// one whose pieces are not those that x itself records, so that a Proof finds
// no less with each entry than belongs to it.
func (s *Skeleton) Fill(x *layertar.Indexer) error {
	var got mark
	x.Record(func(off int64, p []byte, first bool) { got = mark{off, len(p), first} })
	defer x.Record(nil)
	pos, entry := int64(0), 0
	err := s.pieces(func(off int64, p []byte, first bool) error {
		if err := x.Skip(off - pos); err != nil {
			return err
		}
		pos = off + int64(len(p))
		if _, err := x.Write(p); err != nil {
			return err
		}
		if first {
			entry = 0
		}
		entry += len(p)
		if got != (mark{off, len(p), first}) || len(p) == 0 || entry > maxHeaders {
			return fmt.Errorf("%w: no header is %d bytes at %d", ErrCorrupt, len(p), off)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return x.Skip(s.size - pos)
}

// mark tells a piece from another.
type mark struct {
	off   int64
	size  int
	first bool
}

// pieces calls f with every piece, in order; first says that an entry begins
// with p. p is valid for the call.
func (s *Skeleton) pieces(f func(off int64, p []byte, first bool) error) error {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(maxBlock), zstd.IgnoreChecksum(true))
	if err != nil {
		return err
	}
	defer dec.Close()
	r := pieceReader{size: s.size, f: f}
	var raw []byte
	for b := s.blocks; len(b) > 0; {
		rawLen, n := binary.Uvarint(b)
		if n <= 0 || rawLen > maxBlock {
			return errSkeleton
		}
		b = b[n:]
		packed, n := binary.Uvarint(b)
		if n <= 0 || packed > uint64(len(b)-n) {
			return errSkeleton
		}
		raw, err = dec.DecodeAll(b[n:n+int(packed)], raw[:0])
		if err != nil || uint64(len(raw)) != rawLen {
			return errSkeleton
		}
		b = b[n+int(packed):]
		if err := r.block(raw); err != nil {
			return err
		}
	}
	return nil
}

var errSkeleton = fmt.Errorf("%w: malformed skeleton", ErrCorrupt)

// pieceReader reads blocks.
type pieceReader struct {
	cols   [columns][]byte
	layout layout
	size   int64 // of the stream
	end    int64 // of the last piece
	count  int
	f      func(off int64, p []byte, first bool) error
}

func (r *pieceReader) block(raw []byte) error {
	for i := range r.cols {
		n, k := binary.Uvarint(raw)
		if k <= 0 || n > uint64(len(raw)-k) {
			return errSkeleton
		}
		r.cols[i], raw = raw[k:k+int(n)], raw[k+int(n):]
	}
	prev := newFields()
	ops := r.cols[colOp]
	if r.count += len(ops); r.count > maxPieces || len(raw) > 0 {
		return errSkeleton
	}
	for _, op := range ops {
		if op&^(opWithin|opBody|opPlaced|opSized) != 0 {
			return errSkeleton
		}
		off := r.layout.next
		if op&opPlaced != 0 {
			d, err := takeVarint(&r.cols[colPlace])
			if err != nil {
				return err
			}
			off += d // wraps at worst, and is compared below
		}
		var p []byte
		if op&opBody == 0 {
			if err := prev.take(&r.cols); err != nil {
				return err
			}
			p = prev.record[:]
		} else {
			n := uint64(r.layout.body)
			if op&opSized != 0 {
				var err error
				if n, err = takeUvarint(&r.cols[colSize]); err != nil {
					return err
				}
			}
			body := &r.cols[colBody]
			if n > maxPiece || n > uint64(len(*body)) {
				return errSkeleton
			}
			p, *body = (*body)[:n], (*body)[n:]
		}
		if off < r.end || off > r.size-int64(len(p)) {
			return errSkeleton
		}
		r.end = off + int64(len(p))
		r.layout.pass(off, p, op&opBody == 0)
		if err := r.f(off, p, op&opWithin == 0); err != nil {
			return err
		}
	}
	for _, c := range r.cols[1:] {
		if len(c) > 0 {
			return errSkeleton
		}
	}
	return nil
}

// layout guesses where the next piece is, so that only surprises are written.
type layout struct {
	next int64 // offset
	body int64 // bytes of the next piece if it is the body of an extended header; 0: unlikely
}

// pass goes on behind a piece.
func (l *layout) pass(off int64, p []byte, record bool) {
	end := off + int64(len(p))
	l.next, l.body = align(end), 0
	if !record {
		return
	}
	size, ok := octal(p[124:136])
	switch typ := p[156]; {
	case !ok:
	case isSpecial(typ):
		l.next, l.body = end, size
	case typ < '1' || typ > '6':
		l.next = end + align(size)
	}
}

// isSpecial says that a record's payload is an extended header, of the entry
// that follows.
func isSpecial(typ byte) bool { return typ == 'x' || typ == 'g' || typ == 'L' || typ == 'K' }

// isRecord says that a piece is likely a header or an end marker.
func isRecord(off int64, p []byte) bool {
	return len(p) == blockSize && off%blockSize == 0 && (string(p[257:262]) == "ustar" || p[0] == 0)
}

// align rounds up to whole records.
func align(n int64) int64 { return (n + blockSize - 1) &^ (blockSize - 1) }

func takeUvarint(b *[]byte) (uint64, error) {
	v, n := binary.Uvarint(*b)
	if n <= 0 {
		return 0, errSkeleton
	}
	*b = (*b)[n:]
	return v, nil
}

func takeVarint(b *[]byte) (int64, error) {
	v, n := binary.Varint(*b)
	if n <= 0 {
		return 0, errSkeleton
	}
	*b = (*b)[n:]
	return v, nil
}

// octal reads a number as tar writers put it, 11 digits and a NUL.
func octal(b []byte) (int64, bool) {
	var v int64
	if len(b) != 12 || b[11] != 0 {
		return 0, false
	}
	for _, c := range b[:11] {
		if c < '0' || c > '7' {
			return 0, false
		}
		v = v<<3 | int64(c-'0')
	}
	return v, true
}

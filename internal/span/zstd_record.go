package span

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"slices"

	"github.com/klauspost/compress/zstd"

	"github.com/imgfs/imgfs/internal/span/zscan"
)

const (
	// zstdSpacing is how far apart checkpoints are where spacing costs
	// nothing, at the beginning of frames; maxZstdSpacing how far at most
	// where it costs a window.
	zstdSpacing    = 1 << 20
	maxZstdSpacing = 8 << 20

	// zstdTested is how much of a span is decoded to test its checkpoint,
	// from blob bytes that are held in memory, not more than maxZstdTested
	// and a block.
	zstdTested    = 64 << 10
	maxZstdTested = 512 << 10

	// zstdSkipped is the largest skippable frame that a span may include.
	// Those bytes would be fetched for nothing.
	zstdSkipped = 64 << 10

	// zstdChunk is the unit in which decoded data is handed to a recorder.
	zstdChunk = 256 << 10
)

var errTooLong = fmt.Errorf("no decoder can begin within %d MiB", MaxSpan>>20)

// zstdRecorder finds checkpoints in a zstd stream while a decoder reads it. It
// scans the blocks in a goroutine of its own: what goes into the decoder and
// what comes out are sent there. The pass owns it.
type zstdRecorder struct {
	rec   *recording
	sent  chan zstdPiece
	free  chan []byte // chunks to use again
	ended chan struct{}
	chunk []byte // of decoded data, on its way

	// The goroutine's:
	scan    *zscan.Scanner
	in      [][]byte // received, not yet scanned
	raw     []byte   // the bytes of the block being scanned
	rawSize int64    // how many there were: more than raw if it is of no interest
	history zstdHistory
	marks   []*zstdMark
	refs    []zscan.Ref // of the last mark, not yet in its pieces
	pack    *zstd.Encoder
	test    *zstdDecoder
	state   []byte // buffer
}

// zstdPiece is a piece of what the decoder read or of what it made of it.
type zstdPiece struct{ in, out []byte }

// zstdMark is a checkpoint, maybe. Whether a decoder can begin at a block shows
// only when every entropy table that earlier blocks left behind was replaced
// (needs is empty): the mark is then settled. If a block takes over one before
// that, the marks since the last settled one were none, and what was theirs
// becomes part of that one's span. Of a recorder's marks the first is settled
// (unless the others could not be folded into it any more), the last is the one
// whose span goes on; both are fed.
type zstdMark struct {
	block  zscan.Block // the first one; Refs not valid
	needs  zscan.Tables
	pieces []zstdBytes // of earlier data, that the span refers to

	// As far as fed:
	hash    hash.Hash
	sum     [sha256.Size]byte // of the blob bytes up to to
	crc     uint32            // of the data
	end, to int64

	// The first blocks, to test the checkpoint with.
	head     []byte
	headSize int64
	headSum  uint32

	// Set when the span was closed: that much of what was fed is in it.
	entry Entry
	crcs  uint32
}

// zstdBytes is a piece of the data, from off on.
type zstdBytes struct {
	off int64
	b   []byte
}

// newZstdRecorder starts a goroutine, which ends with close.
func newZstdRecorder(rec *recording) (*zstdRecorder, error) {
	pack, err := newStatePacker()
	if err != nil {
		return nil, err
	}
	test, err := newZstdDecoder()
	if err != nil {
		return nil, err
	}
	const waiting = 8
	r := &zstdRecorder{
		rec: rec, pack: pack, test: test,
		sent: make(chan zstdPiece, waiting), free: make(chan []byte, waiting), ended: make(chan struct{}),
	}
	r.scan = zscan.New(r, maxZstdWindow)
	go func() {
		defer close(r.ended)
		if err := r.run(); err != nil {
			rec.giveUp(err)
		}
		for range r.sent { // the pass goes on without
		}
	}()
	return r, nil
}

// close waits until all was seen. Only then may rec be used again.
func (r *zstdRecorder) close() {
	if len(r.chunk) > 0 {
		r.sent <- zstdPiece{out: r.chunk}
	}
	close(r.sent)
	<-r.ended
}

// zstdInput reads src for a decoder and lets a recorder see it.
type zstdInput struct {
	src io.Reader
	r   *zstdRecorder
	b   []byte
	err error
}

func (i *zstdInput) Read(p []byte) (int, error) {
	for len(i.b) == 0 {
		if i.err != nil {
			return 0, i.err
		}
		// Both keep what was read: nothing is copied, nor used again.
		b := make([]byte, zscan.MaxBlock)
		var n int
		n, i.err = i.src.Read(b)
		if i.b = b[:n]; n > 0 {
			i.r.sent <- zstdPiece{in: i.b}
		}
	}
	n := copy(p, i.b)
	i.b = i.b[n:]
	return n, nil
}

// zstdOutput writes to w and lets a recorder see it.
type zstdOutput struct {
	w io.Writer
	r *zstdRecorder
}

func (o *zstdOutput) Write(p []byte) (int, error) {
	r := o.r
	for b := p; len(b) > 0; {
		if r.chunk == nil {
			select {
			case r.chunk = <-r.free:
			default:
				r.chunk = make([]byte, 0, zstdChunk)
			}
		}
		n := min(len(b), zstdChunk-len(r.chunk))
		r.chunk = append(r.chunk, b[:n]...)
		b = b[n:]
		if len(r.chunk) == zstdChunk {
			r.sent <- zstdPiece{out: r.chunk}
			r.chunk = nil
		}
	}
	return o.w.Write(p)
}

// receive takes one more piece; false if there are none.
func (r *zstdRecorder) receive() bool {
	p, ok := <-r.sent
	switch {
	case len(p.in) > 0:
		r.in = append(r.in, p.in)
	case len(p.out) > 0:
		r.history.add(p.out)
	}
	return ok
}

// Read gives the scanner what the decoder reads.
func (r *zstdRecorder) Read(p []byte) (int, error) {
	for len(r.in) == 0 {
		if !r.receive() {
			return 0, io.EOF
		}
	}
	n := copy(p, r.in[0])
	if r.in[0] = r.in[0][n:]; len(r.in[0]) == 0 {
		r.in = slices.Delete(r.in, 0, 1)
	}
	if r.rawSize += int64(n); r.rawSize <= 2*zscan.MaxBlock {
		r.raw = append(r.raw, p[:n]...)
	}
	return n, nil
}

// run scans the stream. It runs beside the pass, where no caller could recover.
func (r *zstdRecorder) run() (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("internal error: panic: %v", v)
		}
	}()
	var b zscan.Block
	for {
		r.raw, r.rawSize = r.raw[:0], 0
		// Where a span may begin, the block's own references count.
		if m := r.last(); m != nil {
			r.scan.Base = m.block.Off
			if at := b.Off + b.Len; r.due(m, at, b.Window, false) {
				r.scan.Base = at
			}
		}
		switch err := r.scan.Next(&b); {
		case err == io.EOF:
			for r.receive() {
			}
			if r.history.end() != b.Off {
				return errors.New("scanner and decoder disagree")
			}
			return r.endAll()
		case err != nil:
			return err
		}
		for r.history.end() < b.Off+b.Len {
			if !r.receive() {
				return io.ErrUnexpectedEOF
			}
		}
		if err := r.block(&b); err != nil {
			return err
		}
	}
}

// last returns the mark whose span goes on, nil if there is none.
func (r *zstdRecorder) last() *zstdMark {
	if len(r.marks) == 0 {
		return nil
	}
	return r.marks[len(r.marks)-1]
}

// block sees the next block.
func (r *zstdRecorder) block(b *zscan.Block) error {
	if b.Skippable && b.To-b.From > zstdSkipped {
		return r.endAll()
	}
	if b.Len == 0 && b.Last && r.last() == nil {
		return nil // a frame without data, and no span to belong to
	}
	if m := r.last(); m != nil && b.Uses&m.needs != 0 {
		if err := r.fold(); err != nil {
			return err
		}
	}
	if m := r.last(); m == nil || b.Len > 0 && b.Uses == 0 && r.due(m, b.Off, b.Window, b.First) {
		if m != nil {
			r.end(m)
		}
		m := &zstdMark{block: *b, hash: sha256.New()}
		if !b.First {
			m.needs = b.Known
		}
		r.marks = append(r.marks, m)
	}
	m := r.last()
	for _, ref := range b.Refs {
		if ref.Off < m.block.Off {
			r.refs = append(r.refs, ref)
		}
	}
	r.feed(m, b)
	if first := r.marks[0]; first != m {
		r.feed(first, b)
	}
	m.needs &^= b.Sets
	if m.needs == 0 || b.Off-r.marks[0].block.Off > MaxSpan { // or it is too late to fold
		if err := r.settle(len(r.marks) - 1); err != nil {
			return err
		}
	}
	const many, far = 1 << 14, 4 * zstdChunk
	if end := b.Off + b.Len; len(r.refs) > many || end-b.Window-r.history.off > far {
		r.collect(m)
		r.history.drop(end-b.Window, r.free)
	}
	return nil
}

// due reports whether the span of m is long enough to begin another one at off,
// in a frame with that window or where a frame begins.
func (r *zstdRecorder) due(m *zstdMark, off, window int64, frame bool) bool {
	spacing := r.rec.Spacing
	if spacing == 0 {
		spacing = zstdSpacing
		if !frame {
			spacing = min(max(3*window, zstdSpacing), maxZstdSpacing)
		}
	}
	return off-m.block.Off >= spacing
}

// feed enters a block into a mark's span.
func (r *zstdRecorder) feed(m *zstdMark, b *zscan.Block) {
	if b.Off-m.block.Off > MaxSpan {
		return // it is too late for it already
	}
	m.hash.Write(r.raw)
	testing := m.headSize < zstdTested && len(m.head) < maxZstdTested
	if testing {
		m.head = append(m.head, r.raw...)
	}
	if b.Len == 0 {
		return // the span does not reach to there, unless more comes
	}
	for p := range r.history.pieces(b.Off, b.Len) {
		m.crc = crc32.Update(m.crc, crc32.MakeTable(crc32.Castagnoli), p)
	}
	m.hash.Sum(m.sum[:0])
	m.end, m.to = b.Off+b.Len, b.To
	if testing {
		m.headSize, m.headSum = m.end-m.block.Off, m.crc
	}
}

// end closes the span of the last mark.
func (r *zstdRecorder) end(m *zstdMark) {
	r.collect(m)
	sum := m.sum
	m.entry = Entry{Off: m.block.Off, Len: m.end - m.block.Off, From: m.block.From, To: m.to, Blob: &sum}
	m.crcs = m.crc
}

// collect makes pieces of the references of m, the last mark.
func (r *zstdRecorder) collect(m *zstdMark) {
	if len(r.refs) == 0 {
		return
	}
	slices.SortFunc(r.refs, func(a, b zscan.Ref) int { return cmp.Compare(a.Off, b.Off) })
	for i := 0; i < len(r.refs); {
		off, end := r.refs[i].Off, r.refs[i].Off
		for ; i < len(r.refs) && r.refs[i].Off <= end; i++ {
			end = max(end, r.refs[i].Off+int64(r.refs[i].Len))
		}
		b := make([]byte, 0, end-off)
		for p := range r.history.pieces(off, end-off) {
			b = append(b, p...)
		}
		m.pieces = append(m.pieces, zstdBytes{off, b})
	}
	r.refs = r.refs[:0]
}

// fold makes the spans of all marks part of the first one's, which is settled.
func (r *zstdRecorder) fold() error {
	first := r.marks[0]
	if first.needs != 0 || r.history.end()-first.block.Off > MaxSpan {
		return errTooLong
	}
	r.collect(r.last())
	for _, m := range r.marks[1:] {
		first.pieces = append(first.pieces, m.pieces...)
	}
	clear(r.marks[1:])
	r.marks = r.marks[:1]
	return nil
}

// settle enters the spans of the first n marks, which are closed, into the
// table.
func (r *zstdRecorder) settle(n int) error {
	for _, m := range r.marks[:n] {
		if err := r.enter(m); err != nil {
			return err
		}
	}
	r.marks = slices.Delete(r.marks, 0, n)
	return nil
}

// endAll closes the last span and enters all: nothing follows, or a frame.
func (r *zstdRecorder) endAll() error {
	if m := r.last(); m != nil {
		r.end(m)
	}
	return r.settle(len(r.marks))
}

// enter enters a span into the table, and tests its checkpoint.
func (r *zstdRecorder) enter(m *zstdMark) error {
	if m.entry.Len == 0 {
		return nil // empty frames
	}
	if m.entry.Len > MaxSpan {
		return errTooLong
	}
	if !m.block.First {
		state, err := m.state()
		if err != nil {
			return err
		}
		state.sum = m.headSum
		dst := slices.Grow(r.rec.test[:0], int(m.headSize))[:m.headSize]
		r.rec.test = dst
		if err := r.test.resume(state, m.head, []part{{dst: dst}}); err != nil {
			return fmt.Errorf("test of a checkpoint: %w", err)
		}
		state.sum = m.crcs
		r.state = state.appendTo(r.state[:0])
		m.entry.Window = r.pack.EncodeAll(r.state, nil)
	}
	return r.rec.b.Add(m.entry)
}

// state returns what a decoder has to know at the mark, but for the checksum.
func (m *zstdMark) state() (*zstdState, error) {
	s := &zstdState{checksum: m.block.Checksum, repeat: m.block.Repeat}
	slices.SortFunc(m.pieces, func(a, b zstdBytes) int { return cmp.Compare(a.off, b.off) })
	begin, end := m.block.Off, int64(0) // of the window so far
	for _, p := range m.pieces {
		p.b = p.b[:min(int64(len(p.b)), max(0, m.block.Off-p.off))]
		if p.off < end {
			p.b = p.b[min(int64(len(p.b)), end-p.off):]
			p.off = end
		}
		if len(p.b) == 0 {
			continue
		}
		n := len(s.runs)
		switch {
		case n > 0 && p.off == end:
			s.runs[n-1].used += uint64(len(p.b))
		case n > 0:
			s.runs[n-1].gap = uint64(p.off - end)
			s.runs = append(s.runs, zstdRun{used: uint64(len(p.b))})
		default:
			begin = p.off
			s.runs = append(s.runs, zstdRun{used: uint64(len(p.b))})
		}
		s.bytes = append(s.bytes, p.b...)
		end = p.off + int64(len(p.b))
	}
	if n := len(s.runs); n > 0 {
		s.runs[n-1].gap = uint64(m.block.Off - end)
	}
	// No match reaches further back than the window's beginning, so a decoder
	// need not have the frame's whole window; its blocks may be large, though.
	window := max(m.entry.Off+m.entry.Len-begin, int64(slices.Max(s.repeat[:])), zscan.MaxBlock)
	var err error
	s.window, err = windowDescriptor(min(window, m.block.Window))
	return s, err
}

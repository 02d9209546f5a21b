package zscan

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// ErrCorrupt is returned when the stream is not a zstd stream, or is damaged.
var ErrCorrupt = errors.New("zstd stream is corrupt")

// ErrUnsupported is returned when a frame needs a dictionary or a window
// beyond the scanner's limit.
var ErrUnsupported = errors.New("zstd stream is not supported")

// MaxBlock is the most bytes a block holds, encoded or decoded.
const MaxBlock = 128 << 10

// MinWindow is the smallest window a frame has.
const MinWindow = 1 << 10

// Magic numbers of frames; the low four bits of a skippable one are free.
const (
	frameMagic     = 0xfd2fb528
	skippableMagic = 0x184d2a50
)

// Tables is a set of the entropy tables that blocks hand on.
type Tables uint8

// The entropy tables.
const (
	Huffman Tables = 1 << iota
	LiteralLengths
	Offsets
	MatchLengths

	AllTables = Huffman | LiteralLengths | Offsets | MatchLengths
)

// A Ref is a piece of earlier data that a match copies.
type Ref struct {
	Off int64 // of the data
	Len int32
}

// A Block is one block of a frame. The first one of a frame includes the
// frame's header, the last one its checksum, so blocks lie end to end in the
// stream. A skippable frame is a Block that is both first and last and has no
// data.
type Block struct {
	From, To    int64 // in the stream
	Off, Len    int64 // in the data
	First, Last bool  // of its frame
	Skippable   bool

	// What a decoder that begins at From has to know, apart from the data
	// before it; a frame's header tells it all.
	Window   int64     // size of the frame's window
	Checksum bool      // the frame ends with a checksum, four bytes
	Repeat   [3]uint32 // the repeat offsets, the latest first
	Start    int64     // where the frame's data begins

	Known Tables // that earlier blocks of the frame left behind
	Uses  Tables // those of them that this block takes over
	Sets  Tables // that it brings

	// Refs are the matches' sources that begin before Scanner.Base, clipped
	// to it, in the order of the matches; may overlap and repeat. Valid until
	// the next call of Next.
	Refs []Ref
}

// A Scanner reads blocks from a stream. Not safe for concurrent use.
type Scanner struct {
	// Base is the offset in the data before which references are told. May
	// be changed between calls of Next.
	Base int64

	r         io.Reader
	maxWindow int64
	pos       int64 // in the stream, of what Next reads next
	off       int64 // in the data
	inFrame   bool
	window    int64 // of the current frame
	checksum  bool
	start     int64 // where the frame's data begins
	known     Tables
	repeat    [3]uint32
	tables    [3]*table // in use: literal lengths, offsets, match lengths
	own       [3]table  // described in the stream
	preset    [3]table  // of the format's default distributions

	buf  []byte // a block's body between pad and slack bytes
	refs []Ref  // of the last block
}

// New returns a Scanner of the zstd stream r. Frames whose window is greater
// than maxWindow are not supported.
func New(r io.Reader, maxWindow int64) *Scanner {
	s := &Scanner{r: r, maxWindow: maxWindow, buf: make([]byte, pad+MaxBlock+slack)}
	for i, d := range defaults {
		// The format's own distributions are sound.
		_ = s.preset[i].build(d.counts, d.log, codes[i])
	}
	return s
}

// Next reads a block. It returns io.EOF at the end of the stream, if that is
// where a frame ends.
func (s *Scanner) Next(b *Block) error {
	*b = Block{From: s.pos, Off: s.off}
	s.refs = s.refs[:0]
	if !s.inFrame {
		if err := s.header(b); err != nil || b.Skippable {
			return err
		}
		b.First = true
	}
	b.Window, b.Checksum, b.Repeat, b.Start, b.Known = s.window, s.checksum, s.repeat, s.start, s.known
	if err := s.block(b); err != nil {
		return err
	}
	if b.Last && s.checksum {
		if _, err := s.read(4); err != nil {
			return err
		}
	}
	s.inFrame = !b.Last
	s.off += b.Len
	b.To = s.pos
	return nil
}

// read reads the next n bytes, at most MaxBlock, into the buffer. The end of
// the stream is not expected here.
func (s *Scanner) read(n int) ([]byte, error) {
	p := s.buf[pad : pad+n]
	k, err := io.ReadFull(s.r, p)
	s.pos += int64(k)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return p, err
}

// header reads what stands before a frame's first block, or a whole skippable
// frame.
func (s *Scanner) header(b *Block) error {
	n, err := io.ReadFull(s.r, s.buf[pad:pad+4])
	s.pos += int64(n)
	if err != nil {
		return err // io.EOF if there is nothing
	}
	magic := binary.LittleEndian.Uint32(s.buf[pad:])
	if magic&^0xf == skippableMagic {
		return s.skip(b)
	}
	if magic != frameMagic {
		return fmt.Errorf("%w: no frame begins at byte %d", ErrCorrupt, b.From)
	}
	p, err := s.read(1)
	if err != nil {
		return err
	}
	desc := p[0]
	if desc&(1<<3) != 0 {
		return fmt.Errorf("%w: reserved bit of a frame header", ErrCorrupt)
	}
	single := desc&(1<<5) != 0
	dictID := [4]int{0, 1, 2, 4}[desc&3]
	content := [4]int{0, 2, 4, 8}[desc>>6]
	n = dictID + content
	if !single {
		n++
	} else if content == 0 {
		content, n = 1, n+1
	}
	if p, err = s.read(n); err != nil {
		return err
	}
	if !single {
		s.window = WindowSize(p[0])
		p = p[1:]
	}
	for _, id := range p[:dictID] {
		if id != 0 {
			return fmt.Errorf("%w: a dictionary is needed", ErrUnsupported)
		}
	}
	if single {
		var size [8]byte
		copy(size[:], p[dictID:])
		v := binary.LittleEndian.Uint64(size[:])
		if content == 2 {
			v += 256
		}
		if v > uint64(s.maxWindow) {
			return fmt.Errorf("%w: window of %d bytes", ErrUnsupported, v)
		}
		s.window = max(int64(v), MinWindow)
	}
	if s.window > s.maxWindow {
		return fmt.Errorf("%w: window of %d bytes", ErrUnsupported, s.window)
	}
	s.checksum = desc&(1<<2) != 0
	s.start = s.off
	s.known = 0
	s.repeat = [3]uint32{1, 4, 8}
	return nil
}

// skip steps over a skippable frame, behind its magic.
func (s *Scanner) skip(b *Block) error {
	p, err := s.read(4)
	if err != nil {
		return err
	}
	for n := int(binary.LittleEndian.Uint32(p)); n > 0; {
		k := min(n, MaxBlock)
		if _, err := s.read(k); err != nil {
			return err
		}
		n -= k
	}
	b.First, b.Last, b.Skippable = true, true, true
	b.To = s.pos
	return nil
}

// WindowSize is the size of the window that a descriptor in a frame header
// stands for.
func WindowSize(descriptor byte) int64 {
	size := int64(MinWindow) << (descriptor >> 3)
	return size + size/8*int64(descriptor&7)
}

// block reads a block with its header.
func (s *Scanner) block(b *Block) error {
	p, err := s.read(3)
	if err != nil {
		return err
	}
	h := uint32(p[0]) | uint32(p[1])<<8 | uint32(p[2])<<16
	b.Last = h&1 != 0
	size := int(h >> 3)
	limit := int(min(s.window, MaxBlock))
	if size > limit {
		return fmt.Errorf("%w: block of %d bytes", ErrCorrupt, size)
	}
	switch h >> 1 & 3 {
	case 0: // stored
		b.Len = int64(size)
		_, err = s.read(size)
	case 1: // one byte, repeated
		b.Len = int64(size)
		_, err = s.read(1)
	case 2:
		if _, err = s.read(size); err == nil {
			err = s.compressed(b, size, limit)
		}
	default:
		err = fmt.Errorf("%w: reserved type of block", ErrCorrupt)
	}
	return err
}

// A section's error: its bytes are not there or make no sense.
func corrupt(what string) error { return fmt.Errorf("%w: %s", ErrCorrupt, what) }

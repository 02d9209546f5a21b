package inflate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// ErrCorrupt is returned (wrapped) when the stream breaks RFC 1951 or 1952. A
// stream that ends early gives io.ErrUnexpectedEOF (wrapped) instead.
var ErrCorrupt = errors.New("gzip: corrupt stream")

const (
	windowSize = 32 << 10
	inSize     = 128 << 10 // input is read in pieces of this size
	outSize    = 256 << 10 // output is made in pieces of about this size

	// pad bytes of zeros lie behind the input's end, for loads of 8 bytes that
	// begin before it. What is decoded from them is found out, see overrun.
	pad = 64
	// slack is how far one round of the symbol loop may write: three
	// literals, the longest match, and the overshoot of copies by 8.
	slack = 3 + 258 + 16
)

// Reader decompresses a gzip stream of one or more members. It is not safe
// for concurrent use.
type Reader struct {
	src io.Reader
	in  []byte // inSize + pad
	at  int64  // of in[0] in the input
	pos int    // next byte of in to be loaded into bb
	end int    // bytes of in that are input
	eof bool   // src has no more
	bb  uint64 // bits loaded; those above nb are a preview of in[pos:]
	nb  uint   // valid bits in bb

	out   []byte // window and output
	rd    int    // next byte for the caller
	wr    int    // next byte to be written
	base  int    // matches may not reach below: the member's start
	low   int    // base, or where border was last interested, if that is higher
	limit int    // enough output for now
	gone  int64  // bytes of output before out[0]; < 0: a window stands there

	border func(Checkpoint) *Used
	used   *Used // what matches that reach below low are noted in

	whole bool   // the member was read from its start: crc and size are of all of it
	crc   uint32 // of the member up to sum
	sum   int    // index in out up to which crc goes
	size  uint32 // of the member up to sum, mod 2^32
	step  step
	begun bool // a header was read
	last  bool // the block is the member's last
	store int  // bytes left of a stored block
	err   error

	lit  [litSize]entry
	dist [distSize]entry
	pre  [preSize]entry
	lens [numLitLen + numDist]uint8
}

// step is what comes next in the stream.
type step uint8

const (
	atMember step = iota
	atBlock
	inStored
	inCodes
	atTrailer
)

// NewReader returns a Reader of src, which must begin with a gzip header: that
// is found out by the first Read. It reads ahead of what it returns.
func NewReader(src io.Reader) *Reader {
	z := &Reader{in: make([]byte, inSize+pad), out: make([]byte, windowSize+outSize+slack)}
	z.Reset(src)
	return z
}

// Reset makes z what NewReader(src) returns, without another allocation.
func (z *Reader) Reset(src io.Reader) {
	z.src, z.err, z.border, z.used = src, nil, nil, nil
	z.at, z.pos, z.end, z.eof, z.bb, z.nb = 0, 0, 0, false, 0, 0
	z.rd, z.wr, z.sum, z.base, z.low, z.gone = 0, 0, 0, 0, 0, 0
	z.step, z.begun, z.whole, z.last = atMember, false, false, false
}

// Read returns decompressed bytes. At the end of the last member, checked, it
// returns io.EOF; other errors are sticky.
func (z *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for z.rd == z.wr {
		if z.err != nil {
			return 0, z.err
		}
		if err := z.fill(outSize); err != nil {
			z.err = err
		}
	}
	n := copy(p, z.out[z.rd:z.wr])
	z.rd += n
	return n, nil
}

// WriteTo writes the rest of the stream to w in large pieces, each of which w
// may use until it returns.
func (z *Reader) WriteTo(w io.Writer) (n int64, err error) {
	for {
		if z.rd < z.wr {
			m, err := w.Write(z.out[z.rd:z.wr])
			n += int64(m)
			z.rd += m
			if err != nil {
				return n, err
			}
		}
		if z.err == io.EOF {
			return n, nil
		}
		if z.err != nil {
			return n, z.err
		}
		if err := z.fill(outSize); err != nil {
			z.err = err
		}
	}
}

// ReadFull fills p, or returns why it cannot: io.ErrUnexpectedEOF where the
// stream ends before. It stops as soon as it can, so that input which was cut
// off behind the block with p's last byte is enough.
func (z *Reader) ReadFull(p []byte) error {
	return z.exactly(int64(len(p)), func(b []byte) { p = p[copy(p, b):] })
}

// Discard is ReadFull of n bytes that nobody wants.
func (z *Reader) Discard(n int64) error {
	return z.exactly(n, func([]byte) {})
}

// exactly gives the next n bytes to f, piece by piece.
func (z *Reader) exactly(n int64, f func([]byte)) error {
	for n > 0 {
		if b := z.out[z.rd:z.wr]; len(b) > 0 {
			b = b[:min(int64(len(b)), n)]
			f(b)
			z.rd += len(b)
			n -= int64(len(b))
			continue
		}
		switch z.err {
		case nil:
			z.err = z.fill(int(min(n, outSize)))
		case io.EOF:
			return io.ErrUnexpectedEOF
		default:
			return z.err
		}
	}
	return nil
}

// fill decodes n <= outSize bytes, or a few more than that if there are, or to
// the stream's end. All output was taken. An error takes back what this call
// wrote, unless it is io.EOF.
func (z *Reader) fill(n int) error {
	if z.wr > windowSize {
		shift := z.wr - windowSize
		copy(z.out, z.out[shift:z.wr])
		z.wr = windowSize
		z.base, z.low = max(0, z.base-shift), max(0, z.low-shift)
		z.gone += int64(shift)
	}
	z.rd, z.sum = z.wr, z.wr
	z.limit = z.wr + n
	for z.wr < z.limit {
		if err := z.advance(); err != nil {
			if err == io.EOF {
				return err
			}
			z.wr = z.rd
			if z.overrun() { // what was wrong are the zeros behind the end
				return fmt.Errorf("gzip: %w", io.ErrUnexpectedEOF)
			}
			return err
		}
	}
	z.account()
	return nil
}

// account takes the output since the last call into the member's checksum.
func (z *Reader) account() {
	if z.whole {
		z.crc = crc32.Update(z.crc, crc32.IEEETable, z.out[z.sum:z.wr])
	}
	z.size += uint32(z.wr - z.sum)
	z.sum = z.wr
}

func (z *Reader) advance() (err error) {
	switch z.step {
	case atMember:
		if err = z.header(); err == nil {
			z.step, z.base, z.low, z.sum = atBlock, z.wr, z.wr, z.wr
			z.whole, z.crc, z.size = true, 0, 0
		}
	case atBlock:
		err = z.block()
	case inStored:
		err = z.stored()
	case inCodes:
		err = z.codes()
	case atTrailer:
		z.account()
		err = z.trailer()
		z.step = atMember
	}
	return err
}

// more makes the input hold at least 16 bytes behind pos, or all there is.
func (z *Reader) more() error {
	if z.eof || z.end-z.pos >= 16 {
		return nil
	}
	keep := min(z.pos, 8) // what align may give back
	z.end = copy(z.in, z.in[z.pos-keep:z.end])
	z.at += int64(z.pos - keep)
	z.pos = keep
	for z.end-z.pos < 16 {
		n, err := z.src.Read(z.in[z.end:inSize])
		z.end += n
		if err == io.EOF {
			z.eof = true
			clear(z.in[z.end : z.end+pad])
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// need makes at least n <= 32 bits available: zeros behind the input's end.
func (z *Reader) need(n uint) error {
	if z.nb >= n {
		return nil
	}
	if err := z.more(); err != nil {
		return err
	}
	if z.overrun() {
		return fmt.Errorf("gzip: %w", io.ErrUnexpectedEOF)
	}
	z.bb |= binary.LittleEndian.Uint64(z.in[z.pos:]) << z.nb
	z.pos += int((63 - z.nb) >> 3)
	z.nb |= 56
	return nil
}

// bits takes n <= 32 bits that need has made available.
func (z *Reader) bits(n uint) uint {
	v := uint(z.bb & (1<<n - 1))
	z.bb >>= n
	z.nb -= n
	return v
}

// overrun tells whether bits behind the input's end were taken.
func (z *Reader) overrun() bool { return z.eof && z.pos-int(z.nb>>3) > z.end }

// align drops the rest of a byte and gives whole bytes back to the input.
func (z *Reader) align() error {
	z.pos -= int(z.nb >> 3)
	z.bb, z.nb = 0, 0
	if z.pos > z.end {
		return fmt.Errorf("gzip: %w", io.ErrUnexpectedEOF)
	}
	return nil
}

// take returns the next n <= 16 bytes of the input; bits are aligned.
func (z *Reader) take(n int) ([]byte, error) {
	if err := z.more(); err != nil {
		return nil, err
	}
	if z.end-z.pos < n {
		return nil, fmt.Errorf("gzip: %w", io.ErrUnexpectedEOF)
	}
	b := z.in[z.pos : z.pos+n]
	z.pos += n
	return b, nil
}

// block reads a block's header. RFC 1951, section 3.2.3.
func (z *Reader) block() error {
	if z.last {
		z.last = false
		z.step = atTrailer
		return z.align()
	}
	if z.border != nil {
		z.checkpoint()
	}
	if err := z.need(3); err != nil {
		return err
	}
	z.last = z.bits(1) == 1
	switch z.bits(2) {
	case 0:
		if err := z.align(); err != nil {
			return err
		}
		b, err := z.take(4)
		if err != nil {
			return err
		}
		n := binary.LittleEndian.Uint16(b)
		if n != ^binary.LittleEndian.Uint16(b[2:]) {
			return fmt.Errorf("%w: length of a stored block", ErrCorrupt)
		}
		z.store, z.step = int(n), inStored
		return nil
	case 1:
		for i := range z.lens {
			switch {
			case i < 144:
				z.lens[i] = 8
			case i < 256:
				z.lens[i] = 9
			case i < 280:
				z.lens[i] = 7
			case i < numLitLen:
				z.lens[i] = 8
			default:
				z.lens[i] = 5
			}
		}
		return z.tables(numLitLen, numDist)
	case 2:
		return z.dynamic()
	}
	return fmt.Errorf("%w: block type 3", ErrCorrupt)
}

// stored copies what it can of a stored block.
func (z *Reader) stored() error {
	if err := z.more(); err != nil {
		return err
	}
	n := copy(z.out[z.wr:z.limit], z.in[z.pos:min(z.end, z.pos+z.store)])
	z.wr += n
	z.pos += n
	z.store -= n
	switch {
	case z.store == 0:
		z.step = atBlock
	case n == 0 && z.pos == z.end:
		return fmt.Errorf("gzip: %w", io.ErrUnexpectedEOF)
	}
	return nil
}

// dynamic reads the codes of a block with codes of its own. Section 3.2.7.
func (z *Reader) dynamic() error {
	if err := z.need(14); err != nil {
		return err
	}
	nlit, ndist, npre := int(z.bits(5))+257, int(z.bits(5))+1, int(z.bits(4))+4
	if nlit > 286 || ndist > 30 {
		return fmt.Errorf("%w: too many symbols", ErrCorrupt)
	}
	var pre [len(preOrder)]uint8
	for _, s := range preOrder[:npre] {
		if err := z.need(3); err != nil {
			return err
		}
		pre[s] = uint8(z.bits(3))
	}
	if !build(z.pre[:], preWidth, pre[:], preEntries[:], false) {
		return fmt.Errorf("%w: code of code lengths", ErrCorrupt)
	}
	for i := 0; i < nlit+ndist; {
		if err := z.need(7 + 7); err != nil {
			return err
		}
		e := z.pre[z.bb&(preSize-1)]
		if e == 0 {
			return fmt.Errorf("%w: code length", ErrCorrupt)
		}
		z.bits(e.code())
		s := e.value()
		if s < 16 {
			z.lens[i] = uint8(s)
			i++
			continue
		}
		var v uint8
		var n int
		switch s {
		case 16:
			if i == 0 {
				return fmt.Errorf("%w: repeats no code length", ErrCorrupt)
			}
			v, n = z.lens[i-1], 3+int(z.bits(2))
		case 17:
			n = 3 + int(z.bits(3))
		case 18:
			n = 11 + int(z.bits(7))
		}
		if i+n > nlit+ndist {
			return fmt.Errorf("%w: too many code lengths", ErrCorrupt)
		}
		for range n {
			z.lens[i] = v
			i++
		}
	}
	if z.lens[endSymbol] == 0 {
		return fmt.Errorf("%w: block without end", ErrCorrupt)
	}
	return z.tables(nlit, ndist)
}

// tables makes the block's tables from the code lengths read.
func (z *Reader) tables(nlit, ndist int) error {
	if !build(z.lit[:], litWidth, z.lens[:nlit], litEntries[:], false) ||
		!build(z.dist[:], distWidth, z.lens[nlit:nlit+ndist], distEntries[:], true) {
		return fmt.Errorf("%w: Huffman code", ErrCorrupt)
	}
	z.step = inCodes
	return nil
}

package span

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/imgfs/imgfs/internal/span/zscan"
)

// zstdState is what a zstd decoder has to know to begin in the middle of a
// frame. It is told by a prologue: the beginning of a frame, made up, that
// brings any decoder into that state and to which the blocks of the blob are
// appended. Its blocks are
//
//   - zeros, as many as the longest repeat offset reaches back, and three
//     blocks of one match each, which leave their offsets as repeat offsets;
//     stored blocks do not change them;
//   - the window, stored.
//
// So nothing is needed that a decoder does not have, and it runs at full speed
// (with a dictionary, the other way to hand it a state, it does not). Entropy
// tables are not part of the state: a checkpoint is where none is taken over.
type zstdState struct {
	window   byte // descriptor of the frame's window, as in its header
	checksum bool // the frame ends with a checksum
	sum      uint32
	repeat   [3]uint32
	runs     []zstdRun
	bytes    []byte // of the runs, one behind the other
}

// zstdRun is a run of bytes in the window that are used, and a run behind it
// that are not. The last gap ends at the checkpoint.
type zstdRun struct{ used, gap uint64 }

// noRepeat is what a frame's repeat offsets are at first.
var noRepeat = [3]uint32{1, 4, 8}

const stateChecksum = 1 // flag in an encoded state

// appendTo appends the encoded state to b: window descriptor, flags, checksum of
// the span's data (CRC-32C, little endian), then as varints the repeat offsets,
// the number of runs and each run's two lengths, then the runs' bytes.
func (s *zstdState) appendTo(b []byte) []byte {
	flags := byte(0)
	if s.checksum {
		flags |= stateChecksum
	}
	b = append(b, s.window, flags)
	b = binary.LittleEndian.AppendUint32(b, s.sum)
	for _, r := range s.repeat {
		b = binary.AppendUvarint(b, uint64(r))
	}
	b = binary.AppendUvarint(b, uint64(len(s.runs)))
	for _, r := range s.runs {
		b = binary.AppendUvarint(b, r.used)
		b = binary.AppendUvarint(b, r.gap)
	}
	return append(b, s.bytes...)
}

// parseZstdState is the inverse of appendTo. The state keeps b.
func parseZstdState(b []byte) (*zstdState, error) {
	bad := errors.New("bad zstd checkpoint")
	if len(b) < 6 || b[1]&^stateChecksum != 0 {
		return nil, bad
	}
	s := &zstdState{window: b[0], checksum: b[1]&stateChecksum != 0, sum: binary.LittleEndian.Uint32(b[2:])}
	size := uint64(zscan.WindowSize(s.window))
	if size > maxZstdWindow {
		return nil, bad
	}
	p := parser{b: b[6:]}
	for i := range s.repeat {
		r := uint64(p.number())
		if r == 0 || r > size {
			return nil, bad
		}
		s.repeat[i] = uint32(r)
	}
	n := uint64(p.number())
	if n > uint64(len(p.b)/2) {
		return nil, bad
	}
	s.runs = make([]zstdRun, n)
	var used, all uint64
	for i := range s.runs {
		r := zstdRun{uint64(p.number()), uint64(p.number())}
		if r.used > size || r.gap > size {
			return nil, bad
		}
		used += r.used
		if all += r.used + r.gap; all > size {
			return nil, bad
		}
		s.runs[i] = r
	}
	if p.bad || used != uint64(len(p.b)) {
		return nil, bad
	}
	s.bytes = p.b
	return s, nil
}

// windowDescriptor returns the descriptor of the smallest window that holds
// size bytes.
func windowDescriptor(size int64) (byte, error) {
	for d := range 256 {
		if zscan.WindowSize(byte(d)) >= size {
			return byte(d), nil
		}
	}
	return 0, fmt.Errorf("window of %d bytes", size)
}

// prologue appends the beginning of a frame that leads to the state to b. It
// returns too how many bytes a decoder gives for it.
func (s *zstdState) prologue(b []byte) ([]byte, int64) {
	p := prologue{b: b, max: int(min(zscan.WindowSize(s.window), zscan.MaxBlock)), raw: -1}
	var descriptor byte
	if s.checksum {
		descriptor |= 1 << 2
	}
	p.b = append(p.b, 0x28, 0xb5, 0x2f, 0xfd, descriptor, s.window)
	if s.repeat != noRepeat {
		p.zeros(uint64(max(s.repeat[0], s.repeat[1], s.repeat[2])))
		for i := range s.repeat {
			p.repeat(s.repeat[len(s.repeat)-1-i])
		}
	}
	bytes := s.bytes
	for _, r := range s.runs {
		p.stored(bytes[:r.used])
		bytes = bytes[r.used:]
		p.zeros(r.gap)
	}
	p.end()
	return p.b, p.n
}

// prologue is one being written.
type prologue struct {
	b   []byte
	n   int64 // bytes it decodes to
	max int   // in a block
	raw int   // where in b a stored block begins that is being written; -1: none
}

const (
	blockHeader = 3

	blockStored     = 0 << 1
	blockOneByte    = 1 << 1
	blockCompressed = 2 << 1
)

// header writes a block's header at b[at:].
func (p *prologue) header(at, kind, size int) {
	h := uint32(size)<<3 | uint32(kind)
	p.b[at], p.b[at+1], p.b[at+2] = byte(h), byte(h>>8), byte(h>>16)
}

// end ends a stored block.
func (p *prologue) end() {
	if p.raw >= 0 {
		p.header(p.raw, blockStored, len(p.b)-p.raw-blockHeader)
		p.raw = -1
	}
}

// stored writes bytes as they are.
func (p *prologue) stored(b []byte) {
	for p.n += int64(len(b)); len(b) > 0; {
		if p.raw >= 0 && len(p.b)-p.raw-blockHeader == p.max {
			p.end()
		}
		if p.raw < 0 {
			p.raw = len(p.b)
			p.b = append(p.b, 0, 0, 0)
		}
		n := min(len(b), p.max-(len(p.b)-p.raw-blockHeader))
		p.b = append(p.b, b[:n]...)
		b = b[n:]
	}
}

// zeros writes n of them; few go into a stored block, which costs a decoder
// less than another block.
func (p *prologue) zeros(n uint64) {
	const few = 4 << 10
	if n < few {
		var zero [few]byte
		p.stored(zero[:n])
		return
	}
	p.end()
	for p.n += int64(n); n > 0; {
		k := min(n, uint64(p.max))
		at := len(p.b)
		p.b = append(p.b, 0, 0, 0, 0)
		p.header(at, blockOneByte, int(k))
		n -= k
	}
}

// repeat writes a block that makes offset the latest repeat offset. It has no
// literals and one sequence, a match of three bytes. Its tables have one code
// each, which takes no bits, so the sequence is the extra bits of the offset:
// 3 is added to it, as to all that are not repeated, the highest bit is the
// code, and stands for the one that ends the bits too.
func (p *prologue) repeat(offset uint32) {
	const (
		match     = 3
		noLits    = 0
		sequences = 1
		oneCode   = 1<<6 | 1<<4 | 1<<2 // mode of all tables
	)
	p.end()
	at := len(p.b)
	value := offset + 3
	n := bits.Len32(value)
	p.b = append(p.b, 0, 0, 0, noLits, sequences, oneCode, 0, byte(n-1), 0)
	for i := 0; i < n; i += 8 {
		p.b = append(p.b, byte(value>>i))
	}
	p.header(at, blockCompressed, len(p.b)-at-blockHeader)
	p.n += match
}

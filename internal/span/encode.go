package span

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
)

// An encoded table is, numbers being varints (encoding/binary):
//
//	8   magic, with the version of the format
//	1   codec
//	    size of the blob, number of spans
//	    by span: flags; gap to the data before, length; from, counted
//	    from the end in the blob of the span before (signed), length there;
//	    bytes to skip, if any; size of the packed window, if any
//	    digests, 32 bytes each, by span; of the blob bytes before of the data
//	    windows, by span
//	4   CRC-32C of all that is before it, little endian
//
// Parse accepts nothing else: no byte is left over, and what Encode makes of
// the parsed table is the same bytes, but for varints longer than they need be.
const magic = "imgspan2"

// minSpan is how many bytes a span takes at least.
const minSpan = 5

// Encode returns the table in the form that Parse reads.
func (t *Table) Encode() []byte {
	b := make([]byte, 0, 32+len(t.spans)*20+len(t.sums)+len(t.states))
	b = append(b, magic...)
	b = append(b, byte(t.codec))
	b = binary.AppendUvarint(b, uint64(t.blobSize))
	b = binary.AppendUvarint(b, uint64(len(t.spans)))
	var prev Span
	for i, s := range t.spans {
		r := t.rest[i]
		b = binary.AppendUvarint(b, uint64(r.flags))
		b = binary.AppendUvarint(b, uint64(s.Off-prev.Off-prev.Len))
		b = binary.AppendUvarint(b, uint64(s.Len))
		b = binary.AppendVarint(b, s.From-prev.To)
		b = binary.AppendUvarint(b, uint64(s.To-s.From))
		if r.flags&flagSkip != 0 {
			b = binary.AppendUvarint(b, uint64(r.skip))
		}
		if r.flags&flagState != 0 {
			b = binary.AppendUvarint(b, uint64(len(t.state(i))))
		}
		prev = s
	}
	b = append(b, t.sums...)
	b = append(b, t.states...)
	return binary.LittleEndian.AppendUint32(b, checksum(b))
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// Parse returns the table that b holds, all its invariants checked. The table
// keeps b, for its digests and windows: b, which may be a mapped file, must
// stay and not change for as long as the table is used.
func Parse(b []byte) (*Table, error) {
	if len(b) < len(magic)+1+4 || string(b[:len(magic)]) != magic {
		return nil, fmt.Errorf("%w: no span table of a known version", ErrCorrupt)
	}
	body := b[:len(b)-4]
	if binary.LittleEndian.Uint32(b[len(body):]) != checksum(body) {
		return nil, fmt.Errorf("%w: checksum of the span table", ErrCorrupt)
	}
	p := parser{b: body[len(magic)+1:]}
	t := &Table{codec: Codec(body[len(magic)]), blobSize: p.number()}
	if n := p.number(); n <= int64(len(p.b)/minSpan) && t.codec <= Zstd {
		t.spans, t.rest = make([]Span, 0, n), make([]rest, 0, n)
	} else {
		p.bad = true
	}
	var prev Span
	for range cap(t.spans) {
		flags := p.number()
		s := Span{Off: prev.Off + prev.Len + p.number(), Len: p.number(), From: prev.To + p.signed()}
		s.To = s.From + p.number()
		var skip, size int64
		if flags&flagSkip != 0 {
			skip = p.number()
		}
		if flags&flagState != 0 {
			size = p.number()
		}
		if p.bad {
			break
		}
		if err := t.add(s, skip, uint16(min(flags, math.MaxUint16)), int(size)); err != nil {
			return nil, err
		}
		prev = s
	}
	sums := t.sumBytes()
	if p.bad || sums > len(p.b) {
		return nil, fmt.Errorf("%w: span table is cut short", ErrCorrupt)
	}
	t.sums, t.states = p.b[:sums:sums], p.b[sums:]
	if n := len(t.rest); n > 0 && int(t.rest[n-1].state) != len(t.states) || n == 0 && len(p.b) > 0 {
		return nil, fmt.Errorf("%w: windows of the span table", ErrCorrupt)
	}
	return t, nil
}

// parser takes numbers from b. What is not there, or is absurd, is 0 and sets
// bad.
type parser struct {
	b   []byte
	bad bool
}

func (p *parser) number() int64 {
	v, n := binary.Uvarint(p.b)
	if n <= 0 || v > maxOffset {
		p.bad, p.b = true, nil
		return 0
	}
	p.b = p.b[n:]
	return int64(v)
}

func (p *parser) signed() int64 {
	v, n := binary.Varint(p.b)
	if n <= 0 || v > maxOffset || v < -maxOffset {
		p.bad, p.b = true, nil
		return 0
	}
	p.b = p.b[n:]
	return v
}

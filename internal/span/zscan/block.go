package zscan

import (
	"encoding/binary"
	"math/bits"
)

// The buffer's margins let a sequence be read without checks: it takes at
// most 31+16+16 bits of lengths and offset and 9+8+9 of states, and each load
// is of 8 bytes.
const (
	pad   = 16
	slack = 8
)

// compressed reads a compressed block's body of size bytes, which is in the
// buffer; limit is what it may hold.
func (s *Scanner) compressed(b *Block, size, limit int) error {
	at, end := pad, pad+size
	literals, at, err := s.literals(b, at, end)
	if err != nil {
		return err
	}
	if literals > limit {
		return corrupt("too many literals")
	}
	if at == end {
		return corrupt("no sequences section")
	}
	// Number of sequences: one to three bytes.
	n := int(s.buf[at])
	at++
	switch {
	case n < 128:
	case n < 255 && at < end:
		n = (n-128)<<8 | int(s.buf[at])
		at++
	case n == 255 && at+1 < end:
		n = 0x7f00 + int(s.buf[at]) + int(s.buf[at+1])<<8
		at += 2
	default:
		return corrupt("number of sequences cut short")
	}
	if n == 0 {
		if at != end {
			return corrupt("bytes behind the sequences")
		}
		b.Len = int64(literals)
		return nil
	}
	if at == end {
		return corrupt("no modes of sequences")
	}
	modes := s.buf[at]
	at++
	if modes&3 != 0 {
		return corrupt("reserved bits in the modes of sequences")
	}
	for i, kind := range [3]Tables{LiteralLengths, Offsets, MatchLengths} {
		if at, err = s.table(b, i, kind, modes>>(6-2*i)&3, at, end); err != nil {
			return err
		}
	}
	return s.sequences(b, n, literals, limit, at, end)
}

// literals steps over the literals section. It returns how many there are and
// where the next section begins.
func (s *Scanner) literals(b *Block, at, end int) (n, next int, err error) {
	// The fields are read from up to five bytes, of which the section may
	// have fewer: then its length ends beyond the block.
	if at == end {
		return 0, 0, corrupt("empty block")
	}
	v := binary.LittleEndian.Uint64(s.buf[at:])
	kind, format := v&3, v>>2&3
	var header, body int
	if kind < 2 { // stored, or one byte repeated
		switch format {
		case 0, 2:
			header, n = 1, int(v>>3&(1<<5-1))
		case 1:
			header, n = 2, int(v>>4&(1<<12-1))
		default:
			header, n = 3, int(v>>4&(1<<20-1))
		}
		body = n
		if kind == 1 {
			body = 1
		}
	} else {
		width := [4]int{10, 10, 14, 18}[format]
		header = [4]int{3, 3, 4, 5}[format]
		n, body = int(v>>4&(1<<width-1)), int(v>>(4+width)&(1<<width-1))
		if kind == 2 {
			b.Sets |= Huffman
			s.known |= Huffman
		} else {
			b.Uses |= Huffman
			if s.known&Huffman == 0 {
				return 0, 0, corrupt("literals without a table")
			}
		}
	}
	if next = at + header + body; next > end {
		return 0, 0, corrupt("literals cut short")
	}
	return n, next, nil
}

// table makes ready the i'th of the three tables of sequences, by its mode. It
// returns where what follows its description begins.
func (s *Scanner) table(b *Block, i int, kind Tables, mode byte, at, end int) (int, error) {
	if mode == 3 { // as before
		b.Uses |= kind
		if s.known&kind == 0 {
			return 0, corrupt("sequences without a table")
		}
		return at, nil
	}
	b.Sets |= kind
	s.known |= kind
	if mode == 0 {
		s.tables[i] = &s.preset[i]
		return at, nil
	}
	t := &s.own[i]
	s.tables[i] = t
	if mode == 1 { // one code only
		if at == end {
			return 0, corrupt("table cut short")
		}
		return at + 1, t.single(s.buf[at], codes[i])
	}
	n, err := t.parse(s.buf[at:end], maxLogs[i], codes[i])
	return at + n, err
}

// sequences reads the n sequences whose bits lie in buf[at:end], the first one
// at the end, below the highest bit set.
func (s *Scanner) sequences(b *Block, n, literals, limit, at, end int) error {
	if at == end || s.buf[end-1] == 0 {
		return corrupt("sequences cut short")
	}
	var (
		buf       = s.buf
		low       = at * 8 // the first bit of the buffer that is the sequences'
		p         = (end-1)*8 + bits.Len8(buf[end-1]) - 1
		r0        = s.repeat[0]
		r1        = s.repeat[1]
		r2        = s.repeat[2]
		pos       = s.off // in the data
		stop      = s.off + int64(limit)
		base      = s.Base
		available = literals

		lits, offsets, matches = s.tables[0], s.tables[1], s.tables[2]
	)
	// load gives the 57 or more bits from p on; p may have gone below the
	// sequences by what one sequence takes, not further.
	load := func(p int) uint64 { return binary.LittleEndian.Uint64(buf[p>>3:]) >> (p & 7) }

	p -= int(lits.log) + int(offsets.log) + int(matches.log)
	if p < low {
		return corrupt("sequences cut short")
	}
	v := load(p)
	match := matches.states[v&(1<<matches.log-1)]
	v >>= matches.log
	offs := offsets.states[v&(1<<offsets.log-1)]
	v >>= offsets.log
	lit := lits.states[v&(1<<lits.log-1)]
	for ; ; n-- {
		p -= int(offs.extra)
		value := offs.base + uint32(load(p)&(1<<(offs.extra&63)-1))
		p -= int(match.extra) + int(lit.extra)
		v = load(p)
		run := int(lit.base) + int(v&(1<<(lit.extra&63)-1))
		length := int64(match.base) + int64(v>>(lit.extra&63)&(1<<(match.extra&63)-1))

		if value > 3 {
			r0, r1, r2 = value-3, r0, r1
		} else {
			if run == 0 {
				value++
			}
			switch value {
			case 1:
			case 2:
				r0, r1 = r1, r0
			case 3:
				r0, r1, r2 = r2, r0, r1
			default:
				r0, r1, r2 = r0-1, r0, r1
			}
		}
		available -= run
		pos += int64(run)
		from := pos - int64(r0)
		if r0 == 0 || from < s.start || int64(r0) > s.window {
			return corrupt("offset beyond the window")
		}
		if from < base {
			s.refs = append(s.refs, Ref{from, int32(min(length, base-from))})
		}
		pos += length
		if available < 0 || pos > stop || p < low {
			return corrupt("sequences beyond the block")
		}
		if n == 1 {
			break
		}
		p -= int(lit.bits) + int(match.bits) + int(offs.bits)
		if p < low {
			return corrupt("sequences cut short")
		}
		v = load(p)
		nextOffs := uint64(offs.next) + v&(1<<(offs.bits&63)-1)
		v >>= offs.bits & 63
		nextMatch := uint64(match.next) + v&(1<<(match.bits&63)-1)
		v >>= match.bits & 63
		nextLit := uint64(lit.next) + v&(1<<(lit.bits&63)-1)
		offs = offsets.states[nextOffs%maxStates]
		match = matches.states[nextMatch%maxStates]
		lit = lits.states[nextLit%maxStates]
	}
	if p != low {
		return corrupt("bits behind the sequences")
	}
	pos += int64(available)
	if pos > stop {
		return corrupt("sequences beyond the block")
	}
	s.repeat = [3]uint32{r0, r1, r2}
	b.Len = pos - s.off
	b.Refs = s.refs
	return nil
}

package inflate

import (
	"encoding/binary"
	"fmt"
	"io"
)

// codes decodes symbols until the block, the output or the input at hand ends.
//
// One round needs at most 8 bytes of input from pos on, twice, and writes at
// most slack bytes; the loop's condition leaves room for both, so within a
// round nothing is checked but what the stream says.
func (z *Reader) codes() error {
	if err := z.more(); err != nil {
		return err
	}
	in, out := z.in, z.out
	pos, bb, nb, wr := z.pos, z.bb, z.nb, z.wr
	low := z.low
	lit, dist := &z.lit, &z.dist
	// With all input read, rounds may begin up to its end and load from the
	// zeros behind; overrun then tells whether they were used.
	inSafe, outSafe := z.end-16, z.limit
	if z.eof {
		inSafe = z.end + 8
	}
	var err error
loop:
	for pos <= inSafe && wr < outSafe {
		bb |= binary.LittleEndian.Uint64(in[pos:]) << (nb & 63)
		pos += int((63 - nb) >> 3)
		nb |= 56

		e := lit[bb&(1<<litWidth-1)]
		if e&entryLiteral != 0 {
			bb >>= e.code() & 63
			nb -= e.code()
			out[wr] = byte(e.value())
			wr++
			e = lit[bb&(1<<litWidth-1)]
			if e&entryLiteral != 0 {
				bb >>= e.code() & 63
				nb -= e.code()
				out[wr] = byte(e.value())
				wr++
				e = lit[bb&(1<<litWidth-1)]
				if e&entryLiteral != 0 {
					bb >>= e.code() & 63
					nb -= e.code()
					out[wr] = byte(e.value())
					wr++
					continue
				}
			}
			bb |= binary.LittleEndian.Uint64(in[pos:]) << (nb & 63)
			pos += int((63 - nb) >> 3)
			nb |= 56
		}
		if e&entrySpecial != 0 || e == 0 {
			if e&entrySub != 0 {
				bb >>= litWidth
				nb -= litWidth
				e = lit[e.value()+uint(bb)&(1<<e.code()-1)]
				if e&entryLiteral != 0 {
					bb >>= e.code() & 63
					nb -= e.code()
					out[wr] = byte(e.value())
					wr++
					continue
				}
			}
			if e&entryEnd != 0 {
				bb >>= e.code() & 63
				nb -= e.code()
				z.step = atBlock
				break loop
			}
			if e == 0 {
				err = fmt.Errorf("%w: no such literal or length code", ErrCorrupt)
				break loop
			}
		}
		length := int(e.value() + uint(bb&(1<<(e.total()&63)-1))>>(e.code()&63))
		bb >>= e.total() & 63
		nb -= e.total()

		e = dist[bb&(1<<distWidth-1)]
		if e&entrySub != 0 {
			bb >>= distWidth
			nb -= distWidth
			e = dist[e.value()+uint(bb)&(1<<e.code()-1)]
		}
		if e == 0 {
			err = fmt.Errorf("%w: no such distance code", ErrCorrupt)
			break loop
		}
		d := int(e.value() + uint(bb&(1<<(e.total()&63)-1))>>(e.code()&63))
		bb >>= e.total() & 63
		nb -= e.total()

		src := wr - d
		if src < low {
			if src < z.base {
				err = fmt.Errorf("%w: distance reaches before the start", ErrCorrupt)
				break loop
			}
			z.mark(src, length)
		}
		switch {
		case d >= 8:
			// By eights, beyond the end: each load lies wholly behind the
			// store, and what is written too far is written again.
			from, to := out[src:], out[wr:wr+slack-3]
			binary.LittleEndian.PutUint64(to, binary.LittleEndian.Uint64(from))
			binary.LittleEndian.PutUint64(to[8:], binary.LittleEndian.Uint64(from[8:]))
			for i := 16; i < length; i += 8 {
				binary.LittleEndian.PutUint64(to[i:], binary.LittleEndian.Uint64(from[i:]))
			}
		case d == 1:
			v := uint64(out[src]) * 0x0101010101010101
			for i := 0; i < length; i += 8 {
				binary.LittleEndian.PutUint64(out[wr+i:], v)
			}
		default:
			for i := range length {
				out[wr+i] = out[src+i]
			}
		}
		wr += length
	}
	z.pos, z.bb, z.nb, z.wr = pos, bb, nb, wr
	if z.overrun() {
		return fmt.Errorf("gzip: %w", io.ErrUnexpectedEOF)
	}
	return err
}

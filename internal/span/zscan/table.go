package zscan

import (
	"encoding/binary"
	"math/bits"
)

// A table decodes one of the three FSE codes of sequences: a state stands for
// a code, which is a base and a number of extra bits, and says which states
// may follow.
type table struct {
	log    uint8 // 1<<log states are used
	states [maxStates]state
}

type state struct {
	base  uint32
	next  uint16 // first of the states that may follow
	bits  uint8  // to add to next
	extra uint8  // bits to add to base
}

const maxStates = 512

// A code's meaning.
type code struct {
	base  uint32
	extra uint8
}

// The three tables, in the order in which a block has them: literal lengths,
// offsets, match lengths.
var (
	maxLogs = [3]uint8{9, 8, 9}

	codes = [3][]code{
		ladder(0, 16, 1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16),
		offsetCodes(),
		ladder(3, 32, 1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16),
	}

	// Section 3.1.1.3.2.2, Default Distributions.
	defaults = [3]struct {
		log    uint8
		counts []int16
	}{
		{6, []int16{4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1,
			2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1, -1, -1, -1, -1}},
		{5, []int16{1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1,
			1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1}},
		{6, []int16{1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1,
			1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
			1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1}},
	}
)

// ladder gives codes for the lengths from first on: plain ones that stand for
// one length each, then one for each number of extra bits.
func ladder(first uint32, plain int, extra ...uint8) []code {
	t := make([]code, 0, plain+len(extra))
	for range plain {
		t = append(t, code{base: first})
		first++
	}
	for _, n := range extra {
		t = append(t, code{first, n})
		first += 1 << n
	}
	return t
}

// offsetCodes gives the codes of offsets: 1<<n and n extra bits. Windows
// beyond a gigabyte are refused, so are their offsets.
func offsetCodes() []code {
	t := make([]code, 31)
	for n := range t {
		t[n] = code{1 << n, uint8(n)}
	}
	return t
}

// single makes a table of one code, which takes no bits.
func (t *table) single(c byte, codes []code) error {
	if int(c) >= len(codes) {
		return corrupt("no such code")
	}
	t.log = 0
	t.states[0] = state{base: codes[c].base, extra: codes[c].extra}
	return nil
}

// parse reads a table's description (section 4.1.1) from the beginning of b.
// It returns how many bytes that is.
func (t *table) parse(b []byte, maxLog uint8, codes []code) (int, error) {
	var (
		counts [64]int16
		symbol int
		at     int // bit
	)
	// peek gives the next bits, zeros beyond the end.
	peek := func(n int) uint32 {
		var w [4]byte
		if at>>3 < len(b) {
			copy(w[:], b[at>>3:])
		}
		return binary.LittleEndian.Uint32(w[:]) >> (at & 7) & (1<<n - 1)
	}
	log := uint8(peek(4)) + 5
	at = 4
	if log > maxLog {
		return 0, corrupt("table too wide")
	}
	// A count takes as many bits as what is left to share out needs, one
	// less if it is small.
	left := 1 << log
	for left > 0 {
		if symbol >= len(codes) || at > len(b)*8 {
			return 0, corrupt("table cut short")
		}
		width := bits.Len(uint(left + 1))
		v := int(peek(width))
		short := v & (1<<(width-1) - 1)
		spare := 1<<width - 1 - (left + 1)
		switch {
		case short < spare:
			v, at = short, at+width-1
		case v >= 1<<(width-1):
			v, at = v-spare, at+width
		default:
			at += width
		}
		v-- // -1: less than one state's share
		counts[symbol] = int16(v)
		symbol++
		left -= max(v, -v)
		for again := v == 0; again; { // further codes that do not occur
			skip := int(peek(2))
			at += 2
			symbol += skip
			again = skip == 3 && symbol < len(codes)
		}
	}
	n := (at + 7) / 8
	if left != 0 || n > len(b) || symbol > len(codes) {
		return 0, corrupt("table cut short")
	}
	return n, t.build(counts[:symbol], log, codes)
}

// build makes the states of a code whose symbols have the given counts of
// 1<<log; -1 stands for a single state at the end.
func (t *table) build(counts []int16, log uint8, codes []code) error {
	var (
		symbols [maxStates]uint8
		next    [64]uint16
		size    = 1 << log
		high    = size - 1
	)
	for s, n := range counts {
		next[s] = uint16(n)
		if n == -1 {
			symbols[high] = uint8(s)
			high--
			next[s] = 1
		}
	}
	at, step := 0, size>>1+size>>3+3
	for s, n := range counts {
		for range n {
			symbols[at] = uint8(s)
			for at = (at + step) % size; at > high; {
				at = (at + step) % size
			}
		}
	}
	if at != 0 {
		return corrupt("counts of a table do not add up")
	}
	t.log = log
	for i, s := range symbols[:size] {
		x := next[s]
		next[s]++
		n := int(log) - (bits.Len16(x) - 1)
		t.states[i] = state{
			base: codes[s].base, extra: codes[s].extra,
			next: x<<n - uint16(size), bits: uint8(n),
		}
	}
	return nil
}

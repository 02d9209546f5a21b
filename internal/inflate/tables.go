package inflate

import "math/bits"

// A table decodes one Huffman code: its first 1<<width entries are indexed by
// the next width bits of input; codes longer than width lead through a
// subtable behind them.
//
// An entry is, from the lowest bit:
//
//	0-7    bits to consume: the code, and the extra bits of a length or distance
//	8-11   of those, the code alone; for a subtable its index width
//	12     a literal
//	13     a subtable
//	14     the end of the block
//	16-31  literal, base of a length or distance, or offset of a subtable
//
// 0 is a code that does not exist.
type entry uint32

const (
	entryLiteral entry = 1 << 12
	entrySub     entry = 1 << 13
	entryEnd     entry = 1 << 14
	entrySpecial       = entrySub | entryEnd
)

func (e entry) total() uint { return uint(uint8(e)) }
func (e entry) code() uint  { return uint(e>>8) & 15 }
func (e entry) value() uint { return uint(e >> 16) }

const (
	maxCode   = 15  // longest Huffman code
	numLitLen = 288 // literal and length symbols, the last two never used
	numDist   = 32  // distance symbols, the last two never used
	endSymbol = 256

	litWidth  = 11
	distWidth = 8
	preWidth  = 7

	// Bounds of the tables: the sizes that zlib's enough.c computes for
	// (288, 11, 15) and (32, 8, 15) are 2342 and 402.
	litSize  = 2400
	distSize = 480
	preSize  = 1 << preWidth
)

// Section 3.2.5: base and extra bits of lengths (symbols 257 to 285) and distances.
var (
	lengthBase  = [29]uint16{3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258}
	lengthExtra = [29]uint8{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0}
	distBase    = [30]uint16{1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577}
	distExtra   = [30]uint8{0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13}
	preOrder    = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}
)

// The entries of all symbols, without code lengths; 0 for a symbol that must
// not occur.
var (
	litEntries = func() (t [numLitLen]entry) {
		for s := range endSymbol {
			t[s] = entryLiteral | entry(s)<<16
		}
		t[endSymbol] = entryEnd
		for i, b := range lengthBase {
			t[endSymbol+1+i] = entry(b)<<16 | entry(lengthExtra[i])
		}
		return t
	}()
	distEntries = func() (t [numDist]entry) {
		for i, b := range distBase {
			t[i] = entry(b)<<16 | entry(distExtra[i])
		}
		return t
	}()
	preEntries = func() (t [len(preOrder)]entry) {
		for i := range t {
			t[i] = entryLiteral | entry(i)<<16
		}
		return t
	}()
)

// build fills table from code lengths (0 = symbol unused) and the entries of
// the symbols. It reports whether the code is one: complete, or with a single
// symbol of one bit, or, where empty is allowed, with none.
func build(table []entry, width uint, lens []uint8, symbols []entry, empty bool) bool {
	var count, first, next [maxCode + 1]int
	for _, l := range lens {
		count[l]++
	}
	count[0] = 0
	code, longest := 0, uint(0)
	left := 1 // codes still free at this length
	for l := 1; l <= maxCode; l++ {
		left = left<<1 - count[l]
		if left < 0 {
			return false // over-subscribed
		}
		code = (code + count[l-1]) << 1
		first[l] = code
		if count[l] > 0 {
			longest = uint(l)
		}
	}
	next = first
	clear(table[:1<<width])
	if longest == 0 {
		return empty
	}
	if left > 0 && (longest != 1 || count[1] != 1) {
		return false // incomplete
	}
	free := uint(1) << width // where the next subtable goes
	for s, l := range lens {
		if l == 0 {
			continue
		}
		n, c := uint(l), next[l]
		next[l]++
		rev := uint(bits.Reverse16(uint16(c)) >> (16 - n))
		e := symbols[s]
		if e == 0 {
			continue // its code stays invalid
		}
		if n <= width {
			e += entry(n)<<8 + entry(n)
			for i := rev; i < 1<<width; i += 1 << n {
				table[i] = e
			}
			continue
		}
		head := &table[rev&(1<<width-1)]
		if *head == 0 {
			w := subWidth(&first, &count, width, c>>(n-width))
			if free+1<<w > uint(len(table)) {
				return false
			}
			clear(table[free : free+1<<w])
			*head = entrySub | entry(free)<<16 | entry(w)<<8 | entry(width)
			free += 1 << w
		}
		n -= width
		e += entry(n)<<8 + entry(n)
		off := head.value()
		for i := rev >> width; i < 1<<head.code(); i += 1 << n {
			table[off+i] = e
		}
	}
	return true
}

// subWidth returns the index width of the subtable for the codes that begin
// with prefix, of width bits: what the longest of them has beyond it.
func subWidth(first, count *[maxCode + 1]int, width uint, prefix int) uint {
	for l := uint(maxCode); l > width; l-- {
		lo, hi := first[l]>>(l-width), (first[l]+count[l]-1)>>(l-width)
		if count[l] > 0 && lo <= prefix && prefix <= hi {
			return l - width
		}
	}
	return 0
}

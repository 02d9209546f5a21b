package lazy

import (
	"math/bits"

	"github.com/imgfs/imgfs/internal/span"
)

// locator finds spans by data offset in constant time, or nearly: the data is
// cut into about as many blocks of one size as there are spans.
type locator struct {
	table *span.Table
	n     int      // spans
	shift uint8    // a block has 1 << shift bytes
	first []uint32 // by block: the first span that ends behind its beginning
	ends  []int64  // by span
}

func newLocator(t *span.Table) locator {
	l := locator{table: t, n: t.Spans()}
	if l.n == 0 {
		return l
	}
	l.ends = make([]int64, l.n)
	for i := range l.ends {
		s := t.At(i)
		l.ends[i] = s.Off + s.Len
	}
	size := t.DataSize()
	l.shift = uint8(bits.Len64(uint64(size / int64(l.n))))
	l.first = make([]uint32, size>>l.shift+2)
	i := 0
	for b := range l.first {
		for i < l.n && l.ends[i] <= int64(b)<<l.shift {
			i++
		}
		l.first[b] = uint32(i)
	}
	return l
}

// end returns where span i ends in the data.
func (l *locator) end(i int) int64 { return l.ends[i] }

// find returns the span that holds data byte off, or the next behind it.
func (l *locator) find(off int64) int {
	b := uint64(off) >> (l.shift & 63)
	if b+1 >= uint64(len(l.first)) {
		return l.n
	}
	lo, hi := int(l.first[b]), int(l.first[b+1])
	for lo < hi {
		if m := int(uint(lo+hi) >> 1); l.ends[m] > off {
			hi = m
		} else {
			lo = m + 1
		}
	}
	return lo
}

// covering returns the spans [i, j) that hold the data bytes [off, end).
func (l *locator) covering(off, end int64) (i, j int) {
	i = l.find(off)
	switch {
	case i == l.n || l.table.At(i).Off >= end:
		return i, i // nothing but zeros
	case l.ends[i] >= end:
		return i, i + 1
	}
	j = l.find(end - 1)
	if j < l.n && l.table.At(j).Off < end {
		j++
	}
	return i, j
}

// within returns the span that [off, end) is in, or in the zeros before it; -1
// if there is no one such span. It is covering for the hot path.
func (l *locator) within(off, end int64) int {
	if i := l.find(off); i < len(l.ends) && end <= l.ends[i] {
		return i
	}
	return -1
}

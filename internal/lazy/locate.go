package lazy

import (
	"math/bits"

	"github.com/imgfs/imgfs/internal/span"
)

// locator finds spans by data offset in constant time, or nearly: the data is
// cut into about as many blocks of one size as there are spans.
type locator struct {
	table *span.Table
	n     int // spans
	shift int // a block has 1 << shift bytes
	first []uint32
}

func newLocator(t *span.Table) locator {
	l := locator{table: t, n: t.Spans()}
	if l.n == 0 {
		return l
	}
	size := t.DataSize()
	l.shift = bits.Len64(uint64(size / int64(l.n)))
	l.first = make([]uint32, size>>l.shift+2)
	i := 0
	for b := range l.first {
		for i < l.n && l.end(i) <= int64(b)<<l.shift {
			i++
		}
		l.first[b] = uint32(i)
	}
	return l
}

// end returns where span i ends in the data.
func (l *locator) end(i int) int64 {
	s := l.table.At(i)
	return s.Off + s.Len
}

// find returns the span that holds data byte off, or the next behind it.
func (l *locator) find(off int64) int {
	b := off >> l.shift
	if b+1 >= int64(len(l.first)) {
		return l.n
	}
	lo, hi := int(l.first[b]), int(l.first[b+1])
	for lo < hi {
		if m := int(uint(lo+hi) >> 1); l.end(m) > off {
			hi = m
		} else {
			lo = m + 1
		}
	}
	return lo
}

// covering returns the spans [i, j) that hold the data bytes [off, end), which
// are not none.
func (l *locator) covering(off, end int64) (i, j int) {
	i = l.find(off)
	if i == l.n {
		return i, i
	}
	if l.end(i) >= end {
		if l.table.At(i).Off >= end {
			return i, i // nothing but zeros between two spans
		}
		return i, i + 1
	}
	j = l.find(end - 1)
	if j < l.n && l.table.At(j).Off < end {
		j++
	}
	return i, j
}

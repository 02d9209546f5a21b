package lazy

import "math/bits"

// bitmap has one bit per span.
type bitmap []uint64

func newBitmap(n int) bitmap { return make(bitmap, (n+63)/64) }

func (b bitmap) has(i int) bool { return b[i>>6]>>(i&63)&1 != 0 }
func (b bitmap) set(i int)      { b[i>>6] |= 1 << (i & 63) }
func (b bitmap) clear(i int)    { b[i>>6] &^= 1 << (i & 63) }

// next returns the first i in [from, to) whose bit is v, or to.
func (b bitmap) next(from, to int, v bool) int {
	flip := ^uint64(0)
	if v {
		flip = 0
	}
	for i := from; i < to; i = (i | 63) + 1 {
		if w := (b[i>>6] ^ flip) >> (i & 63); w != 0 {
			return min(i+bits.TrailingZeros64(w), to)
		}
	}
	return to
}

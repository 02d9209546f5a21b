package lazy

// borrow brings in what others have of the spans that r is to bring.
func (f *File) borrow(r *request) {
	if f.o.Elsewhere == nil {
		return
	}
	for i := 0; r.ctx.Err() == nil; i++ {
		g := f.nextToBorrow(r, i)
		if g == nil {
			return
		}
		i = g.i
		l := landing{f: f, r: r, g: g, data: f.pool.buffer(g.end - g.off), sums: make([]uint64, 1)}
		got := f.o.Elsewhere(r.ctx, i, l.data)
		if got {
			l.sums[0] = checksum(l.data)
			l.keepAll(nil)
		}
		f.pool.free(l.data)
		if got {
			l.finish()
		}
		f.landed(r, g)
	}
}

// nextToBorrow returns the first span from i on that r is to bring, and whose
// data has a digest, as a group; nil if there is none.
func (f *File) nextToBorrow(r *request, i int) *group {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i = max(i, r.next); i < r.hi; i++ {
		s := f.o.Table.At(i)
		if _, ok := f.o.Table.DataSum(i); ok && f.neededLocked(r, i) {
			g := &group{i: i, j: i + 1, off: s.Off, end: s.Off + s.Len}
			r.landing = append(r.landing, g)
			return g
		}
	}
	return nil
}

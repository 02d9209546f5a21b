package lazy

import (
	"context"
	"fmt"
	"math"
	"os"
	"slices"
)

// Fill returns the file that holds the n bytes at off, and will hold them for
// as long as it is referred to. It waits for those that are missing; if ctx
// ends it returns ctx's error, and with a ctx that ended before, it never
// waits. The caller must not close the file.
//
// Who reads on is not expected to pass end, where his file's bytes end, unless
// several files were read in the order of the data.
func (f *File) Fill(ctx context.Context, off, n, end int64) (*os.File, error) {
	if off < 0 || n < 0 || off > math.MaxInt64-n {
		return nil, fmt.Errorf("layer has no bytes %d+%d", off, n)
	}
	c := f.now.Load()
	if i := f.at.within(off, off+n); i >= 0 && c.ready[i>>6].Load()>>(i&63)&1 != 0 {
		return c.data, nil
	}
	i, j := f.at.covering(off, off+n)
	if c.isReady(i, j) {
		return c.data, nil
	}
	c, err := f.await(ctx, &want{lo: i, hi: j, end: max(end, off+n), now: true})
	if err != nil {
		return nil, err
	}
	return c.data, nil
}

// want is what somebody waits for.
type want struct {
	lo, hi int      // spans
	end    int64    // of the file, in the data
	stop   int      // span at which reading ahead ends; 0: not known yet
	raw    bool     // no need for the spans to be proven
	now    bool     // somebody waits
	by     *request // that needs it for what it brings; nil: a reader
}

// waiter waits for one span.
type waiter struct {
	span int
	raw  bool
	by   *request   // on whose behalf it waits; nil: a reader's
	from *request   // that will bring the span, or wake the waiter
	done chan error // gets one error, or nil: look again
}

// await returns contents in which all that is wanted is.
func (f *File) await(ctx context.Context, w *want) (*contents, error) {
	for {
		f.mu.Lock()
		if f.bad != nil {
			defer f.mu.Unlock()
			return nil, f.bad
		}
		c, s := f.now.Load(), f.spill
		if w.stop == 0 {
			w.stop = f.stopLocked(c, w)
		}
		first, where := f.lookLocked(w)
		switch where {
		case present:
			if !w.raw {
				f.touchLocked(c, w.lo, w.hi)
				f.readAheadLocked(c, w)
			}
			f.mu.Unlock()
			return c, nil
		case spilt:
			f.mu.Unlock()
			return s, nil
		}
		if err := ctx.Err(); err != nil {
			f.mu.Unlock()
			return nil, err
		}
		if where == missing {
			me := f.enlistLocked(c, w, first)
			f.mu.Unlock()
			if err := f.wait(ctx, me); err != nil {
				return nil, err
			}
			continue
		}
		f.tasks.Add(1)
		f.mu.Unlock()
		var err error
		if where == suspect {
			err = f.recheck(c, first)
		} else {
			err = f.gather(c, s, w)
		}
		f.tasks.Done()
		if err != nil {
			return nil, err
		}
	}
}

// place is where spans are.
type place int

const (
	present   place = iota // all in the data file
	spilt                  // all in memory
	scattered              // some here, some there
	suspect                // one is in the data file, if its checksum is right
	missing                // one is in neither
)

// lookLocked returns where the spans are that are wanted; the first one that
// is suspect or missing, if any.
func (f *File) lookLocked(w *want) (first int, where place) {
	c, s := f.now.Load(), f.spill
	inData, inMemory := true, s != nil
	for i := w.lo; i < w.hi; i++ {
		data, memory := c.has(i, w.raw), s != nil && s.has(i, w.raw)
		switch {
		case data || memory:
		case c.isSuspect(i):
			return i, suspect
		default:
			return i, missing
		}
		inData, inMemory = inData && data, inMemory && memory
	}
	switch {
	case inData:
		return 0, present
	case inMemory:
		return 0, spilt
	}
	return 0, scattered
}

// wait waits for what w waits for.
func (f *File) wait(ctx context.Context, w *waiter) error {
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
		f.leave(w)
		return ctx.Err()
	}
}

// touchLocked marks the spans [i, j), which are present, as ready.
func (f *File) touchLocked(c *contents, i, j int) {
	for k := i; k < j; k++ {
		if !c.isReady(k, k+1) {
			c.ready[k>>6].Or(1 << (k & 63))
			s := f.o.Table.At(k)
			c.used += s.To - s.From
		}
	}
}

// enlistLocked sees to it that all the missing spans of w are on their way, and
// returns a waiter for the first of them.
func (f *File) enlistLocked(c *contents, w *want, first int) *waiter {
	me := &waiter{span: first, raw: w.raw, by: w.by, done: make(chan error, 1)}
	for i := first; i < w.hi; {
		if c.has(i, w.raw) || c.isSuspect(i) || f.spill != nil && f.spill.has(i, w.raw) {
			i++
			continue
		}
		r := f.nearLocked(i, w.raw)
		if r == nil {
			r = f.startLocked(c, i, f.missingEnd(c, w, i), w)
		}
		if i == first {
			f.joinLocked(me, r)
		}
		i = max(i+1, r.hi) // what r has read already is there soon
	}
	f.waiters = append(f.waiters, me)
	return me
}

// joinLocked has w wait for r, which is hot from then on; but not by waiting for
// itself.
func (f *File) joinLocked(w *waiter, r *request) {
	w.from = r
	if w.by == r {
		return
	}
	r.waiting++
	if r.waiting == 1 {
		f.pool.heat(1)
		select {
		case r.wanted <- struct{}{}:
		default:
		}
	}
}

// partLocked is the reverse of joinLocked.
func (f *File) partLocked(w *waiter) {
	if w.by == w.from {
		return
	}
	w.from.waiting--
	if w.from.waiting == 0 {
		f.pool.heat(-1)
	}
}

// leave takes back a waiter that gives up. The request that it waited for ends
// if nobody else wants it.
func (f *File) leave(w *waiter) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.Index(f.waiters, w)
	if i < 0 {
		return // it was just woken
	}
	f.waiters = slices.Delete(f.waiters, i, i+1)
	f.partLocked(w)
	f.releaseLocked(w.from)
}

// releaseLocked cancels a request that nobody wants any more.
func (f *File) releaseLocked(r *request) {
	if r.keepers > 0 || r.dropped || slices.ContainsFunc(f.waiters, func(w *waiter) bool { return w.from == r }) {
		return
	}
	r.dropped = true
	r.cancel()
}

// wakeLocked wakes those that the function picks.
func (f *File) wakeLocked(err error, pick func(w *waiter) bool) {
	f.waiters = slices.DeleteFunc(f.waiters, func(w *waiter) bool {
		if !pick(w) {
			return false
		}
		f.partLocked(w)
		w.done <- err
		return true
	})
}

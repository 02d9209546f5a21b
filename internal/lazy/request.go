package lazy

import (
	"context"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"sync/atomic"
)

// request brings a run of spans, those that are missing, in their order. It
// takes bytes from one range of the blob as long as those that are not wanted
// in between are fewer than what arrives during a round trip.
type request struct {
	ctx    context.Context
	cancel context.CancelFunc
	prove  int           // spans before it only get raw
	urgent bool          // will be waited for soon
	wanted chan struct{} // capacity 1: somebody began to wait
	moved  chan struct{} // capacity 1: spans came in
	eased  chan struct{} // capacity 1: held became less
	done   chan struct{} // closed at the end
	err    error         // the first failure; may be read when done is closed
	blamed atomic.Bool   // the stream gives wrong bytes: another is needed
	lane   chan struct{} // that it has taken a place in; nil: none

	// Guarded by File.mu.
	next    int      // the first span not read yet
	hi      int      // the end of those to read
	landing []*group // those that were read, but are not in yet
	held    int64    // blob bytes in memory
	waiting int      // waiters
	keepers int      // prefetchers that want it, waiters or not
	dropped bool     // nobody wants it
	whole   bool     // the source gives all or nothing: no other request would be faster

	groups sync.WaitGroup
}

// group is a run of spans that are decoded and written as one.
type group struct {
	i, j     int
	raw      bool  // the bytes are in the data file already
	from, to int64 // of the blob
	off, end int64 // of the data
	kept     bool  // the bytes were written: no more raw spans come of it; guarded by File.mu
}

// brings reports whether r has yet to read span i, so that it will be there.
// Preconditions: File.mu is held.
func (r *request) brings(i int, raw bool) bool {
	return !r.dropped && r.next <= i && i < r.hi && (raw || i >= r.prove)
}

// lands reports whether r has read span i, and it will be there soon.
// Preconditions: File.mu is held.
func (r *request) lands(i int, raw bool) bool {
	for _, g := range r.landing {
		if g.i <= i && i < g.j && !r.dropped {
			return raw && !g.kept || !raw && i >= r.prove
		}
	}
	return false
}

// startLocked starts a request for spans [lo, hi).
func (f *File) startLocked(c *contents, lo, hi int, w *want) *request {
	whole := f.whole.Load()
	if whole && !w.raw {
		lo, hi = c.have.next(0, f.at.n, false), f.at.n
	}
	r := &request{
		whole:  whole,
		next:   lo,
		hi:     hi,
		prove:  lo,
		wanted: make(chan struct{}, 1),
		moved:  make(chan struct{}, 1),
		done:   make(chan struct{}),
		eased:  make(chan struct{}, 1),
	}
	switch {
	case f.o.Proof == nil:
	case w.raw:
		r.prove = hi
		r.urgent = w.now
	default:
		// What proves the first span may stand before it.
		h := f.at.find(f.o.Proof.Start(f.o.Table.At(lo).Off))
		if h >= lo || c.has(h, true) || f.ownerLocked(h, true) != nil {
			break
		}
		if h == lo-1 {
			r.next = h
		} else {
			f.startLocked(c, h, h+1, &want{raw: true, now: w.now})
		}
	}
	if r.next = f.baseLocked(c, r.next); f.o.Proof == nil {
		r.prove = r.next
	}
	r.ctx, r.cancel = context.WithCancel(f.ctx)
	f.requests = append(f.requests, r)
	f.tasks.Add(1)
	go f.run(r)
	return r
}

// run does a request.
func (f *File) run(r *request) {
	defer f.tasks.Done()
	err := f.read(r)
	r.leaveLane()
	r.groups.Wait()
	r.cancel()

	f.mu.Lock()
	r.failLocked(err)
	f.requests = slices.DeleteFunc(f.requests, func(o *request) bool { return o == r })
	if f.bad != nil {
		err = f.bad
	}
	for _, w := range f.waiters {
		if o := f.ownerLocked(w.span, w.raw); w.from == r && o != nil { // a younger one has taken it over
			f.partLocked(w)
			f.joinLocked(w, o)
		}
	}
	f.wakeLocked(err, func(w *waiter) bool { return w.from == r })
	f.mu.Unlock()
	close(r.done)
	f.source.measure(&f.link)
}

// failLocked notes the first failure of a request.
func (r *request) failLocked(err error) {
	if r.err == nil {
		r.err = err
	}
}

// read reads the spans of r that are missing, and has them landed.
func (f *File) read(r *request) error {
	f.borrow(r)
	in := stream{f: f, r: r}
	defer in.close()
	for {
		err := f.admit(r)
		if err != nil {
			return err
		}
		g, ok := f.nextGroup(r)
		if !ok {
			return nil
		}
		var blob []byte
		if !g.raw {
			if err = f.hold(r, g.to-g.from); err == nil {
				err = f.admit(r)
			}
			if err == nil {
				blob, err = in.read(g)
			}
			if err != nil {
				f.landed(r, g)
				if f.whole.Load() && !r.whole {
					return nil // who waits looks again: the next request takes all
				}
				return err
			}
		}
		r.groups.Add(1)
		go func() {
			defer r.groups.Done()
			f.land(r, g, blob)
		}()
	}
}

// hold waits until r has memory for n more bytes of the blob.
func (f *File) hold(r *request, n int64) error {
	for {
		f.mu.Lock()
		fits := r.held == 0 || r.held+n <= mostHeld
		if fits {
			r.held += n
		}
		f.mu.Unlock()
		if fits {
			return nil
		}
		r.leaveLane() // what r holds may wait for what another is to read
		select {
		case <-r.eased:
		case <-r.ctx.Done():
			return r.ctx.Err()
		}
	}
}

// ease is the reverse of hold.
func (f *File) ease(r *request, n int64) {
	f.mu.Lock()
	r.held -= n
	f.mu.Unlock()
	select {
	case r.eased <- struct{}{}:
	default:
	}
}

// admit waits until r may read on: somebody waits for it, or nobody for
// anything; and there are not too many that read.
func (f *File) admit(r *request) error {
	for {
		hot := f.isHot(r)
		calm := f.pool.calm()
		switch {
		case !hot && calm != nil:
			r.leaveLane()
			select {
			case <-calm:
			case <-r.wanted:
			case <-r.ctx.Done():
			}
		case r.lane != nil:
			return r.ctx.Err()
		case hot:
			select {
			case f.lanes <- struct{}{}:
				r.lane = f.lanes
			case <-r.ctx.Done():
			}
		default:
			select {
			case f.pool.lanes <- struct{}{}:
				r.lane = f.pool.lanes
			case <-r.wanted:
			case <-r.ctx.Done():
			}
		}
		if err := r.ctx.Err(); err != nil {
			return err
		}
	}
}

func (r *request) leaveLane() {
	if r.lane != nil {
		<-r.lane
		r.lane = nil
	}
}

// nextGroup returns what r is to read next.
func (f *File) nextGroup(r *request) (g *group, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.now.Load()
	i := c.have.next(r.next, r.hi, false)
	for i < r.hi && !f.neededLocked(r, i) {
		i = c.have.next(i+1, r.hi, false)
	}
	if i == r.hi {
		r.next = i
		return nil, false
	}
	t := f.o.Table
	first := t.At(i)
	g = &group{i: i, j: i + 1, from: first.From, to: first.To, off: first.Off, end: first.Off + first.Len}
	g.raw = c.raw != nil && c.raw.has(i)
	for j := g.j; j < r.hi && j != r.prove; j++ {
		s := t.At(j)
		small := s.Off+s.Len-g.off <= groupData && s.Off-g.end <= groupGap && s.From-g.to <= groupGap
		if !small || c.have.has(j) || !f.neededLocked(r, j) || g.raw != (c.raw != nil && c.raw.has(j)) {
			break
		}
		g.j, g.to, g.end = j+1, s.To, s.Off+s.Len
	}
	r.next = g.j
	r.landing = append(r.landing, g)
	return g, true
}

// neededLocked reports whether r is to bring span i, and no other is.
func (f *File) neededLocked(r *request, i int) bool {
	raw := i < r.prove
	return !f.now.Load().has(i, raw) && f.ownerLocked(i, raw) == r
}

// endLocked returns where the range ends that brings span i and what r needs
// behind it, as far as it can be had without waiting for more than limit bytes
// that are not needed.
func (f *File) endLocked(r *request, i int, limit int64) int64 {
	to := f.o.Table.At(i).To
	for k := i + 1; k < r.hi; k++ {
		s := f.o.Table.At(k)
		if s.From-to > limit {
			break
		}
		if f.neededLocked(r, k) {
			to = s.To
		}
	}
	return to
}

// landed says that a group is in, or failed.
func (f *File) landed(r *request, g *group) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r.landing = slices.DeleteFunc(r.landing, func(o *group) bool { return o == g })
	select {
	case r.moved <- struct{}{}:
	default:
	}
}

// stream reads one range of the blob after the other.
type stream struct {
	f    *File
	r    *request
	body io.ReadCloser // nil: none is open
	pos  int64         // in the blob, of body
	end  int64         // in the blob, of body
	tail []byte        // the bytes before pos that the next group needs too
}

func (s *stream) close() {
	if s.body != nil {
		s.body.Close()
		s.body = nil
	}
	s.tail = nil
}

// read returns the blob bytes of g, in a buffer of the pool.
func (s *stream) read(g *group) ([]byte, error) {
	if s.r.blamed.Swap(false) {
		s.close()
	}
	if s.body != nil {
		if err := s.skip(g); err != nil {
			return nil, err
		}
	}
	if s.body == nil {
		if err := s.open(g); err != nil {
			return nil, err
		}
	}
	blob := s.f.pool.buffer(g.to - g.from)
	n := 0
	if g.from < s.pos {
		n = copy(blob, s.tail[int64(len(s.tail))-(s.pos-g.from):])
	}
	if _, err := io.ReadFull(s.body, blob[n:]); err != nil {
		s.f.pool.free(blob)
		return nil, fmt.Errorf("bytes %d to %d of the blob: %w", g.from, g.to, err)
	}
	s.pos = max(s.pos, g.to)
	s.tail = s.tail[:0]
	if g.j < s.f.at.n {
		if next := s.f.o.Table.At(g.j).From; next < g.to {
			s.tail = append(s.tail, blob[max(next, g.from)-g.from:]...)
		}
	}
	return blob, nil
}

// gap returns how many bytes are rather read and dropped than left out by
// opening another range.
func (s *stream) gap() int64 {
	if s.r.whole {
		return math.MaxInt64
	}
	return s.f.link.Load()
}

// skip goes to the blob bytes of g, or closes the body if that is faster.
func (s *stream) skip(g *group) error {
	gap := g.from - s.pos
	switch {
	case g.to > s.end || gap > s.gap() || -gap > int64(len(s.tail)):
		s.close()
		return nil
	case gap <= 0:
		return nil
	}
	n, err := io.CopyN(io.Discard, s.body, gap)
	s.pos += n
	if err != nil {
		return fmt.Errorf("bytes %d to %d of the blob: %w", s.pos, g.from, err)
	}
	return nil
}

// open opens the range from g on.
func (s *stream) open(g *group) error {
	f := s.f
	src, err := f.source.get(s.r.ctx)
	if err != nil {
		return err
	}
	f.mu.Lock()
	s.end = f.endLocked(s.r, g.j-1, s.gap())
	f.mu.Unlock()
	from, to := g.from, s.end
	body, err := src.Range(s.r.ctx, from, to-from)
	f.whole.Store(src.Whole())
	if err != nil {
		return fmt.Errorf("bytes %d to %d of the blob: %w", from, to, err)
	}
	s.body, s.pos = body, from
	return nil
}

// isHot reports whether somebody waits for r, or is about to.
func (f *File) isHot(r *request) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return r.urgent || r.waiting > 0
}

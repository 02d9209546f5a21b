package lazy

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/span"
)

// land brings a group in: decodes its blob bytes, writes and proves them, and
// wakes those who wait. It gives back the slot that the caller took for it.
func (f *File) land(r *request, g *group, blob []byte) {
	defer f.landed(r, g)
	l := landing{f: f, r: r, g: g, sums: make([]uint64, g.j-g.i)}
	if !g.raw {
		l.data = f.pool.buffer(g.end - g.off)
		failed := l.decode(blob)
		f.pool.free(blob)
		l.keepAll(failed)
		f.pool.give()
		l.fetchAgain(failed)
		f.pool.free(l.data)
	}
	l.finish()
}

// finish proves what was written, if that is needed.
func (l *landing) finish() {
	l.f.mu.Lock()
	l.g.kept = true
	unproven := l.f.o.Proof != nil && l.g.i >= l.r.prove
	l.f.mu.Unlock()
	if unproven {
		l.prove()
	}
}

// landing is a group that is being brought in.
type landing struct {
	f    *File
	r    *request
	g    *group
	data []byte
	sums []uint64 // checksums by span, 0: not computed
}

// span returns the part of data that is span i's.
func (l *landing) span(i int) []byte {
	s := l.f.o.Table.At(i)
	return l.data[s.Off-l.g.off:][:s.Len]
}

// decode decodes the spans of the group and returns those that fail.
func (l *landing) decode(blob []byte) (failed map[int]error) {
	t, end := l.f.o.Table, l.g.off
	for i := l.g.i; i < l.g.j; i++ {
		s := t.At(i)
		clear(l.data[end-l.g.off : s.Off-l.g.off]) // what is between spans is zeros
		end = s.Off + s.Len
	}
	for i := l.g.i; i < l.g.j; {
		s := t.At(i)
		part := blob[s.From-l.g.from : s.To-l.g.from]
		first, n := t.Group(i)
		j := min(first+n, l.g.j)
		err := l.decodeSpans(i, j, part)
		if err != nil && j-i > 1 { // one of them is wrong
			j = i + 1
			err = l.decodeSpans(i, j, part)
		}
		if err != nil {
			if failed == nil {
				failed = map[int]error{}
			}
			failed[i] = err
		}
		i = j
	}
	return failed
}

// decodeSpans decodes spans that are parts of one group of the table, and
// compares them with what they were before, where it has no digest for them.
func (l *landing) decodeSpans(i, j int, blob []byte) error {
	t := l.f.o.Table
	parts := make([][]byte, 0, 8)
	for k := i; k < j; k++ {
		parts = append(parts, l.span(k))
	}
	if err := t.DecodeGroup(i, blob, parts); err != nil {
		return err
	}
	for k := i; k < j; k++ {
		if !t.Proves(k) {
			if err := l.f.seen.check(k, l.span(k)); err != nil && !full(err) {
				return err
			}
		}
		l.sums[k-l.g.i] = checksum(l.span(k))
	}
	return nil
}

// keepAll keeps the spans that did not fail.
func (l *landing) keepAll(failed map[int]error) {
	for i := l.g.i; i < l.g.j; i++ {
		j := i
		for j < l.g.j && failed[j] == nil {
			j++
		}
		if i < j {
			if err := l.keep(i, j); err != nil {
				l.failed(i, j, err)
			}
			i = j
		}
	}
}

// fetchAgain fetches spans that failed from somebody else.
func (l *landing) fetchAgain(failed map[int]error) {
	for i, err := range failed {
		l.r.blamed.Store(true)
		if err = l.fetchElsewhere(i, err); err == nil {
			err = l.keep(i, i+1)
		}
		if err != nil {
			l.failed(i, i+1, err)
		}
	}
}

// fetchElsewhere fetches span i, whose bytes were wrong, from one after the
// other of those that have not been asked yet.
func (l *landing) fetchElsewhere(i int, err error) error {
	f, s := l.f, l.f.o.Table.At(i)
	for wrongBytes(err) {
		src, unasked := f.source.get(l.r.ctx)
		if unasked != nil {
			return unasked
		}
		if !src.Blame(s.From, s.To-s.From) {
			if f.o.Table.Proves(i) && errors.Is(err, span.ErrCorrupt) {
				// The promised bytes do not decode: it is the promise that is wrong.
				err = fault.New(fault.Integrity, "the layer's index is wrong: %w", err)
				f.condemn(err)
				return err
			}
			return fault.New(fault.Integrity, "bytes %d to %d of the blob: %w", s.From, s.To, err)
		}
		f.log.Warn("wrong bytes: asking elsewhere", "dir", f.dir, "from", s.From, "to", s.To, "err", err)
		blob := f.pool.buffer(s.To - s.From)
		if err = readRange(l.r.ctx, src, s.From, blob); err == nil {
			err = l.decodeSpans(i, i+1, blob)
		}
		f.pool.free(blob)
	}
	return err
}

// wrongBytes reports whether somebody else may have the right ones.
func wrongBytes(err error) bool {
	return errors.Is(err, span.ErrDigest) || errors.Is(err, span.ErrCorrupt)
}

func readRange(ctx context.Context, src Source, off int64, p []byte) error {
	body, err := src.Range(ctx, off, int64(len(p)))
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = io.ReadFull(body, p)
	return err
}

// failed wakes those who wait for spans [i, j) of this request, which do not
// come.
func (l *landing) failed(i, j int, err error) {
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	if l.f.bad != nil {
		err = l.f.bad
	}
	l.r.failLocked(err)
	l.f.wakeLocked(err, func(w *waiter) bool { return w.from == l.r && w.span >= i && w.span < j })
}

// keep writes the spans [i, j) and enters them as present, or as raw where they
// are to be proven. What finds no space on disk is kept in memory for a while,
// if somebody waits for it.
func (l *landing) keep(i, j int) error {
	f, t := l.f, l.f.o.Table
	off := t.At(i).Off
	data := l.data[off-l.g.off : f.at.end(j-1)-l.g.off]
	c := f.now.Load()
	err := f.write(c, data, off)
	if full(err) {
		if c = f.spillFor(i, j); c == nil {
			return fmt.Errorf("data of a layer: %w", err)
		}
		_, err = c.data.WriteAt(data, off)
	}
	if err != nil {
		return fmt.Errorf("data of a layer: %w", err)
	}
	if f.o.Proof == nil {
		l.enter(c, i, j)
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for k := i; k < j; k++ {
		c.raw.set(k)
	}
	f.wakeLocked(nil, func(w *waiter) bool { return w.raw && w.span >= i && w.span < j })
	return nil
}

// enter makes the spans [i, j), which are written and trusted, present.
func (l *landing) enter(c *contents, i, j int) {
	f := l.f
	if c.present != nil {
		if err := writeSums(c.present, i, l.sums[i-l.g.i:j-l.g.i]); err != nil {
			f.log.Warn("what was fetched will be fetched again after a restart", "dir", f.dir, "err", err)
		}
	}
	f.mu.Lock()
	grew := int64(0)
	for k := i; k < j; k++ {
		if !c.have.has(k) {
			c.have.set(k)
			grew += f.o.Table.At(k).Len
		}
	}
	c.bytes += grew
	current := c == f.now.Load()
	f.wakeLocked(nil, func(w *waiter) bool { return w.span >= i && w.span < j })
	f.mu.Unlock()
	if current && grew > 0 && f.o.Grew != nil {
		f.o.Grew(grew)
	}
}

// spillFor returns contents in memory for the spans [i, j); nil if nobody waits
// for them, or there is no memory either.
func (f *File) spillFor(i, j int) *contents {
	f.mu.Lock()
	s, waited := f.spill, false
	for _, w := range f.waiters {
		waited = waited || w.span >= i && w.span < j
	}
	f.mu.Unlock()
	if !waited {
		return nil
	}
	if s != nil && s.written.Add(f.at.end(j-1)-f.o.Table.At(i).Off) <= mostSpill {
		return s
	}
	fresh, err := f.newSpill()
	if err != nil {
		f.log.Error("no space on disk, and none in memory", "dir", f.dir, "err", err)
		return nil
	}
	if s == nil {
		f.log.Warn("no space on disk: what is read is not kept", "dir", f.dir)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.spill != s { // another one was faster
		return f.spill
	}
	f.spill = fresh
	return fresh
}

// gather copies what w wants and only c has to the spill s: whoever reads gets
// all of it from one file.
func (f *File) gather(c, s *contents, w *want) error {
	for i := w.lo; i < w.hi; i++ {
		f.mu.Lock()
		in, proven := s.has(i, true), c.have.has(i)
		f.mu.Unlock()
		if in {
			continue
		}
		t := f.o.Table.At(i)
		data := f.pool.buffer(t.Len)
		_, err := c.data.ReadAt(data, t.Off)
		if err == nil {
			_, err = s.data.WriteAt(data, t.Off)
		}
		f.pool.free(data)
		if err != nil {
			return fmt.Errorf("data of a layer: %w", err)
		}
		f.mu.Lock()
		if proven {
			s.have.set(i)
		} else {
			s.raw.set(i)
		}
		f.mu.Unlock()
	}
	return nil
}

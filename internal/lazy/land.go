package lazy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/span"
)

// land brings a group in: decodes its blob bytes, writes and proves them, and
// wakes those who wait. It eases what the caller holds.
func (f *File) land(r *request, g *group, blob []byte) {
	defer f.landed(r, g)
	l := landing{f: f, r: r, g: g, sums: make([]uint64, g.j-g.i)}
	err := l.bring(blob)
	f.pool.free(blob)
	f.ease(r, int64(len(blob)))
	if err != nil {
		l.failed(g.i, g.j, err)
		return
	}
	l.finish()
}

// landing is a group that is being brought in.
type landing struct {
	f    *File
	r    *request
	g    *group
	lead []byte   // what ends with the data before the group, and goes on with data
	data []byte   // of the group
	sums []uint64 // checksums by span, 0: not computed
}

// bring decodes the group and keeps it, once the data is there that its first
// span needs, if that is a step.
func (l *landing) bring(blob []byte) error {
	if l.g.raw {
		return nil
	}
	defer func() {
		if l.lead != nil {
			l.f.pool.free(l.lead)
		}
	}()
	if err := l.bringLead(); err != nil {
		return err
	}
	if err := l.f.pool.take(l.r.ctx); err != nil {
		return err
	}
	slot := sync.OnceFunc(l.f.pool.give)
	defer slot()
	l.room()
	failed := l.decode(blob)
	l.keepAll(failed)
	if len(failed) > 0 {
		slot() // others need not wait for the network
		l.fetchAgain(blob, failed)
	}
	return nil
}

// leadTries is how often damage before a step is mended before it is an error.
const leadTries = 3

// bringLead waits for the data that the group's first span needs, if it is a
// step, and compares it with its checksums: damage on disk would spread into
// what is decoded behind it, whose digest is of its compressed bytes.
func (l *landing) bringLead() error {
	f, first := l.f, l.f.o.Table.Needs(l.g.i)
	for try := 0; ; try++ {
		c, err := f.await(l.r.ctx, &want{lo: first, hi: l.g.i, raw: true, now: true, by: l.r})
		if err != nil || first == l.g.i {
			return err
		}
		damaged, err := l.readLead(c, first)
		if err != nil || damaged < 0 {
			return err
		}
		if try == leadTries {
			return fault.New(fault.Failed, "data of a layer: the disk does not keep it")
		}
		if err := f.drop(c, damaged); err != nil {
			return err
		}
	}
}

// readLead reads what ends with the data before the group. It returns the first
// span of it that is not what its checksum says, -1 for none.
func (l *landing) readLead(c *contents, first int) (damaged int, err error) {
	f, t := l.f, l.f.o.Table
	k := l.g.i - 1
	for k > first && t.At(k).Off > l.g.off-span.Window {
		k--
	}
	off := t.At(k).Off
	data := f.pool.buffer(l.g.off - off)
	defer f.pool.free(data)
	if _, err := c.data.ReadAt(data, off); err != nil && err != io.EOF {
		return -1, fmt.Errorf("data of a layer: %w", err)
	}
	for ; k < l.g.i; k++ {
		f.mu.Lock()
		known := c.present != nil && c.have.has(k)
		f.mu.Unlock()
		if !known {
			continue
		}
		want, err := readSum(c.present, k)
		if err != nil {
			return -1, fmt.Errorf("data of a layer: %w", err)
		}
		s := t.At(k)
		if want != 0 && checksum(data[s.Off-off:][:s.Len]) != want {
			return k, nil
		}
	}
	l.room()
	copy(l.lead[:span.Window], data[len(data)-span.Window:])
	return -1, nil
}

// room gets the buffer of the group, which is not held while others are waited for.
func (l *landing) room() {
	if l.lead == nil {
		l.lead = l.f.pool.buffer(span.Window + l.g.end - l.g.off)
		l.data = l.lead[span.Window:]
	}
}

// finish proves what was written, if that is needed.
func (l *landing) finish() {
	l.f.mu.Lock()
	l.g.kept = true
	// Who still waits for raw bytes of the group had them evicted.
	l.f.wakeLocked(nil, func(w *waiter) bool { return w.raw && w.from == l.r && w.span >= l.g.i && w.span < l.g.j })
	unproven := l.f.o.Proof != nil && l.g.i >= l.r.prove
	l.f.mu.Unlock()
	if unproven {
		l.prove()
	}
}

// span returns the part of data that is span i's.
func (l *landing) span(i int) []byte {
	s := l.f.o.Table.At(i)
	return l.data[s.Off-l.g.off:][:s.Len]
}

// part returns the part of the group's blob bytes that is span i's.
func (l *landing) part(i int, blob []byte) []byte {
	s := l.f.o.Table.At(i)
	return blob[s.From-l.g.from : s.To-l.g.from]
}

// decode decodes the spans of the group and returns those that fail.
func (l *landing) decode(blob []byte) (failed map[int]error) {
	t, end := l.f.o.Table, l.g.off
	for i := l.g.i; i < l.g.j; i++ {
		s := t.At(i)
		clear(l.data[end-l.g.off : s.Off-l.g.off]) // what is between spans is zeros
		end = s.Off + s.Len
	}
	fail := func(i int, err error) {
		if failed == nil {
			failed = map[int]error{}
		}
		failed[i] = err
	}
	for i := l.g.i; i < l.g.j; {
		if err := l.r.ctx.Err(); err != nil { // wrong spans of a group cost a decoding each
			fail(i, err)
			i++
			continue
		}
		first, n := t.Group(i)
		j := min(first+n, l.g.j)
		if l.leadFailed(i, failed) != nil {
			fail(i, errLead)
			i++
			continue
		}
		err := l.decodeSpans(i, j, l.part(i, blob))
		if err != nil && j-i > 1 { // one of them is wrong
			j = i + 1
			err = l.decodeSpans(i, j, l.part(i, blob))
		}
		if err != nil {
			fail(i, err)
		}
		i = j
	}
	return failed
}

// errLead marks a step that was not decoded, as what it needs failed.
var errLead = errors.New("the data before it failed")

// leadFailed returns why a span of the group failed that span i needs; nil if
// none did.
func (l *landing) leadFailed(i int, failed map[int]error) error {
	for k := max(l.f.o.Table.Needs(i), l.g.i); k < i; k++ {
		if failed[k] != nil {
			return failed[k]
		}
	}
	return nil
}

// decodeSpans decodes spans that are parts of one group of the table, and
// compares them with what they were before, where it has no digest for them.
func (l *landing) decodeSpans(i, j int, blob []byte) error {
	t := l.f.o.Table
	before := l.lead[:t.At(i).Off-l.g.off+span.Window]
	parts := make([][]byte, 0, 8)
	for k := i; k < j; k++ {
		parts = append(parts, l.span(k))
	}
	if err := t.DecodeGroup(i, blob, before, parts); err != nil {
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

// fetchAgain fetches spans that failed from somebody else, and decodes those
// that only lacked others.
func (l *landing) fetchAgain(blob []byte, failed map[int]error) {
	l.r.blamed.Store(true)
	for i := l.g.i; i < l.g.j; i++ {
		err := failed[i]
		if err == nil {
			continue
		}
		lead := l.leadFailed(i, failed)
		if lead == nil && err == errLead {
			err = l.decodeSpans(i, i+1, l.part(i, blob))
		}
		if lead != nil {
			err = lead
		} else if err = l.fetchElsewhere(i, err); err == nil {
			err = l.keep(i, i+1)
		}
		if failed[i] = err; err != nil {
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
	grew := f.growLocked(c, i, j, c.raw.set)
	f.wakeLocked(nil, func(w *waiter) bool { return w.raw && w.span >= i && w.span < j })
	f.mu.Unlock()
	grew()
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
	grew := f.growLocked(c, i, j, c.have.set)
	f.wakeLocked(nil, func(w *waiter) bool { return w.span >= i && w.span < j })
	f.mu.Unlock()
	grew()
}

// growLocked has set enter the spans [i, j). The caller calls what it returns,
// without the lock.
func (f *File) growLocked(c *contents, i, j int, set func(k int)) (grew func()) {
	n := int64(0)
	for k := i; k < j; k++ {
		if !c.have.has(k) && (c.raw == nil || !c.raw.has(k)) {
			n += f.o.Table.At(k).Len
		}
		set(k)
	}
	c.bytes += n
	if n == 0 || c != f.now.Load() || f.o.Grew == nil {
		return func() {}
	}
	return func() { f.o.Grew(n) }
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

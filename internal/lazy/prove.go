package lazy

import (
	"fmt"
	"io"

	"github.com/imgfs/imgfs/internal/fault"
)

// prove compares the group's spans that are raw with the index, and makes them
// present.
func (l *landing) prove() {
	f, t := l.f, l.f.o.Table
	for i := l.g.i; i < l.g.j; {
		c, j := f.unproven(i, l.g.j)
		if c == nil {
			i++
			continue
		}
		r := &proofReader{f: f, by: l.r}
		err := f.o.Proof.Check(r, t.At(i).Off, f.at.end(j-1))
		switch {
		case r.err != nil: // it could not be read: nothing is known
			err = r.err
		case err != nil:
			err = fault.New(fault.Integrity, "the layer is not what its index says: %w", err)
			f.condemn(err)
		default:
			err = l.sum(c, i, j)
		}
		if err != nil {
			l.failed(i, j, err)
		} else {
			l.enter(c, i, j)
		}
		i = j
	}
}

// unproven returns the contents in which the spans [i, j) are raw and not
// proven; nil if span i is not.
func (f *File) unproven(i, limit int) (c *contents, j int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c = f.now.Load()
	if c.have.has(i) {
		return nil, i
	}
	if !c.raw.has(i) {
		if c = f.spill; c == nil || !c.raw.has(i) || c.have.has(i) {
			return nil, i
		}
	}
	for j = i + 1; j < limit && c.raw.has(j) && !c.have.has(j); j++ {
	}
	return c, j
}

// sum computes the checksums of the spans [i, j) that were raw before.
func (l *landing) sum(c *contents, i, j int) error {
	for k := i; k < j; k++ {
		if l.sums[k-l.g.i] != 0 {
			continue
		}
		sum, err := l.f.sumOf(c, k)
		if err != nil {
			return err
		}
		l.sums[k-l.g.i] = sum
	}
	return nil
}

// sumOf computes the checksum of what the data file has for span i.
func (f *File) sumOf(c *contents, i int) (uint64, error) {
	s := f.o.Table.At(i)
	data := f.pool.buffer(s.Len)
	defer f.pool.free(data)
	if n, err := c.data.ReadAt(data, s.Off); err != nil && err != io.EOF {
		return 0, fmt.Errorf("data of a layer: %w", err)
	} else {
		clear(data[n:]) // somebody cut it: it will not be the same
	}
	return checksum(data), nil
}

// proofReader reads the stream, proven or not, and fetches what is missing.
type proofReader struct {
	f   *File
	by  *request
	err error // why something could not be read
}

// ReadAt implements [io.ReaderAt].
func (r *proofReader) ReadAt(p []byte, off int64) (int, error) {
	i, j := r.f.at.covering(off, off+int64(len(p)))
	c, err := r.f.await(r.by.ctx, &want{lo: i, hi: j, raw: true, now: true, by: r.by})
	if err == nil {
		var n int
		if n, err = c.data.ReadAt(p, off); err == nil || err == io.EOF {
			return n, err
		}
	}
	r.err = err
	return 0, err
}

// recheck compares span i, which is suspect, with its checksum: it is present,
// or missing, after that.
func (f *File) recheck(c *contents, i int) error {
	want, err := readSum(c.present, i)
	if err != nil {
		return fmt.Errorf("data of a layer: %w", err)
	}
	got, err := f.sumOf(c, i)
	if err != nil {
		return err
	}
	if got == want {
		f.mu.Lock()
		defer f.mu.Unlock()
		c.suspect.clear(i)
		return nil
	}
	return f.drop(c, i)
}

// drop makes a present span missing: its bytes are not the right ones.
func (f *File) drop(c *contents, i int) error {
	f.log.Warn("stored bytes are damaged, and will be fetched again", "dir", f.dir, "off", f.o.Table.At(i).Off)
	if err := c.mark(); err != nil {
		return fmt.Errorf("data of a layer: %w", err)
	}
	if err := writeSums(c.present, i, []uint64{0}); err != nil {
		return fmt.Errorf("data of a layer: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if c.suspect != nil {
		c.suspect.clear(i)
	}
	if c.raw != nil {
		c.raw.clear(i)
	}
	if c.have.has(i) {
		c.have.clear(i)
		c.bytes -= f.o.Table.At(i).Len
	}
	c.ready[i>>6].And(^(uint64(1) << (i & 63)))
	return nil
}

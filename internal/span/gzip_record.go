package span

import (
	"errors"
	"io"
	"math/bits"
	"slices"

	"github.com/imgfs/imgfs/internal/inflate"
)

var errLongBlock = errors.New("gzip: a block is too long to begin behind it")

// passGzip decodes src, every member of it, to w. A span ends at the first
// border between two blocks at which it has the wished length; there is a
// checkpoint where those since the last one have.
func passGzip(src io.Reader, w io.Writer, rec *recording) (int64, error) {
	g := &gzipPass{
		in:      held{src: src, max: maxRecorded},
		w:       w,
		spacing: min(max(rec.Spacing, Window), maxRecorded), // a window's use is known when as much data has come
		fixed:   rec.Spacing != 0,
		step:    max(rec.Step, Window),
		r:       newRecorder(rec),
	}
	if !g.fixed {
		g.spacing = mostSpacing
	}
	if rec.Step == 0 {
		g.step = defaultStep
	}
	defer func() {
		g.r.close()
		if g.in.over {
			rec.giveUp(errLongBlock)
		}
	}()
	g.z = inflate.NewReader(&g.in)
	g.z.OnBorder(g.border)
	n, err := g.z.WriteTo(g)
	if err == nil && !g.tooLong(n) {
		end := g.z.Consumed()
		g.end(n, end, end, nil)
		g.send()
	}
	return n, err
}

// gzipPass makes drafts from what the inflater tells, what it reads, and what
// it writes.
type gzipPass struct {
	z       *inflate.Reader
	in      held
	w       io.Writer
	off     int64 // data written
	spacing int64 // of the next checkpoint from the last one
	fixed   bool  // it is the same everywhere
	windows int64 // what those up to the last checkpoint's take in the table, nearly
	step    int64
	since   int64 // data offset of the last checkpoint
	steps   int   // begun since then
	r       *recorder
	open    []*draft // not sent yet; all but the last have ended
}

// border begins a draft where one is due. The inflater calls it.
func (g *gzipPass) border(c inflate.Checkpoint) *inflate.Used {
	if len(g.open) == 0 && !g.in.over { // the first member's first block
		d := g.r.next()
		d.e, d.tested = Entry{Header: true}, tested
		g.open = append(g.open, d)
		return nil
	}
	far := c.Out-g.since >= g.spacing || g.steps == maxSteps
	if g.tooLong(c.Out) || c.Out-g.last().e.Off < g.step && !far {
		return nil
	}
	if last := g.last(); !last.e.Step && !g.fixed {
		g.windows += packedSize(&last.used)
		g.spacing = min(max(g.windows*worth-g.since, leastSpacing), mostSpacing)
		far = c.Out-g.since >= g.spacing
	}
	d := g.r.next()
	d.e = Entry{Off: c.Out, From: c.Bit / 8, Bits: uint8(c.Bit % 8), Step: !far}
	g.end(c.Out, (c.Bit+7)/8, d.e.From, d.blob)
	g.open = append(g.open, d)
	if d.e.Step {
		g.steps++
		d.tested = stepTested
		d.window = append(d.window, c.Window...)
		return nil
	}
	g.since, g.steps, d.tested = c.Out, 0, tested
	d.window = append(d.window, c.Window[len(c.Window)-c.Reach:]...)
	return &d.used
}

// packedSize returns what a window takes in the table, nearly.
func packedSize(used *inflate.Used) int64 {
	n := 0
	for _, w := range used {
		n += bits.OnesCount64(w)
	}
	if n == 0 {
		return 0
	}
	return 450 + int64(n)*11/20
}

// last returns the draft that has not ended.
func (g *gzipPass) last() *draft { return g.open[len(g.open)-1] }

// tooLong reports whether there will be no table, because a span was too long,
// the last one if it ended at data offset off included.
func (g *gzipPass) tooLong(off int64) bool {
	if !g.in.over && off-g.last().e.Off > maxRecorded {
		g.in.drop()
	}
	return g.in.over
}

// end ends the last draft at data offset off and blob offset to. Bytes of the
// blob from offset from on are the next one's, and kept in room.
func (g *gzipPass) end(off, to, from int64, room []byte) {
	d := g.last()
	d.e.Len, d.e.To = off-d.e.Off, to
	d.blob = g.in.cut(to, from, room)
}

// Write passes on what the inflater made.
func (g *gzipPass) Write(p []byte) (int, error) {
	if !g.in.over {
		for _, d := range g.open {
			at, n := d.e.Off+int64(len(d.head))-g.off, d.wants()-int64(len(d.head))
			if n > 0 && at < int64(len(p)) {
				d.head = append(d.head, p[at:min(at+n, int64(len(p)))]...)
			}
		}
		g.send()
	}
	n, err := g.w.Write(p)
	g.off += int64(n)
	return n, err
}

// send hands over the drafts that are complete: they have ended, and the data
// to test them with was written.
func (g *gzipPass) send() {
	for len(g.open) > 0 {
		d := g.open[0]
		if d.e.To == 0 || int64(len(d.head)) < d.wants() {
			return
		}
		g.open = slices.Delete(g.open, 0, 1)
		if d.e.Len > 0 { // there is data behind the last border
			g.r.put(d)
		}
	}
}

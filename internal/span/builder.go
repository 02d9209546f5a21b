package span

import (
	"crypto/sha256"
	"fmt"
	"math"
	"math/bits"
)

// Builder makes a Table, span by span. It is not safe for concurrent use.
type Builder struct {
	t    Table
	pack *packer // of gzip windows; nil before the first
}

// NewBuilder returns a Builder for a blob of blobSize bytes.
func NewBuilder(c Codec, blobSize int64) *Builder {
	return &Builder{t: Table{codec: c, blobSize: blobSize}}
}

// Add adds a span behind those added before. An error wraps ErrCorrupt: the
// span breaks an invariant.
func (b *Builder) Add(e Entry) error {
	flags := uint16(e.Bits)
	if e.Bits > flagBits {
		return fmt.Errorf("%w: span %d begins at bit %d of a byte", ErrCorrupt, len(b.t.spans), e.Bits)
	}
	if e.Header {
		flags |= flagHeader
	}
	if e.Step {
		flags |= flagStep
	}
	if e.Skip != 0 {
		flags |= flagSkip
	}
	if e.Blob != nil {
		flags |= flagBlob
	}
	if e.Data != nil {
		flags |= flagData
	}
	state := e.Window
	if len(e.Window) > 0 {
		flags |= flagState
		if b.t.codec == Gzip {
			if len(e.Window) > Window {
				return fmt.Errorf("%w: span %d: window of %d bytes", ErrCorrupt, len(b.t.spans), len(e.Window))
			}
			if b.pack == nil {
				b.pack = newPacker()
			}
			state = b.pack.pack(nil, e.Window)
		}
	}
	if err := b.t.add(Span{e.Off, e.Len, e.From, e.To}, e.Skip, flags, len(state)); err != nil {
		return err
	}
	b.t.states = append(b.t.states, state...)
	if e.Blob != nil {
		b.t.sums = append(b.t.sums, e.Blob[:]...)
	}
	if e.Data != nil {
		b.t.sums = append(b.t.sums, e.Data[:]...)
	}
	return nil
}

// Table returns the table of the spans added. The Builder must not be used
// any more.
func (b *Builder) Table() (*Table, error) {
	t := &b.t
	if n := len(t.spans); t.blobSize < 0 || n > 0 && t.spans[n-1].To > t.blobSize {
		return nil, fmt.Errorf("%w: spans reach beyond the blob's %d bytes", ErrCorrupt, t.blobSize)
	}
	return t, nil
}

// add enters a span whose packed window has size bytes; digests and window
// itself are the caller's to append. Every invariant is checked here.
func (t *Table) add(s Span, skip int64, flags uint16, size int) error {
	var prev Span
	var before rest
	if n := len(t.spans); n > 0 {
		prev, before = t.spans[n-1], t.rest[n-1]
	}
	bad := ""
	switch {
	case s.Len <= 0 || s.Len > MaxSpan || s.Off < prev.Off+prev.Len || s.Off > maxOffset:
		bad = "data"
	case s.From < prev.From || s.To < prev.To || s.From >= s.To || s.To > maxOffset || s.To > t.blobSize || s.To-s.From > maxBlob:
		bad = "blob bytes"
	case skip < 0 || skip > MaxSpan || (skip != 0) != (flags&flagSkip != 0):
		bad = "bytes to skip"
	case (size > 0) != (flags&flagState != 0) || size > math.MaxUint32-int(before.state):
		bad = "window"
	case flags >= 2*flagStep:
		bad = "unknown flags"
	case flags&flagStep != 0 && !t.follows(s, flags):
		bad = "step"
	case t.codec == Plain && (flags&^(flagBlob|flagData) != 0 || s.To-s.From != s.Len):
		bad = "checkpoint without compression"
	case t.codec == Gzip && flags&flagHeader != 0 && flags&(flagBits|flagState) != 0:
		bad = "state before a header"
	case t.codec == Zstd && flags&(flagHeader|flagBits) != 0:
		bad = "gzip's flags"
	case t.codec > Zstd:
		bad = "unknown codec"
	}
	if bad != "" {
		return fmt.Errorf("%w: span %d: %s (data %d+%d, blob %d to %d)", ErrCorrupt, len(t.spans), bad, s.Off, s.Len, s.From, s.To)
	}
	r := rest{skip: skip, state: before.state + uint32(size), flags: flags, sum: before.sum + before.digests()}
	if flags&flagStep != 0 {
		r.step = before.step + 1
	}
	t.spans, t.rest = append(t.spans, s), append(t.rest, r)
	return nil
}

// follows reports whether s, a step with these flags, is the next one behind
// the last span's: without a gap, in data or blob, far enough from their
// checkpoint to have a whole window, and not farther than any span may reach.
func (t *Table) follows(s Span, flags uint16) bool {
	n := len(t.spans)
	if n == 0 || t.codec != Gzip || flags&(flagHeader|flagSkip|flagBlob|flagState) != flagBlob || t.rest[n-1].step == maxSteps {
		return false
	}
	prev, first := t.spans[n-1], t.spans[n-1-int(t.rest[n-1].step)]
	shared := int64(0)
	if flags&flagBits != 0 {
		shared = 1
	}
	return s.Off == prev.Off+prev.Len && s.From == prev.To-shared && s.To > prev.To &&
		s.Off-first.Off >= Window && s.Off+s.Len-first.Off <= MaxSpan && s.To-first.From <= maxBlob
}

// digests returns how many digests the span has.
func (r rest) digests() uint32 {
	return uint32(bits.OnesCount16(r.flags & (flagBlob | flagData)))
}

// sumBytes returns the size of all digests.
func (t *Table) sumBytes() int {
	if len(t.rest) == 0 {
		return 0
	}
	last := t.rest[len(t.rest)-1]
	return int(last.sum+last.digests()) * sha256.Size
}

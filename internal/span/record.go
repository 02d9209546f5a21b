package span

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/imgfs/imgfs/internal/inflate"
)

const (
	// A span is longer by what is left of the block in which it has the wished
	// length: steps are of about 128 KiB.
	defaultSpacing = 1 << 20
	defaultStep    = 3 << 15
	// Checkpoints of gzip are as close together as their windows allow: what a
	// small file costs to read is half of that and a step, and there are to be
	// worth bytes of data for each that windows take in the table.
	leastSpacing = 1 << 18
	mostSpacing  = 5 << 18
	worth        = 490
	// maxRecorded limits the spans that are recorded here, data and blob bytes:
	// they are held in memory. Encoders make blocks far shorter; one that does
	// not has no place where a reader could begin.
	maxRecorded = 16 << 20
	// tested is how much of a span is decoded to test it. A window reaches no
	// further, so what comes behind depends on nothing but what was tested. That
	// of a step is whole: only where it begins is to be tested.
	tested     = Window
	stepTested = 1 << 10
)

// draft is a span on its way into the table.
type draft struct {
	e    Entry
	blob []byte // bytes [e.From, …) as far as read
	sum  [sha256.Size]byte

	// For gzip:
	window []byte // before e.Off, whole
	used   inflate.Used
	head   []byte // first bytes of the data, to compare with when it is tested
	tested int64  // how many those are, if there are so many
}

// wants returns how many bytes of head are wanted.
func (d *draft) wants() int64 {
	if d.e.To == 0 { // it has not ended
		return d.tested
	}
	return min(d.tested, d.e.Len)
}

// recorder finishes drafts beside the pass that makes them: hashes their blob
// bytes, and tests that decoding can begin there. The pass owns it.
type recorder struct {
	rec    *recording
	drafts chan *draft
	free   chan *draft
	ended  chan struct{}
}

// newRecorder starts a goroutine, which ends with close.
func newRecorder(rec *recording) *recorder {
	const waiting = 2
	r := &recorder{rec: rec, drafts: make(chan *draft, waiting), free: make(chan *draft, waiting), ended: make(chan struct{})}
	go func() {
		defer close(r.ended)
		for d := range r.drafts {
			if rec.err == nil {
				rec.giveUp(rec.finish(d))
			}
			select {
			case r.free <- d:
			default:
			}
		}
	}()
	return r
}

// next returns a draft to make a span of, with buffers of one before it.
func (r *recorder) next() *draft {
	select {
	case d := <-r.free:
		*d = draft{blob: d.blob[:0], window: d.window[:0], head: d.head[:0]}
		return d
	default:
		return new(draft)
	}
}

// put hands over a draft.
func (r *recorder) put(d *draft) { r.drafts <- d }

// close waits for the drafts put. Only then may rec be used again.
func (r *recorder) close() {
	close(r.drafts)
	<-r.ended
}

// finish completes a draft and adds it to the table. It runs beside the pass,
// where no caller could recover.
func (rec *recording) finish(d *draft) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("internal error: panic: %v", v)
		}
	}()
	d.sum = sha256.Sum256(d.blob)
	d.e.Blob = &d.sum
	if !d.e.Step {
		d.e.Window = sparse(d.window, &d.used)
	}
	if err := rec.b.Add(d.e); err != nil {
		return err
	}
	if rec.b.t.codec != Gzip {
		return nil
	}
	t := &rec.b.t
	rec.test = slices.Grow(rec.test[:0], len(d.head))[:len(d.head)]
	if err := t.decode(len(t.spans)-1, d.blob, d.window, []part{{0, rec.test}}); err != nil {
		return fmt.Errorf("test of a checkpoint: %w", err)
	}
	if !bytes.Equal(rec.test, d.head) {
		return errors.New("test of a checkpoint: it leads to other bytes")
	}
	return nil
}

// sparse clears what is not used of a window, and cuts off what it begins with
// then. Bits of used count from the end of a full window.
func sparse(window []byte, used *inflate.Used) []byte {
	first := len(window)
	for k := len(window) - 1; k >= 0; k-- {
		if i := Window - len(window) + k; used[i/64]>>(i%64)&1 == 1 {
			first = k
		} else {
			window[k] = 0
		}
	}
	return window[first:]
}

// held reads src and keeps what was read from offset at on.
type held struct {
	src  io.Reader
	at   int64
	b    []byte
	max  int  // how much may be kept
	over bool // it was more: nothing is kept any longer
}

func (h *held) Read(p []byte) (int, error) {
	n, err := h.src.Read(p)
	if len(h.b)+n > h.max {
		h.drop()
	}
	if !h.over {
		h.b = append(h.b, p[:n]...)
	}
	return n, err
}

// drop keeps nothing from now on.
func (h *held) drop() { h.b, h.over = nil, true }

// cut returns what was read of the bytes up to offset to, and keeps those from
// offset from on in the room of into.
func (h *held) cut(to, from int64, into []byte) []byte {
	b := h.b[:to-h.at]
	h.b = append(into[:0], h.b[from-h.at:]...)
	h.at = from
	return b
}

package fetch

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
)

// Blob reads ranges of one blob, from whichever endpoint gives them. It does
// nothing until it is first read. It is safe for concurrent use, and as good
// days later: credentials are looked up again when they are refused, and what
// went wrong once is not remembered for ever.
type Blob struct {
	c     *Client
	ref   Reference
	layer Layer
	// local opens the file that the blob is in a local source; nil = the
	// blob is in a registry.
	local func() (io.ReadCloser, error)

	mu      sync.Mutex
	sources []*source // in the order to try them; nil until first use
	given   []given   // which source gave what, newest last
	turn    int       // how often Open was called
	again   bool      // a lone source has had its second chance
	served  *host     // whom bytes came from last; nil = nobody yet
}

// given is a run of bytes that one source gave, or was to give: a later one
// that overlaps it took over.
type given struct {
	off, end int64
	by       *source
}

const (
	maxGiven = 256              // runs remembered: far more than are in flight
	maxWaste = 8 << 20          // bytes read and dropped in front of a range where a server turns out to ignore ranges
	slowFor  = time.Minute      // an endpoint that was overtaken comes last for so long
	rangeFor = 10 * time.Minute // a server that ignored a range is not asked for one for so long
)

// Blob returns a layer of what ref names, or any other blob of its
// repository, as a blob to read ranges of. Of l, Blob, Size and URLs count.
func (c *Client) Blob(ref Reference, l Layer) *Blob {
	b := &Blob{c: c, ref: ref, layer: l}
	if ref.Local() {
		b.local = func() (io.ReadCloser, error) {
			if err := c.mayRead(ref); err != nil {
				return nil, err
			}
			return openLocalBlob(ref, l)
		}
	}
	return b
}

// Open returns the raw bytes of the blob from the start. The reader resumes
// broken transfers by itself and gives exactly the stated size before io.EOF,
// or an error; the digest is not verified. Opening a blob again starts at
// another endpoint where there is one. ctx bounds the reader's life.
func (b *Blob) Open(ctx context.Context) (io.ReadCloser, error) {
	if b.local != nil {
		return b.readLocal(ctx, 0, b.layer.Size)
	}
	all, err := b.endpoints()
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	turn := b.turn % len(all)
	b.turn++
	b.mu.Unlock()
	return b.read(ctx, append(slices.Clone(all[turn:]), all[:turn]...), 0, b.layer.Size, false)
}

// Range returns a reader of the n bytes from off. It gives exactly those, or
// an error; no digest is verified. It returns as soon as the transfer has
// begun, and bytes come out as they come in; ctx bounds the reader's life. A
// reader that is read to its end leaves a connection that the next one uses.
//
// What breaks is resumed once at each endpoint, without long waits, and again
// after each MiB; further patience is the caller's. Errors are of kind Network
// where a later try may do better.
//
// Where a server turns out to ignore ranges, and much would have to be read
// in front of this one, Range fails; [Blob.Whole] is true from then on, and
// the next Range is served whatever it takes.
func (b *Blob) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n < 0 || off > b.layer.Size || n > b.layer.Size-off {
		return nil, fmt.Errorf("layer %s: range %d+%d is not within its %d bytes", b.layer.Blob.Short(), off, n, b.layer.Size)
	}
	if b.local != nil {
		return b.readLocal(ctx, off, n)
	}
	if _, err := b.endpoints(); err != nil {
		return nil, err
	}
	return b.read(ctx, b.candidates(), off, off+n, true)
}

// Blame says that bytes of this range were wrong: whoever gave them is not
// asked for this blob again. It returns false if nobody else is left to ask;
// then everybody is forgiven, so that a later try starts anew. A lone endpoint
// is given a second chance first: what broke may have been the transfer.
func (b *Blob) Blame(off, n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.blameLocked(off, off+n, len(b.given)-1)
	left := slices.ContainsFunc(b.sources, func(s *source) bool { return !s.bad })
	if left {
		return true
	}
	for _, s := range b.sources {
		s.bad = false
	}
	b.again = !b.again && len(b.sources) == 1
	return b.again
}

// blameLocked marks who gave [off, end), as far as the first i+1 runs tell.
// Preconditions: b.mu is held.
func (b *Blob) blameLocked(off, end int64, i int) {
	for ; i >= 0 && off < end; i-- {
		g := b.given[i]
		if g.end <= off || end <= g.off {
			continue
		}
		g.by.bad = true
		g.by.redirect.drop()
		b.blameLocked(off, g.off, i-1)
		off = g.end
	}
}

// Link returns what was measured of the way to the server that gave bytes
// last: the time from a request to the first byte of its answer, and the
// bytes per second of one transfer. Both are 0 while nothing is known.
func (b *Blob) Link() (rtt time.Duration, bytesPerSecond float64) {
	b.mu.Lock()
	h := b.served
	if h == nil && len(b.sources) > 0 {
		h = b.sources[0].state
	}
	b.mu.Unlock()
	if h == nil {
		return 0, 0
	}
	return h.link()
}

// Whole reports that no server of the blob gives ranges: each sends all from
// the start, whatever is asked for.
func (b *Blob) Whole() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.sources {
		if !s.bad && s.state.ranges() {
			return false
		}
	}
	return len(b.sources) > 0
}

// endpoints returns all sources of the blob.
func (b *Blob) endpoints() ([]*source, error) {
	all, err := b.c.endpoints(b.ref.domain)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sources != nil {
		return b.sources, nil
	}
	var list []*source
	for _, e := range all {
		if e.pull {
			list = append(list, e.source(b.ref, b.layer))
		}
	}
	for _, raw := range b.layer.URLs {
		if s, ok := b.c.foreign(raw); ok {
			list = append(list, s)
		}
	}
	if len(list) == 0 {
		return nil, fault.New(fault.Invalid, "no endpoints found for %s", b.ref.FamiliarName())
	}
	b.sources = list
	return list, nil
}

// candidates returns the sources to try, in order: not those that gave wrong
// bytes, and last those that were overtaken of late.
func (b *Blob) candidates() []*source {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	var list, slow []*source
	for _, s := range b.sources {
		switch {
		case s.bad:
		case now.Before(s.slowUntil):
			slow = append(slow, s)
		default:
			list = append(list, s)
		}
	}
	return append(list, slow...)
}

func (b *Blob) read(ctx context.Context, sources []*source, off, end int64, brief bool) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	r := &blobReader{ctx: ctx, cancel: cancel, b: b, c: b.c, sources: sources, brief: brief, whole: b.Whole(), start: off, off: off, end: end, mark: off}
	if err := r.connect(); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// gives notes that s is to give [off, end), over a connection to h.
func (b *Blob) gives(s *source, off, end int64, h *host) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.given) == maxGiven {
		b.given = slices.Delete(b.given, 0, maxGiven/2)
	}
	b.given = append(b.given, given{off, end, s})
	b.served = h
}

// overtaken puts s behind the others for a while.
func (b *Blob) overtaken(s *source) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s.slowUntil = time.Now().Add(slowFor)
}

// source is one place a blob can be got from.
type source struct {
	host string
	// get asks for the bytes that header says.
	get   func(ctx context.Context, header http.Header, how manner) (*http.Response, error)
	state *host

	redirect redirect

	// Guarded by the blob's mutex.
	bad       bool      // it gave wrong bytes
	slowUntil time.Time // it was overtaken
}

// manner is how patiently a source is asked, see [request].
type manner struct{ patient, brief bool }

// source returns the blob at an endpoint. Where that redirected to is asked
// directly, as long as that is good: it saves half of the round trips.
func (e *endpoint) source(ref Reference, l Layer) *source {
	s := &source{host: e.host, state: e.state}
	s.get = func(ctx context.Context, header http.Header, how manner) (*http.Response, error) {
		if u := s.redirect.get(time.Now()); u != nil {
			resp, err := e.direct(ctx, u, header, how.brief)
			if err == nil || ctx.Err() != nil {
				return resp, err
			}
			e.c.opts.Logger.Debug("redirect asked anew", "host", u.Host, "err", plainError(err))
			s.redirect.dropped(u)
		}
		resp, err := e.do(ctx, request{method: http.MethodGet, repository: ref.path, what: "blobs/" + string(l.Blob), header: header, patient: how.patient, brief: how.brief})
		if err == nil && resp.Request.URL.Host != e.host {
			s.redirect.set(resp.Request.URL, time.Now())
		}
		return resp, err
	}
	return s
}

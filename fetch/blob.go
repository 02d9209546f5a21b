package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
)

var (
	errStall   = errors.New("no data for too long")
	errClosed  = errors.New("reader is closed")
	errNoRange = errors.New("range not honoured")
)

// stallReader ends a body that gives no byte for a while: the timer closes
// it, which makes the waiting Read return.
type stallReader struct {
	body  io.ReadCloser
	limit time.Duration
	timer *time.Timer

	mu      sync.Mutex
	stalled bool
}

func newStallReader(body io.ReadCloser, limit time.Duration) *stallReader {
	s := &stallReader{body: body, limit: limit}
	s.timer = time.AfterFunc(limit, func() {
		s.mu.Lock()
		s.stalled = true
		s.mu.Unlock()
		body.Close()
	})
	s.timer.Stop()
	return s
}

func (s *stallReader) Read(p []byte) (int, error) {
	s.timer.Reset(s.limit)
	n, err := s.body.Read(p)
	s.timer.Stop()
	if err != nil && err != io.EOF {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.stalled {
			err = errStall
		}
	}
	return n, err
}

func (s *stallReader) Close() error {
	s.timer.Stop()
	return s.body.Close()
}

// brokenTransfer reports whether err is a body that ended before its end.
func brokenTransfer(err error) bool {
	var f *fault.Error
	return !errors.As(err, &f) && !errors.Is(err, errMismatch) && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
}

// source is one place a blob can be got from.
type source struct {
	host string
	// get asks for the bytes from off to the end of the blob.
	get func(ctx context.Context, header http.Header, patient bool) (*http.Response, error)
	// state remembers whether ranges work; nil = nobody remembers.
	state *host
}

// blobReader gives the bytes of one layer. Not for concurrent use.
type blobReader struct {
	ctx     context.Context
	cancel  context.CancelFunc
	c       *Client
	ref     Reference
	layer   Layer
	sources []source // those not given up, the current one first
	off     int64    // bytes given so far
	body    io.ReadCloser

	tries   int   // since mark
	mark    int64 // off when tries was last set back
	noRange bool  // the current source does not honour ranges
	err     error // sticky
}

// progress is how much must arrive before the count of tries starts anew: a
// server that gives a byte per connection is not followed for ever.
const progress = 1 << 20

// openBlob opens a layer; turn rotates the endpoints.
func (c *Client) openBlob(ctx context.Context, ref Reference, l Layer, turn int) (io.ReadCloser, error) {
	all, err := c.endpoints(ref.domain)
	if err != nil {
		return nil, err
	}
	var sources []source
	for _, e := range all {
		if e.pull {
			sources = append(sources, e.source(ref, l))
		}
	}
	for _, raw := range l.URLs {
		if s, ok := c.foreign(raw); ok {
			sources = append(sources, s)
		}
	}
	if len(sources) == 0 {
		return nil, fault.New(fault.Invalid, "no endpoints found for %s", ref.FamiliarName())
	}
	turn %= len(sources)
	sources = append(sources[turn:len(sources):len(sources)], sources[:turn]...)
	ctx, cancel := context.WithCancel(ctx)
	r := &blobReader{ctx: ctx, cancel: cancel, c: c, ref: ref, layer: l, sources: sources}
	if err := r.connect(); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

func (e *endpoint) source(ref Reference, l Layer) source {
	return source{host: e.host, state: e.state, get: func(ctx context.Context, header http.Header, patient bool) (*http.Response, error) {
		return e.do(ctx, request{method: http.MethodGet, repository: ref.path, what: "blobs/" + string(l.Blob), header: header, patient: patient})
	}}
}

// connect opens the body at r.off, from the first source that gives it.
func (r *blobReader) connect() error {
	if r.layer.Size == 0 {
		// Nothing to ask for: whether the digest is that of nothing is seen
		// by who hashes.
		r.body = http.NoBody
		return nil
	}
	var last error
	var host string
	for len(r.sources) > 0 {
		s := r.sources[0]
		body, err := r.ask(s)
		if err == nil {
			r.body = body
			return nil
		}
		if r.ctx.Err() != nil {
			return r.ctx.Err()
		}
		r.c.opts.Logger.Debug("blob", "host", s.host, "blob", r.layer.Blob.Short(), "err", plainError(err))
		last, host = err, s.host
		r.next()
	}
	var f *fault.Error
	if statusOf(last) == http.StatusNotFound {
		return fault.New(fault.NotFound, "registry %s: layer %s not found: blob unknown", host, r.layer.Blob)
	} else if last != nil && !errors.As(last, &f) {
		last = explain(last, r.ref, host)
	}
	return fmt.Errorf("layer %s: %w", r.layer.Blob.Short(), last)
}

// next gives up the current source.
func (r *blobReader) next() {
	r.sources = r.sources[1:]
	r.tries, r.mark, r.noRange = 0, r.off, false
}

// ask sends one request for the rest of the blob and checks that the answer
// is just that.
func (r *blobReader) ask(s source) (io.ReadCloser, error) {
	ranged := r.off > 0 && !r.noRange && (s.state == nil || s.state.ranges())
	header := http.Header{}
	if ranged {
		// The end is stated though it is the blob's: a few servers know
		// bytes=A-B only.
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", r.off, r.layer.Size-1))
	}
	resp, err := s.get(r.ctx, header, r.off > 0)
	if err != nil {
		if ranged && (statusOf(err) == http.StatusRequestedRangeNotSatisfiable || statusOf(err) == http.StatusBadRequest) {
			return r.whole(s)
		}
		return nil, err
	}
	switch {
	case resp.StatusCode == http.StatusPartialContent && ranged:
		if err := r.checkRange(resp); err != nil {
			resp.Body.Close()
			return r.whole(s)
		}
		return newStallReader(resp.Body, r.c.opts.Stall), nil
	case resp.StatusCode == http.StatusOK:
		if ranged && s.state != nil {
			s.state.sawNoRange()
		}
		return r.rest(resp)
	}
	resp.Body.Close()
	return nil, fmt.Errorf("%w: status %d", errMismatch, resp.StatusCode)
}

// whole asks s again without a range.
func (r *blobReader) whole(s source) (io.ReadCloser, error) {
	if s.state != nil {
		s.state.sawNoRange()
	}
	r.noRange = true
	return r.ask(s)
}

// rest checks a whole blob's length and returns what was not given yet.
func (r *blobReader) rest(resp *http.Response) (io.ReadCloser, error) {
	if n := resp.ContentLength; n >= 0 && n != r.layer.Size {
		resp.Body.Close()
		return nil, fmt.Errorf("%w: it has %d bytes, the manifest says %d", errMismatch, n, r.layer.Size)
	}
	return &tailReader{newStallReader(resp.Body, r.c.opts.Stall), r.off}, nil
}

// tailReader drops the first bytes of a body. It does so within Read, so that
// a body which breaks there is one that broke.
type tailReader struct {
	io.ReadCloser
	skip int64 // bytes still to be dropped
}

func (t *tailReader) Read(p []byte) (int, error) {
	if t.skip > 0 {
		n, err := io.CopyN(io.Discard, t.ReadCloser, t.skip)
		if t.skip -= n; err != nil {
			return 0, err
		}
	}
	return t.ReadCloser.Read(p)
}

var contentRange = regexp.MustCompile(`^bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)$`)

// checkRange compares Content-Range with what was asked for.
func (r *blobReader) checkRange(resp *http.Response) error {
	m := contentRange.FindStringSubmatch(strings.TrimSpace(resp.Header.Get("Content-Range")))
	if m == nil {
		return errNoRange
	}
	first, _ := strconv.ParseInt(m[1], 10, 64)
	last, _ := strconv.ParseInt(m[2], 10, 64)
	total := r.layer.Size
	if m[3] != "*" {
		total, _ = strconv.ParseInt(m[3], 10, 64)
	}
	want := r.layer.Size - r.off
	if first != r.off || last != r.layer.Size-1 || total != r.layer.Size || resp.ContentLength >= 0 && resp.ContentLength != want {
		return errNoRange
	}
	return nil
}

// Read resumes by itself. It returns io.EOF only at the stated size.
func (r *blobReader) Read(p []byte) (int, error) {
	if r.err != nil || len(p) == 0 {
		return 0, r.err
	}
	n, err := r.read(p)
	r.off += int64(n)
	if err != nil {
		r.err = err
	}
	return n, err
}

func (r *blobReader) read(p []byte) (int, error) {
	for {
		left := r.layer.Size - r.off
		if left == 0 {
			return 0, r.end()
		}
		n, err := r.body.Read(p[:min(int64(len(p)), left)])
		if n > 0 {
			// An error comes back with the next Read.
			return n, nil
		}
		if err == nil {
			continue
		}
		if r.ctx.Err() != nil {
			return 0, r.ctx.Err()
		}
		if err := r.resume(noEOF(err)); err != nil {
			return 0, err
		}
	}
}

// end checks that nothing comes behind the last byte.
func (r *blobReader) end() error {
	var one [1]byte
	if n, _ := r.body.Read(one[:]); n > 0 {
		return fault.New(fault.Integrity, "layer %s: longer than the %d bytes its manifest states", r.layer.Blob.Short(), r.layer.Size)
	}
	return io.EOF
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// resume reconnects after the body broke with cause.
func (r *blobReader) resume(cause error) error {
	r.body.Close()
	if r.off-r.mark >= progress {
		r.tries, r.mark = 0, r.off
	}
	host := r.sources[0].host
	if r.tries >= max(0, r.c.opts.MaxRetry) {
		if r.next(); len(r.sources) == 0 {
			return fault.WithHint(fault.New(fault.Network, "layer %s: registry %s: transfer broke at byte %d of %d: %w",
				r.layer.Blob.Short(), host, r.off, r.layer.Size, plainError(cause)),
				"try again; the registry or something on the way to it cuts connections")
		}
	} else {
		r.tries++
		r.c.opts.Logger.Debug("blob resumed", "host", host, "blob", r.layer.Blob.Short(), "offset", r.off, "err", plainError(cause))
		if err := r.c.backoff(r.ctx, r.tries-1); err != nil {
			return err
		}
	}
	return r.connect()
}

// Close ends the transfer.
func (r *blobReader) Close() error {
	r.cancel()
	if r.body != nil {
		r.body.Close()
	}
	if r.err == nil {
		r.err = errClosed
	}
	return nil
}

package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
)

var (
	errStall   = errors.New("no data for too long")
	errClosed  = errors.New("reader is closed")
	errNoRange = errors.New("the server ignores ranges")
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

// blobReader gives a run of bytes of a blob. Not for concurrent use.
type blobReader struct {
	ctx     context.Context
	cancel  context.CancelFunc
	b       *Blob
	c       *Client
	sources []*source // those not given up, the current one first
	brief   bool      // the caller has patience of his own
	whole   bool      // nobody gives ranges, and the caller could know
	start   int64     // of the run
	off     int64     // of the next byte to give
	end     int64     // of the run
	body    io.ReadCloser

	tries int   // since mark
	mark  int64 // off when tries was last set back
	err   error // sticky
}

// progress is how much must arrive before the count of tries starts anew: a
// server that gives a byte per connection is not followed for ever.
const progress = 1 << 20

// connect opens the body at r.off, from the first source that gives it.
func (r *blobReader) connect() error {
	if r.off == r.end {
		// Nothing to ask for: whether the digest is that of nothing is seen
		// by who hashes.
		r.body = http.NoBody
		return nil
	}
	var last error
	var host string
	for len(r.sources) > 0 {
		got, err := r.first()
		if err == nil {
			r.body = got.body
			r.b.gives(r.sources[0], r.off, r.end, got.host)
			return nil
		}
		if r.ctx.Err() != nil {
			return r.ctx.Err()
		}
		s := r.sources[0]
		r.c.opts.Logger.Debug("blob", "host", s.host, "blob", r.b.layer.Blob.Short(), "err", plainError(err))
		last, host = err, s.host
		r.next()
	}
	var f *fault.Error
	if statusOf(last) == http.StatusNotFound {
		return fault.New(fault.NotFound, "registry %s: layer %s not found: blob unknown", host, r.b.layer.Blob)
	} else if last != nil && !errors.As(last, &f) {
		last = explain(last, r.b.ref, host)
	}
	return fmt.Errorf("layer %s: %w", r.b.layer.Blob.Short(), last)
}

// next gives up the current source.
func (r *blobReader) next() {
	r.sources = r.sources[1:]
	r.tries, r.mark = 0, r.off
}

// begun is an answer that is what was asked for.
type begun struct {
	body io.ReadCloser
	host *host // who sends it
}

// ask sends one request for the rest of the run and checks that the answer is
// just that. It changes nothing in r.
func (r *blobReader) ask(ctx context.Context, s *source) (begun, error) {
	all := r.off == 0 && r.end == r.b.layer.Size
	ranged := !all && s.state.ranges()
	header := http.Header{}
	if ranged {
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", r.off, r.end-1))
	}
	resp, err := s.get(ctx, header, manner{patient: r.off > r.start, brief: r.brief})
	if err != nil {
		if ranged && (statusOf(err) == http.StatusRequestedRangeNotSatisfiable || statusOf(err) == http.StatusBadRequest) {
			s.state.sawNoRange()
			return r.ask(ctx, s)
		}
		return begun{}, err
	}
	switch {
	case resp.StatusCode == http.StatusPartialContent && ranged:
		if r.checkRange(resp) != nil {
			resp.Body.Close()
			s.state.sawNoRange()
			return r.ask(ctx, s)
		}
		return r.transfer(resp), nil
	case resp.StatusCode == http.StatusOK:
		if ranged {
			s.state.sawNoRange()
		}
		return r.rest(resp)
	}
	resp.Body.Close()
	return begun{}, fmt.Errorf("%w: status %d", errMismatch, resp.StatusCode)
}

// transfer begins to read an answer.
func (r *blobReader) transfer(resp *http.Response) begun {
	h := r.c.host(resp.Request.URL.Host)
	return begun{&meter{ReadCloser: newStallReader(resp.Body, r.stall(h)), host: h, began: time.Now()}, h}
}

// rest checks a whole blob's length and returns what was not given yet.
func (r *blobReader) rest(resp *http.Response) (begun, error) {
	if n := resp.ContentLength; n >= 0 && n != r.b.layer.Size {
		resp.Body.Close()
		return begun{}, fmt.Errorf("%w: it has %d bytes, the manifest says %d", errMismatch, n, r.b.layer.Size)
	}
	if r.off == r.start && r.off > maxWaste && !r.whole {
		resp.Body.Close()
		return begun{}, errNoRange
	}
	got := r.transfer(resp)
	got.body = &tailReader{got.body, r.off}
	return got, nil
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
	total := r.b.layer.Size
	if m[3] != "*" {
		total, _ = strconv.ParseInt(m[3], 10, 64)
	}
	if first != r.off || last != r.end-1 || total != r.b.layer.Size || resp.ContentLength >= 0 && resp.ContentLength != r.end-r.off {
		return errNoRange
	}
	return nil
}

// Read resumes by itself. It returns io.EOF only at the end of the run.
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
		left := r.end - r.off
		if left == 0 {
			return 0, r.atEnd()
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

// atEnd checks that nothing comes behind the blob's last byte.
func (r *blobReader) atEnd() error {
	if r.end < r.b.layer.Size {
		return io.EOF
	}
	var one [1]byte
	if n, _ := r.body.Read(one[:]); n > 0 {
		return fault.New(fault.Integrity, "layer %s: longer than the %d bytes its manifest states", r.b.layer.Blob.Short(), r.b.layer.Size)
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
	s := r.sources[0]
	switch {
	case r.tries >= r.c.tries(r.brief):
		if r.next(); len(r.sources) == 0 {
			return fault.WithHint(fault.New(fault.Network, "layer %s: registry %s: transfer broke at byte %d of %d: %w",
				r.b.layer.Blob.Short(), s.host, r.off, r.b.layer.Size, plainError(cause)),
				"try again; the registry or something on the way to it cuts connections")
		}
	case errors.Is(cause, errStall) && len(r.sources) > 1:
		// Somebody else may be faster; this one is not given up for that.
		r.tries++
		r.b.overtaken(s)
		r.sources = append(slices.Clone(r.sources[1:]), s)
	default:
		r.tries++
		r.c.opts.Logger.Debug("blob resumed", "host", s.host, "blob", r.b.layer.Blob.Short(), "offset", r.off, "err", plainError(cause))
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

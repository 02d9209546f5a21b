package engineapi

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// upload sends a stream as a request's body and reads the stream of steps and
// the result that come back meanwhile. A daemon that is not there is started
// first: a stream cannot be sent twice.
func (c *Client) upload(ctx context.Context, path string, q url.Values, body io.Reader, report func(Progress), result any) error {
	if _, err := c.Ping(ctx); err != nil {
		return err
	}
	req, err := newRequest(ctx, http.MethodPost, path, q, nil)
	if err != nil {
		return err
	}
	sent := &sending{r: body}
	req.Body, req.ContentLength = io.NopCloser(sent), -1
	req.Header.Set("Content-Type", "application/x-tar")
	res, err := c.http.Do(req)
	if err != nil {
		err = gone(ctx, err)
	} else if err = replyError(res); err == nil {
		defer res.Body.Close()
		err = readStream(ctx, res.Body, report, result)
	}
	if why := sent.failed(); err != nil && why != nil {
		return why
	}
	return err
}

// sending remembers why a body could not be read: that is what the caller is
// to hear, not that the request ended because of it.
type sending struct {
	r   io.Reader
	mu  sync.Mutex // guards err
	err error
}

func (s *sending) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.mu.Lock()
		s.err = err
		s.mu.Unlock()
	}
	return n, err
}

func (s *sending) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// drainTime is for how long the rest of a body is read that is of no use.
const drainTime = time.Minute

// serveUpload is the server's side: do reads the request's body, and may report
// before it has read all of it.
func serveUpload[R any](s *server, w http.ResponseWriter, r *http.Request, do func(report func(Progress)) (R, error)) error {
	return s.serveStream(w, r, func(st *stream) error {
		res, err := do(st.step)
		if err != nil {
			return err
		}
		return st.aux(res)
	})
}

// serveStream has do read the request's body and write the reply beside it.
func (s *server) serveStream(w http.ResponseWriter, r *http.Request, do func(*stream) error) error {
	ctl := http.NewResponseController(w)
	if err := ctl.EnableFullDuplex(); err != nil {
		return err
	}
	st := &stream{w: w}
	if err := do(st); err != nil {
		if err = st.fail(err); err != nil {
			s.fail(w, r, err)
		}
	}
	// A connection that is closed while the client still sends loses what was
	// said last, and the next request, which is on its way already. A client
	// that listens stops sending at once.
	if ctl.Flush() == nil && ctl.SetReadDeadline(time.Now().Add(drainTime)) == nil {
		_, _ = io.Copy(io.Discard, r.Body)
	}
	return nil
}

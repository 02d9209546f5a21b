package fetch

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// request is one thing wanted from an endpoint.
type request struct {
	method     string
	repository string
	what       string // "manifests/14.04", "blobs/sha256:…"
	query      url.Values
	url        *url.URL // in place of all three; nil = none
	header     http.Header
	body       func() (io.ReadCloser, error) // nil = none
	size       int64                         // of body
	// once sends it a single time, as what it does cannot be done twice; a
	// stale token is still renewed.
	once bool
	// brief is for who has patience of his own, and wants to know soon: one
	// further try, and no long waits.
	brief bool
	// patient keeps trying where nobody answers at all: for what was under
	// way already.
	patient bool
}

// do sends r until it is answered: any 2xx comes back with its body open, all
// else is an error, a *statusError where a server answered. It waits, retries
// and renews tokens by the rules of the package.
func (e *endpoint) do(ctx context.Context, r request) (*http.Response, error) {
	renewed := false
	header := e.auth.header(ctx, r.repository)
	for try := 0; ; try++ {
		if err := e.state.wait(ctx, e.host, e.c.maxWait(r.brief)); err != nil {
			return nil, err
		}
		resp, err := e.once(ctx, r, header)
		if err == nil {
			if resp.StatusCode/100 == 2 {
				return resp, nil
			}
			e.c.heed(resp)
			mine := resp.Request.URL.Host == e.host
			// A token can turn stale at any time; ECR says 400 then. Once
			// per request another is asked for.
			stale := resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusBadRequest && header != ""
			if mine && stale && !renewed {
				fresh, aerr := e.auth.refused(ctx, resp, r.repository, header)
				consume(resp, e.c.opts.Stall)
				if aerr == nil && fresh != header {
					header, renewed = fresh, true
					try--
					continue
				}
				if aerr == nil {
					aerr = &statusError{method: r.method, url: redact(resp.Request.URL), host: e.host, status: resp.StatusCode}
				}
				// The token server may be the one that is out of order.
				if err = aerr; !transient(err) {
					return nil, err
				}
			} else {
				serr := newStatusError(resp, e.c.opts.Stall)
				err = serr
				// A signed link that has run out: the registry gives a new one.
				expired := !mine && (serr.status == 400 || serr.status == 401 || serr.status == 403 || serr.status == 410)
				if !expired && !retryStatus(serr.status) || expired && try > 0 {
					return nil, err
				}
			}
		} else if !transient(err) && !(r.patient && errors.Is(err, syscall.ECONNREFUSED)) {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		// Who asks for something new should not wait minutes for a server
		// that says nothing.
		silent := !r.patient && isTimeout(err) && try > 0
		if silent || r.once || try >= e.c.tries(r.brief) {
			return nil, err
		}
		e.c.opts.Logger.Debug("request again", "host", e.host, "what", r.what, "err", plainError(err))
		if err := e.c.backoff(ctx, try); err != nil {
			return nil, err
		}
	}
}

// once sends r a single time, by TLS; where plain http is allowed and TLS is
// not spoken, plainly.
func (e *endpoint) once(ctx context.Context, r request, auth string) (*http.Response, error) {
	if r.url != nil && r.url.Host != e.host {
		return e.send(ctx, r, "", r.url.Scheme)
	}
	scheme := e.scheme
	if scheme == "" {
		scheme = "https"
		if e.state.isPlain() {
			scheme = "http"
		}
	}
	sctx := ctx
	if scheme == "https" {
		// A server may finish the handshake and then fail; it has answered.
		sctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{TLSHandshakeDone: func(_ tls.ConnectionState, err error) {
			if err == nil {
				e.state.sawTLS()
			}
		}})
	}
	resp, err := e.send(sctx, r, auth, scheme)
	if scheme == "https" {
		if err == nil || spokeTLS(err) {
			e.state.sawTLS()
		} else if e.scheme == "" && ctx.Err() == nil && e.state.mayBePlain() {
			var perr error
			if resp, perr = e.send(ctx, r, auth, "http"); perr != nil {
				return nil, perr
			}
			e.state.sawPlain()
			return resp, nil
		}
	}
	return resp, err
}

func (e *endpoint) send(ctx context.Context, r request, auth, scheme string) (*http.Response, error) {
	u := &url.URL{Scheme: scheme, Host: e.host, Path: e.path + "/" + r.repository + "/" + r.what}
	if e.ns != "" {
		u.RawQuery = url.Values{"ns": {e.ns}}.Encode()
	}
	if r.url != nil {
		// It is the server's own, and taken as it is.
		u.Path, u.RawPath, u.RawQuery, u.Host = r.url.Path, r.url.RawPath, r.url.RawQuery, r.url.Host
	} else if r.query != nil {
		q := maps.Clone(r.query)
		if e.ns != "" {
			q.Set("ns", e.ns)
		}
		u.RawQuery = q.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	if r.body != nil {
		if req.Body, err = r.body(); err != nil {
			return nil, err
		}
		req.GetBody, req.ContentLength = r.body, r.size
	}
	if u.Host == e.host {
		for k, v := range e.header {
			req.Header[k] = v
		}
	}
	for k, v := range r.header {
		req.Header[k] = v
	}
	if auth != "" {
		req.Header.Set("Authorization", auth)
	}
	return e.c.send(e.client, req)
}

func (h *host) isPlain() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.plain
}

func (h *host) mayBePlain() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.tls
}

func (h *host) sawTLS() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tls = true
}

func (h *host) sawPlain() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.plain = !h.tls
}

// ranges reports whether the server is to be asked for ranges. One that
// ignored them is given another chance in a while: a proxy that has to fetch a
// blob itself ignores them, and knows them once it has it.
func (h *host) ranges() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !time.Now().Before(h.noRange)
}

func (h *host) sawNoRange() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.noRange = time.Now().Add(rangeFor)
}

// heed takes note of how long the server that answered does not want to be
// asked again.
func (c *Client) heed(resp *http.Response) {
	wait, asked := retryAfter(resp.Header, time.Now())
	if asked && (resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusServiceUnavailable) {
		c.host(resp.Request.URL.Host).deferTo(time.Now().Add(wait))
	}
}

// deferTo keeps every request away from the host until t.
func (h *host) deferTo(t time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t.After(h.notUntil) {
		h.notUntil = t
	}
}

// wait returns when the host wants to hear from us again, or with an error if
// that is longer than limit away.
func (h *host) wait(ctx context.Context, name string, limit time.Duration) error {
	for {
		h.mu.Lock()
		d := time.Until(h.notUntil)
		h.mu.Unlock()
		if d <= 0 {
			return ctx.Err()
		}
		if d > limit {
			return tooLong(name, d)
		}
		if err := after(ctx, d); err != nil {
			return err
		}
	}
}

// Who is brief has one further try and waits no longer than this.
const briefWait = 2 * time.Second

func (c *Client) maxWait(brief bool) time.Duration {
	if brief {
		return min(c.opts.MaxWait, briefWait)
	}
	return c.opts.MaxWait
}

// tries returns how many further tries there are.
func (c *Client) tries(brief bool) int {
	if brief {
		return min(1, max(0, c.opts.MaxRetry))
	}
	return max(0, c.opts.MaxRetry)
}

// backoff waits before try number try+1: doubling, at most 30 s, with half of
// it left to chance so that many clients spread.
func (c *Client) backoff(ctx context.Context, try int) error {
	d := min(c.opts.Backoff<<min(try, 10), 30*time.Second)
	return after(ctx, d/2+rand.N(d/2+1))
}

type waitingKey struct{}

// Waiting returns a context under which tell is called before every wait for
// the next try, with how long that will be. It must not block.
func Waiting(ctx context.Context, tell func(time.Duration)) context.Context {
	return context.WithValue(ctx, waitingKey{}, tell)
}

func after(ctx context.Context, d time.Duration) error {
	if tell, ok := ctx.Value(waitingKey{}).(func(time.Duration)); ok {
		tell(d)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// retryAfter reads Retry-After: seconds or a date.
func retryAfter(h http.Header, now time.Time) (time.Duration, bool) {
	s := strings.TrimSpace(h.Get("Retry-After"))
	if s == "" {
		return 0, false
	}
	if n, err := strconv.ParseInt(s, 10, 32); err == nil {
		return time.Duration(max(n, 0)) * time.Second, true
	}
	if t, err := http.ParseTime(s); err == nil {
		return max(0, t.Sub(now)), true
	}
	return 0, false
}

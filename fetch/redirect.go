package fetch

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"
)

// redirect is where a registry sent us for a blob: a URL of another host,
// signed for a while. It is a secret, kept in memory only.
type redirect struct {
	mu    sync.Mutex
	url   *url.URL // nil = not known
	until time.Time
}

const (
	// unknownLife is how long a URL is used that does not say how long it is
	// good for.
	unknownLife = 5 * time.Minute
	// redirectMargin is kept from the end of a life: the answer has to begin
	// before it.
	redirectMargin = 10 * time.Second
)

// get returns the URL if it is good at now, else nil.
func (r *redirect) get(now time.Time) *url.URL {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.url == nil || !now.Before(r.until) {
		return nil
	}
	return r.url
}

func (r *redirect) set(u *url.URL, now time.Time) {
	until, ok := signedUntil(u.Query())
	if !ok {
		until = now.Add(unknownLife)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.url, r.until = u, until.Add(-redirectMargin)
}

func (r *redirect) drop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.url = nil
}

// dropped drops u, unless another has taken its place.
func (r *redirect) dropped(u *url.URL) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.url == u {
		r.url = nil
	}
}

// signedUntil reads the end of a signed URL's life: S3's and Google's come as
// a date and seconds, CloudFront's and old S3's as seconds since 1970, Azure's
// as a date.
func signedUntil(q url.Values) (time.Time, bool) {
	const basic = "20060102T150405Z"
	for _, p := range []string{"X-Amz-", "X-Goog-"} {
		at, err := time.Parse(basic, q.Get(p+"Date"))
		life, lerr := strconv.ParseUint(q.Get(p+"Expires"), 10, 31)
		if err == nil && lerr == nil {
			return at.Add(time.Duration(life) * time.Second), true
		}
	}
	if n, err := strconv.ParseUint(q.Get("Expires"), 10, 40); err == nil {
		return time.Unix(int64(n), 0), true
	}
	if t, err := time.Parse(time.RFC3339, q.Get("se")); err == nil {
		return t, true
	}
	return time.Time{}, false
}

// direct asks u, to where the endpoint redirected before, with nothing but
// what header says.
func (e *endpoint) direct(ctx context.Context, u *url.URL, header http.Header, brief bool) (*http.Response, error) {
	h := e.c.host(u.Host)
	if err := h.wait(ctx, u.Host, e.c.maxWait(brief)); err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header = header.Clone()
	resp, err := e.c.send(e.client, req)
	if err == nil && resp.StatusCode/100 != 2 {
		e.c.heed(resp)
		return nil, newStatusError(resp, e.c.opts.Stall)
	}
	return resp, err
}

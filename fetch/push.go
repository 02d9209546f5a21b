package fetch

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// pushTo returns the server that ref's repository is pushed to: the
// upstream's own, never a mirror.
func (c *Client) pushTo(ref Reference) (*endpoint, error) {
	if ref.source != SourceRegistry {
		return nil, fault.New(fault.Invalid, "%s: only a registry can be pushed to", ref.Name())
	}
	all, err := c.endpoints(ref.domain)
	if err != nil {
		return nil, err
	}
	return all[len(all)-1], nil
}

// Stored says how a blob came to be in a repository.
type Stored int

// The ways.
const (
	Uploaded Stored = iota // all of it was sent
	Existed                // it was there
	Mounted                // the registry took it from another repository
)

// PushBlob stores a blob in ref's repository, unless it is there. open returns
// its bytes from the start and may be asked again; what is behind size bytes
// is not read. mountFrom names a repository of the same registry that has the
// blob, "" for none. An upload that breaks is begun anew: the registries that
// most people run forget what they got of it. Errors of open come back as they
// are.
func (c *Client) PushBlob(ctx context.Context, ref Reference, digest id.Blob, size int64, open func() (io.ReadCloser, error), mountFrom string) (Stored, error) {
	e, err := c.pushTo(ref)
	if err != nil {
		return 0, err
	}
	u := &upload{e: e, repository: ref.path, digest: digest, size: size, open: open, mountFrom: mountFrom}
	for try := 0; ; try++ {
		how, err := u.run(ctx)
		if err == nil || ctx.Err() != nil {
			return how, err
		}
		// Registries also forget uploads for reasons of their own.
		forgotten := try == 0 && statusOf(err) == http.StatusNotFound
		if !forgotten && !transient(err) || try >= max(0, c.opts.MaxRetry) {
			return 0, explainPush(err, ref, e.host)
		}
		if err := c.backoff(ctx, try); err != nil {
			return 0, err
		}
	}
}

// HasBlob reports whether ref's repository has a blob.
func (c *Client) HasBlob(ctx context.Context, ref Reference, digest id.Blob) (bool, error) {
	e, err := c.pushTo(ref)
	if err != nil {
		return false, err
	}
	there, err := (&upload{e: e, repository: ref.path, digest: digest}).there(ctx)
	return there, explainPush(err, ref, e.host)
}

// upload is a blob on its way to a registry.
type upload struct {
	e          *endpoint
	repository string
	digest     id.Blob
	size       int64
	open       func() (io.ReadCloser, error)
	mountFrom  string
}

// run makes one attempt: nothing, if the blob is there; a mount; or all of it.
func (u *upload) run(ctx context.Context) (Stored, error) {
	if there, err := u.there(ctx); there || err != nil {
		return Existed, err
	}
	r := request{method: http.MethodPost, repository: u.repository, what: "blobs/uploads/"}
	if u.mountFrom != "" {
		r.query = url.Values{"mount": {string(u.digest)}, "from": {u.mountFrom}}
	}
	resp, err := u.e.do(ctx, r)
	if err != nil {
		return 0, err
	}
	consume(resp, u.e.c.opts.Stall)
	if resp.StatusCode == http.StatusCreated {
		return Mounted, nil
	}
	place, err := resp.Request.URL.Parse(resp.Header.Get("Location"))
	if err != nil || resp.Header.Get("Location") == "" {
		return 0, fault.New(fault.Network, "registry %s: does not say where to upload to", u.e.host)
	}
	if place.Host != resp.Request.URL.Host && resp.Request.URL.Scheme == "https" && place.Scheme != "https" {
		return 0, errDowngrade
	}
	if place.RawQuery != "" {
		place.RawQuery += "&"
	}
	place.RawQuery += "digest=" + url.QueryEscape(string(u.digest))
	return Uploaded, u.put(ctx, place)
}

func (u *upload) there(ctx context.Context) (bool, error) {
	resp, err := u.e.do(ctx, request{method: http.MethodHead, repository: u.repository, what: "blobs/" + string(u.digest)})
	if s := statusOf(err); s/100 == 4 && s != http.StatusTooManyRequests {
		return false, nil // whether it may be put there is for the upload to find out
	}
	if err != nil {
		return false, err
	}
	consume(resp, u.e.c.opts.Stall)
	return true, nil
}

// put sends the blob to place.
func (u *upload) put(ctx context.Context, place *url.URL) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	limit := u.e.c.opts.Stall
	stalled := time.AfterFunc(limit, func() { cancel(errStall) })
	defer stalled.Stop()
	stalled.Stop()
	resp, err := u.e.do(ctx, request{method: http.MethodPut, repository: u.repository, url: place, once: true,
		header: http.Header{"Content-Type": {"application/octet-stream"}}, size: u.size,
		body: func() (io.ReadCloser, error) {
			if u.size == 0 {
				return http.NoBody, nil
			}
			f, err := u.open()
			if err != nil {
				return nil, err
			}
			return &sending{f: f, r: io.LimitReader(f, u.size), stalled: stalled, limit: limit}, nil
		}})
	if err != nil {
		if errors.Is(context.Cause(ctx), errStall) {
			return errStall
		}
		return err
	}
	consume(resp, limit)
	return nil
}

// sending is the body of a request. From each Read to the next, a timer runs
// that ends the request: then the server takes nothing any more.
type sending struct {
	f       io.ReadCloser
	r       io.Reader
	stalled *time.Timer
	limit   time.Duration
}

func (s *sending) Read(p []byte) (int, error) {
	s.stalled.Stop()
	n, err := s.r.Read(p)
	if err == nil {
		s.stalled.Reset(s.limit)
	}
	return n, err
}

func (s *sending) Close() error {
	s.stalled.Stop()
	return s.f.Close()
}

// PushManifest stores a manifest under ref's tag, or by its digest if ref has
// one. If it states a subject, and the registry keeps no account of referrers
// itself, the index that stands in for that is brought up to date; kept says
// whether the registry did it.
func (c *Client) PushManifest(ctx context.Context, ref Reference, mediaType string, body []byte) (kept bool, err error) {
	e, err := c.pushTo(ref)
	if err != nil {
		return false, err
	}
	if len(body) > maxManifest {
		return false, fault.New(fault.Invalid, "manifest: %d bytes, more than %d", len(body), maxManifest)
	}
	digest := id.BlobOf(body)
	if ref.digest != "" && ref.digest != digest {
		return false, fault.New(fault.Integrity, "manifest has the digest %s, not %s", digest, ref.digest)
	}
	name := ref.tag
	if ref.digest != "" {
		name = string(digest)
	}
	resp, err := e.putManifest(ctx, ref, name, mediaType, body)
	if err != nil {
		return false, explainPush(err, ref, e.host)
	}
	if kept = resp.Header.Get("OCI-Subject") != ""; kept {
		return true, nil
	}
	return false, explainPush(e.list(ctx, ref, mediaType, body), ref, e.host)
}

func (e *endpoint) putManifest(ctx context.Context, ref Reference, name, mediaType string, body []byte) (*http.Response, error) {
	resp, err := e.do(ctx, request{method: http.MethodPut, repository: ref.path, what: "manifests/" + name,
		header: http.Header{"Content-Type": {mediaType}}, size: int64(len(body)),
		body: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(string(body))), nil }})
	if err == nil {
		consume(resp, e.c.opts.Stall)
	}
	return resp, err
}

// DeleteManifest removes a manifest by its digest, and from the index of its
// subject's referrers where that is ours to keep. A registry that deletes
// nothing is content with the latter.
func (c *Client) DeleteManifest(ctx context.Context, ref Reference, digest id.Blob) error {
	e, err := c.pushTo(ref)
	if err != nil {
		return err
	}
	unlisted, err := e.unlist(ctx, ref, digest)
	if err != nil {
		return explainPush(err, ref.At(digest), e.host)
	}
	resp, err := e.do(ctx, request{method: http.MethodDelete, repository: ref.path, what: "manifests/" + string(digest)})
	switch s := statusOf(err); {
	case err == nil:
		consume(resp, e.c.opts.Stall)
	case s != http.StatusMethodNotAllowed && s != http.StatusBadRequest && s != http.StatusNotImplemented:
		return explainPush(err, ref.At(digest), e.host)
	case !unlisted:
		return fault.WithHint(fault.New(fault.Denied, "registry %s: does not delete manifests", e.host), "whoever runs the registry can")
	}
	return nil
}

// explainPush is explain for what is written.
func explainPush(err error, ref Reference, host string) error {
	if s := statusOf(err); s == http.StatusUnauthorized || s == http.StatusForbidden {
		return fault.WithHint(fault.New(fault.Denied, "push access denied for %s: requested access to the resource is denied", ref.FamiliarName()),
			"log in with an account that may push (imgfs login %s), or give --authfile FILE or --creds USER:PASSWORD", certsName(host))
	}
	return explain(err, ref, host)
}

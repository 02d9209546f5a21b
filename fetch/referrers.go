package fetch

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// Descriptor says what a manifest is that belongs to another one.
type Descriptor struct {
	MediaType    string
	Digest       id.Blob
	Size         int64
	ArtifactType string // where it states none, the media type of its config
	Annotations  map[string]string
}

const (
	maxReferrers = 1000             // of one manifest that are looked at
	maxPages     = 16               // of answers they come in
	refsFor      = 10 * time.Minute // a server without the API is not asked for so long
	maxFetched   = 256 << 20        // bytes of a blob that is held in memory
)

// Referrers lists the manifests that state subject as theirs and have the
// artifact type, "" for any: from the registry's referrers API, or where it
// has none, from the index under the tag that stands in for it. No manifest is
// an empty list and no error. Only servers that a hosts.toml gives the
// capability are asked, and the registry itself.
func (c *Client) Referrers(ctx context.Context, ref Reference, subject id.Blob, artifactType string) ([]Descriptor, error) {
	if ref.source != SourceRegistry {
		return nil, nil
	}
	var list []v1.Descriptor
	err := c.try(ref, func(e *endpoint) bool { return e.referrers }, func(e *endpoint) (err error) {
		list, err = e.referrersOf(ctx, ref, subject, artifactType)
		return err
	})
	if statusOf(err) == http.StatusNotFound || fault.KindOf(err) == fault.NotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []Descriptor
	for _, d := range list {
		digest, err := id.ParseBlob(d.Digest.String())
		if err != nil || d.Size < 0 || d.Size > maxManifest || artifactType != "" && d.ArtifactType != "" && d.ArtifactType != artifactType {
			continue // filtering is the server's to offer, not to be relied on
		}
		out = append(out, Descriptor{string(d.MediaType), digest, d.Size, d.ArtifactType, d.Annotations})
	}
	return out, nil
}

// referrersOf asks one endpoint, by API or tag. It fails with 404 if there is
// nothing, so that another endpoint is asked. Whether the server has the API
// is not known at first: then both are asked at a time, which saves a round
// trip to those that have not.
func (e *endpoint) referrersOf(ctx context.Context, ref Reference, subject id.Blob, artifactType string) ([]v1.Descriptor, error) {
	tag := func(ctx context.Context) ([]v1.Descriptor, error) {
		x, err := e.referrersTag(ctx, ref, subject)
		if err != nil {
			return nil, err
		}
		return x.Manifests, nil
	}
	has := e.state.referrers()
	if has == absent {
		return tag(ctx)
	}
	var tagged []v1.Descriptor
	var terr error
	var wg sync.WaitGroup
	tctx, cancel := context.WithCancel(ctx)
	defer wg.Wait()
	defer cancel()
	if has == unknown {
		wg.Go(func() { tagged, terr = tag(tctx) })
	}
	list, err := e.referrersAPI(ctx, ref, subject, artifactType)
	if !lacksReferrers(err) {
		if err == nil {
			e.state.sawReferrers(present)
		}
		return list, err
	}
	e.state.sawReferrers(absent)
	if has == present {
		return tag(ctx)
	}
	wg.Wait()
	return tagged, terr
}

// lacksReferrers reports whether err means that the server knows no such API:
// one that does has an empty list for what it does not know.
func lacksReferrers(err error) bool {
	var s *statusError
	if !errors.As(err, &s) {
		return errors.Is(err, errNoIndex)
	}
	switch s.status {
	case http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusGone, http.StatusNotImplemented:
		return true
	}
	return false
}

// errNoIndex marks an answer of the referrers API that is none: some servers
// send a page for every path.
var errNoIndex = errors.New("the answer is no index of referrers")

// referrersAPI asks the API, page by page.
func (e *endpoint) referrersAPI(ctx context.Context, ref Reference, subject id.Blob, artifactType string) ([]v1.Descriptor, error) {
	r := request{method: http.MethodGet, repository: ref.path, what: "referrers/" + string(subject),
		header: http.Header{"Accept": {typeIndex}}}
	if artifactType != "" {
		r.query = url.Values{"artifactType": {artifactType}}
	}
	var list []v1.Descriptor
	for range maxPages {
		resp, body, err := e.get(ctx, r, "referrers", maxManifest)
		if err != nil {
			return nil, err
		}
		var x v1.IndexManifest
		if json.Unmarshal(body, &x) != nil || x.SchemaVersion != 2 {
			return nil, errNoIndex
		}
		list = append(list, x.Manifests...)
		next := nextPage(resp)
		if next == nil || len(list) >= maxReferrers {
			break
		}
		r.url = next
	}
	return list[:min(len(list), maxReferrers)], nil
}

// nextPage returns what a Link header says comes next, nil if nothing does or
// it is on another host.
func nextPage(resp *http.Response) *url.URL {
	for _, h := range resp.Header.Values("Link") {
		for part := range strings.SplitSeq(h, ",") {
			target, params, _ := strings.Cut(part, ";")
			target = strings.TrimSpace(target)
			if !strings.Contains(strings.ReplaceAll(params, `"`, ""), "rel=next") || !strings.HasPrefix(target, "<") || !strings.HasSuffix(target, ">") {
				continue
			}
			u, err := resp.Request.URL.Parse(target[1 : len(target)-1])
			if err == nil && u.Host == resp.Request.URL.Host && u.Scheme == resp.Request.URL.Scheme {
				return u
			}
		}
	}
	return nil
}

// referrersTagOf is the tag of the index that stands in for the API.
func referrersTagOf(subject id.Blob) string { return "sha256-" + subject.Hex() }

func (e *endpoint) referrersTag(ctx context.Context, ref Reference, subject id.Blob) (*v1.IndexManifest, error) {
	got, err := e.manifest(ctx, ref.path, referrersTagOf(subject), "")
	if err != nil {
		return nil, err
	}
	doc, err := parseManifest(got.body, got.contentType)
	if err != nil {
		return nil, err
	}
	if doc.index == nil {
		return nil, fault.New(fault.Integrity, "tag %s of %s is no index of referrers", referrersTagOf(subject), ref.FamiliarName())
	}
	return doc.index, nil
}

// capability is whether a server has something.
type capability int

const (
	unknown capability = iota
	present
	absent
)

func (h *host) referrers() capability {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.refs == absent && time.Now().After(h.refsUntil) {
		return unknown
	}
	return h.refs
}

func (h *host) sawReferrers(c capability) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refs, h.refsUntil = c, time.Now().Add(refsFor)
}

// FetchManifest gets any manifest of ref's repository by its digest, and
// verifies it. It is not parsed: it may be an artifact's.
func (c *Client) FetchManifest(ctx context.Context, ref Reference, digest id.Blob) (body []byte, mediaType string, err error) {
	got, err := c.byDigest(ctx, ref, digest)
	if err != nil {
		return nil, "", err
	}
	return got.body, stripType(got.contentType), nil
}

// FetchBlob gets a blob of ref's repository that fits in memory, and verifies
// it.
func (c *Client) FetchBlob(ctx context.Context, ref Reference, digest id.Blob, size int64) ([]byte, error) {
	if size < 0 || size > maxFetched {
		return nil, fault.New(fault.Integrity, "blob %s: %d bytes, more than %d", digest.Short(), size, maxFetched)
	}
	blob := c.Blob(ref, Layer{Blob: digest, Size: size})
	for {
		r, err := blob.Range(ctx, 0, size)
		if err != nil {
			return nil, err
		}
		body, err := io.ReadAll(r)
		r.Close()
		if err != nil {
			return nil, err
		}
		if id.BlobOf(body) == digest {
			return body, nil
		}
		if !blob.Blame(0, size) {
			return nil, fault.New(fault.Integrity, "blob verification failed for digest %s", digest)
		}
	}
}

package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// try asks the endpoints of ref in order until one gives what is wanted, and
// returns which. With several, the upstream's own failure (the last) decides
// what the user reads; what the mirrors said stands behind it.
func (c *Client) try(ref Reference, use func(*endpoint) bool, ask func(*endpoint) error) error {
	all, err := c.endpoints(ref.domain)
	if err != nil {
		return err
	}
	var last error
	var said []string
	host := ref.domain
	for _, e := range all {
		if !use(e) {
			continue
		}
		err := ask(e)
		if err == nil {
			return nil
		}
		if errors.Is(err, context.Canceled) {
			return err
		}
		c.opts.Logger.Debug("endpoint gave up", "host", e.host, "err", plainError(err))
		if last != nil {
			said = append(said, mirrorSaid(host, last))
		}
		last, host = err, e.host
	}
	if last == nil {
		return fault.WithHint(fault.New(fault.Invalid, "no endpoints found for %s", ref.FamiliarName()),
			"no server in certs.d/%s/hosts.toml has the capability", ref.domain)
	}
	err = explain(last, ref, host)
	if len(said) > 0 {
		err = fmt.Errorf("%w (%s)", err, strings.Join(said, "; "))
	}
	return err
}

func mirrorSaid(host string, err error) string {
	var s *statusError
	if errors.As(err, &s) {
		return fmt.Sprintf("mirror %s: %d %s", host, s.status, http.StatusText(s.status))
	}
	return fmt.Sprintf("mirror %s: %v", host, plainError(err))
}

func canResolve(e *endpoint) bool { return e.resolve }
func canPull(e *endpoint) bool    { return e.pull }

// head returns the digest of ref's tag. Where the server does not answer HEAD,
// or not with a digest, the manifest is got and comes along.
func (c *Client) head(ctx context.Context, ref Reference) (id.Blob, *response, error) {
	var digest id.Blob
	var got *response
	err := c.try(ref, canResolve, func(e *endpoint) error {
		resp, err := e.do(ctx, manifestRequest(http.MethodHead, ref.path, ref.tag))
		if err == nil {
			consume(resp, e.c.opts.Stall)
			d, derr := id.ParseBlob(resp.Header.Get("Docker-Content-Digest"))
			if derr == nil {
				digest = d
				return nil
			}
		} else if s := statusOf(err); s/100 != 4 && s != http.StatusNotImplemented || s == http.StatusUnauthorized || s == http.StatusNotFound || s == http.StatusTooManyRequests {
			return err
		}
		got, err = e.manifest(ctx, ref.path, ref.tag, "")
		if err == nil {
			digest = got.digest
		}
		return err
	})
	return digest, got, err
}

// response is a manifest or index as it came.
type response struct {
	body        []byte
	contentType string
	digest      id.Blob // of body
}

func manifestRequest(method, repository, tag string) request {
	return request{method: method, repository: repository, what: "manifests/" + tag,
		header: http.Header{"Accept": {acceptManifests}}}
}

// manifest gets a manifest by tag or digest. want is the digest it must have,
// "" = the one the server states, if it does.
func (e *endpoint) manifest(ctx context.Context, repository, name string, want id.Blob) (*response, error) {
	resp, body, err := e.get(ctx, manifestRequest(http.MethodGet, repository, name), "manifest", maxManifest)
	if err != nil {
		return nil, err
	}
	if body, err = signedPart(body); err != nil {
		return nil, err
	}
	r := &response{body: body, contentType: resp.Header.Get("Content-Type"), digest: id.BlobOf(body)}
	if want == "" {
		want, _ = id.ParseBlob(resp.Header.Get("Docker-Content-Digest"))
	}
	if want != "" && r.digest != want {
		return nil, fault.New(fault.Integrity, "manifest verification failed for digest %s: got %s", want, r.digest)
	}
	return r, nil
}

// get asks for what fits in memory, and again as long as a body breaks in the
// middle; an answer that does not begin is do's to ask for. name is for errors.
func (e *endpoint) get(ctx context.Context, r request, name string, limit int64) (*http.Response, []byte, error) {
	for try := 0; ; try++ {
		resp, err := e.do(ctx, r)
		if err != nil {
			return nil, nil, err
		}
		body, err := e.readAll(resp, limit)
		if err == nil {
			return resp, body, nil
		}
		if !brokenTransfer(err) || ctx.Err() != nil || try >= e.c.opts.MaxRetry {
			return nil, nil, fmt.Errorf("%s: %w", name, err)
		}
		if err := e.c.backoff(ctx, try); err != nil {
			return nil, nil, err
		}
	}
}

// readAll reads and closes the body of an answer that fits in memory.
func (e *endpoint) readAll(resp *http.Response, limit int64) ([]byte, error) {
	body := newStallReader(resp.Body, e.c.opts.Stall)
	defer body.Close()
	if resp.ContentLength > limit {
		return nil, fault.New(fault.Integrity, "%d bytes, more than %d", resp.ContentLength, limit)
	}
	b, err := io.ReadAll(io.LimitReader(body, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fault.New(fault.Integrity, "more than %d bytes", limit)
	}
	return b, err
}

// byDigest gets a manifest by its digest from whoever has it.
func (c *Client) byDigest(ctx context.Context, ref Reference, d id.Blob) (*response, error) {
	var got *response
	err := c.try(ref, canPull, func(e *endpoint) (err error) {
		got, err = e.manifest(ctx, ref.path, string(d), d)
		return err
	})
	return got, err
}

// named gets the manifest or index that ref names. For a tag that is one
// round trip, as the answer has both body and digest. Only where a mirror that
// may not resolve tags stands first, the registry is asked for the digest
// alone, and spared the rest: some count it.
func (c *Client) named(ctx context.Context, ref Reference) (*response, error) {
	if ref.digest != "" {
		return c.byDigest(ctx, ref, ref.digest)
	}
	all, err := c.endpoints(ref.domain)
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(all, canPull); i >= 0 && !all[i].resolve {
		digest, got, err := c.head(ctx, ref)
		if err != nil || got != nil {
			return got, err
		}
		return c.byDigest(ctx, ref, digest)
	}
	var got *response
	err = c.try(ref, canResolve, func(e *endpoint) (err error) {
		got, err = e.manifest(ctx, ref.path, ref.tag, "")
		return err
	})
	return got, err
}

func (c *Client) resolve(ctx context.Context, ref Reference, p Platform) (*Manifest, error) {
	got, err := c.named(ctx, ref)
	if err != nil {
		return nil, err
	}
	img := &Image{Reference: ref, Digest: got.digest, ManifestDigest: got.digest, Manifest: got.body}
	get := func(d v1.Descriptor) (*response, error) {
		b, err := id.ParseBlob(d.Digest.String())
		if err != nil {
			return nil, fault.New(fault.Integrity, "index: %w", err)
		}
		return c.byDigest(ctx, ref, b)
	}
	doc, err := img.descend(got, p, get)
	if err != nil {
		return nil, err
	}
	blob := func(l Layer) *Blob { return c.Blob(ref, l) }
	if doc.schema1 != nil {
		if err := c.resolveSchema1(ctx, img, doc.schema1); err != nil {
			return nil, err
		}
		img.blobs = newBlobs(img.Layers, blob)
		return img.manifest(nil, func(context.Context) (*Image, error) { return img, checkPlatform(img, p) }), nil
	}
	m := doc.image
	if img.Layers, err = layersOf(m); err != nil {
		return nil, err
	}
	img.blobs = newBlobs(img.Layers, blob)
	return img.manifest(m, func(ctx context.Context) (*Image, error) {
		whole := *img
		conf, err := c.config(ctx, ref, m.Config)
		if err != nil {
			return nil, err
		}
		if err := describe(&whole, m, conf); err != nil {
			return nil, err
		}
		return &whole, checkPlatform(&whole, p)
	}), nil
}

// descend follows indexes to the manifest for p, which it notes in img.
func (img *Image) descend(got *response, p Platform, get func(v1.Descriptor) (*response, error)) (document, error) {
	for depth := 0; ; depth++ {
		doc, err := parseManifest(got.body, got.contentType)
		if err != nil {
			return document{}, err
		}
		if doc.index == nil {
			img.Manifest, img.ManifestDigest, img.MediaType = got.body, got.digest, doc.mediaType
			return doc, nil
		}
		if depth == maxDepth {
			return document{}, fault.New(fault.Integrity, "index: nested more than %d deep", maxDepth)
		}
		d, err := choose(doc.index, p)
		if err != nil {
			return document{}, err
		}
		if got, err = get(d); err != nil {
			return document{}, err
		}
		if d.Size > 0 && d.Size != int64(len(got.body)) {
			return document{}, fault.New(fault.Integrity, "manifest %s: %d bytes, the index says %d", got.digest, len(got.body), d.Size)
		}
	}
}

// config gets an image's config and verifies it.
func (c *Client) config(ctx context.Context, ref Reference, d v1.Descriptor) ([]byte, error) {
	want, err := id.ParseBlob(d.Digest.String())
	if err != nil {
		return nil, fault.New(fault.Integrity, "image config: %w", err)
	}
	var conf []byte
	err = c.try(ref, canPull, func(e *endpoint) (err error) {
		_, conf, err = e.get(ctx, request{method: http.MethodGet, repository: ref.path, what: "blobs/" + string(want)}, "image config", maxConfig)
		if err == nil && id.BlobOf(conf) != want {
			err = fault.New(fault.Integrity, "image config verification failed for digest %s", want)
		}
		return err
	})
	return conf, err
}

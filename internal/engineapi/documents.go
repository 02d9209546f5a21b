package engineapi

import (
	"context"
	"io"
	"net/http"
	"net/url"
)

// Documents is what the route needs that shows what an image is made of.
type Documents interface {
	// Document returns the bytes of an image's config or manifest, as they came.
	Document(ctx context.Context, name, kind, platform string) ([]byte, error)
}

// Kinds of documents.
const (
	DocumentConfig   = "config"
	DocumentManifest = "manifest"
)

func (s *server) document(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	b, err := s.engine.Document(r.Context(), name(r), q.Get("kind"), q.Get("platform"))
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(b) // a client that has gone reads nothing
	return nil
}

// Document returns the bytes of an image's config or manifest, as they came.
func (c *Client) Document(ctx context.Context, name, kind, platform string) ([]byte, error) {
	res, err := c.do(ctx, http.MethodGet, "/imgfs/v1/documents/"+name, url.Values{"kind": {kind}, "platform": {platform}}, nil, nil)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxReply))
	if err != nil {
		return nil, lost(ctx, err)
	}
	return b, nil
}

package engineapi

import (
	"context"
	"net/http"
	"net/url"

	"github.com/imgfs/imgfs/internal/id"
)

// Indexes is what the routes of indexes beside images need.
type Indexes interface {
	// PushIndex stores an index of an image's layers beside it in its registry.
	PushIndex(ctx context.Context, req IndexRequest, report func(Progress)) (IndexResult, error)
	// ListIndexes returns the indexes beside an image in its registry.
	ListIndexes(ctx context.Context, req IndexRequest) ([]IndexInfo, error)
	// RemoveIndexes removes those of req.Format, "" for all, and returns them.
	RemoveIndexes(ctx context.Context, req IndexRequest) ([]IndexInfo, error)
}

// Formats of an index beside an image.
const (
	IndexOwn    = "imgfs"
	IndexSoci   = "soci"    // SOCI's first version: found as a referrer
	IndexSociV2 = "soci-v2" // its second: an image with an annotation, under a name of its own
)

// IndexRequest names an image in a registry.
type IndexRequest struct {
	Image    string          `json:"image"`
	Format   string          `json:"format,omitempty"` // "" to push is IndexOwn
	To       string          `json:"to,omitempty"`     // IndexSociV2: the name of the image with the index
	Platform string          `json:"platform,omitempty"`
	Registry RegistryOptions `json:"registry,omitzero"`
}

// IndexResult is what was pushed.
type IndexResult struct {
	Reference string  `json:"reference"` // of the image that has the index
	Digest    id.Blob `json:"digest"`    // of the index
	Size      int64   `json:"size"`      // bytes of its blobs
	Layers    int     `json:"layers"`    // that it has something for
	Trace     bool    `json:"trace"`     // it tells what is read first
}

// IndexInfo is an index found beside an image.
type IndexInfo struct {
	Format string  `json:"format"`
	Digest id.Blob `json:"digest"`
	Size   int64   `json:"size"` // bytes of its blobs
	Layers int     `json:"layers"`
	Trace  bool    `json:"trace"`
}

// indexes serves what answers a query with a list of indexes.
func indexes(do func(Engine, context.Context, IndexRequest) ([]IndexInfo, error)) handler {
	return func(s *server, w http.ResponseWriter, r *http.Request) error {
		req, err := indexRequest(r)
		if err != nil {
			return err
		}
		list, err := do(s.engine, r.Context(), req)
		if err != nil {
			return err
		}
		return reply(w, list)
	}
}

// indexRequest reads a query. Options of the registry travel in a header, since
// there are secrets among them.
func indexRequest(r *http.Request) (IndexRequest, error) {
	q := r.URL.Query()
	o, err := headerOptions(r)
	return IndexRequest{Image: q.Get("image"), Format: q.Get("format"), Platform: q.Get("platform"), Registry: o}, err
}

// PushIndex stores an index of an image's layers beside it in its registry.
func (c *Client) PushIndex(ctx context.Context, req IndexRequest, report func(Progress)) (IndexResult, error) {
	return runJob[IndexResult](ctx, c, "/imgfs/v1/indexes", req, report)
}

// Indexes returns the indexes beside an image in its registry.
func (c *Client) Indexes(ctx context.Context, req IndexRequest) ([]IndexInfo, error) {
	return c.indexes(ctx, http.MethodGet, req)
}

// RemoveIndexes removes indexes beside an image, and returns them.
func (c *Client) RemoveIndexes(ctx context.Context, req IndexRequest) ([]IndexInfo, error) {
	return c.indexes(ctx, http.MethodDelete, req)
}

func (c *Client) indexes(ctx context.Context, method string, req IndexRequest) ([]IndexInfo, error) {
	h, err := optionsHeader(req.Registry)
	if err != nil {
		return nil, err
	}
	var list []IndexInfo
	q := url.Values{"image": {req.Image}, "format": {req.Format}, "platform": {req.Platform}}
	return list, c.exchange(ctx, method, "/imgfs/v1/indexes", q, h, nil, &list)
}

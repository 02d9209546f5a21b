package engineapi

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"unicode/utf8"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// Source names a tree, or the upper of one: exactly one field is set.
type Source struct {
	Mount    string `json:"mount,omitempty"`    // ID of a live mount
	Upper    string `json:"upper,omitempty"`    // name of an upper of the store
	UpperDir string `json:"upperDir,omitempty"` // path of an upper elsewhere
	Image    string `json:"image,omitempty"`    // reference, ID or prefix
}

func (s Source) query() url.Values {
	q := url.Values{}
	for k, v := range map[string]string{"mount": s.Mount, "upper": s.Upper, "upperDir": s.UpperDir, "image": s.Image} {
		if v != "" {
			q.Set(k, v)
		}
	}
	return q
}

func sourceOf(q url.Values) Source {
	return Source{Mount: q.Get("mount"), Upper: q.Get("upper"), UpperDir: q.Get("upperDir"), Image: q.Get("image")}
}

// Change is one element of GET /imgfs/v1/changes.
type Change struct {
	Kind string // A, C or D
	Path string // any bytes
}

// wireChange is a Change as JSON, which cannot hold any bytes.
type wireChange struct {
	Kind  string `json:"kind"`
	Path  string `json:"path"`
	Bytes []byte `json:"bytes,omitempty"` // of a path that is not UTF-8, which Path then only shows
}

// MarshalJSON keeps paths that are not UTF-8.
func (c Change) MarshalJSON() ([]byte, error) {
	w := wireChange{Kind: c.Kind, Path: c.Path}
	if !utf8.ValidString(c.Path) {
		w.Bytes = []byte(c.Path)
	}
	return json.Marshal(w)
}

// UnmarshalJSON is the inverse of MarshalJSON.
func (c *Change) UnmarshalJSON(b []byte) error {
	var w wireChange
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	c.Kind, c.Path = w.Kind, w.Path
	if w.Bytes != nil {
		c.Path = string(w.Bytes)
	}
	return nil
}

// CommitRequest is the body of POST /imgfs/v1/commit.
type CommitRequest struct {
	Source      Source   `json:"source"`              // with an upper
	Reference   string   `json:"reference,omitempty"` // the image's name; "": none
	Message     string   `json:"message,omitempty"`
	Author      string   `json:"author,omitempty"`
	Changes     []string `json:"changes,omitempty"`     // instructions of a Dockerfile
	Compression string   `json:"compression,omitempty"` // gzip (the default) or zstd
	Created     *int64   `json:"created,omitempty"`     // seconds since 1970; nil: now
}

// CommitResult is the reply to it.
type CommitResult struct {
	ID     id.ImageID `json:"id"`
	Digest id.Blob    `json:"digest"`          // of the manifest
	Layer  id.DiffID  `json:"layer,omitempty"` // "": nothing was changed, so no layer was added
}

// Contents is what the routes need that read trees and uppers.
type Contents interface {
	// Changes returns what an upper changes, or, of an image, what its
	// uppermost layer does; with than, how the image differs from that image.
	Changes(ctx context.Context, s Source, than string) ([]Change, error)
	// Export writes the tar of the tree, or of its upper's layer alone.
	Export(ctx context.Context, s Source, layer bool, w io.Writer) error
	// Commit makes an image of an upper.
	Commit(ctx context.Context, req CommitRequest) (CommitResult, error)
}

func (s *server) changes(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	list, err := s.engine.Changes(r.Context(), sourceOf(q), q.Get("than"))
	if err != nil {
		return err
	}
	if list == nil {
		list = []Change{}
	}
	return reply(w, list)
}

func (s *server) export(w http.ResponseWriter, r *http.Request) error {
	return s.sendTar(w, func(w io.Writer) error {
		return s.engine.Export(r.Context(), sourceOf(r.URL.Query()), boolParam(r, "layer"), w)
	})
}

func (s *server) commit(w http.ResponseWriter, r *http.Request) error {
	var req CommitRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		return fault.New(fault.Invalid, "commit request: %w", err)
	}
	res, err := s.engine.Commit(r.Context(), req)
	if err != nil {
		return err
	}
	return reply(w, res)
}

// Changes lists what an upper changes; see [Contents].
func (c *Client) Changes(ctx context.Context, s Source, than string) ([]Change, error) {
	q := s.query()
	if than != "" {
		q.Set("than", than)
	}
	res, err := c.do(ctx, http.MethodGet, "/imgfs/v1/changes", q, nil, nil)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	var list []Change
	if err := json.NewDecoder(res.Body).Decode(&list); err != nil {
		return nil, lost(ctx, err)
	}
	return list, nil
}

// Export writes a tree's tar to w; see [Contents].
func (c *Client) Export(ctx context.Context, s Source, layer bool, w io.Writer) error {
	q := s.query()
	if layer {
		q.Set("layer", "1")
	}
	return c.receiveTar(ctx, "/imgfs/v1/export", q, w)
}

// Commit makes an image of an upper.
func (c *Client) Commit(ctx context.Context, req CommitRequest) (CommitResult, error) {
	var res CommitResult
	return res, c.call(ctx, http.MethodPost, "/imgfs/v1/commit", nil, req, &res)
}

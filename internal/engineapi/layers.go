package engineapi

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/imgfs/imgfs/internal/id"
)

// Layers is what the routes need that look after the bytes of layers.
type Layers interface {
	// Warm fetches the bytes of paths of an image, or of all of it.
	Warm(ctx context.Context, req WarmRequest, report func(Progress)) (WarmResult, error)
	// Verify compares the bytes that are here with what is known of them.
	Verify(ctx context.Context, req VerifyRequest, report func(Progress)) ([]Verdict, error)
	// DiskUsage says what the store takes on disk.
	DiskUsage(ctx context.Context) (DiskUsage, error)
	// Pins lists the images whose bytes are kept.
	Pins(ctx context.Context) ([]Pin, error)
	// Pin keeps the bytes of an image.
	Pin(ctx context.Context, image string) (Pin, error)
	// Unpin ends that.
	Unpin(ctx context.Context, image string) error
	// Why says where a path of a tree comes from.
	Why(ctx context.Context, s Source, path string) (Why, error)
}

// WarmRequest is the body of POST /imgfs/v1/warm.
type WarmRequest struct {
	Image    string          `json:"image"` // reference, ID or prefix
	Paths    []string        `json:"paths"` // in it; none: all of it
	Platform string          `json:"platform,omitempty"`
	Registry RegistryOptions `json:"registry,omitzero"`
}

// WarmResult is what is here now.
type WarmResult struct {
	Files   int   `json:"files"`   // that were asked for; 0 if that is all of the image
	Bytes   int64 `json:"bytes"`   // of them, or of all layers
	Fetched int64 `json:"fetched"` // of these, what was not here before
}

// VerifyRequest is the body of POST /imgfs/v1/verify.
type VerifyRequest struct {
	Images []string `json:"images"` // none: all layers
	Repair bool     `json:"repair"`
}

// Verdict is what was found of a layer.
type Verdict struct {
	Layer    id.LayerKey `json:"layer"`
	Blob     id.Blob     `json:"blob,omitempty"`
	Present  int64       `json:"present"` // bytes of data that are here
	Size     int64       `json:"size"`    // bytes of data
	Sealed   bool        `json:"sealed"`
	Bad      int         `json:"bad"`      // spans that were damaged; 1 if it was the layer as a whole
	Repaired bool        `json:"repaired"` // what was damaged is fetched again when it is read
	Problem  string      `json:"problem,omitempty"`
}

// Pin is an image whose bytes are kept.
type Pin struct {
	Image   string `json:"image"`
	Layers  int    `json:"layers"`
	Size    int64  `json:"size"`    // bytes of their data
	Present int64  `json:"present"` // of these, what is here
}

// DiskUsage is the reply of GET /imgfs/v1/df, in bytes.
type DiskUsage struct {
	Layers    []LayerUsage `json:"layers"`
	Data      int64        `json:"data"`      // files that hold the layers' bytes
	Evictable int64        `json:"evictable"` // of these, what could be dropped and fetched again
	Pinned    int64        `json:"pinned"`    // of these, what pins keep
	Tables    int64        `json:"tables"`    // indexes and span tables
	Chains    int64        `json:"chains"`    // merged trees
	Uppers    int64        `json:"uppers"`    // what writable mounts have left
	UpperN    int          `json:"upperN"`    // their number
	Temporary int64        `json:"temporary"` // what is being made
	Limit     int64        `json:"limit"`     // of Data; 0: none
}

// LayerUsage is one layer.
type LayerUsage struct {
	Layer   id.LayerKey `json:"layer"`
	Blob    id.Blob     `json:"blob,omitempty"`
	Kind    string      `json:"kind,omitempty"` // of the table of contents it came with; "": it came whole
	Size    int64       `json:"size"`           // bytes of data
	Present int64       `json:"present"`        // of these, what is here
	Disk    int64       `json:"disk"`           // bytes allocated, tables included
	Sealed  bool        `json:"sealed"`
	Pinned  bool        `json:"pinned"`
	InUse   bool        `json:"inUse"`
	LastUse time.Time   `json:"lastUse"`
	Images  []string    `json:"images,omitempty"`  // names, or IDs of those without
	Problem string      `json:"problem,omitempty"` // why it is not served
}

// Why is where a path of a tree comes from.
type Why struct {
	Path    string      `json:"path"`           // symbolic links on the way followed
	Type    string      `json:"type,omitempty"` // file, directory, symlink, device, fifo or socket; "": the path is not there
	Size    int64       `json:"size"`           // bytes of a file
	Cached  int64       `json:"cached"`         // of these, what is here
	Upper   string      `json:"upper,omitempty"`
	Changed string      `json:"changed,omitempty"` // what the upper does to it: added, changed or deleted
	Layers  int         `json:"layers"`            // of the image
	From    []WhyLayer  `json:"from"`              // what has the path, or hides it; uppermost first
	Image   string      `json:"image"`
	Faults  []ReadFault `json:"faults,omitempty"` // of reads of its layer by the mount
}

// WhyLayer is what one layer has at a path.
type WhyLayer struct {
	Number    int         `json:"number"` // from 1, the lowest
	Layer     id.LayerKey `json:"layer"`
	Blob      id.Blob     `json:"blob,omitempty"`
	CreatedBy string      `json:"createdBy,omitempty"` // its line in the image's history
	Has       string      `json:"has"`                 // a Type, or whiteout
	At        string      `json:"at,omitempty"`        // where it is, if that is a parent of the path
	Opaque    bool        `json:"opaque,omitempty"`    // it hides what is below it
	Hidden    string      `json:"hidden,omitempty"`    // by what it is hidden; "": it is seen
}

func (s *server) pin(w http.ResponseWriter, r *http.Request) error {
	p, err := s.engine.Pin(r.Context(), r.URL.Query().Get("image"))
	if err != nil {
		return err
	}
	return reply(w, p)
}

func (s *server) unpin(w http.ResponseWriter, r *http.Request) error {
	if err := s.engine.Unpin(r.Context(), r.URL.Query().Get("image")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *server) why(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	y, err := s.engine.Why(r.Context(), sourceOf(q), q.Get("path"))
	if err != nil {
		return err
	}
	return reply(w, y)
}

// Warm fetches the bytes of paths of an image, or of all of it.
func (c *Client) Warm(ctx context.Context, req WarmRequest, report func(Progress)) (WarmResult, error) {
	return runJob[WarmResult](ctx, c, "/imgfs/v1/warm", req, report)
}

// Verify compares the bytes that are here with what is known of them.
func (c *Client) Verify(ctx context.Context, req VerifyRequest, report func(Progress)) ([]Verdict, error) {
	return runJob[[]Verdict](ctx, c, "/imgfs/v1/verify", req, report)
}

// DiskUsage says what the store takes on disk.
func (c *Client) DiskUsage(ctx context.Context) (DiskUsage, error) {
	var u DiskUsage
	return u, c.get(ctx, "/imgfs/v1/df", nil, &u)
}

// Pins lists the images whose bytes are kept.
func (c *Client) Pins(ctx context.Context) ([]Pin, error) {
	var list []Pin
	return list, c.get(ctx, "/imgfs/v1/pins", nil, &list)
}

// Pin keeps the bytes of an image.
func (c *Client) Pin(ctx context.Context, image string) (Pin, error) {
	var p Pin
	return p, c.call(ctx, http.MethodPost, "/imgfs/v1/pins", url.Values{"image": {image}}, nil, &p)
}

// Unpin ends that.
func (c *Client) Unpin(ctx context.Context, image string) error {
	return c.call(ctx, http.MethodDelete, "/imgfs/v1/pins", url.Values{"image": {image}}, nil, nil)
}

// Why says where a path of a tree comes from.
func (c *Client) Why(ctx context.Context, s Source, path string) (Why, error) {
	var y Why
	q := s.query()
	q.Set("path", path)
	return y, c.get(ctx, "/imgfs/v1/why", q, &y)
}

package engineapi

import (
	"context"
	"io"

	"github.com/imgfs/imgfs/internal/id"
)

// Archives is what the routes need that read and write archives of images.
type Archives interface {
	// Save writes images as one tar: docker's archive and an OCI layout at
	// once. What is wrong with the request is said before the first byte.
	Save(ctx context.Context, req SaveRequest, w io.Writer) error
	// Load stores the images of an archive: docker's, of any version, or an
	// OCI layout, perhaps compressed.
	Load(ctx context.Context, req LoadRequest, body io.Reader, report func(Progress)) ([]LoadedImage, error)
	// Import makes an image of one layer out of a tar of its files, perhaps
	// compressed; body is nil where req names a URL.
	Import(ctx context.Context, req ImportRequest, body io.Reader, report func(Progress)) (id.ImageID, error)
}

// SaveRequest says what to save.
type SaveRequest struct {
	Names    []string // images; a repository without a tag means all its tags
	Platform string   // which they must be for; "": any
}

// LoadRequest says how to load.
type LoadRequest struct {
	Platform string // of images for several; "": this machine's
}

// LoadedImage is an image of an archive.
type LoadedImage struct {
	Reference string     `json:"reference,omitempty"` // familiar; "" if it has none there
	ID        id.ImageID `json:"id"`
}

// ImportRequest says what to import and what becomes of it.
type ImportRequest struct {
	URL       string   `json:"url,omitempty"`       // http or https; "": the body
	Source    string   `json:"source,omitempty"`    // what the history calls it; "": URL, or -
	Reference string   `json:"reference,omitempty"` // the image's name; "": none
	Message   string   `json:"message,omitempty"`
	Changes   []string `json:"changes,omitempty"` // instructions of a Dockerfile
	Platform  string   `json:"platform,omitempty"`
}

// LayerStore is what the routes of single layers need. A layer is named by its
// key, its diffID, its blob's digest, the ID of the chain it ends, or the start
// of one of these.
type LayerStore interface {
	// InspectLayer returns what is known of a layer.
	InspectLayer(ctx context.Context, name string) (LayerInspect, error)
	// ExportLayer writes a layer's uncompressed tar, the very stream its
	// diffID is of.
	ExportLayer(ctx context.Context, name string, w io.Writer) error
	// ImportLayer stores a layer, perhaps compressed, on a chain, and with a
	// config makes an image of that.
	ImportLayer(ctx context.Context, req LayerImport, body io.Reader, report func(Progress)) (LayerInspect, error)
	// RemoveLayer gives up a layer that ImportLayer stored without an image.
	RemoveLayer(ctx context.Context, name string) error
}

// LayerImport says what an imported layer belongs to.
type LayerImport struct {
	Parent    string `json:"parent,omitempty"`    // the chain it lies on: chain ID, or an image; "": none
	Config    []byte `json:"config,omitempty"`    // of the image to make, kept byte for byte; nil: none
	Reference string `json:"reference,omitempty"` // that image's name
}

// LayerInspect is what is known of a layer.
type LayerInspect struct {
	LayerUsage
	DiffID      id.DiffID     `json:"diffID,omitempty"` // proven if Sealed
	Blobs       []id.Blob     `json:"blobs"`            // that inflate to it
	Sources     []string      `json:"sources"`          // repositories that have one of them
	Content     int64         `json:"content"`          // bytes of its regular files
	Compression string        `json:"compression,omitempty"`
	Chains      []id.ChainKey `json:"chains"`          // stacks that it ends
	Image       id.ImageID    `json:"image,omitempty"` // made by ImportLayer
	Chain       id.ChainKey   `json:"chain,omitempty"` // which ImportLayer made
}

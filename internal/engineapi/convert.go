package engineapi

import (
	"context"

	"github.com/imgfs/imgfs/internal/id"
)

// Converter is what the route of conversions needs.
type Converter interface {
	// Convert pushes an image anew, its layers in another format.
	Convert(ctx context.Context, req ConvertImageRequest, report func(Progress)) (ConvertImageResult, error)
}

// Formats that layers are converted to.
const (
	ToEstargz     = "estargz"
	ToZstdChunked = "zstd-chunked"
)

// ConvertImageRequest is the body of POST /imgfs/v1/convert.
type ConvertImageRequest struct {
	Image    string          `json:"image"` // reference, ID or prefix
	To       string          `json:"to"`    // format
	Target   string          `json:"target"`
	Platform string          `json:"platform,omitempty"`
	Registry RegistryOptions `json:"registry,omitzero"`
}

// ConvertImageResult is what was pushed.
type ConvertImageResult struct {
	Reference string  `json:"reference"`
	Digest    id.Blob `json:"digest"` // of the manifest
	Size      int64   `json:"size"`   // bytes of the layers' blobs
	Layers    int     `json:"layers"`
	Kept      int     `json:"kept"` // of these, as they were
}

// Convert pushes an image anew, its layers in another format.
func (c *Client) Convert(ctx context.Context, req ConvertImageRequest, report func(Progress)) (ConvertImageResult, error) {
	return runJob[ConvertImageResult](ctx, c, "/imgfs/v1/convert", req, report)
}

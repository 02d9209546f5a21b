package daemon

import (
	"context"
	"io"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// Load implements engineapi.Archives.
func (e *engine) Load(ctx context.Context, req engineapi.LoadRequest, body io.Reader, report func(engineapi.Progress)) ([]engineapi.LoadedImage, error) {
	return nil, fault.New(fault.Failed, "not built yet")
}

// Import implements engineapi.Archives.
func (e *engine) Import(ctx context.Context, req engineapi.ImportRequest, body io.Reader, report func(engineapi.Progress)) (id.ImageID, error) {
	return "", fault.New(fault.Failed, "not built yet")
}

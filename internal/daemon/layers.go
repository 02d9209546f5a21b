package daemon

import (
	"context"
	"io"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

// InspectLayer implements engineapi.LayerStore.
func (e *engine) InspectLayer(ctx context.Context, name string) (engineapi.LayerInspect, error) {
	return engineapi.LayerInspect{}, fault.New(fault.Failed, "not built yet")
}

// ExportLayer implements engineapi.LayerStore.
func (e *engine) ExportLayer(ctx context.Context, name string, w io.Writer) error {
	return fault.New(fault.Failed, "not built yet")
}

// ImportLayer implements engineapi.LayerStore.
func (e *engine) ImportLayer(ctx context.Context, req engineapi.LayerImport, body io.Reader, report func(engineapi.Progress)) (engineapi.LayerInspect, error) {
	return engineapi.LayerInspect{}, fault.New(fault.Failed, "not built yet")
}

// RemoveLayer implements engineapi.LayerStore.
func (e *engine) RemoveLayer(ctx context.Context, name string) error {
	return fault.New(fault.Failed, "not built yet")
}

package daemon

import (
	"context"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

// ExportRefs implements engineapi.Refs.
func (e *engine) ExportRefs(ctx context.Context) (engineapi.Repositories, error) {
	return engineapi.Repositories{}, fault.New(fault.Failed, "not built yet")
}

// ImportRefs implements engineapi.Refs.
func (e *engine) ImportRefs(ctx context.Context, r engineapi.Repositories, force bool) (engineapi.RefsReport, error) {
	return engineapi.RefsReport{}, fault.New(fault.Failed, "not built yet")
}

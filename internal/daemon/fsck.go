package daemon

import (
	"context"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

// Fsck implements engineapi.Fsck.
func (e *engine) Fsck(ctx context.Context, req engineapi.FsckRequest, report func(engineapi.Progress)) (engineapi.FsckReport, error) {
	return engineapi.FsckReport{}, fault.New(fault.Failed, "not built yet")
}

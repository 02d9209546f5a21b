package daemon

import (
	"context"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

// History implements engineapi.Images.
func (e *engine) History(ctx context.Context, name, platform string) ([]engineapi.HistoryItem, error) {
	return nil, fault.New(fault.Failed, "not built yet")
}

// Tag implements engineapi.Images.
func (e *engine) Tag(ctx context.Context, source, target string, noClobber bool) error {
	return fault.New(fault.Failed, "not built yet")
}

// Untag implements engineapi.Images.
func (e *engine) Untag(ctx context.Context, name string) ([]engineapi.DeleteItem, error) {
	return nil, fault.New(fault.Failed, "not built yet")
}

// Prune implements engineapi.Images.
func (e *engine) Prune(ctx context.Context, o engineapi.PruneOptions) (engineapi.PruneReport, error) {
	return engineapi.PruneReport{}, fault.New(fault.Failed, "not built yet")
}

// Graph implements engineapi.Images.
func (e *engine) Graph(ctx context.Context) (engineapi.Graph, error) {
	return engineapi.Graph{}, fault.New(fault.Failed, "not built yet")
}

package daemon

import (
	"context"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

// Push implements engineapi.Registries.
func (e *engine) Push(ctx context.Context, req engineapi.PushRequest, report func(engineapi.Progress)) ([]engineapi.PushedTag, error) {
	return nil, fault.New(fault.Failed, "not built yet")
}

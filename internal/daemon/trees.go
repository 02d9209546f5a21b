package daemon

import (
	"context"
	"io"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

// ListTree implements engineapi.Trees.
func (e *engine) ListTree(ctx context.Context, req engineapi.TreeRequest, emit func(engineapi.TreeEntry) error) error {
	return fault.New(fault.Failed, "not built yet")
}

// ReadTree implements engineapi.Trees.
func (e *engine) ReadTree(ctx context.Context, req engineapi.TreeRequest, w io.Writer) error {
	return fault.New(fault.Failed, "not built yet")
}

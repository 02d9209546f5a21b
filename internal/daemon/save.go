package daemon

import (
	"context"
	"io"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

// Save implements engineapi.Archives.
func (e *engine) Save(ctx context.Context, req engineapi.SaveRequest, w io.Writer) error {
	return fault.New(fault.Failed, "not built yet")
}

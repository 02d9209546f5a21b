package daemon

import (
	"context"
	"time"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

// event tells whoever listens that something happened. attrs are names and
// values of attributes, in turn.
func (e *engine) event(typ, action, id string, attrs ...string) {}

// Events implements engineapi.Events.
func (e *engine) Events(ctx context.Context, since, until time.Time, emit func(engineapi.Event) error) error {
	return fault.New(fault.Failed, "not built yet")
}

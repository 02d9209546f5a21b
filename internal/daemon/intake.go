package daemon

import (
	"context"

	"github.com/imgfs/imgfs/internal/engineapi"
)

// maxIntake is how many archives of clients who are not trusted are read at
// once. Each may take some hundred MiB: a window to uncompress it, the names
// of its files, its lists and configs.
const maxIntake = 8

// intake has room for maxIntake. Who waits is not read from.
type intake chan struct{}

// enter waits for room, which leave gives back.
func (u intake) enter(ctx context.Context) (leave func(), err error) {
	if engineapi.Trusted(ctx) {
		return func() {}, nil
	}
	select {
	case u <- struct{}{}:
		return func() { <-u }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

package engineapi

import "context"

// Fsck looks for damage in the store, and mends what can be; see [Fsck].
// Report, if not nil, is called with every step, from the calling goroutine.
func (c *Client) Fsck(ctx context.Context, req FsckRequest, report func(Progress)) (FsckReport, error) {
	return runJob[FsckReport](ctx, c, "/imgfs/v1/fsck", req, report)
}

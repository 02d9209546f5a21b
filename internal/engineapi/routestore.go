package engineapi

import "context"

// storeRoutes are imgfs' own routes of the store as a whole: references, graph,
// fsck.
var storeRoutes = []route{
	{request: "GET /imgfs/v1/refs", serve: show(Engine.ExportRefs)},
	{request: "GET /imgfs/v1/graph", serve: show(Engine.Graph)},
	{request: "GET /imgfs/v1/documents/{}", serve: (*server).document},
	{request: "POST /imgfs/v1/refs", serve: (*server).importRefs, body: maxRefs},
	{request: "POST /imgfs/v1/fsck", serve: job(Engine.Fsck)},
}

// Graph returns images, layers, mounts, and what of these lies on what.
func (c *Client) Graph(ctx context.Context) (Graph, error) {
	var g Graph
	return g, c.get(ctx, "/imgfs/v1/graph", nil, &g)
}

// Fsck looks for damage in the store, and mends what can be; see [Fsck].
// Report, if not nil, is called with every step, from the calling goroutine.
func (c *Client) Fsck(ctx context.Context, req FsckRequest, report func(Progress)) (FsckReport, error) {
	return runJob[FsckReport](ctx, c, "/imgfs/v1/fsck", req, report)
}

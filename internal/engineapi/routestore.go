package engineapi

// storeRoutes are imgfs' own routes of the store as a whole: references, graph,
// fsck.
var storeRoutes = []route{
	{request: "GET /imgfs/v1/refs", serve: show(Engine.ExportRefs)},
	{request: "GET /imgfs/v1/graph", serve: show(Engine.Graph)},
	{request: "GET /imgfs/v1/documents/{}", serve: (*server).document},
	{request: "POST /imgfs/v1/refs", serve: (*server).importRefs, body: maxRefs},
	{request: "POST /imgfs/v1/fsck", serve: job(Engine.Fsck)},
}

package engineapi

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/imgfs/imgfs/internal/fault"
)

// A route is a row of the router's table.
type route struct {
	// request is METHOD and path. One {} in the path stands for a name: any
	// characters, slashes too, but at least one; the handler gets it from
	// name. Paths without it come before all that have one; of those, the first
	// in the table that fits is taken.
	request string
	serve   handler
	body    int64 // how many bytes of a body are read; 0: maxBody, < 0: all
	// reads: it changes nothing, although it is no GET, so that clients who are
	// not trusted may ask for it too.
	reads bool
}

// handler serves one request. An error it returns has not been written yet.
type handler func(s *server, w http.ResponseWriter, r *http.Request) error

// anyBody is of routes that read a body as a stream.
const anyBody = -1

// routes is the table: docker's routes and imgfs' own.
var routes = [][]route{
	imageRoutes, nameRoutes, systemRoutes, archiveRoutes,
	mountRoutes, layerRoutes, registryRoutes, treeRoutes, storeRoutes,
}

// mountRoutes are imgfs' own routes of mounts, uppers and the bytes of images.
var mountRoutes = []route{
	{request: "GET /imgfs/v1/mounts", serve: show(Engine.Mounts)},
	{request: "POST /imgfs/v1/mounts", serve: (*server).mount},
	{request: "POST /imgfs/v1/mounts/{}/wait", serve: (*server).waitGone},
	{request: "GET /imgfs/v1/uppers", serve: show(Engine.Uppers)},
	{request: "GET /imgfs/v1/uppers/{}/check", serve: (*server).checkUpper},
	{request: "POST /imgfs/v1/uppers/{}/convert", serve: (*server).convertUpper},
	{request: "GET /imgfs/v1/uppers/{}", serve: (*server).upper},
	{request: "DELETE /imgfs/v1/uppers/{}", serve: (*server).removeUpper},
	{request: "GET /imgfs/v1/changes", serve: (*server).changes},
	{request: "GET /imgfs/v1/export", serve: (*server).export},
	{request: "POST /imgfs/v1/commit", serve: (*server).commit},
	{request: "GET /imgfs/v1/indexes", serve: indexes(Engine.ListIndexes)},
	{request: "POST /imgfs/v1/indexes", serve: job(Engine.PushIndex)},
	{request: "DELETE /imgfs/v1/indexes", serve: indexes(Engine.RemoveIndexes)},
	{request: "POST /imgfs/v1/convert", serve: job(Engine.Convert)},
	{request: "POST /imgfs/v1/warm", serve: job(Engine.Warm)},
	{request: "POST /imgfs/v1/verify", serve: job(Engine.Verify)},
	{request: "GET /imgfs/v1/df", serve: show(Engine.DiskUsage)},
	{request: "GET /imgfs/v1/pins", serve: show(Engine.Pins)},
	{request: "POST /imgfs/v1/pins", serve: (*server).pin},
	{request: "DELETE /imgfs/v1/pins", serve: (*server).unpin},
	{request: "GET /imgfs/v1/why", serve: (*server).why},
	{request: "GET /imgfs/v1/status", serve: show(Engine.Status)},
	{request: "POST /imgfs/v1/gc", serve: show(Engine.GC)},
	{request: "POST /imgfs/v1/shutdown", serve: (*server).shutdown},
}

// show serves what the engine tells without being asked anything.
func show[T any](get func(Engine, context.Context) (T, error)) handler {
	return func(s *server, w http.ResponseWriter, r *http.Request) error {
		v, err := get(s.engine, r.Context())
		if err != nil {
			return err
		}
		return reply(w, v)
	}
}

// router finds the row of a request.
type router struct {
	exact    map[string]*route
	patterns []pattern
}

// pattern is a route with a name in its path.
type pattern struct {
	*route
	before, after string // the name
}

func newRouter(tables [][]route) *router {
	rt := &router{exact: map[string]*route{}}
	for _, table := range tables {
		for i := range table {
			row := &table[i]
			if before, after, ok := strings.Cut(row.request, "{}"); ok {
				rt.patterns = append(rt.patterns, pattern{row, before, after})
			} else {
				rt.exact[row.request] = row
			}
		}
	}
	return rt
}

// nameKey is what name asks a request for.
const nameKey = "name"

// name returns what stands for {} in the path of r's route.
func name(r *http.Request) string { return r.PathValue(nameKey) }

// find returns the row of a request and the name in its path.
func (rt *router) find(method, path string) (*route, string) {
	request := method + " " + path
	if row, ok := rt.exact[request]; ok {
		return row, ""
	}
	for _, p := range rt.patterns {
		if n, ok := between(request, p.before, p.after); ok {
			return p.route, n
		}
	}
	return nil, ""
}

// between returns what stands between prefix and suffix, if anything does.
func between(path, prefix, suffix string) (string, bool) {
	s, ok := strings.CutPrefix(path, prefix)
	if !ok {
		return "", false
	}
	s, ok = strings.CutSuffix(s, suffix)
	return s, ok && s != ""
}

// route serves one request; an error it returns has not been written yet.
func (s *server) route(w http.ResponseWriter, r *http.Request) error {
	path, err := cutVersion(r.URL.Path)
	if err != nil {
		return err
	}
	row, n := s.router.find(r.Method, path)
	if row == nil {
		return fault.New(fault.NotFound, "page not found")
	}
	if err := admit(r, path, row); err != nil {
		return err
	}
	if _, err := url.ParseQuery(r.URL.RawQuery); err != nil {
		return fault.New(fault.Invalid, "invalid query: %w", err)
	}
	if row.body >= 0 {
		limit := row.body
		if limit == 0 {
			limit = maxBody
		}
		r.Body = &bounded{http.MaxBytesReader(w, r.Body, limit)}
	}
	r.SetPathValue(nameKey, n)
	return row.serve(s.of(r), w, r)
}

// bounded gives a body that is too long the status that says so.
type bounded struct{ io.ReadCloser }

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	var big *http.MaxBytesError
	if errors.As(err, &big) {
		err = statusError{http.StatusRequestEntityTooLarge, fault.New(fault.Invalid, "request body is larger than %d bytes", big.Limit)}
	}
	return n, err
}

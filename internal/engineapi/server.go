package engineapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
)

// Puller fetches images.
type Puller interface {
	// Pull calls report from one goroutine at a time, and not after it has
	// returned.
	Pull(ctx context.Context, req PullRequest, report func(Progress)) (PullResult, error)
}

// Mounts is what the mount routes need.
type Mounts interface {
	Mounts(ctx context.Context) ([]Mount, error)
	// Mount prepares a tree, has it mounted by exchange, serves and records
	// it. exchange, called twice for driver overlay, hands the ownership of fd
	// (nil where no FUSE was to be mounted) over. ctx ends when the client has
	// gone.
	Mount(ctx context.Context, req MountRequest, report func(Progress), exchange Exchange) (Mount, error)
	// WaitGone returns when there is no mount of that id, and what becomes of
	// its upper is decided.
	WaitGone(ctx context.Context, id string) error
}

// Uppers is what the routes of uppers need.
type Uppers interface {
	// Uppers returns all uppers of the store, in any order.
	Uppers(ctx context.Context) ([]Upper, error)
	// Upper returns one.
	Upper(ctx context.Context, name string) (Upper, error)
	// CheckUpper looks for damage in one, in use or not. What it does not list
	// can be read.
	CheckUpper(ctx context.Context, name string) ([]UpperProblem, error)
	// RemoveUpper removes one that is not in use, with all its changes.
	RemoveUpper(ctx context.Context, name string) error
	// ConvertUpper rewrites one that is not in use for kernel overlayfs.
	ConvertUpper(ctx context.Context, name string, req ConvertRequest) error
}

// Exchange sends Ready to the client and waits for its answer; an answer that
// carries an error is returned as one.
type Exchange func(MountReady) (MountReply, *os.File, error)

// Lifecycle is what the remaining routes need.
type Lifecycle interface {
	Status(ctx context.Context) (Status, error)
	GC(ctx context.Context) (GCReport, error)
	// Shutdown begins to shut down, unless it is refused. The channel is
	// closed when the store is unlocked.
	Shutdown(ctx context.Context, force bool) (gone <-chan struct{}, err error)
}

// Engine is what a server serves.
type Engine interface {
	Images
	Puller
	Mounts
	Uppers
	Contents
	Indexes
	Converter
	Layers
	LayerStore
	Registries
	Archives
	Trees
	Refs
	Fsck
	Events
	Lifecycle
}

// Limits of the server.
const (
	maxHeader     = 64 << 10         // bytes of a request's header
	maxBody       = 1 << 20          // bytes of a request's body
	headerTimeout = 10 * time.Second // for a request's header to arrive
	idleTimeout   = 30 * time.Second // for a connection without a request
)

// NewServer returns a server of e, its limits set. It is served with
// Server.Serve on a listener that lets in only who may use e.
//
//	HEAD,GET /_ping                 GET /version, /info
//	GET    /images/json             POST /images/create
//	GET    /images/{name}/json      DELETE /images/{name}
//	GET    /containers/json         (empty; containers/create and build: 501)
//	GET    /imgfs/v1/mounts         POST /imgfs/v1/mounts (upgrade)
//	POST   /imgfs/v1/mounts/{id}/wait
//	GET    /imgfs/v1/uppers         GET, DELETE /imgfs/v1/uppers/{name}
//	GET    /imgfs/v1/uppers/{name}/check
//	POST   /imgfs/v1/uppers/{name}/convert
//	GET    /imgfs/v1/changes        GET /imgfs/v1/export
//	POST   /imgfs/v1/commit
//	GET, POST, DELETE /imgfs/v1/indexes (POST: a stream of steps)
//	POST   /imgfs/v1/convert, /imgfs/v1/warm, /imgfs/v1/verify (streams of steps)
//	GET    /imgfs/v1/df             GET    /imgfs/v1/why
//	GET, POST, DELETE /imgfs/v1/pins
//	GET    /imgfs/v1/status         POST /imgfs/v1/gc, /imgfs/v1/shutdown
func NewServer(e Engine, log *slog.Logger) *http.Server {
	s := &server{engine: e, log: log, build: ThisBuild()}
	return &http.Server{
		Handler:           s,
		MaxHeaderBytes:    maxHeader,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

type server struct {
	engine Engine
	log    *slog.Logger
	build  Build
}

// ServeHTTP is the router. It is written out, since names of images hold
// slashes, dots and colons, and must not be cleaned as paths are.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Api-Version", APIVersion)
	h.Set("Ostype", runtime.GOOS)
	h.Set("Server", "imgfs/"+s.build.Version)
	h.Set("Docker-Experimental", "false")
	h.Set(VersionHeader, s.build.String())
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)

	path, err := cutVersion(r.URL.Path)
	if err == nil {
		err = s.route(w, r, path)
	}
	if err != nil {
		s.fail(w, r, err)
	}
}

// route serves one request; an error it returns has not been written yet.
func (s *server) route(w http.ResponseWriter, r *http.Request, path string) error {
	switch r.Method + " " + path {
	case "HEAD /_ping", "GET /_ping":
		return s.ping(w, r)
	case "GET /version":
		return reply(w, s.version())
	case "GET /info":
		return s.info(w, r)
	case "GET /images/json":
		return s.listImages(w, r)
	case "POST /images/create":
		return s.createImage(w, r)
	case "GET /containers/json":
		return reply(w, []struct{}{})
	case "POST /containers/create", "POST /build":
		// Not 404: docker would take that for a missing image and pull it.
		return statusError{http.StatusNotImplemented, errors.New("imgfs serves images only")}
	case "GET /imgfs/v1/mounts":
		return replyOf(w, r, s.engine.Mounts)
	case "POST /imgfs/v1/mounts":
		return s.mount(w, r)
	case "GET /imgfs/v1/uppers":
		return replyOf(w, r, s.engine.Uppers)
	case "GET /imgfs/v1/changes":
		return s.changes(w, r)
	case "GET /imgfs/v1/export":
		return s.export(w, r)
	case "POST /imgfs/v1/commit":
		return s.commit(w, r)
	case "GET /imgfs/v1/indexes":
		return s.indexes(w, r, s.engine.ListIndexes)
	case "POST /imgfs/v1/indexes":
		return job(w, r, s.engine.PushIndex)
	case "DELETE /imgfs/v1/indexes":
		return s.indexes(w, r, s.engine.RemoveIndexes)
	case "POST /imgfs/v1/convert":
		return job(w, r, s.engine.Convert)
	case "POST /imgfs/v1/warm":
		return job(w, r, s.engine.Warm)
	case "POST /imgfs/v1/verify":
		return job(w, r, s.engine.Verify)
	case "GET /imgfs/v1/df":
		return replyOf(w, r, s.engine.DiskUsage)
	case "GET /imgfs/v1/pins", "POST /imgfs/v1/pins", "DELETE /imgfs/v1/pins":
		return s.pins(w, r)
	case "GET /imgfs/v1/why":
		return s.why(w, r)
	case "GET /imgfs/v1/status":
		return replyOf(w, r, s.engine.Status)
	case "POST /imgfs/v1/gc":
		return replyOf(w, r, s.engine.GC)
	case "POST /imgfs/v1/shutdown":
		return s.shutdown(w, r)
	}
	if id, ok := between(path, "/imgfs/v1/mounts/", "/wait"); ok && r.Method == http.MethodPost {
		if err := s.engine.WaitGone(r.Context(), id); err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	if rest, ok := between(path, "/imgfs/v1/uppers/", ""); ok {
		return s.upper(w, r, rest)
	}
	if name, ok := between(path, "/images/", "/json"); ok && r.Method == http.MethodGet {
		img, err := s.engine.Inspect(r.Context(), name, InspectOptions{Platform: r.URL.Query().Get("platform")})
		if err != nil {
			return err
		}
		return reply(w, asInspected(r, img))
	}
	if name, ok := between(path, "/images/", ""); ok && r.Method == http.MethodDelete {
		items, err := s.engine.Remove(r.Context(), name, RemoveOptions{Force: boolParam(r, "force"), NoPrune: boolParam(r, "noprune")})
		if err != nil {
			return err
		}
		return reply(w, items)
	}
	for _, serve := range []func(*server, http.ResponseWriter, *http.Request, string) (bool, error){
		(*server).nameRoutes, (*server).registryRoutes, (*server).archiveRoutes, (*server).layerRoutes,
		(*server).treeRoutes, (*server).storeRoutes, (*server).systemRoutes,
	} {
		if done, err := serve(s, w, r, path); done || err != nil {
			return err
		}
	}
	return fault.New(fault.NotFound, "page not found")
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

// cutVersion takes the /v1.xx off a path and checks it.
func cutVersion(path string) (string, error) {
	s, ok := strings.CutPrefix(path, "/v")
	if !ok {
		return path, nil
	}
	v, rest, _ := strings.Cut(s, "/")
	major, minor, ok := parseVersion(v)
	if !ok {
		return path, nil // /version
	}
	maxMajor, maxMinor, _ := parseVersion(APIVersion)
	minMajor, minMinor, _ := parseVersion(MinAPIVersion)
	switch {
	case major > maxMajor || major == maxMajor && minor > maxMinor:
		return "", fault.New(fault.Invalid, "client version %s is too new. Maximum supported API version is %s", v, APIVersion)
	case major < minMajor || major == minMajor && minor < minMinor:
		return "", fault.New(fault.Invalid, "client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", v, MinAPIVersion)
	}
	return "/" + rest, nil
}

func parseVersion(v string) (major, minor int, ok bool) {
	a, b, ok := strings.Cut(v, ".")
	if !ok {
		return 0, 0, false
	}
	major, err1 := strconv.Atoi(a)
	minor, err2 := strconv.Atoi(b)
	return major, minor, err1 == nil && err2 == nil
}

// statusError is an error with a status that no fault kind has.
type statusError struct {
	status int
	error
}

// fail writes err as the reply.
func (s *server) fail(w http.ResponseWriter, r *http.Request, err error) {
	status := statusOf(err)
	var se statusError
	if errors.As(err, &se) {
		status = se.status
	}
	if r.Context().Err() == nil && status >= http.StatusInternalServerError {
		s.log.Warn("request failed", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(WireError(err)) // a client that has gone reads nothing
}

// reply writes v as JSON.
func reply(w http.ResponseWriter, v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // as docker: <none> stays readable
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("reply: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(b.Bytes()) // a client that has gone reads nothing
	return nil
}

func replyOf[T any](w http.ResponseWriter, r *http.Request, get func(context.Context) (T, error)) error {
	v, err := get(r.Context())
	if err != nil {
		return err
	}
	return reply(w, v)
}

// boolParam reads a flag of the query as docker does.
func boolParam(r *http.Request, name string) bool {
	switch strings.ToLower(r.URL.Query().Get(name)) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

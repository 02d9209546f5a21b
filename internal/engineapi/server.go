package engineapi

import (
	"bufio"
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
	Documents
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

// NewServer returns a server of e, its limits set; routes lists what it serves.
// It is served with Server.Serve on listeners that let in only who may use e;
// what each of these may do is access.go's.
func NewServer(e Engine, log *slog.Logger) *http.Server {
	s := &server{engine: e, log: log, build: ThisBuild(), router: newRouter(routes)}
	return &http.Server{
		Handler:           paced(s, bodyPatience),
		ConnContext:       withPeerOf,
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
	router *router
}

// ServeHTTP answers one request. Routing is our own, since names of images
// hold slashes, dots and colons, and must not be cleaned as paths are.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Api-Version", APIVersion)
	h.Set("Ostype", runtime.GOOS)
	h.Set("Server", "imgfs/"+s.build.Version)
	h.Set("Docker-Experimental", "false")
	h.Set(VersionHeader, s.build.String())
	if err := s.route(w, r); err != nil {
		s.fail(w, r, err)
	}
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

// Unwrap keeps the kind.
func (e statusError) Unwrap() error { return e.error }

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

// replyList writes a list, element by element: it may be long. nil is [].
func replyList[T any](w http.ResponseWriter, list []T) error {
	w.Header().Set("Content-Type", "application/json")
	out := bufio.NewWriterSize(w, 32<<10)
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	out.WriteByte('[')
	for i := range list {
		if b.Reset(); i > 0 {
			b.WriteByte(',')
		}
		// What is in a list can be encoded; a client that has gone reads nothing.
		if enc.Encode(&list[i]) != nil {
			break
		}
		out.Write(bytes.TrimRight(b.Bytes(), "\n"))
	}
	out.WriteString("]\n")
	out.Flush()
	return nil
}

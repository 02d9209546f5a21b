package daemon

import (
	"context"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/imgfs/imgfs/fs"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/layerdb"
)

// figures counts what a daemon has done, for the metrics. The zero value works.
type figures struct {
	received, sent, dials atomic.Uint64 // to and from registries
	refused               atomic.Uint64 // connections
	serving               atomic.Int64  // requests

	mu       sync.Mutex // guards the rest; a leaf
	requests map[requestKind]uint64
	works    map[workKind]uint64
}

// requestKind is what requests are counted by; both have few values.
type requestKind struct{ method, code string }

// workKind is what an operation is counted by; both have few values.
type workKind struct{ op, result string }

func (t *figures) request(k requestKind) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.requests == nil {
		t.requests = map[requestKind]uint64{}
	}
	t.requests[k]++
}

// work counts an operation by how it ended.
func (t *figures) work(op string, err error) {
	result := "ok"
	switch {
	case fault.KindOf(err) == fault.Canceled:
		result = "canceled"
	case err != nil:
		result = "error"
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.works == nil {
		t.works = map[workKind]uint64{}
	}
	t.works[workKind{op, result}]++
}

// counted is an engine whose long operations are counted.
type counted struct{ *engine }

// Pull implements engineapi.Puller.
func (c counted) Pull(ctx context.Context, req engineapi.PullRequest, report func(engineapi.Progress)) (engineapi.PullResult, error) {
	res, err := c.engine.Pull(ctx, req, report)
	c.figures.work("pull", err)
	return res, err
}

// Push implements engineapi.Registries.
func (c counted) Push(ctx context.Context, req engineapi.PushRequest, report func(engineapi.Progress)) ([]engineapi.PushedTag, error) {
	res, err := c.engine.Push(ctx, req, report)
	c.figures.work("push", err)
	return res, err
}

// Mount implements engineapi.Mounts.
func (c counted) Mount(ctx context.Context, req engineapi.MountRequest, report func(engineapi.Progress), x engineapi.Exchange) (engineapi.Mount, error) {
	res, err := c.engine.Mount(ctx, req, report, x)
	c.figures.work("mount", err)
	return res, err
}

// Save implements engineapi.Archives.
func (c counted) Save(ctx context.Context, req engineapi.SaveRequest, w io.Writer) error {
	err := c.engine.Save(ctx, req, w)
	c.figures.work("save", err)
	return err
}

// Load implements engineapi.Archives.
func (c counted) Load(ctx context.Context, req engineapi.LoadRequest, body io.Reader, report func(engineapi.Progress)) ([]engineapi.LoadedImage, error) {
	res, err := c.engine.Load(paceOf(ctx), req, body, report)
	c.figures.work("load", err)
	return res, err
}

// Import implements engineapi.Archives.
func (c counted) Import(ctx context.Context, req engineapi.ImportRequest, body io.Reader, report func(engineapi.Progress)) (id.ImageID, error) {
	res, err := c.engine.Import(paceOf(ctx), req, body, report)
	c.figures.work("import", err)
	return res, err
}

// paceOf returns the context of an upload: one of who is not trusted must not
// hold up anybody else's layers.
func paceOf(ctx context.Context) context.Context {
	if engineapi.Trusted(ctx) {
		return ctx
	}
	return layerdb.Aside(ctx)
}

// mountTotals is what the mounts of a daemon's life have done.
type mountTotals struct {
	fuse    fs.Stats
	waits   uint64
	waited  time.Duration
	fetched uint64
}

// add adds what m has done until now.
func (t *mountTotals) add(m *mount) {
	if m.server != nil {
		s := m.server.Stats()
		t.fuse.Lookups += s.Lookups
		t.fuse.Getattrs += s.Getattrs
		t.fuse.Readdirs += s.Readdirs
		t.fuse.Opens += s.Opens
		t.fuse.Reads += s.Reads
		t.fuse.ReadBytes += s.ReadBytes
		t.fuse.Writes += s.Writes
		t.fuse.WriteBytes += s.WriteBytes
		t.fuse.Xattrs += s.Xattrs
		t.fuse.Changes += s.Changes
		t.fuse.Syncs += s.Syncs
		t.fuse.Closes += s.Closes
		t.fuse.Forgets += s.Forgets
		t.fuse.Statfs += s.Statfs
		t.fuse.Others += s.Others
		t.fuse.Errors += s.Errors
	}
	if r := m.tree.reads; r != nil {
		t.waits += r.waits.Load()
		t.waited += time.Duration(r.waited.Load())
		t.fetched += r.fetched.Load()
	}
}

// opened counts a connection to a registry, and what goes over it.
func (t *figures) opened(c net.Conn) net.Conn {
	t.dials.Add(1)
	return &countedConn{c, t}
}

type countedConn struct {
	net.Conn
	figures *figures
}

func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.figures.received.Add(uint64(max(n, 0)))
	return n, err
}

func (c *countedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.figures.sent.Add(uint64(max(n, 0)))
	return n, err
}

// observe counts requests, and logs each when it is done.
func (e *engine) observe(h http.Handler) http.Handler {
	methods := []string{"GET", "HEAD", "POST", "PUT", "DELETE"}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		rec := &recorded{ResponseWriter: w, code: http.StatusOK}
		e.figures.serving.Add(1)
		defer func() {
			e.figures.serving.Add(-1)
			method := r.Method
			if !slices.Contains(methods, method) {
				method = "other"
			}
			e.figures.request(requestKind{method, strconv.Itoa(rec.code)})
			e.log.Debug("request", "method", r.Method, "path", r.URL.Path, "status", rec.code,
				"bytes", rec.bytes, "time", time.Since(start), "client", engineapi.ClientOf(r))
		}()
		h.ServeHTTP(rec, r)
	})
}

// recorded remembers what became of a reply. What else the writer can do is
// found by Unwrap.
type recorded struct {
	http.ResponseWriter
	code  int
	bytes int64
}

func (r *recorded) Unwrap() http.ResponseWriter { return r.ResponseWriter }

func (r *recorded) WriteHeader(code int) {
	r.code = code
	r.ResponseWriter.WriteHeader(code)
}

func (r *recorded) Write(p []byte) (int, error) {
	n, err := r.ResponseWriter.Write(p)
	r.bytes += int64(n)
	return n, err
}

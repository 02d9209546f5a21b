// Package imgtest holds what tests, the demonstration and the benchmarks are
// made with: tar streams and images from text, real images from the machine's
// own packages, listings to compare trees by, and a registry on loopback
// whose answers can be made to fail. No part of it is in the binary.
package imgtest

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgfs/imgfs/internal/id"
)

// Kind is what a request to a [Registry] is for.
type Kind string

// The kinds of requests a Registry tells apart.
const (
	KindHead     Kind = "head"     // HEAD of a manifest
	KindManifest Kind = "manifest" // GET of a manifest
	KindBlob     Kind = "blob"     // GET of a blob, at the registry
	KindCDN      Kind = "cdn"      // GET of a blob, where the registry redirected to
	KindToken    Kind = "token"    // GET or POST at the token server
	KindRefs     Kind = "refs"     // GET of the referrers of a manifest
	KindBlobHead Kind = "blobhead" // HEAD of a blob
	KindUpload   Kind = "upload"   // whatever an upload of a blob takes
	KindPut      Kind = "put"      // PUT or DELETE of a manifest
	KindOther    Kind = "other"    // pings, the rest
)

// RegistryOptions shape a Registry; the zero value is open and plain.
type RegistryOptions struct {
	TLS  bool
	Auth string // "" = open, "basic", "token"

	Username, Password string // wanted by basic, and by the token server if not empty
	Identity           string // refresh token that the token server takes by POST
	AccessToken        bool   // tokens come as access_token, without expires_in
	ExpiresIn          int    // seconds a token lasts by its own account; 0 = not stated
	StaleStatus        int    // answer to an expired token; 0 = 401

	CDN      bool // blobs are redirected to another host
	CDNPlain bool // which speaks plain http even if the registry has TLS

	NoReferrers   bool // it has no referrers API, and does not heed subjects
	FilterRefs    bool // the API filters by artifact type, and says so
	ReferrersPage int  // referrers in an answer, with a Link to the next; 0 = all
	NoMount       bool // no blob is mounted from another repository
}

// Fault is something that goes wrong with requests of one kind. Each field
// that is not zero adds to it.
type Fault struct {
	On    Kind
	Match string // only paths that contain it
	Skip  int    // let so many requests pass first
	Times int    // then strike so often; 0 = always

	Delay        time.Duration // before the answer
	Status       int           // answer this, without doing anything
	Header       map[string]string
	Body         string
	Short        int64  // end the connection after so many bytes of the body
	Empty        bool   // Short = 0: after the header
	Reset        bool   // with Short: by RST
	Stall        bool   // with Short: say nothing more until the client leaves
	IgnoreRange  bool   // 200 with everything
	ContentRange string // in the place of the right one
	Flip         bool   // one wrong byte in the middle of the body
	Extra        int    // so many bytes too many, Content-Length included
	Location     string // redirect there
}

// Request is what a Registry saw.
type Request struct {
	Kind   Kind
	Method string
	URL    *url.URL
	Header http.Header
	Conn   string // the client's end of the connection

	exchange // see Trips
}

// Registry is a registry on loopback whose answers can be made to fail.
type Registry struct {
	Host string // 127.0.0.1:port
	URL  string // http(s)://Host
	CA   []byte // PEM of its certificate, nil without TLS

	opts  RegistryOptions
	inner http.Handler
	blobs registry.BlobHandler
	cdn   *httptest.Server
	done  chan struct{}

	clock sync.Mutex // guards the times of requests; taken with mu held, or alone

	mu       sync.Mutex
	arrived  chan struct{} // closed at the next request, or when one is held
	cut      chan struct{} // closed by Cut
	held     int           // requests in a delay or a stall
	faults   []*Fault
	requests []*Request
	tokens   map[string]bool // issued, and whether still good
}

// NewRegistry starts a registry; it ends with the test.
func NewRegistry(t testing.TB, o RegistryOptions) *Registry {
	r := &Registry{opts: o, blobs: registry.NewInMemoryBlobHandler(), done: make(chan struct{}), tokens: map[string]bool{},
		arrived: make(chan struct{}), cut: make(chan struct{})}
	quiet := log.New(io.Discard, "", 0)
	r.inner = registry.New(registry.Logger(quiet), registry.WithBlobHandler(r.blobs), registry.WithReferrersSupport(true))
	start := func(h http.HandlerFunc, tls bool) *httptest.Server {
		s := httptest.NewUnstartedServer(h)
		s.Config.ErrorLog = quiet
		if tls {
			s.StartTLS()
		} else {
			s.Start()
		}
		t.Cleanup(s.Close)
		return s
	}
	srv := start(r.serve, o.TLS)
	r.Host, r.URL = srv.Listener.Addr().String(), srv.URL
	if o.CDN {
		r.cdn = start(r.serveCDN, o.TLS && !o.CDNPlain)
	}
	if o.TLS {
		r.CA = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	}
	t.Cleanup(func() { close(r.done) })
	return r
}

// Inject adds a fault. Faults strike in the order they were added.
func (r *Registry) Inject(f Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = append(r.faults, &f)
}

// Await returns when there was a request of a kind since Forget.
func (r *Registry) Await(t testing.TB, kind Kind) {
	t.Helper()
	r.await(t, func() bool { return slices.ContainsFunc(r.requests, func(q *Request) bool { return q.Kind == kind }) })
}

// AwaitHeld returns when a request is in a delay or a stall.
func (r *Registry) AwaitHeld(t testing.TB) {
	t.Helper()
	r.await(t, func() bool { return r.held > 0 })
}

// AwaitFree returns when no request is in a delay or a stall, any more.
func (r *Registry) AwaitFree(t testing.TB) {
	t.Helper()
	r.await(t, func() bool { return r.held == 0 })
}

// await returns when something is so. It is asked with mu held.
func (r *Registry) await(t testing.TB, so func() bool) {
	t.Helper()
	for {
		r.mu.Lock()
		ok, next := so(), r.arrived
		r.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-next:
		case <-time.After(time.Minute):
			t.Fatal("waited in vain for a request")
		}
	}
}

// Cut ends the delays and stalls that requests are in: those are answered,
// these broken off. It waits for one.
func (r *Registry) Cut(t testing.TB) {
	t.Helper()
	r.AwaitHeld(t)
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.cut)
	r.cut = make(chan struct{})
}

// hold returns when Cut is called, or with one of the others.
func (r *Registry) hold(req *http.Request, timer <-chan time.Time) {
	r.mu.Lock()
	cut := r.cut
	r.held++
	r.tellLocked()
	r.mu.Unlock()
	select {
	case <-timer:
	case <-req.Context().Done():
	case <-cut:
	case <-r.done:
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held--
	r.tellLocked()
}

// tellLocked wakes who waits for something.
func (r *Registry) tellLocked() {
	close(r.arrived)
	r.arrived = make(chan struct{})
}

// Heal removes all faults.
func (r *Registry) Heal() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = nil
}

// ExpireTokens makes every token issued so far stale.
func (r *Registry) ExpireTokens() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for t := range r.tokens {
		r.tokens[t] = false
	}
}

// SetPassword changes what the registry or its token server accepts.
func (r *Registry) SetPassword(s string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.opts.Password = s
}

// Requests returns what was seen so far of the kinds, of all if none is given.
func (r *Registry) Requests(kinds ...Kind) []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clock.Lock()
	defer r.clock.Unlock()
	var out []Request
	for _, q := range r.requests {
		if len(kinds) == 0 || slices.Contains(kinds, q.Kind) {
			out = append(out, *q)
		}
	}
	return out
}

// Count returns the number of requests of the kinds, of all if none is given.
func (r *Registry) Count(kinds ...Kind) int { return len(r.Requests(kinds...)) }

// Forget sets the counts to zero.
func (r *Registry) Forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = nil
}

// PutBlob stores a blob, for every repository, and returns its digest.
func (r *Registry) PutBlob(t testing.TB, b []byte) id.Blob {
	t.Helper()
	d := id.BlobOf(b)
	h := v1.Hash{Algorithm: "sha256", Hex: d.Hex()}
	if err := r.blobs.(registry.BlobPutHandler).Put(context.Background(), "", h, io.NopCloser(bytes.NewReader(b))); err != nil {
		t.Fatal(err)
	}
	return d
}

// PutManifest stores a manifest or index under a tag and its digest, which it
// returns. tag "" = the digest alone.
func (r *Registry) PutManifest(t testing.TB, repo, tag, mediaType string, body []byte) id.Blob {
	t.Helper()
	d := id.BlobOf(body)
	if tag == "" {
		tag = string(d)
	}
	req := httptest.NewRequest(http.MethodPut, "/v2/"+repo+"/manifests/"+tag, bytes.NewReader(body))
	req.Header.Set("Content-Type", mediaType)
	w := httptest.NewRecorder()
	r.inner.ServeHTTP(w, req)
	if w.Code != http.StatusCreated {
		t.Fatalf("put manifest %s:%s: %d %s", repo, tag, w.Code, w.Body)
	}
	return d
}

func (r *Registry) serve(w http.ResponseWriter, req *http.Request) {
	kind := KindOther
	switch {
	case req.URL.Path == "/token":
		kind = KindToken
	case strings.Contains(req.URL.Path, "/manifests/") && req.Method == http.MethodHead:
		kind = KindHead
	case strings.Contains(req.URL.Path, "/manifests/") && req.Method == http.MethodGet:
		kind = KindManifest
	case strings.Contains(req.URL.Path, "/manifests/") && (req.Method == http.MethodPut || req.Method == http.MethodDelete):
		kind = KindPut
	case strings.Contains(req.URL.Path, "/referrers/"):
		kind = KindRefs
	case strings.Contains(req.URL.Path, "/blobs/uploads/"):
		kind = KindUpload
	case strings.Contains(req.URL.Path, "/blobs/") && req.Method == http.MethodGet:
		kind = KindBlob
	case strings.Contains(req.URL.Path, "/blobs/") && req.Method == http.MethodHead:
		kind = KindBlobHead
	}
	f, w := r.record(kind, w, req)
	if r.strike(w, req, f) {
		return
	}
	if kind == KindToken && f.Stall {
		r.body(w, req, f, []byte(`{"token":"x"}`), http.StatusOK)
		return
	}
	if kind == KindToken {
		r.token(w, req)
		return
	}
	if !r.authorized(w, req) {
		return
	}
	switch {
	case kind == KindBlob && r.cdn != nil:
		http.Redirect(w, req, r.cdn.URL+req.URL.Path+"?X-Amz-Signature=secret", http.StatusTemporaryRedirect)
	case kind == KindBlob:
		r.blob(w, req, f)
	case kind == KindManifest && (f.Flip || f.Short > 0 || f.Empty):
		rec := httptest.NewRecorder()
		r.inner.ServeHTTP(rec, req)
		h := w.Header()
		for k, v := range rec.Header() {
			h[k] = v
		}
		r.body(w, req, f, rec.Body.Bytes(), rec.Code)
	case kind == KindRefs:
		r.referrers(w, req)
	case kind == KindUpload:
		r.upload(w, req)
	case kind == KindPut && req.Method == http.MethodPut:
		r.putManifest(w, req)
	default:
		r.inner.ServeHTTP(w, req)
	}
}

// serveCDN refuses requests that carry what belongs to the registry, as S3
// does.
func (r *Registry) serveCDN(w http.ResponseWriter, req *http.Request) {
	f, w := r.record(KindCDN, w, req)
	if req.Header.Get("Authorization") != "" || req.Header.Get("Cookie") != "" || req.Header.Get("X-Secret") != "" {
		http.Error(w, "only one auth mechanism allowed", http.StatusBadRequest)
		return
	}
	if !r.strike(w, req, f) {
		r.blob(w, req, f)
	}
}

// record notes a request, and returns the fault that strikes it, or a zero
// one, and where the answer is to be written.
func (r *Registry) record(kind Kind, w http.ResponseWriter, req *http.Request) (Fault, http.ResponseWriter) {
	r.mu.Lock()
	defer r.mu.Unlock()
	u := *req.URL
	q := &Request{Kind: kind, Method: req.Method, URL: &u, Header: req.Header.Clone(), Conn: req.RemoteAddr, exchange: exchange{came: time.Now()}}
	r.requests = append(r.requests, q)
	r.tellLocked()
	w = &answer{ResponseWriter: w, mu: &r.clock, e: &q.exchange}
	for i, f := range r.faults {
		if f.On != kind || !strings.Contains(req.URL.Path, f.Match) {
			continue
		}
		if f.Skip > 0 {
			f.Skip--
			continue
		}
		hit := *f
		if f.Times > 0 {
			if f.Times--; f.Times == 0 {
				r.faults = slices.Delete(r.faults, i, i+1)
			}
		}
		return hit, w
	}
	return Fault{}, w
}

// strike does what needs no knowledge of the answer, and reports whether that
// was the answer.
func (r *Registry) strike(w http.ResponseWriter, req *http.Request, f Fault) bool {
	if f.Delay > 0 {
		timer := time.NewTimer(f.Delay)
		defer timer.Stop()
		r.hold(req, timer.C)
	}
	for k, v := range f.Header {
		w.Header().Set(k, v)
	}
	if f.Location != "" {
		http.Redirect(w, req, f.Location, http.StatusTemporaryRedirect)
		return true
	}
	if f.Status != 0 {
		w.WriteHeader(f.Status)
		io.WriteString(w, f.Body)
		return true
	}
	return false
}

func (r *Registry) blob(w http.ResponseWriter, req *http.Request, f Fault) {
	h, err := v1.NewHash(req.URL.Path[strings.LastIndexByte(req.URL.Path, '/')+1:])
	var data []byte
	if err == nil {
		var rc io.ReadCloser
		if rc, err = r.blobs.Get(req.Context(), "", h); err == nil {
			data, err = io.ReadAll(rc)
			rc.Close()
		}
	}
	if err != nil {
		w.WriteHeader(http.StatusNotFound)
		io.WriteString(w, `{"errors":[{"code":"BLOB_UNKNOWN","message":"Unknown blob"}]}`)
		return
	}
	r.body(w, req, f, data, http.StatusOK)
}

// body sends data, or the range of it that was asked for, as f allows.
func (r *Registry) body(w http.ResponseWriter, req *http.Request, f Fault, data []byte, status int) {
	if f.Flip && len(data) > 0 {
		data = bytes.Clone(data)
		data[len(data)/2] ^= 0x40
	}
	data = append(data[:len(data):len(data)], make([]byte, f.Extra)...)
	total := len(data)
	if from := req.Header.Get("Range"); from != "" && !f.IgnoreRange {
		var first int
		last := total - 1
		if n, _ := fmt.Sscanf(from, "bytes=%d-%d", &first, &last); n < 1 || first >= total || last >= total || first > last {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, total))
		if f.ContentRange != "" {
			w.Header().Set("Content-Range", f.ContentRange)
		}
		data, status = data[first:last+1], http.StatusPartialContent
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(data)))
	w.WriteHeader(status)
	if f.Short == 0 && !f.Empty || f.Short >= int64(len(data)) {
		w.Write(data)
		return
	}
	w.Write(data[:f.Short])
	w.(http.Flusher).Flush()
	if f.Stall {
		r.hold(req, nil)
	}
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	if tcp, ok := conn.(*net.TCPConn); ok && f.Reset {
		tcp.SetLinger(0)
	}
	conn.Close()
}

// authorized lets a request pass, or challenges it.
func (r *Registry) authorized(w http.ResponseWriter, req *http.Request) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	stale := false
	switch r.opts.Auth {
	case "":
		return true
	case "basic":
		if u, p, ok := req.BasicAuth(); ok && u == r.opts.Username && p == r.opts.Password {
			return true
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
	case "token":
		token, _ := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
		good, issued := r.tokens[token]
		if good {
			return true
		}
		stale = issued
		if !stale || r.opts.StaleStatus == 0 {
			parts := strings.Split(strings.TrimPrefix(req.URL.Path, "/v2/"), "/")
			repo := strings.Join(parts[:max(0, len(parts)-2)], "/")
			scope := "repository:" + repo + ":pull"
			if req.Method != http.MethodGet && req.Method != http.MethodHead {
				scope += ",push"
			}
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="test",scope="%s"`, r.URL, scope))
		}
	}
	status := http.StatusUnauthorized
	if stale && r.opts.StaleStatus != 0 {
		status = r.opts.StaleStatus
	}
	w.WriteHeader(status)
	io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
	return false
}

// token is the token server: GET with basic credentials, or POST with an
// identity token.
func (r *Registry) token(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if req.Method == http.MethodPost {
		if r.opts.Identity == "" {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		if req.FormValue("grant_type") != "refresh_token" || req.FormValue("refresh_token") != r.opts.Identity {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
	} else if u, p, _ := req.BasicAuth(); r.opts.Username != "" && (u != r.opts.Username || p != r.opts.Password) {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	token := fmt.Sprintf("token-%d", len(r.tokens)+1)
	r.tokens[token] = true
	answer := map[string]any{"token": token}
	if r.opts.AccessToken {
		answer = map[string]any{"access_token": token}
	}
	if r.opts.ExpiresIn != 0 {
		answer["expires_in"] = r.opts.ExpiresIn
	}
	json.NewEncoder(w).Encode(answer)
}

// AddToken makes the registry take token as if its token server had issued it.
func (r *Registry) AddToken(token string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tokens[token] = true
}

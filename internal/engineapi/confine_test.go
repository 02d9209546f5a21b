package engineapi

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
)

// allowed are the methods of an engine that untrusted clients reach at all.
var allowed = []string{
	"Changes", "Configured", "DiskUsage", "Document", "Events", "Export", "ExportLayer", "ExportRefs", "Graph", "History", "Images", "Import",
	"Inspect", "InspectLayer", "ListIndexes", "ListTree", "Load", "Login", "Manifest", "Mounts", "Pins", "Prune", "Pull",
	"Push", "ReadTree", "Remove", "Save", "Search", "Status", "Tag", "Tags", "Untag", "Why",
}

// TestConfinedMethods calls every method of an engine as an untrusted client
// would have it called: what is not in the list is refused before the engine,
// which there is none of.
func TestConfinedMethods(t *testing.T) {
	t.Parallel()
	v := reflect.ValueOf(confined{})
	var reached []string
	for i := range v.NumMethod() {
		name, m := v.Type().Method(i).Name, v.Method(i)
		args := make([]reflect.Value, m.Type().NumIn())
		for i := range args {
			args[i] = reflect.Zero(m.Type().In(i))
		}
		func() {
			defer func() {
				if recover() != nil {
					reached = append(reached, name)
				}
			}()
			out := m.Call(args)
			err, _ := out[len(out)-1].Interface().(error)
			if fault.KindOf(err) != fault.Denied || fault.HintOf(err) == "" {
				t.Errorf("%s: %v", name, err)
			}
		}()
	}
	if !slices.Equal(reached, allowed) {
		t.Errorf("untrusted clients reach\n%v, not\n%v", reached, allowed)
	}
}

// options remembers the registry options that it is called with.
type options struct {
	Engine
	got []RegistryOptions
}

func (o *options) Pull(_ context.Context, req PullRequest, _ func(Progress)) (PullResult, error) {
	o.got = append(o.got, req.Registry)
	return PullResult{}, nil
}

func (o *options) Push(_ context.Context, req PushRequest, _ func(Progress)) ([]PushedTag, error) {
	o.got = append(o.got, req.Registry)
	return nil, nil
}

func (o *options) Search(_ context.Context, req SearchRequest) ([]SearchResult, error) {
	o.got = append(o.got, req.Registry)
	return nil, nil
}

func (o *options) Tags(_ context.Context, _ string, r RegistryOptions) ([]string, error) {
	o.got = append(o.got, r)
	return nil, nil
}

func (o *options) Login(_ context.Context, req LoginRequest) (LoginResult, error) {
	o.got = append(o.got, req.Registry)
	return LoginResult{}, nil
}

func (o *options) Manifest(_ context.Context, _ string, r RegistryOptions) (RegistryManifest, error) {
	o.got = append(o.got, r)
	return RegistryManifest{}, nil
}

func (o *options) ListIndexes(_ context.Context, req IndexRequest) ([]IndexInfo, error) {
	o.got = append(o.got, req.Registry)
	return nil, nil
}

func (o *options) ListTree(_ context.Context, req TreeRequest, _ func(Progress), _ func(TreeEntry) error) error {
	o.got = append(o.got, req.Registry)
	return nil
}

func (o *options) ReadTree(_ context.Context, req TreeRequest, _ func(Progress), _ io.Writer) error {
	o.got = append(o.got, req.Registry)
	return nil
}

// TestConfinedRegistry has untrusted clients name files of the host, and name
// none: no operation on a registry uses any.
func TestConfinedRegistry(t *testing.T) {
	t.Parallel()
	calls := func(c confined, r RegistryOptions) (errs []error) {
		ctx := context.Background()
		_, err := c.Pull(ctx, PullRequest{Registry: r}, nil)
		errs = append(errs, err)
		_, err = c.Push(ctx, PushRequest{Registry: r}, nil)
		errs = append(errs, err)
		_, err = c.Search(ctx, SearchRequest{Registry: r})
		errs = append(errs, err)
		_, err = c.Tags(ctx, "x", r)
		errs = append(errs, err)
		_, err = c.Login(ctx, LoginRequest{Registry: r})
		errs = append(errs, err)
		_, err = c.Manifest(ctx, "x", r)
		errs = append(errs, err)
		_, err = c.ListIndexes(ctx, IndexRequest{Registry: r})
		errs = append(errs, err, c.ListTree(ctx, TreeRequest{Registry: r}, nil, nil), c.ReadTree(ctx, TreeRequest{Registry: r}, nil, nil))
		return errs
	}
	o := &options{}
	for _, r := range []RegistryOptions{{AuthFile: "/etc/shadow"}, {DockerConfig: "/root/.docker"}, {CertsDir: "/root/certs"}, {Insecure: true}} {
		for i, err := range calls(confined{o}, r) {
			if fault.KindOf(err) != fault.Denied {
				t.Errorf("%+v: call %d: %v", r, i, err)
			}
		}
	}
	if len(o.got) > 0 {
		t.Errorf("the engine was asked: %+v", o.got)
	}
	for i, err := range calls(confined{o}, RegistryOptions{Username: "u", Password: "p"}) {
		if err != nil {
			t.Errorf("call %d: %v", i, err)
		}
	}
	for i, r := range o.got {
		if want := (RegistryOptions{Username: "u", Password: "p", NoHostFiles: true}); r != want {
			t.Errorf("call %d: %+v", i, r)
		}
	}
	for _, s := range []Source{{Mount: "m"}, {Upper: "u"}, {UpperDir: "/etc"}} {
		ctx, c := context.Background(), confined{o}
		_, changes := c.Changes(ctx, s, "")
		_, why := c.Why(ctx, s, "/")
		for _, err := range []error{changes, why, c.Export(ctx, s, true, nil), c.ListTree(ctx, TreeRequest{Source: s}, nil, nil), c.ReadTree(ctx, TreeRequest{Source: s}, nil, nil)} {
			if fault.KindOf(err) != fault.Denied {
				t.Errorf("%+v: %v", s, err)
			}
		}
	}
}

// TestUntrustedRoutes asks for every route of the table without trust: what
// changes something of ours is refused, whatever the body, and nothing of it
// is read.
func TestUntrustedRoutes(t *testing.T) {
	t.Parallel()
	h := NewServer(&engine{}, slog.New(slog.DiscardHandler)).Handler
	for _, table := range routes {
		for _, row := range table {
			method, path, _ := strings.Cut(row.request, " ")
			if method == http.MethodGet || row.reads || !strings.HasPrefix(path, "/imgfs/") {
				continue
			}
			for _, prefix := range []string{"", "/v1.40"} {
				body := strings.NewReader("{}")
				r := httptest.NewRequest(method, prefix+strings.Replace(path, "{}", "x", 1), io.NopCloser(body))
				w := httptest.NewRecorder()
				h.ServeHTTP(w, r)
				if w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), "only for the user the daemon runs as") || body.Len() != 2 {
					t.Errorf("%s: %d %s, %d bytes of the body left", row.request, w.Code, w.Body, body.Len())
				}
			}
		}
	}
	// Uppers and what a mount has changed are not to be read either.
	for _, path := range []string{"/imgfs/v1/uppers", "/imgfs/v1/uppers/x", "/imgfs/v1/uppers/x/check", "/imgfs/v1/export?upperDir=/etc",
		"/imgfs/v1/export?upper=x", "/imgfs/v1/changes?mount=x", "/imgfs/v1/why?mount=x&path=/"} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != http.StatusForbidden {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
	// Nor by a route of docker's with our header.
	for _, o := range []string{`{"authFile":"/etc/shadow"}`, `{"dockerConfig":"/root"}`, `{"certsDir":"/"}`, `{"insecure":true}`} {
		r := httptest.NewRequest(http.MethodPost, "/images/create?fromImage=x", nil)
		r.Header.Set(RegistryHeader, base64.URLEncoding.EncodeToString([]byte(o)))
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != http.StatusForbidden {
			t.Errorf("%s: %d %s", o, w.Code, w.Body)
		}
	}
}

// TestPages has browsers come, which no page may use to reach a daemon.
func TestPages(t *testing.T) {
	t.Parallel()
	h := NewServer(&engine{}, slog.New(slog.DiscardHandler)).Handler
	loopback := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 2375}
	elsewhere := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 2375}
	for _, tt := range []struct {
		at      net.Addr
		host    string
		header  string
		refused bool
	}{
		{loopback, "127.0.0.1:2375", "", false},
		{loopback, "[::1]:2375", "", false},
		{loopback, "localhost", "", false},
		{loopback, "api.moby.localhost", "", false},
		{loopback, "evil.example:2375", "", true}, // its owner has let it point here
		{elsewhere, "imgfs.example:2375", "", false},
		{elsewhere, "imgfs.example:2375", "Origin", true},
		{loopback, "127.0.0.1:2375", "Origin", true},
		{loopback, "127.0.0.1:2375", "Sec-Fetch-Site", true},
	} {
		r := httptest.NewRequest(http.MethodGet, "/_ping", nil)
		r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, tt.at))
		r.Host = tt.host
		if tt.header != "" {
			r.Header.Set(tt.header, "https://evil.example")
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if refused := w.Code == http.StatusForbidden; refused != tt.refused || !refused && w.Code != http.StatusOK {
			t.Errorf("%+v: %d %s", tt, w.Code, w.Body)
		}
	}
}

// TestSlowBody has a client that is not trusted promise bodies and not send
// them: to a handler that reads, to one that does not, and to one that reads
// what comes byte by byte.
func TestSlowBody(t *testing.T) {
	t.Parallel()
	const patience = 50 * time.Millisecond
	read := make(chan error, 1)
	srv := httptest.NewServer(paced(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/unread" {
			http.Error(w, "no", http.StatusBadRequest)
			return
		}
		n, err := io.Copy(io.Discard, r.Body)
		read <- fmt.Errorf("%d: %w", n, err)
	}), patience))
	defer srv.Close()
	for _, tt := range []struct{ path, body string }{{"/unread", ""}, {"/read", ""}, {"/read", "abc"}} {
		c, err := net.Dial("tcp", srv.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n%s", tt.path, tt.body)
		// The connection ends by the server's doing, and nobody else's.
		io.Copy(io.Discard, c)
		c.Close()
		if tt.path == "/read" {
			if err := <-read; err.Error() != fmt.Sprintf("%d: %v", len(tt.body), errSlowBody) {
				t.Errorf("%+v: %v", tt, err)
			}
		}
	}
	// One that comes is read, however long the handler takes over it, and the
	// connection serves the next.
	c, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	in := bufio.NewReader(c)
	for range 2 {
		fmt.Fprintf(c, "POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
		if res, err := http.ReadResponse(in, nil); err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("%v %v", res, err)
		}
		<-read
	}
}

// TestSlowHeader has a client begin a header, and another one wait after a
// request: both connections end.
func TestSlowHeader(t *testing.T) {
	t.Parallel()
	srv := NewServer(&engine{}, slog.New(slog.DiscardHandler))
	srv.ReadHeaderTimeout, srv.IdleTimeout = 50*time.Millisecond, 50*time.Millisecond
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go srv.Serve(l)
	defer srv.Close()
	for _, text := range []string{"", "GET /_ping HTTP/1.1\r\nHost: 127.0.0.1\r\nX:", "GET /_ping HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"} {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(c, text)
		io.Copy(io.Discard, c)
		c.Close()
	}
}

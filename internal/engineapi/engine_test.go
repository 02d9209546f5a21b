package engineapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// engine answers with what a test has put into it.
type engine struct {
	Engine // nil: what has no method here has tests with a real engine

	images  []ImageSummary
	inspect *ImageInspect // of every name that an image has; nil: next to nothing
	err     error         // of Inspect, Remove, GC
	pull    func(PullRequest, func(Progress)) (PullResult, error)
	mount   func(context.Context, MountRequest, func(Progress), Exchange) (Mount, error)
	gone    chan struct{}
	removed []string // uppers, and those converted
}

func (e *engine) Images(context.Context, ListOptions) ([]ImageSummary, error) { return e.images, nil }

func (e *engine) Inspect(_ context.Context, name string, _ InspectOptions) (ImageInspect, error) {
	for _, i := range e.images {
		for _, t := range i.RepoTags {
			if t == name && e.inspect != nil {
				return *e.inspect, nil
			}
			if t == name {
				return ImageInspect{ID: i.ID, RepoTags: i.RepoTags, Created: time.Unix(i.Created, 0).Format(time.RFC3339Nano), Config: json.RawMessage("{}")}, nil
			}
		}
	}
	return ImageInspect{}, errors.Join(e.err, fault.New(fault.NotFound, "No such image: %s", name))
}

func (e *engine) Remove(_ context.Context, name string, o RemoveOptions) ([]DeleteItem, error) {
	return []DeleteItem{{Untagged: fmt.Sprint(name, " ", o.Force)}}, e.err
}

func (e *engine) Pull(_ context.Context, req PullRequest, report func(Progress)) (PullResult, error) {
	return e.pull(req, report)
}

func (e *engine) DiskUsage(context.Context) (DiskUsage, error) {
	return DiskUsage{Layers: []LayerUsage{{Size: 100, Present: 40}, {Size: 7, Present: 7}}, Limit: 1 << 20}, nil
}

func (e *engine) Configured(context.Context) []InfoIndex {
	return []InfoIndex{
		{Name: "docker.io", Mirrors: []string{"https://mirror/"}, Secure: true, Official: true},
		{Name: "broken", Mirrors: []string{}, Problem: "no"},
	}
}

func (e *engine) Mounts(context.Context) ([]Mount, error) { return []Mount{{ID: "m"}}, nil }

func (e *engine) Mount(ctx context.Context, req MountRequest, report func(Progress), x Exchange) (Mount, error) {
	return e.mount(ctx, req, report, x)
}

func (e *engine) WaitGone(_ context.Context, id string) error { return nil }

func (e *engine) Uppers(context.Context) ([]Upper, error) {
	return []Upper{{Name: "ubuntu-1", Image: "ubuntu:14.04", Size: 5}}, nil
}

func (e *engine) Upper(_ context.Context, name string) (Upper, error) {
	if name != "ubuntu-1" {
		return Upper{}, fault.New(fault.NotFound, "no such upper: %s", name)
	}
	return Upper{Name: name}, nil
}

func (e *engine) CheckUpper(_ context.Context, name string) ([]UpperProblem, error) {
	return []UpperProblem{{Path: "/" + name, What: "damaged"}}, e.err
}

func (e *engine) Changes(_ context.Context, src Source, than string) ([]Change, error) {
	if e.err != nil {
		return nil, e.err
	}
	return []Change{{"C", "/" + src.Mount + src.Image + than}, {"A", "/\xff"}}, nil
}

func (e *engine) Export(_ context.Context, src Source, layer bool, w io.Writer) error {
	if src.Upper != "" { // fails behind the first bytes
		fmt.Fprint(w, "half")
	} else if e.err == nil {
		fmt.Fprint(w, src.Mount, layer)
	}
	return e.err
}

func (e *engine) Commit(_ context.Context, req CommitRequest) (CommitResult, error) {
	return CommitResult{ID: id.ImageIDOf([]byte(req.Message))}, e.err
}

func (e *engine) RemoveUpper(_ context.Context, name string) error {
	e.removed = append(e.removed, name)
	return e.err
}

func (e *engine) ConvertUpper(_ context.Context, name string, req ConvertRequest) error {
	e.removed = append(e.removed, name+" to "+req.Xattrs)
	return e.err
}

func (e *engine) Status(context.Context) (Status, error) { return Status{Version: "v", Images: 2}, nil }

func (e *engine) GC(context.Context) (GCReport, error) {
	return GCReport{Layers: []id.LayerKey{"l"}, Reclaimed: 5}, e.err
}

func (e *engine) Shutdown(_ context.Context, force bool) (<-chan struct{}, error) {
	if !force {
		return nil, fault.WithHint(fault.New(fault.Conflict, "busy"), "use force")
	}
	return e.gone, nil
}

// serve serves e on a socket and returns a client.
func serve(t testing.TB, e Engine) *Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := NewServer(e, slog.New(slog.DiscardHandler))
	done := make(chan struct{})
	go func() {
		defer close(done)
		srv.Serve(l)
	}()
	c := New(socket)
	t.Cleanup(func() {
		c.Close()
		srv.Close()
		<-done
	})
	return c
}

// get sends a request as any HTTP client would.
func get(t testing.TB, c *Client, method, path string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, "http://api.moby.localhost"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := c.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

// digest returns a well-formed digest of one letter.
func digest(letter string) id.ImageID { return id.ImageID("sha256:" + strings.Repeat(letter, 64)) }

var testImages = []ImageSummary{
	{ID: digest("a"), Created: 10, RepoTags: []string{"ubuntu:14.04", "host:5000/u:1"}, RepoDigests: []string{"ubuntu@sha256:x"}, Labels: map[string]string{"k": "v"}},
	{ID: digest("b"), Created: 30, RepoTags: []string{}, RepoDigests: []string{}},
	{ID: digest("c"), Created: 20, RepoTags: []string{"busybox:latest"}, RepoDigests: []string{}, Labels: map[string]string{"k": ""}},
}

func TestRoutes(t *testing.T) {
	c := serve(t, &engine{images: testImages})
	for _, tt := range []struct {
		request string
		status  int
		body    string // what it contains
	}{
		{"GET /_ping", 200, "OK"},
		{"HEAD /_ping", 200, ""},
		{"GET /v1.24/_ping", 200, "OK"},
		{"GET /v1.50/version", 200, `"ApiVersion":"1.52","MinAPIVersion":"1.24"`},
		{"GET /version", 200, `"Os":"linux"`},
		{"GET /v1.53/version", 400, `{"message":"client version 1.53 is too new. Maximum supported API version is 1.52"`},
		{"GET /v2.0/version", 400, "is too new"},
		{"GET /v1.23/images/json", 400, "client version 1.23 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version"},
		{"GET /info", 200, `"Images":2`},
		{"GET /images/json", 200, `[{"Id":"sha256:bb`},
		{"GET /images/json?filters=%7B%22nope%22%3A%7B%22x%22%3Atrue%7D%7D", 400, "invalid filter 'nope'"},
		{"GET /images/json?filters=%5B", 400, "invalid filter: "},
		{"GET /v1.50/images/host:5000/u:1/json", 200, `"Id":"sha256:aa`},
		{"GET /v1.50/images/no/such/image:1/json", 404, `{"message":"No such image: no/such/image:1"`},
		{"DELETE /images/a/../b//c", 200, `"Untagged":"a/../b//c false"`},
		{"DELETE /images/a?force=1", 200, `"Untagged":"a true"`},
		{"DELETE /images/a?force=0", 200, `"Untagged":"a false"`},
		{"GET /containers/json", 200, "[]"},
		{"POST /containers/create?name=x", 501, "imgfs serves images only"},
		{"POST /build", 501, "imgfs serves images only"},
		{"GET /containers/x/json", 404, `{"message":"No such container: x"`},
		{"GET /networks/x", 404, "No such network: x"},
		{"GET /", 404, "page not found"},
		{"GET /versions", 404, "page not found"},
		{"PUT /images/json", 404, "page not found"},
		{"POST /images/create", 400, "fromImage is missing"},
		{"POST /imgfs/v1/mounts", 400, "needs the header Upgrade"},
		{"GET /imgfs/v1/mounts", 200, `"id":"m"`},
		{"POST /imgfs/v1/gc", 200, `"reclaimed":5`},
		{"POST /imgfs/v1/mounts/m/wait", 204, ""},
		{"POST /imgfs/v1/mounts//wait", 404, "page not found"},
	} {
		method, path, _ := strings.Cut(tt.request, " ")
		res, body := get(t, c, method, path)
		if res.StatusCode != tt.status || !strings.Contains(body, tt.body) {
			t.Errorf("%s: got %d %s; want %d, %s", tt.request, res.StatusCode, body, tt.status, tt.body)
		}
		for _, h := range []string{"Api-Version", "Ostype", "Server", "Docker-Experimental", VersionHeader} {
			if res.Header.Get(h) == "" {
				t.Errorf("%s: no header %s", tt.request, h)
			}
		}
	}
}

func TestFilters(t *testing.T) {
	images := slices.Clone(testImages)
	here, lazy := int64(0), int64(1)
	images[0].Lazy, images[1].Lazy, images[1].Containers = &here, &lazy, 1
	c := serve(t, &engine{images: images})
	for _, tt := range []struct {
		filters map[string][]string
		want    string // IDs, newest first, or the error
	}{
		{nil, "b c a"},
		{map[string][]string{"dangling": {"true"}}, "b"},
		{map[string][]string{"dangling": {"false"}}, "c a"},
		{map[string][]string{"dangling": {"x"}}, "invalid filter 'dangling=x'"},
		{map[string][]string{"label": {"k"}}, "c a"},
		{map[string][]string{"label": {"k=v"}}, "a"},
		{map[string][]string{"label": {"k", "none"}}, ""},
		{map[string][]string{"reference": {"ubuntu"}}, "a"},
		{map[string][]string{"reference": {"*:latest"}}, "c"},
		{map[string][]string{"reference": {"host:5000/u"}}, "a"},
		{map[string][]string{"reference": {"host"}}, ""},
		{map[string][]string{"reference": {"["}}, "invalid filter 'reference=['"},
		{map[string][]string{"before": {"busybox:latest"}}, "a"},
		{map[string][]string{"since": {"ubuntu:14.04"}}, "b c"},
		{map[string][]string{"since": {"nope"}}, "No such image: nope"},
		{map[string][]string{"until": {"15"}}, "a"},
		{map[string][]string{"until": {"1970-01-01T00:00:25Z"}}, "c a"},
		{map[string][]string{"until": {"monday"}}, "failed to parse value as time or duration: \"monday\""},
		{map[string][]string{"label": {"k"}, "reference": {"busybox"}}, "c"},
		{map[string][]string{"label!": {"k"}}, "b"},
		{map[string][]string{"label!": {"k=v"}}, "b c"},
		{map[string][]string{"mounted": {"true"}}, "b"},
		{map[string][]string{"mounted": {"false"}}, "c a"},
		{map[string][]string{"mounted": {"x"}}, "invalid filter 'mounted=x'"},
		{map[string][]string{"cached": {"true"}}, "a"},
		{map[string][]string{"cached": {"0"}}, "b c"},
		{map[string][]string{"cached": {"x"}}, "invalid filter 'cached=x'"},
		{map[string][]string{"x": {"y"}}, "invalid filter 'x'"},
	} {
		list, err := c.Images(context.Background(), tt.filters, ListOptions{})
		var got []string
		for _, i := range list {
			got = append(got, i.ID.Hex()[:1])
		}
		s := strings.Join(got, " ")
		if err != nil {
			s = err.Error()
		}
		if s != tt.want && (err == nil || !strings.HasPrefix(s, tt.want)) {
			t.Errorf("%v: got %q, want %q", tt.filters, s, tt.want)
		}
	}
	list, err := c.Images(context.Background(), map[string][]string{"reference": {"ubuntu"}}, ListOptions{})
	if err != nil || len(list) != 1 || len(list[0].RepoTags) != 1 {
		t.Errorf("only the names that match are shown: %v %v", list, err)
	}
	// docker's older form.
	_, body := get(t, c, "GET", `/images/json?filters=%7B%22dangling%22%3A%5B%22true%22%5D%7D`)
	if !strings.Contains(body, "sha256:b") || strings.Contains(body, "sha256:a") {
		t.Errorf("list form: %s", body)
	}
}

// TestFaults sends each kind of error over each sort of route.
func TestFaults(t *testing.T) {
	e := &engine{}
	c := serve(t, e)
	ctx := context.Background()
	for _, tt := range []struct {
		kind   fault.Kind
		status int
	}{
		{fault.Failed, 500}, {fault.Invalid, 400}, {fault.NotFound, 404}, {fault.Denied, 403}, {fault.Integrity, 500},
		{fault.Network, 502}, {fault.Conflict, 409}, {fault.Unavailable, 503}, {fault.Canceled, 500},
	} {
		want := fault.WithHint(fault.New(tt.kind, "layer: %w", errors.New("cause")), "try %s", "this")
		e.err = want
		e.mount = func(context.Context, MountRequest, func(Progress), Exchange) (Mount, error) { return Mount{}, want }
		first, late := pullOf(want, 0), pullOf(want, 1)
		calls := map[string]func() error{
			"reply": func() error { _, err := c.GC(ctx); return err },
			"pull":  func() error { e.pull = first; _, err := c.Pull(ctx, PullRequest{Reference: "x"}, nil); return err },
			"stream": func() error {
				e.pull = late
				_, err := c.Pull(ctx, PullRequest{Reference: "x"}, nil)
				return err
			},
			"mount": func() error {
				_, err := c.Mount(ctx, MountRequest{Image: "x", Target: "/x", Driver: "fuse"}, nil, nil)
				return err
			},
		}
		for name, call := range calls {
			err := call()
			if err == nil || err.Error() != want.Error() || fault.KindOf(err) != tt.kind || fault.HintOf(err) != "try this" {
				t.Errorf("%v by %s: got %v, kind %v, hint %q", tt.kind, name, err, fault.KindOf(err), fault.HintOf(err))
			}
		}
		if res, _ := get(t, c, "POST", "/imgfs/v1/gc"); res.StatusCode != tt.status {
			t.Errorf("%v: status %d, want %d", tt.kind, res.StatusCode, tt.status)
		}
	}
	// Docker's form in a stream that has started.
	e.pull = pullOf(fault.WithHint(fault.New(fault.Canceled, "layer: %w", errors.New("cause")), "try this"), 1)
	_, body := get(t, c, "POST", "/images/create?fromImage=x&tag=y")
	if want := `{"errorDetail":{"message":"layer: cause","kind":"canceled","hint":"try this"},"error":"layer: cause"}` + "\r\n"; !strings.HasSuffix(body, want) {
		t.Errorf("stream: got %q, want %q at its end", body, want)
	}
	// A server that sends a message alone.
	if err := (&Error{Message: "m"}).Err(); fault.KindOf(err) != fault.Failed {
		t.Errorf("no kind: %v", fault.KindOf(err))
	}
}

// pullOf fails with err after n steps.
func pullOf(err error, n int) func(PullRequest, func(Progress)) (PullResult, error) {
	return func(_ PullRequest, report func(Progress)) (PullResult, error) {
		for range n {
			report(Progress{ID: "515ae707f091", Status: "Downloading", Current: 1, Total: 2})
		}
		return PullResult{}, err
	}
}

func TestPull(t *testing.T) {
	e := &engine{}
	var got PullRequest
	e.pull = func(r PullRequest, report func(Progress)) (PullResult, error) {
		got = r
		report(Progress{ID: "l", Status: "Downloading", Current: 1, Total: 2})
		return PullResult{Reference: "x:1", Digest: id.Blob(digest("d")), ImageID: digest("a"), UpToDate: true}, nil
	}
	c := serve(t, e)
	req := PullRequest{Reference: "oci:/a b", Platform: "linux/arm64", Registry: RegistryOptions{Insecure: true, Token: "t"}}
	var steps []Progress
	res, err := c.Pull(context.Background(), req, func(p Progress) { steps = append(steps, p) })
	if err != nil || res.ImageID != digest("a") || !res.UpToDate {
		t.Errorf("pull: %+v %v", res, err)
	}
	if got != req || len(steps) == 0 || steps[0] != (Progress{ID: "l", Status: "Downloading", Current: 1, Total: 2}) {
		t.Errorf("request %+v, steps %+v", got, steps)
	}

	for _, tt := range []struct{ query, auth, ref, user, token string }{
		{"fromImage=docker.io%2Flibrary%2Fubuntu&tag=14.04", "", "docker.io/library/ubuntu:14.04", "", ""},
		{"fromImage=u&tag=" + string(digest("e")) + "&platform=linux%2Farm64", "e30=", "u@" + string(digest("e")), "", ""},
		{"fromImage=host:5000/u:1", "", "host:5000/u:1", "", ""},
		{"fromImage=host:5000/u:1&tag=2", "", "host:5000/u:2", "", ""},
		{"fromImage=host:5000/u:1&tag=" + string(digest("e")), "", "host:5000/u@" + string(digest("e")), "", ""},
		{"fromImage=u@sha256:abc&tag=2", "", "u:2@sha256:abc", "", ""},
		{"fromImage=u@sha256:abc", "", "u@sha256:abc", "", ""},
		{"fromImage=u&tag=1", "eyJ1c2VybmFtZSI6ImEiLCJwYXNzd29yZCI6ImIiLCJyZWdpc3RyeXRva2VuIjoiYyJ9", "u:1", "a", "c"},
		{"fromImage=u&tag=1", "eyJhdXRoIjoiWVRwaSJ9", "u:1", "a", ""},
		{"fromImage=u&tag=1", "%%%", "u:1", "", ""},
	} {
		_, body := get(t, c, "POST", "/v1.41/images/create?"+tt.query, "X-Registry-Auth", tt.auth)
		if got.Reference != tt.ref || got.Registry.Username != tt.user || got.Registry.Token != tt.token {
			t.Errorf("%s: got %+v", tt.query, got)
		}
		for _, want := range []string{
			`{"status":"Downloading","id":"l","progressDetail":{"current":1,"total":2}}` + "\r\n",
			`{"status":"Digest: ` + string(digest("d")) + `"}` + "\r\n",
			`{"status":"Status: Image is up to date for x:1"}` + "\r\n",
		} {
			if !strings.Contains(body, want) {
				t.Errorf("%s: stream %q lacks %q", tt.query, body, want)
			}
		}
	}
}

func TestShutdown(t *testing.T) {
	e := &engine{gone: make(chan struct{})}
	c := serve(t, e)
	if err := c.Shutdown(context.Background(), false); fault.KindOf(err) != fault.Conflict || fault.HintOf(err) != "use force" {
		t.Errorf("refused: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.Shutdown(ctx, true); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	close(e.gone)
	if err := c.Shutdown(context.Background(), true); err != nil {
		t.Error(err)
	}
}

func TestNoDaemon(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	ctx := context.Background()
	for _, socket := range []string{stale, filepath.Join(dir, "absent")} {
		c := New(socket)
		_, err := c.Status(ctx)
		if !errors.Is(err, ErrNoDaemon) || fault.KindOf(err) != fault.Unavailable {
			t.Errorf("%s: %v", socket, err)
		}
		if _, err := c.Mount(ctx, MountRequest{}, nil, nil); !errors.Is(err, ErrNoDaemon) {
			t.Errorf("%s: mount: %v", socket, err)
		}
		restarted := 0
		c.Restart = func(context.Context) error { restarted++; return os.ErrPermission }
		if _, err := c.Status(ctx); !errors.Is(err, os.ErrPermission) || restarted != 1 {
			t.Errorf("%s: restart: %v, %d times", socket, err, restarted)
		}
	}
}

// TestSkew meets a daemon of another build.
func TestSkew(t *testing.T) {
	c := serve(t, &engine{})
	ctx := context.Background()
	called := ""
	c.Skew = func(_ context.Context, build string) error { called += build + " "; return nil }
	if _, err := c.Status(ctx); err != nil || called != "" {
		t.Errorf("same build: %v, called with %q", err, called)
	}

	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	other := &http.Server{Handler: &server{engine: &engine{}, log: slog.New(slog.DiscardHandler), build: Build{Version: "v9"}, router: newRouter(routes)}}
	go other.Serve(l)
	t.Cleanup(func() { other.Close() })
	c = New(socket)
	c.Skew = func(_ context.Context, build string) error { called += build + " "; return nil }
	for range 2 {
		if _, err := c.Status(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if called != "v9 " {
		t.Errorf("other build: called with %q", called)
	}
	c = New(socket)
	c.Skew = func(context.Context, string) error { return os.ErrPermission }
	if _, err := c.Status(ctx); !errors.Is(err, os.ErrPermission) {
		t.Errorf("refused: %v", err)
	}
}

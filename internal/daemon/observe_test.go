package daemon

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

// TestMetrics has a daemon do things and finds them counted.
func TestMetrics(t *testing.T) {
	needFUSE(t)
	reg := newRegistry(t)
	ref, _ := reg.push(t, "metrics", "file a one")
	socket := filepath.Join(t.TempDir(), "metrics")
	d := runDaemon(t, Options{MetricsAddr: "unix://" + socket})
	scrape := func() func(name string) string {
		t.Helper()
		tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		}}
		defer tr.CloseIdleConnections()
		res, err := (&http.Client{Transport: tr}).Get("http://localhost/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("%s %s %v", res.Status, b, err)
		}
		return func(name string) string {
			m := regexp.MustCompile(`(?m)^imgfs_` + regexp.QuoteMeta(name) + ` (\S+)$`).FindSubmatch(b)
			if m == nil {
				return ""
			}
			return string(m[1])
		}
	}
	if st, err := os.Stat(socket); err != nil || st.Mode() != os.ModeSocket|0o600 {
		t.Errorf("socket: %v %v", st.Mode(), err)
	}
	if got := scrape()("images"); got != "0" {
		t.Errorf("images at first: %q", got)
	}
	dir := mountDir(t)
	if _, err := mountAs(testContext(t), d.client, ref, dir); err != nil {
		t.Fatal(err)
	}
	wantFile(t, filepath.Join(dir, "a"), "one")
	if _, err := d.client.Pull(testContext(t), engineapi.PullRequest{Reference: reg.host() + "/nosuch:1"}, nil); err == nil {
		t.Fatal("pulled what is not there")
	}
	live := scrape()
	for name, want := range map[string]string{
		"images": "1", "layers": "1", `mounts{driver="fuse",mode="ro"}`: "1", `layer_bytes{state="lazy"}`: "0",
		`operations_total{operation="mount",result="ok"}`:   "1",
		`operations_total{operation="pull",result="error"}`: "1",
		`events_total{action="mount",type="mount"}`:         "1",
		`fuse_read_bytes_total`:                             "3",
	} {
		if got := live(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if got := live("registry_received_bytes_total"); got == "" || got == "0" {
		t.Errorf("bytes received: %q", got)
	}
	// Counters outlive what they have counted.
	if err := fsUnmount(dir); err != nil {
		t.Fatal(err)
	}
	if list, err := d.client.Mounts(testContext(t)); err == nil && len(list) > 0 {
		if err := d.client.WaitGone(testContext(t), list[0].ID); err != nil {
			t.Fatal(err)
		}
	}
	after := scrape()
	if got := after("fuse_read_bytes_total"); got != "3" {
		t.Errorf("bytes read after the mount's end: %q", got)
	}
	if got := after(`mounts{driver="fuse",mode="ro"}`); got != "0" {
		t.Errorf("mounts after its end: %q", got)
	}
}

// TestDebug serves profiles, on loopback alone and not to pages.
func TestDebug(t *testing.T) {
	t.Parallel()
	for _, addr := range []string{"0.0.0.0:0", ":0", "fd://", "nonsense"} {
		if err := Run(testContext(t), Options{Paths: newStore(t), DebugAddr: addr}); fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), "debug: ") {
			t.Errorf("%s: %v", addr, err)
		}
	}
	log := &logged{}
	runDaemon(t, Options{DebugAddr: "127.0.0.1:0", Logger: NewLogger(log, false, slog.LevelInfo)})
	m := regexp.MustCompile(`serving debug" address=(\S+)`).FindStringSubmatch(log.String())
	if m == nil {
		t.Fatalf("log: %s", log)
	}
	for _, tt := range []struct {
		path, host string
		want       int
	}{
		{"/debug/pprof/goroutine?debug=1", m[1], 200},
		{"/debug/vars", "localhost", 200},
		{"/debug/vars", "evil.example", 403},
		{"/", m[1], 404},
	} {
		req, err := http.NewRequest(http.MethodGet, "http://"+m[1]+tt.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = tt.host
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != tt.want {
			t.Errorf("%s %s: %s", tt.host, tt.path, res.Status)
		}
	}
}

// TestWriteStalled has a client that is not trusted read nothing: what is sent
// to it ends.
func TestWriteStalled(t *testing.T) {
	t.Parallel()
	ours, theirs := net.Pipe()
	defer theirs.Close()
	c := &conn{Conn: ours, act: newActivity(-1), patience: 10 * time.Millisecond}
	defer c.Close()
	if _, err := c.Write(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// TestIdleListening has a connection by another listener keep a daemon that
// would leave, and one that has gone keep nothing.
func TestIdleListening(t *testing.T) {
	t.Parallel()
	log := &logged{}
	d := runDaemon(t, Options{Idle: 50 * time.Millisecond, Listening: Listening{Hosts: []string{"tcp://127.0.0.1:0"}}, Logger: NewLogger(log, false, slog.LevelInfo)})
	c, err := net.Dial("tcp", log.address(t))
	if err != nil {
		return // it has left: so slow a machine shows nothing
	}
	// A request under way, for several idle times: until another daemon has
	// come to the end of its own.
	io.WriteString(c, "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
	if _, err := c.Read(make([]byte, 1)); err != nil {
		return // likewise
	}
	other := runDaemon(t, Options{Idle: 200 * time.Millisecond})
	other.wait(t)
	select {
	case err := <-d.ended:
		t.Errorf("it has left a client: %v", err)
		d.ended = nil
		return
	default:
	}
	c.Close()
	d.wait(t)
}

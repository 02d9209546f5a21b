package engineapi

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
)

var testMount = MountRequest{Image: "x", Target: "/mnt", Driver: "fuse"}

// TestMount passes a descriptor through.
func TestMount(t *testing.T) {
	var got string
	e := &engine{mount: func(_ context.Context, req MountRequest, report func(Progress), x Exchange) (Mount, error) {
		report(Progress{Status: "Waiting"})
		rep, f, err := x(MountReady{ID: "id", Source: "src"})
		if err != nil {
			return Mount{}, err
		}
		defer f.Close()
		b := make([]byte, 16)
		n, _ := f.ReadAt(b, 0)
		got = rep.Dev + " " + string(b[:n])
		return Mount{ID: "id", Target: req.Target}, nil
	}}
	c := serve(t, e)
	var steps []Progress
	m, err := c.Mount(context.Background(), testMount, func(p Progress) { steps = append(steps, p) }, func(r MountReady) (int, MountReply, error) {
		if r.ID != "id" || r.Source != "src" {
			t.Errorf("ready: %+v", r)
		}
		return tempFD(t, "content"), MountReply{Dev: "0:5"}, nil
	})
	if err != nil || m.ID != "id" || m.Target != "/mnt" || got != "0:5 content" || len(steps) != 1 {
		t.Errorf("got %+v %v, %q, %v", m, err, got, steps)
	}
}

// tempFD returns a bare descriptor of a file.
func tempFD(t testing.TB, content string) int {
	t.Helper()
	path := t.TempDir() + "/f"
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// TestMountFails has the client's mount fail: both sides learn of it.
func TestMountFails(t *testing.T) {
	seen := make(chan error, 1)
	e := &engine{mount: func(_ context.Context, _ MountRequest, _ func(Progress), x Exchange) (Mount, error) {
		_, _, err := x(MountReady{})
		seen <- err
		return Mount{}, err
	}}
	c := serve(t, e)
	want := fault.WithHint(fault.New(fault.Denied, "not allowed"), "be root")
	_, err := c.Mount(context.Background(), testMount, nil, func(MountReady) (int, MountReply, error) {
		return -1, MountReply{}, want
	})
	if !errors.Is(err, want) {
		t.Errorf("client: %v", err)
	}
	if err := <-seen; err == nil || err.Error() != "not allowed" || fault.KindOf(err) != fault.Denied {
		t.Errorf("daemon: %v", err)
	}
}

// TestMountGone has the client go at each stage: the daemon's work is
// cancelled, and a descriptor that arrived is closed or handed over.
func TestMountGone(t *testing.T) {
	for _, stage := range []string{"before ready", "after ready", "after reply"} {
		t.Run(stage, func(t *testing.T) {
			seen := make(chan error, 1)
			e := &engine{mount: func(ctx context.Context, _ MountRequest, _ func(Progress), x Exchange) (Mount, error) {
				if stage != "before ready" {
					_, f, err := x(MountReady{})
					if err != nil {
						seen <- err
						return Mount{}, err
					}
					f.Close()
				}
				<-ctx.Done()
				seen <- ctx.Err()
				return Mount{}, ctx.Err()
			}}
			c := serve(t, e)
			conn, r := upgraded(t, c)
			if stage != "before ready" {
				if _, err := r.ReadString('\n'); err != nil {
					t.Fatal(err)
				}
			}
			if stage == "after reply" {
				if err := sendReply(conn, MountReply{}, tempFD(t, "")); err != nil {
					t.Fatal(err)
				}
			}
			conn.Close()
			if err := <-seen; fault.KindOf(err) != fault.Canceled {
				t.Errorf("daemon: %v", err)
			}
		})
	}
}

// upgraded returns a connection behind the 101.
func upgraded(t testing.TB, c *Client) (*net.UnixConn, *bufio.Reader) {
	t.Helper()
	conn, err := c.dial(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	r, err := upgrade(context.Background(), conn, testMount)
	if err != nil {
		t.Fatal(err)
	}
	return conn, r.(*bufio.Reader)
}

// TestMountReplies sends what no CLI sends.
func TestMountReplies(t *testing.T) {
	for _, tt := range []struct{ name, reply, want string }{
		{"no JSON", "hello\n", "mount reply: invalid character"},
		{"too long", strings.Repeat("x", 64<<10), "mount reply: too long"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := &engine{mount: func(_ context.Context, _ MountRequest, _ func(Progress), x Exchange) (Mount, error) {
				_, _, err := x(MountReady{})
				return Mount{}, err
			}}
			conn, r := upgraded(t, serve(t, e))
			if _, err := r.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(conn, tt.reply) // the daemon may have stopped reading
			line, err := r.ReadString('\n')
			var ev MountEvent
			if err != nil || json.Unmarshal([]byte(line), &ev) != nil || ev.Error == nil || !strings.Contains(ev.Error.Message, tt.want) {
				t.Errorf("got %q %v, want an error with %q", line, err, tt.want)
			}
		})
	}
}

func TestMountRequest(t *testing.T) {
	c := serve(t, &engine{})
	for _, tt := range []struct {
		edit func(*MountRequest)
		want string
	}{
		{func(r *MountRequest) { r.Image = "" }, "either an image or the layout view"},
		{func(r *MountRequest) { r.Layout = true }, "either an image or the layout view"},
		{func(r *MountRequest) { r.Target = "mnt" }, "not a clean absolute path"},
		{func(r *MountRequest) { r.Target = "/mnt/../x" }, "not a clean absolute path"},
		{func(r *MountRequest) { r.Target = "/a\x00b" }, "not a clean absolute path"},
		{func(r *MountRequest) { r.Driver = "aufs" }, `unknown driver "aufs"`},
		{func(r *MountRequest) { r.Pull = "maybe" }, `unknown pull policy "maybe"`},
		{func(r *MountRequest) { r.Image = strings.Repeat("x", 2<<20) }, "is larger than"},
	} {
		req := testMount
		tt.edit(&req)
		_, err := c.Mount(context.Background(), req, nil, nil)
		if fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
	}
}

// TestHeaderLimit sends a header that never ends.
func TestHeaderLimit(t *testing.T) {
	c := serve(t, &engine{})
	conn, err := c.dial(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() {
		fmt.Fprint(conn, "GET /_ping HTTP/1.1\r\nHost: x\r\n")
		for range 64 {
			if _, err := fmt.Fprintf(conn, "X: %s\r\n", strings.Repeat("x", 4<<10)); err != nil {
				return
			}
		}
	}()
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || res.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("got %v %v", res, err)
	}
	if s := NewServer(&engine{}, slog.New(slog.DiscardHandler)); s.ReadHeaderTimeout <= 0 || s.IdleTimeout <= 0 {
		t.Error("the server waits for ever")
	}
}

// TestMountStalled has a client that does not read, as one that was stopped by
// its terminal, when the daemon leaves: the daemon does not wait for it.
func TestMountStalled(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan struct{})
	e := &engine{mount: func(ctx context.Context, _ MountRequest, report func(Progress), _ Exchange) (Mount, error) {
		defer close(ended)
		close(begun)
		for range 100 { // far more than a socket holds
			report(Progress{Status: strings.Repeat("x", 64<<10)})
		}
		return Mount{}, ctx.Err()
	}}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	requests, leave := context.WithCancel(context.Background())
	defer leave()
	srv := NewServer(e, slog.New(slog.DiscardHandler))
	srv.BaseContext = func(net.Listener) context.Context { return requests }
	go srv.Serve(l)
	defer srv.Close()
	conn, _ := upgraded(t, New(socket))
	<-begun
	leave()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("the daemon waits for a client that does not read")
	}
	conn.Close()
}

// TestMountKilled has the daemon die while the client mounts: that is told, and
// the mount not tried again at a place that is taken now.
func TestMountKilled(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
			fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+Protocol+"\r\n\r\n{\"ready\":{\"id\":\"x\"}}\n")
		}
		l.Close()
	}()
	c := New(l.Addr().String())
	c.Restart = func(context.Context) error { t.Error("started again"); return nil }
	mounts := 0
	_, err = c.Mount(context.Background(), testMount, nil, func(MountReady) (int, MountReply, error) {
		mounts++
		<-closed
		return tempFD(t, ""), MountReply{}, nil
	})
	if mounts != 1 || fault.KindOf(err) != fault.Unavailable || errors.Is(err, ErrNoDaemon) {
		t.Errorf("%d mounts, %v", mounts, err)
	}
}

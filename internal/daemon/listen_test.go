package daemon

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/imgtest"
)

func TestParseHost(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ in, want string }{
		{"unix:///run/imgfs.sock", "unix:///run/imgfs.sock"},
		{"unix:///run/../run/imgfs.sock", "unix:///run/imgfs.sock"},
		{"tcp://127.0.0.1:2375", "tcp://127.0.0.1:2375"},
		{"tcp://[::1]:2375", "tcp://[::1]:2375"},
		{"tcp://:2376", "tcp://:2376"},
		{"fd://", "fd://"},
		{"fd://imgfs.socket", "fd://imgfs.socket"},
		{"", "Invalid protocol format."},
		{"/run/imgfs.sock", "Invalid protocol format."},
		{"ssh://host", "Invalid protocol format."},
		{"unix://", "Invalid protocol format."},
		{"unix://a\x00b", "Invalid protocol format."},
		{"fd://a/b", "Invalid protocol format."},
		{"unix://@imgfs", "has no mode"},
		{"unix:///" + strings.Repeat("x", 200), "longer than 107 bytes"},
		{"tcp://127.0.0.1", "not tcp://HOST:PORT"},
		{"tcp://127.0.0.1:", "not tcp://HOST:PORT"},
	} {
		h, err := ParseHost(tt.in)
		switch {
		case err == nil && h.String() != tt.want:
			t.Errorf("%q: %s", tt.in, h)
		case err != nil && (!strings.Contains(err.Error(), tt.want) || fault.KindOf(err) != fault.Invalid):
			t.Errorf("%q: %v", tt.in, err)
		}
	}
}

// TestMayListen has addresses that strangers reach refused.
func TestMayListen(t *testing.T) {
	t.Parallel()
	for _, addr := range []string{"0.0.0.0:0", ":0", "[::]:0", "192.0.2.1:0"} {
		for _, o := range []Listening{{}, {TLS: TLS{Cert: "c", Key: "k"}}} {
			l, err := o.listenTCP(testContext(t), addr)
			if fault.KindOf(err) != fault.Invalid || !strings.Contains(fault.HintOf(err), "--tlsverify") {
				t.Errorf("%s: %v, %v", addr, l, err)
			}
		}
	}
	for _, o := range []Listening{{InsecureTCP: true}, {TLS: TLS{Verify: true}}} {
		l, err := o.listenTCP(testContext(t), "0.0.0.0:0")
		if err != nil {
			t.Fatal(err)
		}
		var log strings.Builder
		o.warn([]*listener{{Listener: l}}, slog.New(slog.NewTextHandler(&log, nil)))
		const text = `/!\ DON'T BIND ON ANOTHER IP ADDRESS THAN 127.0.0.1 IF YOU DON'T KNOW WHAT YOU'RE DOING /!\`
		if warned := strings.Contains(strings.ReplaceAll(log.String(), `\\`, `\`), text); warned == o.TLS.Verify {
			t.Errorf("%+v: the log is %s", o, log.String())
		}
		l.Close()
	}
	for _, addr := range []string{"127.0.0.1:0", "localhost:0"} {
		l, err := Listening{}.listenTCP(testContext(t), addr)
		if err != nil {
			t.Fatal(err)
		}
		if !l.Addr().(*net.TCPAddr).IP.IsLoopback() {
			t.Errorf("%s: %s", addr, l.Addr())
		}
		l.Close()
	}
}

// TestListenUnix has a socket made where there is something already.
func TestListenUnix(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	l, err := Listening{}.listenUnix(path, "/own")
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != os.ModeSocket|0o600 {
		t.Errorf("socket: %v, %v", st.Mode(), err)
	}
	if _, err := (Listening{}).listenUnix(path, "/own"); fault.KindOf(err) != fault.Conflict {
		t.Errorf("one that is live: %v", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	if l, err = (Listening{}).listenUnix(path, "/own"); err != nil {
		t.Fatalf("one that is dead: %v", err)
	}
	l.Close()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("socket after its daemon has left: %v", err)
	}
	for what, make := range map[string]func() error{
		"a file": func() error { return os.WriteFile(path, nil, 0o600) },
		"a link": func() error { return os.Symlink("/nowhere", path) },
	} {
		if err := make(); err != nil {
			t.Fatal(err)
		}
		if _, err := (Listening{}).listenUnix(path, "/own"); fault.KindOf(err) != fault.Conflict {
			t.Errorf("%s: %v", what, err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatalf("%s has gone: %v", what, err)
		}
	}
	if _, err := (Listening{}).listenUnix(path, path); fault.KindOf(err) != fault.Invalid {
		t.Errorf("the daemon's own: %v", err)
	}
	if _, err := (Listening{Group: "no such group"}).listenUnix(path, "/own"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("no group: %v", err)
	}
}

// dialAs connects as somebody else.
func dialAs(path string, uid, gid int) (net.Conn, error) {
	type result struct {
		net.Conn
		error
	}
	done := make(chan result)
	go func() {
		// The raw system calls are of this thread alone, which ends with the
		// goroutine since it stays locked.
		runtime.LockOSThread()
		for _, call := range [][4]uintptr{
			{unix.SYS_SETGROUPS, 0, 0, 0},
			{unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)},
			{unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)},
		} {
			if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
				done <- result{nil, errno}
				return
			}
		}
		c, err := net.Dial("unix", path)
		done <- result{c, err}
	}()
	r := <-done
	return r.Conn, r.error
}

const (
	strangerID = 54321 // a user, and a group
	groupID1   = 54322
)

// otherUser is an HTTP client of a user who is in the group of a socket.
type otherUser struct {
	http.Client
	socket string
}

func newOtherUser(t testing.TB, socket string) *otherUser {
	u := &otherUser{socket: socket}
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return dialAs(socket, strangerID, groupID1)
	}}
	u.Transport = tr
	t.Cleanup(tr.CloseIdleConnections)
	return u
}

// do sends a request; header holds names and values in turn.
func (u *otherUser) do(t testing.TB, method, path, body string, header ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(testContext(t), method, "http://localhost"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := u.Client.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return res.StatusCode, string(b)
}

// publicDir returns a directory that everybody may enter.
func publicDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "listen")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestGroupSocket is about who may do what by a socket for a group. Its
// members use images as by docker; they reach no file of the host, do not
// mount, and stop nothing, however they ask.
func TestGroupSocket(t *testing.T) {
	imgtest.Need(t, os.Getuid() == 0, "root, to be somebody else")
	dir := publicDir(t)
	secret := filepath.Join(dir, "secret")
	layout := filepath.Join(secret, "layout")
	if err := os.MkdirAll(layout, 0o700); err != nil {
		t.Fatal(err)
	}
	layer, err := imgtest.Tar("file a secret")
	if err != nil {
		t.Fatal(err)
	}
	img, err := imgtest.NewImage(imgtest.ImageSpec{Layers: [][]byte{layer}})
	if err != nil {
		t.Fatal(err)
	}
	if err := img.WriteLayout(layout, "1"); err != nil {
		t.Fatal(err)
	}
	// The daemon's user has logged in to a registry.
	private := imgtest.NewRegistry(t, imgtest.RegistryOptions{Auth: "basic", Username: "root", Password: "toor"})
	privateRef := private.Host + "/secret:1"
	for _, b := range append([]imgtest.Blob{img.Config}, img.Layers...) {
		private.PutBlob(t, b.Data)
	}
	private.PutManifest(t, "secret", "1", img.Manifest.MediaType, img.Manifest.Data)
	config := filepath.Join(secret, "config.json")
	auth := base64.StdEncoding.EncodeToString([]byte("root:toor"))
	if err := os.WriteFile(config, fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, private.Host, auth), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_CONFIG", secret)
	loopback := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(layer) }))
	defer loopback.Close()
	reg := newRegistry(t)
	ref, imageID := reg.push(t, "public", "file a one")

	socket := filepath.Join(dir, "imgfs.sock")
	d := runDaemon(t, Options{Listening: Listening{Hosts: []string{"unix://" + socket}, Group: fmt.Sprint(groupID1)}})
	if st, err := os.Stat(socket); err != nil || st.Mode() != os.ModeSocket|0o660 {
		t.Errorf("socket: %v %v", st.Mode(), err)
	}
	if c, err := dialAs(socket, strangerID, strangerID); err == nil {
		c.Close()
		t.Error("somebody who is not in the group has connected")
	}
	if c, err := dialAs(d.Socket, strangerID, groupID1); err == nil {
		c.Close()
		t.Error("somebody else has connected to the daemon's own socket")
	}

	u := newOtherUser(t, socket)
	ours := func(o string) []string {
		return []string{engineapi.RegistryHeader, base64.URLEncoding.EncodeToString([]byte(o))}
	}
	name, tag, _ := strings.Cut(strings.TrimPrefix(ref, reg.host()), ":")
	code, body := u.do(t, "POST", "/v1.40/images/create?fromImage="+url.QueryEscape(reg.host()+name)+"&tag="+tag, "")
	if code != 200 || !strings.Contains(body, "Downloaded newer image") {
		t.Fatalf("pull: %d %s", code, body)
	}
	if code, body := u.do(t, "GET", "/images/json", ""); code != 200 || !strings.Contains(body, string(imageID)) {
		t.Errorf("images: %d %s", code, body)
	}
	if code, body := u.do(t, "GET", "/imgfs/v1/status", ""); code != 200 {
		t.Errorf("status: %d %s", code, body)
	}

	tree := func(image string) string {
		b, err := json.Marshal(engineapi.TreeRequest{Source: engineapi.Source{Image: image}, Path: "/"})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	mount, err := json.Marshal(engineapi.MountRequest{Image: ref, Target: "/mnt", Driver: "fuse"})
	if err != nil {
		t.Fatal(err)
	}
	sources := []string{"oci:" + layout + ":1", "oci:" + layout, "docker-archive:" + config, "oci-archive:" + config}
	type request struct {
		method, path, body string
		header             []string
	}
	requests := []request{
		{"POST", "/imgfs/v1/shutdown?force=1", "", nil},
		{"POST", "/v1.40/imgfs/v1/shutdown?force=1", "", nil},
		{"POST", "/imgfs/v1/mounts", string(mount), []string{"Connection", "Upgrade", "Upgrade", engineapi.Protocol}},
		{"POST", "/imgfs/v1/gc", "", nil},
		{"POST", "/imgfs/v1/commit", `{"source":{"upperDir":"/etc"}}`, nil},
		{"GET", "/imgfs/v1/export?upperDir=/etc", "", nil},
		{"GET", "/imgfs/v1/changes?upperDir=/etc", "", nil},
		{"POST", "/imgfs/v1/tree/list", `{"source":{"upperDir":"/etc"},"path":"/"}`, nil},
		{"POST", "/imgfs/v1/tree/read", `{"source":{"upperDir":"/etc"},"path":"/passwd","raw":true}`, nil},
		{"POST", "/images/create?fromImage=x", "", ours(`{"authFile":"` + config + `"}`)},
		{"POST", "/images/create?fromSrc=" + config + "&repo=x", "", nil},
		{"POST", "/images/create?fromSrc=file://" + config + "&repo=x", "", nil},
		{"POST", "/images/create?fromSrc=oci:" + layout + "&repo=x", "", nil},
		{"GET", "/imgfs/v1/../../etc/passwd", "", nil},
		// What listens on loopback serves this machine.
		{"POST", "/images/create?fromSrc=" + url.QueryEscape(loopback.URL) + "&repo=x", "", nil},
		{"POST", "/images/create?fromSrc=" + url.QueryEscape(strings.Replace(loopback.URL, "127.0.0.1", "localhost", 1)) + "&repo=x", "", nil},
		{"POST", "/images/create?fromSrc=" + url.QueryEscape(strings.Replace(loopback.URL, "127.0.0.1", "[::ffff:127.0.0.1]", 1)) + "&repo=x", "", nil},
	}
	for _, s := range sources {
		q := url.QueryEscape(s)
		requests = append(requests,
			request{"POST", "/images/create?fromImage=" + q, "", ours("{}")},
			request{"POST", "/images/create?fromImage=" + q, "", ours(`{"noHostFiles":false}`)},
			request{"POST", "/images/create?fromImage=" + url.QueryEscape(strings.TrimSuffix(s, ":1")) + "&tag=1", "", nil},
			request{"GET", "/images/" + s + "/json", "", nil},
			request{"GET", "/images/get?names=" + q, "", nil},
			request{"GET", "/imgfs/v1/export?image=" + q, "", nil},
			request{"GET", "/imgfs/v1/changes?image=" + q, "", nil},
			request{"POST", "/images/" + s + "/tag?repo=x&tag=1", "", nil},
			request{"POST", "/images/" + s + "/push", "", ours("{}")},
			request{"POST", "/imgfs/v1/tree/list", tree(s), nil},
			request{"POST", "/imgfs/v1/tree/read", tree(s), nil},
		)
	}
	for _, r := range requests {
		code, body := u.do(t, r.method, r.path, r.body, r.header...)
		refused := code >= 400 || strings.Contains(body, `"errorDetail"`)
		if !refused || strings.Contains(body, "toor") || strings.Contains(body, auth) || strings.Contains(body, "root:") {
			t.Errorf("%s %s %q: %d %s", r.method, r.path, r.body, code, body)
		}
	}
	list, err := d.client.Images(testContext(t), nil, engineapi.ListOptions{})
	if err != nil || len(list) != 1 {
		t.Errorf("images after all that: %+v, %v", list, err)
	}

	// Nor do they use what the daemon's user has logged in with, who does.
	private.Forget()
	code, body = u.do(t, "POST", "/images/create?fromImage="+url.QueryEscape(private.Host+"/secret")+"&tag=1", "")
	if code < 400 && !strings.Contains(body, `"errorDetail"`) {
		t.Errorf("pull of a private image: %d %s", code, body)
	}
	for _, r := range private.Requests() {
		if r.Header.Get("Authorization") != "" {
			t.Errorf("%s %s with credentials", r.Method, r.URL)
		}
	}
	if _, err := d.client.Pull(testContext(t), engineapi.PullRequest{Reference: privateRef}, nil); err != nil {
		t.Errorf("pull by the daemon's own user: %v", err)
	}
	// By the same socket root is who it is.
	root := engineapi.NewRemote(engineapi.Remote{Network: "unix", Address: socket})
	defer root.Close()
	if _, err := root.Pull(testContext(t), engineapi.PullRequest{Reference: sources[0]}, nil); err != nil {
		t.Errorf("pull of a layout by root: %v", err)
	}
	if _, err := root.Import(testContext(t), engineapi.ImportRequest{URL: loopback.URL}, nil, nil); err != nil {
		t.Errorf("import from loopback by root: %v", err)
	}
	if _, err := root.GC(testContext(t)); err != nil {
		t.Errorf("gc by root: %v", err)
	}
}

// TestCrowd has more clients come than may, and go again.
func TestCrowd(t *testing.T) {
	t.Parallel()
	c := newCrowd(3, 2)
	for i, want := range []bool{true, true, false} {
		if c.enter("a") != want {
			t.Errorf("client %d: not %v", i, want)
		}
	}
	if !c.enter("b") || c.enter("c") {
		t.Error("others")
	}
	c.leave("a")
	if !c.enter("c") || len(c.of) != 3 {
		t.Errorf("after one has left: %v", c.of)
	}
	c.leave("c")
	if len(c.of) != 2 {
		t.Errorf("who is remembered: %v", c.of)
	}

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	act := newActivity(-1)
	crowded := &listener{Listener: l, act: act, log: slog.New(slog.NewTextHandler(&log, nil)), crowd: newCrowd(2, 2)}
	defer crowded.Close()
	accepted := make(chan net.Conn)
	go func() {
		defer close(accepted)
		for {
			c, err := crowded.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	defer dial().Close()
	first := <-accepted
	defer dial().Close()
	defer (<-accepted).Close()
	third := dial()
	if n, err := third.Read(make([]byte, 1)); err == nil {
		t.Errorf("one too many read %d bytes", n)
	}
	third.Close()
	first.Close()
	first.Close() // as an http.Server may
	defer dial().Close()
	defer (<-accepted).Close()
	if !strings.Contains(log.String(), "too many connections") || act.busy != 2 {
		t.Errorf("%d busy; log: %s", act.busy, &log)
	}
}

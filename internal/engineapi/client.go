package engineapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/fault"
)

// Client talks to the daemon of one socket. Its methods may be called
// concurrently.
type Client struct {
	socket string
	remote *Remote // not a daemon's own socket, but where the user said
	http   *http.Client
	// Restart, if not nil, is called when no daemon answers; where it returns
	// nil the request is sent once more. Set it before the first request.
	Restart func(ctx context.Context) error
	// Skew, if not nil, is called before the first request when the daemon is
	// of another build, which it is given; an error ends the request. Set it
	// before the first request.
	Skew func(ctx context.Context, build string) error

	mu      sync.Mutex // guards the rest
	checked bool       // the daemon's build was looked at
}

// maxReply bounds a reply that is read whole, in bytes.
const maxReply = 64 << 20

// New returns a client of the daemon that listens on socket. It does not
// connect.
func New(socket string) *Client {
	c := &Client{socket: socket}
	c.http = &http.Client{Transport: &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) },
		DisableCompression: true,
	}}
	return c
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Ping returns the daemon's build ([Build.String]).
func (c *Client) Ping(ctx context.Context) (string, error) {
	res, err := c.do(ctx, http.MethodHead, "/_ping", nil, nil, nil)
	if err != nil {
		return "", err
	}
	res.Body.Close()
	return res.Header.Get(VersionHeader), nil
}

// Status returns the daemon's state.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	return s, c.get(ctx, "/imgfs/v1/status", nil, &s)
}

// Mounts lists the live mounts, oldest first.
func (c *Client) Mounts(ctx context.Context) ([]Mount, error) {
	var list []Mount
	return list, c.get(ctx, "/imgfs/v1/mounts", nil, &list)
}

// WaitGone returns when the daemon has no record of the mount any more: at
// once if it never had one.
func (c *Client) WaitGone(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodPost, "/imgfs/v1/mounts/"+url.PathEscape(id)+"/wait", nil, nil, nil)
}

// GC removes layers and chains that nothing uses.
func (c *Client) GC(ctx context.Context) (GCReport, error) {
	var r GCReport
	return r, c.call(ctx, http.MethodPost, "/imgfs/v1/gc", nil, nil, &r)
}

// Shutdown asks the daemon to exit and returns when it has gone, its store
// unlocked. With live mounts it is refused (fault.Conflict) unless force is
// set, which unmounts them first.
func (c *Client) Shutdown(ctx context.Context, force bool) error {
	q := url.Values{}
	if force {
		q.Set("force", "1")
	}
	res, err := c.once(ctx, http.MethodPost, "/imgfs/v1/shutdown", q, nil, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	// The body ends when the process does.
	_, err = io.Copy(io.Discard, res.Body)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("daemon: %w", ctx.Err())
	}
	return nil
}

func (c *Client) get(ctx context.Context, path string, q url.Values, into any) error {
	return c.call(ctx, http.MethodGet, path, q, nil, into)
}

// call sends body as JSON, if not nil, and decodes the reply into into, if
// not nil.
func (c *Client) call(ctx context.Context, method, path string, q url.Values, body, into any) error {
	return c.exchange(ctx, method, path, q, nil, body, into)
}

// exchange is call with headers.
func (c *Client) exchange(ctx context.Context, method, path string, q url.Values, h http.Header, body, into any) error {
	var b []byte
	if body != nil {
		var err error
		if b, err = json.Marshal(body); err != nil {
			return fmt.Errorf("request: %w", err)
		}
	}
	res, err := c.do(ctx, method, path, q, h, b)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err = io.ReadAll(io.LimitReader(res.Body, maxReply))
	if err != nil {
		return lost(ctx, err)
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("daemon's reply to %s: %w", path, err)
	}
	return nil
}

// do sends one request, restarting the daemon once if it has gone. A reply
// other than 2xx is returned as the error it carries.
func (c *Client) do(ctx context.Context, method, path string, q url.Values, h http.Header, body []byte) (*http.Response, error) {
	if err := c.checkBuild(ctx); err != nil {
		return nil, err
	}
	res, err := c.once(ctx, method, path, q, h, body)
	if !errors.Is(err, ErrNoDaemon) || c.Restart == nil {
		return res, err
	}
	if err := c.Restart(ctx); err != nil {
		return nil, err
	}
	return c.once(ctx, method, path, q, h, body)
}

// checkBuild has Skew called, once, if the daemon is of another build.
func (c *Client) checkBuild(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.Skew == nil || c.checked {
		return nil
	}
	res, err := c.once(ctx, http.MethodHead, "/_ping", nil, nil, nil)
	if errors.Is(err, ErrNoDaemon) {
		c.checked = true // the one that Restart starts is ours
		return nil
	}
	if err != nil {
		return err
	}
	res.Body.Close()
	if build := res.Header.Get(VersionHeader); build != ThisBuild().String() {
		if err := c.Skew(ctx, build); err != nil {
			return err
		}
	}
	c.checked = true
	return nil
}

func (c *Client) once(ctx context.Context, method, path string, q url.Values, h http.Header, body []byte) (*http.Response, error) {
	req, err := newRequest(ctx, method, path, q, body)
	if err != nil {
		return nil, err
	}
	for k, v := range h {
		req.Header[k] = v
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, c.remote.name(gone(ctx, err))
	}
	return res, replyError(res)
}

func newRequest(ctx context.Context, method, path string, q url.Values, body []byte) (*http.Request, error) {
	// The name of an image may hold anything, so the path is set, not parsed.
	u := &url.URL{Scheme: "http", Host: clientHost, Path: path, RawQuery: q.Encode()}
	var r io.Reader
	if body != nil {
		r = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), r)
	if err != nil {
		return nil, fmt.Errorf("request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return req, nil
}

// replyError returns the error that a reply carries, its body closed; nil
// for a reply below 300.
func replyError(res *http.Response) error {
	if res.StatusCode < 300 {
		return nil
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	if res.StatusCode == http.StatusBadRequest && bytes.Contains(b, []byte("HTTP request to an HTTPS server")) { // net/http's words
		return fault.WithHint(fault.New(fault.Unavailable, "the daemon speaks TLS alone"),
			"set IMGFS_CERT_PATH to a directory with ca.pem, cert.pem and key.pem")
	}
	var e Error
	if json.Unmarshal(b, &e) != nil || e.Message == "" {
		e.Message = strings.TrimSpace("daemon answered " + res.Status + " " + string(b))
	}
	if e.Kind == "" {
		e.Kind = kindOf(res.StatusCode).String()
	}
	return e.Err()
}

// dial connects to the daemon's socket, over which descriptors travel too, and
// makes sure that it is our daemon's: requests carry passwords.
func (c *Client) dial(ctx context.Context) (*net.UnixConn, error) {
	if c.remote != nil {
		return c.remote.dialUnix(ctx)
	}
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", c.socket)
	if err != nil {
		return nil, err
	}
	conn := nc.(*net.UnixConn)
	if err := checkServer(conn); err != nil {
		conn.Close()
		return nil, fault.WithHint(fault.New(fault.Denied, "daemon at %s: %w", c.socket, err),
			"remove it, or set XDG_RUNTIME_DIR to a directory of your own")
	}
	return conn, nil
}

// checkServer returns nil if who listens at the other end is this user or root.
// The socket may lie in a directory whose name somebody else took first.
func checkServer(conn *net.UnixConn) error {
	cred, err := PeerOf(conn)
	if err == nil && int(cred.Uid) != os.Geteuid() && cred.Uid != 0 {
		err = fmt.Errorf("its process %d is another user's (uid %d)", cred.Pid, cred.Uid)
	}
	return err
}

// PeerOf returns who is at the other end of a socket: the credentials of the
// process that connected, or that listened, when it did so.
func PeerOf(conn *net.UnixConn) (*unix.Ucred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err == nil {
		err = credErr
	}
	return cred, err
}

// gone turns an error of the connection into one that says what it means:
// the caller's own end, or the daemon's.
func gone(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("daemon: %w", ctx.Err())
	}
	var refused *fault.Error // dial's own
	if errors.As(err, &refused) {
		return refused
	}
	for _, e := range []error{syscall.ECONNREFUSED, fs.ErrNotExist, syscall.ECONNRESET, syscall.EPIPE, io.EOF, io.ErrUnexpectedEOF} {
		if errors.Is(err, e) {
			return fault.New(fault.Unavailable, "%w", ErrNoDaemon)
		}
	}
	if op := (*net.OpError)(nil); errors.As(err, &op) && errors.Is(err, fs.ErrPermission) {
		return fault.WithHint(fault.New(fault.Denied, "daemon at %s: %w", op.Addr, fs.ErrPermission),
			"its socket is for its user, root and the group that it was given (imgfs daemon --group)")
	}
	return fault.New(fault.Unavailable, "daemon: %w", err)
}

// lost is gone for a daemon that has taken the request already.
func lost(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("daemon: %w", ctx.Err())
	}
	return fault.New(fault.Unavailable, "daemon went away before it had finished: %w", err)
}

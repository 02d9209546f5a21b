package daemon

import (
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

// activity counts what keeps a daemon alive: connections with a request, and
// mounts. When there has been nothing for a while, expired is closed, and
// from then on nothing new begins.
type activity struct {
	idle    time.Duration // < 0: never expires
	expired chan struct{}

	mu    sync.Mutex // guards the rest
	busy  int
	since time.Time // when busy last fell to 0
	timer *time.Timer
	over  bool
}

func newActivity(idle time.Duration) *activity {
	a := &activity{idle: idle, expired: make(chan struct{}), since: time.Now()}
	if idle >= 0 {
		a.timer = time.AfterFunc(idle, a.fire)
	}
	return a
}

// begin reports whether there is still a daemon to do it. Each true is to be
// followed by one end.
func (a *activity) begin() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.over {
		return false
	}
	a.busy++
	return true
}

func (a *activity) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.busy--
	if a.busy == 0 && a.timer != nil {
		a.since = time.Now()
		a.timer.Reset(a.idle)
	}
}

// stop makes begin false from now on.
func (a *activity) stop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.over = true
	if a.timer != nil {
		a.timer.Stop()
	}
}

// fire runs when the timer does, which may be late: it was perhaps set by an
// earlier idle time.
func (a *activity) fire() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.busy > 0 || a.over {
		return
	}
	if rest := a.idle - time.Since(a.since); rest > 0 {
		a.timer.Reset(rest)
		return
	}
	a.over = true
	close(a.expired)
}

// listener lets in the user the daemon runs as, and root, and counts
// connections as activity. A connection that comes when the daemon has
// decided to go is closed before anything is read: its client knows from that
// that its request was not taken.
type listener struct {
	*net.UnixListener
	act *activity
	log *slog.Logger
}

// listen replaces what is left of an earlier daemon's socket.
//
// Preconditions: the store's lock is held.
func listen(p Paths, act *activity, log *slog.Logger) (*listener, error) {
	if err := os.Remove(p.Socket); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	// Nobody else can enter the directory, so the mode may come after.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: p.Socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(p.Socket, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return &listener{l, act, log}, nil
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if err := checkPeer(c); err != nil {
			l.log.Warn("connection refused", "err", err)
			c.Close()
			continue
		}
		if !l.act.begin() {
			c.Close()
			continue
		}
		return &conn{unixConn: c, act: l.act, busy: true}, nil
	}
}

// checkPeer returns nil if the other end is this user or root.
func checkPeer(c *net.UnixConn) error {
	cred, err := engineapi.PeerOf(c)
	if err != nil {
		return err
	}
	return allowPeer(cred, os.Geteuid())
}

// allowPeer fails closed: credentials that are not those of the daemon's own
// user or of root are refused.
func allowPeer(cred *unix.Ucred, uid int) error {
	if cred == nil || int(cred.Uid) != uid && cred.Uid != 0 {
		return fault.New(fault.Denied, "peer credentials %+v are not those of uid %d or root", cred, uid)
	}
	return nil
}

// conn is one connection. It is activity from its start until its request has
// been answered, and again with each further request; once hijacked, until it
// is closed.
type conn struct {
	unixConn
	act *activity

	mu   sync.Mutex // guards busy
	busy bool
}

// unixConn is embedded under another name than the method UnixConn.
type unixConn = *net.UnixConn

// UnixConn returns the socket, for SCM_RIGHTS.
func (c *conn) UnixConn() *net.UnixConn { return c.unixConn }

// Close implements net.Conn.
func (c *conn) Close() error {
	c.setBusy(false)
	return c.unixConn.Close()
}

func (c *conn) setBusy(busy bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy == busy {
		return
	}
	if !busy {
		c.act.end()
		c.busy = false
		return
	}
	// A daemon about to go answers this one still.
	c.busy = c.act.begin()
}

// track is the http.Server's ConnState.
func track(nc net.Conn, s http.ConnState) {
	c, ok := nc.(*conn)
	if !ok {
		return
	}
	switch s {
	case http.StateActive:
		c.setBusy(true)
	case http.StateIdle, http.StateClosed:
		c.setBusy(false)
	}
}

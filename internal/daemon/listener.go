package daemon

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

// What clients who are not trusted may have of a listener at once. Whoever
// comes when that is all in use is turned away, so that nobody else's
// descriptors and memory go that way.
const (
	maxClientsOf  = 1024 // connections
	maxClientsPer = 512  // of one user, or of one address
	// writePatience is how long such a client may read nothing of what it is
	// being sent.
	writePatience = time.Minute
)

// listener counts connections as activity. A connection that comes when the
// daemon has decided to go is closed before anything is read: its client knows
// from that that its request was not taken.
type listener struct {
	net.Listener
	act *activity
	log *slog.Logger
	// crowd bounds clients who are not trusted; nil: they are refused.
	crowd   *crowd
	tls     *tls.Config // nil: none is spoken
	refused func()      // called for each connection that is turned away; nil: not
}

// listenOwn makes the daemon's own socket, in place of what is left of an
// earlier daemon's.
//
// Preconditions: the store's lock is held.
func listenOwn(p Paths, act *activity, log *slog.Logger) (*listener, error) {
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
	return &listener{Listener: l, act: act, log: log}, nil
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for {
		nc, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c, err := l.letIn(nc)
		if err != nil {
			if l.refused != nil {
				l.refused()
			}
			if l.crowd == nil || l.crowd.tell() {
				l.log.Warn("connection refused", "listener", l.Addr().String(), "err", err)
			}
		}
		if c == nil {
			nc.Close()
			continue
		}
		if l.tls != nil {
			return tls.Server(c, l.tls), nil
		}
		return c, nil
	}
}

// letIn returns nil for who is turned away.
func (l *listener) letIn(nc net.Conn) (*conn, error) {
	c := &conn{Conn: nc, act: l.act, busy: true}
	if who, trusted, err := visitor(nc); !trusted {
		if err != nil {
			return nil, err
		}
		if l.crowd == nil {
			return nil, fault.New(fault.Denied, "%s is not the daemon's user", who)
		}
		if !l.crowd.enter(who) {
			return nil, fault.New(fault.Unavailable, "%s: too many connections", who)
		}
		c.leave, c.patience = func() { l.crowd.leave(who) }, writePatience
	}
	if !l.act.begin() {
		if c.leave != nil {
			c.leave()
		}
		return nil, nil
	}
	return c, nil
}

// visitor returns by what a client is counted: its user, or its address.
func visitor(nc net.Conn) (who string, trusted bool, err error) {
	switch nc := nc.(type) {
	case *net.UnixConn:
		cred, err := engineapi.PeerOf(nc)
		if err != nil {
			return "", false, err
		}
		return fmt.Sprintf("uid %d", cred.Uid), engineapi.Own(cred), nil
	case *net.TCPConn:
		return place64(nc.RemoteAddr()), false, nil
	}
	return "", false, fault.New(fault.Failed, "a connection of %s", nc.RemoteAddr().Network())
}

// place64 returns an address without its port, of IPv6 the part that one
// network has.
func place64(a net.Addr) string {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return a.String()
	}
	if t.IP.To4() == nil && !t.IP.IsLoopback() {
		return t.IP.Mask(net.CIDRMask(64, 128)).String() + "/64"
	}
	return t.IP.String()
}

// crowd counts clients.
type crowd struct {
	most, mostOf int

	mu   sync.Mutex // guards the rest
	all  int
	of   map[string]int
	told time.Time // when somebody was last said to be turned away
}

func newCrowd(most, mostOf int) *crowd {
	return &crowd{most: most, mostOf: mostOf, of: map[string]int{}}
}

// enter reports whether there is room; each true is to be followed by one leave.
func (c *crowd) enter(who string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all >= c.most || c.of[who] >= c.mostOf {
		return false
	}
	c.all++
	c.of[who]++
	return true
}

// tell reports whether it is time to say that somebody was turned away: who is
// not let in must not fill the log either.
func (c *crowd) tell() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.told) < time.Minute {
		return false
	}
	c.told = time.Now()
	return true
}

func (c *crowd) leave(who string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all--
	if c.of[who]--; c.of[who] == 0 {
		delete(c.of, who)
	}
}

// conn is one connection. It is activity from its start until its request has
// been answered, and again with each further request; once hijacked, until it
// is closed.
type conn struct {
	net.Conn
	act      *activity
	leave    func()        // of the crowd; nil: it is in none
	patience time.Duration // of each write; 0: for ever

	mu     sync.Mutex // guards the rest
	busy   bool
	closed bool
}

// UnixConn returns the socket, for its peer's credentials and SCM_RIGHTS; nil
// if it is none.
func (c *conn) UnixConn() *net.UnixConn {
	uc, _ := c.Conn.(*net.UnixConn)
	return uc
}

// Write implements net.Conn.
func (c *conn) Write(b []byte) (int, error) {
	if c.patience > 0 {
		c.Conn.SetWriteDeadline(time.Now().Add(c.patience)) // a closed one says so below
	}
	return c.Conn.Write(b)
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.setBusy(false)
	c.mu.Lock()
	first := !c.closed
	c.closed = true
	c.mu.Unlock()
	if first && c.leave != nil {
		c.leave()
	}
	return c.Conn.Close()
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
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
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

package imgtest

import (
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"time"
)

// Counter is an HTTP proxy that counts requests and round trips, for servers
// that are no [Registry]. It stands at the server's end of a [Link].
type Counter struct {
	l    net.Listener
	srv  *http.Server
	back *http.Transport
	done chan struct{}

	mu   sync.Mutex
	seen []*exchange
}

// NewCounter listens on loopback and forwards to target. The caller closes it.
func NewCounter(target string) (*Counter, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c := &Counter{l: l, back: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}, done: make(chan struct{})}
	quiet := log.New(io.Discard, "", 0)
	proxy := &httputil.ReverseProxy{Transport: c.back, ErrorLog: quiet, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: target})
		r.Out.Host = r.In.Host
	}}
	c.srv = &http.Server{ErrorLog: quiet, Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		proxy.ServeHTTP(c.note(w), req)
	})}
	go func() {
		defer close(c.done)
		_ = c.srv.Serve(l) // until it is closed
	}()
	return c, nil
}

func (c *Counter) note(w http.ResponseWriter) http.ResponseWriter {
	e := &exchange{came: time.Now()}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = append(c.seen, e)
	return &answer{ResponseWriter: w, mu: &c.mu, e: e}
}

// Addr returns the address that stands for the target.
func (c *Counter) Addr() string { return c.l.Addr().String() }

// Forget sets the counts to zero.
func (c *Counter) Forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = nil
}

// Count returns how many requests came.
func (c *Counter) Count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.seen)
}

// Trips returns how many of them were serial round trips; see [Registry.Trips].
func (c *Counter) Trips(rtt time.Duration) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []exchange
	for _, e := range c.seen {
		all = append(all, *e)
	}
	return trips(all, rtt)
}

// Close ends the proxy and its connections.
func (c *Counter) Close() error {
	err := c.srv.Close()
	<-c.done
	c.back.CloseIdleConnections()
	return err
}

package fetch

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// Options say how to reach registries. The zero value works: the user's own
// credentials and mirrors, TLS everywhere but on loopback.
type Options struct {
	// CertsDirs are searched for <host>/hosts.toml instead of the usual
	// places; empty = $IMGFS_CERTS_DIR alone if set, else
	// $XDG_CONFIG_HOME/imgfs/certs.d, /etc/containerd/certs.d,
	// /etc/docker/certs.d.
	CertsDirs []string
	Insecure  bool // the reference's registry may speak plain http or show any certificate
	Auth      AuthOptions
	UserAgent string       // "" = imgfs
	Logger    *slog.Logger // nil = none
	MaxRetry  int          // further tries after a transient failure; 0 = 5, negative = none

	Backoff     time.Duration // wait before the first further try, doubled for each; 0 = 500 ms
	MaxWait     time.Duration // longest Retry-After that is waited for; 0 = 2 min
	DialTimeout time.Duration // 0 = 15 s
	Timeout     time.Duration // until a response's header is there; 0 = 30 s
	Stall       time.Duration // a body without a byte for so long is broken; 0 = 30 s

	// Hedge is the least time that a mirror has to begin its answer before the
	// next one is asked as well; 0 = 100 ms, negative = for ever. One that is
	// known to be far away has several of its usual round trips.
	Hedge time.Duration

	// Proxy chooses the proxy of a request; nil = from the environment.
	Proxy func(*http.Request) (*url.URL, error)
	// Dial opens connections; nil = net.Dialer with DialTimeout.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	// Opened is given every connection and returns what is used in its place;
	// nil = the connection itself.
	Opened func(net.Conn) net.Conn

	// NoHostFiles has no credentials of this host used, be they in auth files,
	// credential programs or a hosts.toml, and no image in its files: for
	// requests of somebody else. Where registries are stays known.
	NoHostFiles bool
}

func (o Options) withDefaults() Options {
	if o.UserAgent == "" {
		o.UserAgent = "imgfs"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.MaxRetry == 0 {
		o.MaxRetry = 5
	}
	setDuration(&o.Backoff, 500*time.Millisecond)
	setDuration(&o.MaxWait, 2*time.Minute)
	setDuration(&o.DialTimeout, 15*time.Second)
	setDuration(&o.Timeout, 30*time.Second)
	setDuration(&o.Stall, 30*time.Second)
	if o.Hedge == 0 {
		o.Hedge = 100 * time.Millisecond
	}
	if o.Proxy == nil {
		o.Proxy = http.ProxyFromEnvironment
	}
	return o
}

func setDuration(d *time.Duration, def time.Duration) {
	if *d <= 0 {
		*d = def
	}
}

// Client resolves references and opens layers. It is safe for concurrent use
// and keeps tokens, connections and what it learned about hosts in memory.
type Client struct {
	opts Options

	mu        sync.Mutex
	upstreams map[string][]*endpoint // by the domain of a reference
	hosts     map[string]*host       // by host[:port]
	stranger  *http.Client           // for the URLs of foreign layers; nil until needed
}

// New returns a Client.
func New(o Options) *Client {
	return &Client{opts: o.withDefaults(), upstreams: map[string][]*endpoint{}, hosts: map[string]*host{}}
}

// Close closes idle connections. Open readers go on.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, endpoints := range c.upstreams {
		for _, e := range endpoints {
			e.client.CloseIdleConnections()
		}
	}
	if c.stranger != nil {
		c.stranger.CloseIdleConnections()
	}
}

// mayRead refuses an image in files where no files are to be read.
func (c *Client) mayRead(ref Reference) error {
	if c.opts.NoHostFiles {
		return fault.New(fault.Denied, "%s: images in files of the daemon's host are for its own user alone", ref.source)
	}
	return nil
}

// Head returns the digest of what ref names now: for a tag one HEAD request,
// for a digest none.
func (c *Client) Head(ctx context.Context, ref Reference) (id.Blob, error) {
	switch {
	case ref.digest != "":
		return ref.digest, nil
	case ref.Local():
		if err := c.mayRead(ref); err != nil {
			return "", err
		}
		return headLocal(ctx, ref)
	case ref.source == "":
		return "", fault.New(fault.Invalid, "invalid reference format")
	}
	d, _, err := c.head(ctx, ref)
	return d, err
}

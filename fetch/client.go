package fetch

import (
	"context"
	"errors"
	"io"
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

	// Proxy chooses the proxy of a request; nil = from the environment.
	Proxy func(*http.Request) (*url.URL, error)
	// Dial opens connections; nil = net.Dialer with DialTimeout.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
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

// Image is what a reference names, on one platform.
type Image struct {
	Reference      Reference
	Digest         id.Blob // of what the reference names: an index or a manifest
	ManifestDigest id.Blob // of Manifest
	Manifest       []byte
	MediaType      string // of Manifest
	Config         []byte
	ID             id.ImageID // digest of Config
	Platform       Platform   // what the config says
	Layers         []Layer    // lowest first

	open func(ctx context.Context, l Layer, turn int) (io.ReadCloser, error)

	mu    sync.Mutex
	turns []int // how often each layer was opened
}

// Layer is one layer of an image.
type Layer struct {
	Blob      id.Blob // digest of the bytes Open gives
	Size      int64   // of those bytes
	DiffID    id.DiffID
	MediaType string   // a hint only
	URLs      []string // further sources of a foreign layer
}

// Open returns the raw bytes of layer i from the start. The reader resumes
// broken transfers by itself and gives exactly Layers[i].Size bytes before
// io.EOF, or an error; their digest is not verified. Opening a layer again
// starts at another endpoint where there is one. ctx bounds the reader's life.
func (img *Image) Open(ctx context.Context, i int) (io.ReadCloser, error) {
	if img.open == nil || i < 0 || i >= len(img.Layers) {
		return nil, errors.New("layer: out of range")
	}
	img.mu.Lock()
	if img.turns == nil {
		img.turns = make([]int, len(img.Layers))
	}
	turn := img.turns[i]
	img.turns[i]++
	img.mu.Unlock()
	return img.open(ctx, img.Layers[i], turn)
}

// Head returns the digest of what ref names now: for a tag one HEAD request,
// for a digest none.
func (c *Client) Head(ctx context.Context, ref Reference) (id.Blob, error) {
	switch {
	case ref.digest != "":
		return ref.digest, nil
	case ref.Local():
		return headLocal(ctx, ref)
	case ref.source == "":
		return "", fault.New(fault.Invalid, "invalid reference format")
	}
	d, _, err := c.head(ctx, ref)
	return d, err
}

// Resolve finds the image that ref names for platform p.
//
// Errors: NotFound if the tag, the repository or the platform is not there;
// Denied if the registry wants other credentials; Network if it cannot be
// reached; Integrity if what it sends is not what it should be; Invalid if
// what it sends is no container image.
func (c *Client) Resolve(ctx context.Context, ref Reference, p Platform) (*Image, error) {
	switch {
	case ref.Local():
		return resolveLocal(ctx, ref, p)
	case ref.source == "":
		return nil, fault.New(fault.Invalid, "invalid reference format")
	}
	return c.resolve(ctx, ref, p)
}

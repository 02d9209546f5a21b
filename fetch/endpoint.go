package fetch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// endpoint is a server that answers for an upstream.
type endpoint struct {
	c      *Client
	scheme string // http, https; "" = found out by asking, see plain
	host   string // host[:port]
	path   string // /v2, or what a hosts.toml says
	ns     string // value of ?ns=, "" for the upstream's own server
	header http.Header

	pull, resolve, referrers bool

	client *http.Client
	auth   *authorizer
	state  *host
}

// host is what a client has learned about a server, whichever upstream it
// answers for.
type host struct {
	mu        sync.Mutex
	tls       bool       // TLS answered: never speak plain
	plain     bool       // it speaks plain http, and may
	noRange   time.Time  // until when it is not asked for ranges, as it ignores or misunderstands them
	refs      capability // the referrers API
	refsUntil time.Time  // how long its absence is believed
	notUntil  time.Time  // it asked not to be bothered before

	rtt  time.Duration // from a request to the answer; 0 = not measured
	rate float64       // bytes per second of one transfer; 0 = not measured
}

// isLoopback reports whether plain http to addr (host[:port]) stays on this
// machine. Names are believed only where RFC 6761 says they are loopback.
func isLoopback(addr string) bool {
	h := strings.ToLower(strings.TrimSuffix(hostname(addr), "."))
	if h == "localhost" || strings.HasSuffix(h, ".localhost") {
		return true
	}
	ip := net.ParseIP(h)
	return ip != nil && ip.IsLoopback()
}

// hostname returns addr without port and brackets.
func hostname(addr string) string { return (&url.URL{Host: addr}).Hostname() }

// endpoints returns the servers for an upstream, in the order to try them.
func (c *Client) endpoints(domain string) ([]*endpoint, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.upstreams[domain]; ok {
		return e, nil
	}
	configs, err := loadHosts(c.opts.certsDirs(), domain)
	if err != nil {
		return nil, err
	}
	var list []*endpoint
	for i, cfg := range configs {
		list = append(list, c.newEndpointLocked(cfg, domain, i == len(configs)-1))
	}
	c.upstreams[domain] = list
	return list, nil
}

// Preconditions: c.mu is held.
func (c *Client) newEndpointLocked(cfg hostConfig, domain string, own bool) *endpoint {
	insecure := own && c.opts.Insecure
	if c.opts.NoHostFiles {
		cfg.certs, cfg.header = nil, nil
	}
	e := &endpoint{c: c, scheme: cfg.scheme, host: cfg.host, path: cfg.path, header: cfg.header,
		pull: cfg.pull, resolve: cfg.resolve, referrers: cfg.referrers || own, state: c.hostLocked(cfg.host)}
	if cfg.host != domain && !(domain == "docker.io" && cfg.host == hubHost) {
		e.ns = domain
	}
	if e.scheme == "" && !insecure && !isLoopback(e.host) {
		e.scheme = "https"
	}
	if e.scheme == "https" && insecure {
		e.scheme = ""
	}
	e.client = c.httpClient(cfg, insecure)
	e.auth = newAuthorizer(e.host, e.scheme == "http" || insecure, e.client, c.opts.Timeout, func(ctx context.Context, repository string) (credentials, error) {
		if o := c.opts.Auth; own && (o.Token != "" || o.IdentityToken != "" || o.Username != "") {
			if o.Token != "" {
				return credentials{bearer: o.Token}, nil
			}
			got := userCredentials(o.Username, o.Password)
			got.identity = firstOf(o.IdentityToken, got.identity)
			return got, nil
		}
		if c.opts.NoHostFiles {
			return credentials{}, nil
		}
		return c.opts.Auth.lookup(ctx, c.opts.Logger, e.host, repository)
	})
	return e
}

// host returns what is known of the server host[:port].
func (c *Client) host(name string) *host {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hostLocked(name)
}

// Preconditions: c.mu is held.
func (c *Client) hostLocked(name string) *host {
	h := c.hosts[name]
	if h == nil {
		h = &host{}
		c.hosts[name] = h
	}
	return h
}

// httpClient returns a client with connections of its own. Any certificate
// counts only where the user said so.
func (c *Client) httpClient(cfg hostConfig, insecure bool) *http.Client {
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	for _, pem := range cfg.ca {
		pool.AppendCertsFromPEM(pem)
	}
	dial := c.opts.Dial
	if dial == nil {
		t := c.opts.DialTimeout
		if cfg.dialTimeout > 0 {
			t = cfg.dialTimeout
		}
		dial = (&net.Dialer{Timeout: t, KeepAlive: 30 * time.Second}).DialContext
	}
	if opened := c.opts.Opened; opened != nil {
		inner := dial
		dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := inner(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return opened(conn), nil
		}
	}
	tr := &http.Transport{
		Proxy:                 c.opts.Proxy,
		DialContext:           dial,
		TLSClientConfig:       &tls.Config{RootCAs: pool, Certificates: cfg.certs, InsecureSkipVerify: cfg.skipVerify || insecure, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:   c.opts.DialTimeout,
		ResponseHeaderTimeout: c.opts.Timeout,
		IdleConnTimeout:       90 * time.Second,
		MaxIdleConnsPerHost:   16,
		// Blobs are what they are; a Content-Encoding is not to be undone.
		DisableCompression: true,
		ReadBufferSize:     64 << 10,
		// No HTTP/2: layers come in parallel over connections of their own,
		// so that one that stalls can be cut without the others.
		Protocols: new(http.Protocols),
	}
	tr.Protocols.SetHTTP1(true)
	return &http.Client{Transport: &agent{tr, c.opts.UserAgent}, CheckRedirect: c.checkRedirect}
}

// agent names us to every server, token servers and CDNs included.
type agent struct {
	inner http.RoundTripper
	name  string
}

func (a *agent) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set("User-Agent", a.name)
	return a.inner.RoundTrip(req)
}

func (a *agent) CloseIdleConnections() {
	if c, ok := a.inner.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

const maxRedirects = 10

var (
	errDowngrade = errors.New("redirect from https to http refused")
	errRedirects = errors.New("more than 10 redirects")
	errForward   = errors.New("redirect of credentials to another host refused")
)

// checkRedirect keeps the promises of the package doc: no downgrade, no end,
// nothing but the bare request for another host (net/http alone would hand
// Authorization on to subdomains), and nothing at all before that host wants
// to hear from us.
func (c *Client) checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return errRedirects
	}
	last := via[len(via)-1]
	if last.URL.Scheme == "https" && req.URL.Scheme != "https" || req.URL.Scheme != "http" && req.URL.Scheme != "https" {
		return errDowngrade
	}
	if req.URL.Host == via[0].URL.Host && req.URL.Scheme == via[0].URL.Scheme {
		return nil
	}
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		return errForward
	}
	bare := http.Header{}
	for _, k := range []string{"Accept", "Range"} {
		if v := req.Header.Values(k); len(v) > 0 {
			bare[k] = v
		}
	}
	req.Header = bare
	return c.host(req.URL.Host).wait(req.Context(), req.URL.Host, c.opts.MaxWait)
}

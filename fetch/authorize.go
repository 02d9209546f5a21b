package fetch

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/imgfs/imgfs/internal/fault"
)

// authorizer gets the Authorization header for one endpoint. The exchange with
// the token server is go-containerregistry's; when it happens, to whom
// credentials go, and how long its result serves is decided here. Tokens live
// here and nowhere else; what they are made from is looked up each time.
type authorizer struct {
	host     string // of the endpoint
	insecure bool   // plain http allowed to this host
	lookup   func(ctx context.Context, repository string) (credentials, error)
	client   *http.Client
	timeout  time.Duration // for everything that a token takes

	busy chan struct{} // holds one element while somebody asks for a token

	mu     sync.Mutex
	known  map[string]challenge // the last one seen, by repository
	grants map[string]grant     // by repository
}

// grant is a header and until when it is used without asking.
type grant struct {
	header string
	until  time.Time // zero = until refused
	scopes []string  // that the token was asked for with
}

const (
	defaultLife = 60 * time.Second // of a token that does not say, by the spec
	maxScopes   = 8                // of one token
)

func newAuthorizer(host string, insecure bool, client *http.Client, timeout time.Duration, lookup func(context.Context, string) (credentials, error)) *authorizer {
	return &authorizer{host: host, insecure: insecure, lookup: lookup, client: client, timeout: timeout,
		busy: make(chan struct{}, 1), known: map[string]challenge{}, grants: map[string]grant{}}
}

// header returns the header to send at once: "" if none is known. A token at
// two thirds of its life is replaced first; failing to is no failure, the
// registry's next 401 will tell.
func (a *authorizer) header(ctx context.Context, repository string) string {
	a.mu.Lock()
	g, ok := a.grants[repository]
	ch := a.known[repository]
	a.mu.Unlock()
	if !ok || g.until.IsZero() || time.Now().Before(g.until) {
		return g.header
	}
	if h, err := a.renew(ctx, repository, g.header, ch); err == nil {
		return h
	}
	return g.header
}

// refused takes a 401 (or a 400 that means it) and returns the header to try
// instead of sent.
func (a *authorizer) refused(ctx context.Context, resp *http.Response, repository, sent string) (string, error) {
	a.mu.Lock()
	for _, c := range parseChallenges(resp.Header.Values("WWW-Authenticate")) {
		if c.scheme == "bearer" && c.params["realm"] != "" || c.scheme == "basic" {
			a.known[repository] = c
			break
		}
	}
	ch := a.known[repository]
	a.mu.Unlock()
	if ch.scheme == "" {
		return "", newStatusError(resp, a.timeout)
	}
	return a.renew(ctx, repository, sent, ch)
}

// renew makes a new grant, unless another request made one since sent was
// sent that does for ch as well: pushes want tokens for several repositories,
// those that blobs are mounted from.
func (a *authorizer) renew(ctx context.Context, repository, sent string, ch challenge) (string, error) {
	select {
	case a.busy <- struct{}{}:
		defer func() { <-a.busy }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	a.mu.Lock()
	g := a.grants[repository]
	a.mu.Unlock()
	scopes := scopesOf(repository, ch)
	if g.header != sent && g.header != "" && covers(g.scopes, scopes) {
		return g.header, nil
	}
	if all := slices.Compact(slices.Sorted(slices.Values(append(slices.Clone(g.scopes), scopes...)))); len(all) <= maxScopes {
		scopes = all
	}
	// Others wait for the outcome: this must end.
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	c, err := a.lookup(ctx, repository)
	if err != nil {
		return "", err
	}
	g, err = a.grant(ctx, scopes, c, ch)
	if err != nil {
		return "", err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.grants[repository] = g
	return g.header, nil
}

func (a *authorizer) grant(ctx context.Context, scopes []string, c credentials, ch challenge) (grant, error) {
	switch {
	case c.bearer != "":
		return grant{header: "Bearer " + c.bearer}, nil
	case ch.scheme == "basic" && c.username == "":
		return grant{}, &statusError{method: "GET", url: a.host, host: a.host, status: http.StatusUnauthorized, detail: "no credentials"}
	case ch.scheme == "basic":
		return grant{header: basic(c)}, nil
	}
	token, life, err := a.exchange(ctx, scopes, c, ch)
	if err != nil {
		return grant{}, err
	}
	return grant{header: "Bearer " + token, until: time.Now().Add(life * 2 / 3), scopes: scopes}, nil
}

func basic(c credentials) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.username+":"+c.password))
}

// scopesOf returns what a token is to be good for: what the challenge says, or
// to pull repository, "" being the registry itself.
func scopesOf(repository string, ch challenge) []string {
	list := strings.Fields(ch.params["scope"])
	if len(list) == 0 && ch.scheme == "bearer" && repository != "" {
		list = []string{"repository:" + repository + ":pull"}
	}
	return list
}

// covers reports whether a token with the scopes have does for all of want.
func covers(have, want []string) bool {
	for _, w := range want {
		what, actions, _ := cutLast(w, ":")
		if !slices.ContainsFunc(have, func(h string) bool {
			of, may, _ := cutLast(h, ":")
			return of == what && !slices.ContainsFunc(strings.Split(actions, ","), func(a string) bool {
				return !slices.Contains(strings.Split(may, ","), a)
			})
		}) {
			return false
		}
	}
	return true
}

// cutLast is strings.Cut at the last sep.
func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// exchange asks the token server named by ch for a token with these scopes.
// An identity token goes by POST as OAuth2 wants it, and by GET where the
// server does not know that.
func (a *authorizer) exchange(ctx context.Context, scopes []string, c credentials, ch challenge) (string, time.Duration, error) {
	realm, err := a.realm(ch.params["realm"])
	if err != nil {
		return "", 0, err
	}
	// The transport's own guard knows no server but this one, so that it
	// passes what realm allowed and refuses redirects to elsewhere inside.
	server, err := name.NewRegistry(realm.Host)
	if err != nil {
		return "", 0, fault.New(fault.Network, "registry %s: its token server's URL is malformed", a.host)
	}
	pr := &transport.Challenge{Scheme: "bearer", Parameters: ch.params, Insecure: realm.Scheme == "http"}
	auth := authn.AuthConfig{Username: c.username, Password: c.password, IdentityToken: c.identity}
	if c.identity != "" {
		auth.Username, auth.Password = identityUser, c.identity
	}
	ask := func() (*transport.Token, error) {
		by := authn.Anonymous
		if !c.anonymous() {
			by = authn.FromConfig(auth)
		}
		return transport.Exchange(ctx, server, by, homebound{a.client.Transport, realm.Host}, scopes, pr)
	}
	t, err := ask()
	if te := (*transport.Error)(nil); errors.As(err, &te) && te.StatusCode == http.StatusMethodNotAllowed && auth.IdentityToken != "" {
		auth.IdentityToken = ""
		t, err = ask()
	}
	if te := (*transport.Error)(nil); errors.As(err, &te) {
		return "", 0, &statusError{method: http.MethodGet, url: redact(realm), host: realm.Host, status: te.StatusCode}
	}
	if err != nil {
		// What is no failure of the transfer quotes the answer: not for us.
		if u := (*url.Error)(nil); !errors.As(err, &u) && ctx.Err() == nil {
			err = errors.New("its answer holds no token")
		}
		return "", 0, fmt.Errorf("token server %s: %w", realm.Host, plainError(err))
	}
	life := time.Duration(t.ExpiresIn) * time.Second
	if t.ExpiresIn <= 0 || t.ExpiresIn > 365*24*3600 {
		life = defaultLife
	}
	return firstOf(t.Token, t.AccessToken), life, nil
}

// homebound lets no request with a body leave host: a redirected POST would
// carry the identity token along.
type homebound struct {
	inner http.RoundTripper
	host  string
}

func (h homebound) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil && req.URL.Host != h.host {
		req.Body.Close()
		return nil, errForward
	}
	return h.inner.RoundTrip(req)
}

// realm checks where a registry sends our credentials: over TLS, or plainly
// to where plain http is allowed anyway; and not to an address of a private
// or link-local network, unless the registry itself is at such an address.
func (a *authorizer) realm(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil {
		return nil, fault.New(fault.Network, "registry %s: its token server's URL is malformed", a.host)
	}
	switch {
	case u.Scheme == "https":
	case u.Scheme == "http" && (isLoopback(u.Host) || a.insecure):
	default:
		return nil, fault.WithHint(fault.New(fault.Denied, "registry %s: wants credentials sent to %s, which is not https", a.host, redact(u)),
			"if you trust the network, add --insecure")
	}
	if ip := net.ParseIP(u.Hostname()); ip != nil && u.Hostname() != hostname(a.host) {
		inner := ip.IsPrivate() || ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsUnspecified()
		own := net.ParseIP(hostname(a.host))
		ownInner := isLoopback(a.host) || own != nil && own.IsPrivate()
		if inner && (!ownInner || ip.IsLinkLocalUnicast()) {
			return nil, fault.New(fault.Denied, "registry %s: wants credentials sent to the private address %s", a.host, u.Hostname())
		}
	}
	return u, nil
}

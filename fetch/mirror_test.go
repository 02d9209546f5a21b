package fetch

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// `imgfs mount ubuntu:14.04`, typed exactly so, with docker.io mirrored on
// loopback: nothing else is spoken to, and ?ns= says for whom (regression 14).
func TestDockerHubMirrored(t *testing.T) {
	t.Parallel()
	mirror := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	layer := noise(100)
	m := makeImage(t, mirror, "library/ubuntu", "14.04", "", layer)
	o := options(t)
	o.CertsDirs = []string{hostsFile(t, "docker.io", "[host.\""+mirror.URL+"\"]\ncapabilities = [\"pull\", \"resolve\"]\n")}
	d := dialer{only: mirror.Host}
	o.Dial = d.dial
	img := mustResolve(t, New(o), "ubuntu:14.04")
	if img.Digest != m.digest || img.Reference.String() != "docker.io/library/ubuntu:14.04" {
		t.Errorf("got %s %s", img.Reference, img.Digest)
	}
	wantLayer(t, img, 0, layer)
	for _, q := range mirror.Requests() {
		if q.URL.Query().Get("ns") != "docker.io" {
			t.Errorf("%s without ns", q.URL)
		}
	}
	if got := d.refused(); len(got) > 0 {
		t.Errorf("also dialled %v", got)
	}
	// Unknown there, and the upstream is out of reach.
	_, err := New(o).Resolve(t.Context(), mustParse(t, "ubuntu:15.99"), Platform{})
	wantFault(t, err, fault.Network, "registry registry-1.docker.io: ", "mirrors from certs.d/docker.io/hosts.toml")
	wantFault(t, err, fault.Network, "(mirror "+mirror.Host+": 404 Not Found)", "")
	if got := d.refused(); !slices.Equal(got, []string{"registry-1.docker.io:443"}) {
		t.Errorf("dialled %v", got)
	}
}

// dialer refuses every address but one, and notes it; nothing leaves the
// machine.
type dialer struct {
	only string

	mu   sync.Mutex
	seen []string
}

var errNoWay = errors.New("no way out of this test")

func (d *dialer) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if addr == d.only {
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seen = append(d.seen, addr)
	return nil, &net.OpError{Op: "dial", Net: network, Err: &net.DNSError{Err: errNoWay.Error(), Name: addr, IsNotFound: true}}
}

func (d *dialer) refused() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.seen)
}

// A mirror resolves tags only if it may, but it serves what is named by
// digest; when it fails, the next one is asked.
func TestMirrorOrder(t *testing.T) {
	t.Parallel()
	origin := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	first := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	second := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	layer := noise(100)
	m := makeImage(t, origin, "x", "1", "", layer)
	makeImage(t, first, "x", "1", "", noise(99)) // another, under the same tag
	makeImage(t, second, "x", "1", "", layer)
	o := options(t)
	// Not in alphabetical order: file order counts.
	text := `server = "` + origin.URL + `"
[host."` + first.URL + `"]
  capabilities = ["pull"]
  [host."` + first.URL + `".header]
    X-Secret = "for the first"
[host."` + second.URL + `"]
  capabilities = ["pull"]
`
	o.CertsDirs = []string{hostsFile(t, "example.com", text)}
	img := mustResolve(t, New(o), "example.com/x:1")
	if img.Digest != m.digest {
		t.Errorf("got %s", img.Digest)
	}
	wantLayer(t, img, 0, layer)
	wantCounts(t, first, map[imgtest.Kind]int{imgtest.KindHead: 0, imgtest.KindManifest: 1})
	wantCounts(t, second, map[imgtest.Kind]int{imgtest.KindHead: 0, imgtest.KindManifest: 1, imgtest.KindBlob: 2})
	wantCounts(t, origin, map[imgtest.Kind]int{imgtest.KindHead: 1, imgtest.KindManifest: 0, imgtest.KindBlob: 0})
	for _, reg := range []*imgtest.Registry{first, second} {
		for _, q := range reg.Requests() {
			if got := q.Header.Get("X-Secret"); (got != "") != (reg == first) {
				t.Errorf("X-Secret: %q at %s", got, q.URL)
			}
		}
	}
	// No server may resolve: that is a mistake in the configuration.
	o.CertsDirs = []string{hostsFile(t, "example.com", "server = \""+origin.URL+"\"\ncapabilities = [\"pull\"]\n")}
	_, err := New(o).Resolve(t.Context(), mustParse(t, "example.com/x:1"), Platform{})
	wantFault(t, err, fault.Invalid, "no endpoints found for example.com/x", "capability")
}

// A mirror with wrong bytes under a digest stands in nobody's way.
func TestMirrorWithWrongManifest(t *testing.T) {
	t.Parallel()
	origin := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	mirror := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	m := makeImage(t, origin, "library/x", "1", "", noise(100))
	makeImage(t, mirror, "library/x", "1", "", noise(100))
	mirror.Inject(imgtest.Fault{On: imgtest.KindManifest, Flip: true})
	mirror.Inject(imgtest.Fault{On: imgtest.KindBlob, Flip: true})
	o := options(t)
	o.CertsDirs = []string{hostsFile(t, "docker.io", "server = \""+origin.URL+"\"\n[host.\""+mirror.URL+"\"]\n")}
	img := mustResolve(t, New(o), "x:1")
	if string(img.Manifest) != string(m.manifest) || string(img.Config) != string(m.config) {
		t.Error("wrong bytes came out")
	}
	wantCounts(t, origin, map[imgtest.Kind]int{imgtest.KindHead: 0, imgtest.KindManifest: 1, imgtest.KindBlob: 1})
}

// Each server gets the credentials of its own name; --creds are the
// reference's registry's alone.
func TestMirrorCredentials(t *testing.T) {
	t.Parallel()
	mirror := imgtest.NewRegistry(t, imgtest.RegistryOptions{Auth: "basic", Username: "m", Password: "m"})
	origin := imgtest.NewRegistry(t, imgtest.RegistryOptions{Auth: "basic", Username: "o", Password: "o"})
	layer := noise(100)
	makeImage(t, origin, "library/x", "1", "", layer)
	makeImage(t, mirror, "library/x", "1", "", layer)
	o := options(t)
	o.CertsDirs = []string{hostsFile(t, "docker.io", "server = \""+origin.URL+"\"\n[host.\""+mirror.URL+"\"]\n")}
	writeFile(t, filepath.Join(o.Auth.DockerConfig, "config.json"), `{"auths":{"`+mirror.Host+`":{"auth":"`+b64("m:m")+`"},"docker.io":{"auth":"`+b64("o:o")+`"}}}`)
	wantLayer(t, mustResolve(t, New(o), "x:1"), 0, layer)
	if origin.Count() != 0 {
		t.Errorf("the mirror did not do: %d requests at the origin", origin.Count())
	}
	o.Auth.Username, o.Auth.Password = "o", "o"
	mirror.SetPassword("changed")
	wantLayer(t, mustResolve(t, New(o), "x:1"), 0, layer)
	for _, q := range mirror.Requests() {
		if u, _, _ := (&http.Request{Header: q.Header}).BasicAuth(); u == "o" {
			t.Error("--creds were sent to the mirror")
		}
	}
}

// override_path: a mirror that is not at /v2.
func TestOverridePath(t *testing.T) {
	t.Parallel()
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	m := makeImage(t, reg, "library/x", "1", "")
	target, _ := url.Parse(reg.URL)
	var paths []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		paths = append(paths, r.URL.Path)
		http.Redirect(w, r, target.String()+strings.Replace(r.URL.Path, "/v2/proxy/", "/v2/", 1), http.StatusTemporaryRedirect)
	}))
	defer srv.Close()
	o := options(t)
	o.CertsDirs = []string{hostsFile(t, "docker.io", "server = \""+srv.URL+"/v2/proxy\"\noverride_path = true\n")}
	if img := mustResolve(t, New(o), "x:1"); img.Digest != m.digest {
		t.Error("other image")
	}
	if paths[0] != "/v2/proxy/library/x/manifests/1" {
		t.Errorf("asked for %v", paths)
	}
}

// The package promises plain http for loopback and --insecure alone.
func TestScheme(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		domain   string
		insecure bool
		plain    bool // is tried behind TLS
	}{
		{"10.0.0.1:5000", false, false},
		{"10.200.3.4", false, false},
		{"172.16.0.1:5000", false, false},
		{"192.168.1.1:5000", false, false},
		{"[fd00::1]:5000", false, false},
		{"registry.local", false, false},
		{"registry.example:80", false, false},
		{"notlocalhost:5000", false, false},
		{"localhost.example.com:5000", false, false},
		{"10.0.0.1:5000", true, true},
		{"registry.example", true, true},
		{"127.0.0.1:5000", false, true},
		{"127.9.9.9:5000", false, true},
		{"[::1]:5000", false, true},
		{"localhost:5000", false, true},
		{"x.localhost:5000", false, true},
	} {
		o := options(t)
		o.Insecure = c.insecure
		o.MaxRetry = -1
		var mu sync.Mutex
		var first []byte // byte of each connection
		o.Dial = func(context.Context, string, string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			go func() {
				b := make([]byte, 1)
				theirs.Read(b)
				mu.Lock()
				first = append(first, b[0])
				mu.Unlock()
				theirs.Close()
			}()
			return ours, nil
		}
		_, err := New(o).Resolve(t.Context(), mustParse(t, c.domain+"/x:1"), Platform{})
		if fault.KindOf(err) != fault.Network {
			t.Errorf("%s: %v", c.domain, err)
		}
		mu.Lock()
		tls, plain := 0, 0
		for _, b := range first {
			if b == 0x16 { // a TLS handshake record
				tls++
			} else {
				plain++
			}
		}
		mu.Unlock()
		if tls == 0 || (plain > 0) != c.plain {
			t.Errorf("%s, insecure %v: %d TLS and %d plain connections", c.domain, c.insecure, tls, plain)
		}
	}
}

// Once TLS has answered, nothing is sent plainly, whatever happens then.
func TestNeverPlainAfterTLS(t *testing.T) {
	t.Parallel()
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{TLS: true})
	makeImage(t, reg, "x", "1", "")
	o := options(t)
	o.Insecure = true
	broken := false
	var plain bool
	o.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if !broken {
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		}
		ours, theirs := net.Pipe()
		go func() {
			b := make([]byte, 1)
			theirs.Read(b)
			plain = plain || b[0] != 0x16
			theirs.Close()
		}()
		return ours, nil
	}
	c := New(o)
	mustResolve(t, c, reg.Host+"/x:1")
	broken = true
	c.Close()
	if _, err := c.Resolve(t.Context(), mustParse(t, reg.Host+"/x:1"), Platform{}); err == nil || plain {
		t.Errorf("plain %v, %v", plain, err)
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{TLS: true})
	m := makeImage(t, reg, "x", "1", "")
	ref := mustParse(t, reg.Host+"/x:1")

	_, err := New(options(t)).Resolve(t.Context(), ref, Platform{})
	wantFault(t, err, fault.Network, "certificate", "certs.d/"+reg.Host+"/ca.crt")

	in := func(files map[string]string) Options {
		o := options(t)
		dir := t.TempDir()
		for name, text := range files {
			writeFile(t, filepath.Join(dir, name), text)
		}
		o.CertsDirs = []string{dir}
		return o
	}
	insecure := options(t)
	insecure.Insecure = true
	port := strings.TrimPrefix(reg.Host, "127.0.0.1:")
	for name, o := range map[string]Options{
		"ca":             in(map[string]string{reg.Host + "/hosts.toml": `ca = "ca.pem"`, reg.Host + "/ca.pem": string(reg.CA)}),
		"list of cas":    in(map[string]string{reg.Host + "/hosts.toml": `ca = ["ca.pem"]`, reg.Host + "/ca.pem": string(reg.CA)}),
		"as docker":      in(map[string]string{reg.Host + "/any.crt": string(reg.CA)}),
		"underscores":    in(map[string]string{"127.0.0.1_" + port + "_/any.crt": string(reg.CA)}),
		"default":        in(map[string]string{"_default/any.crt": string(reg.CA)}),
		"skip_verify":    in(map[string]string{reg.Host + "/hosts.toml": `skip_verify = true`}),
		"as a host":      in(map[string]string{reg.Host + "/hosts.toml": "[host.\"" + reg.URL + "\"]\nca = \"ca.pem\"\n", reg.Host + "/ca.pem": string(reg.CA)}),
		"--insecure":     insecure,
		"second of dirs": {CertsDirs: []string{t.TempDir(), in(map[string]string{reg.Host + "/a.crt": string(reg.CA)}).CertsDirs[0]}, Auth: insecure.Auth},
	} {
		if img, err := New(o).Resolve(t.Context(), ref, Platform{}); err != nil || img.Digest != m.digest {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A server without TLS where TLS is a must.
	plain := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	o := in(map[string]string{plain.Host + "/hosts.toml": "server = \"https://" + plain.Host + "\"\n"})
	_, err = New(o).Resolve(t.Context(), mustParse(t, plain.Host+"/x:1"), Platform{})
	wantFault(t, err, fault.Network, "server gave HTTP response to HTTPS client", "--insecure")
}

// Regression 12.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	makeImage(t, reg, "x", "1", "")
	ref := mustParse(t, reg.Host+"/x:1")
	for _, status := range []int{429, 503} {
		reg.Forget()
		reg.Inject(imgtest.Fault{On: imgtest.KindManifest, Times: 1, Status: status, Header: map[string]string{"Retry-After": "1"}})
		c := New(options(t))
		start := time.Now()
		mustResolve(t, c, ref.String())
		if d := time.Since(start); d < time.Second {
			t.Errorf("%d: asked again after %v", status, d)
		}
		wantCounts(t, reg, map[imgtest.Kind]int{imgtest.KindManifest: 2})
	}
	// Too long to wait: said at once, and nothing is sent meanwhile.
	reg.Forget()
	reg.Inject(imgtest.Fault{On: imgtest.KindManifest, Times: 1, Status: 429, Header: map[string]string{"Retry-After": "7200"}})
	c := New(options(t))
	for range 2 {
		_, err := c.Resolve(t.Context(), ref, Platform{})
		wantFault(t, err, fault.Network, "asks to come back in", "log in")
	}
	wantCounts(t, reg, map[imgtest.Kind]int{imgtest.KindManifest: 1})
	// Who waits can be called off.
	reg.Inject(imgtest.Fault{On: imgtest.KindManifest, Times: 1, Status: 429, Header: map[string]string{"Retry-After": "100"}})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := New(options(t)).Resolve(ctx, ref, Platform{}); fault.KindOf(err) != fault.Canceled {
		t.Errorf("got %v", err)
	}
}

func TestRetryAfterValues(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for in, want := range map[string]time.Duration{
		"": -1, "0": 0, "5": 5 * time.Second, "-5": 0, " 7 ": 7 * time.Second, "x": -1,
		"Thu, 01 Jan 2026 00:01:00 GMT": time.Minute, "Thu, 01 Jan 2020 00:00:00 GMT": 0,
	} {
		got, ok := retryAfter(http.Header{"Retry-After": {in}}, now)
		if ok != (want >= 0) || ok && got != want {
			t.Errorf("%q: %v, %v", in, got, ok)
		}
	}
}

func TestProxy(t *testing.T) {
	t.Parallel()
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	m := makeImage(t, reg, "x", "1", "")
	asked := 0
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		r.URL.Host, r.RequestURI = reg.Host, ""
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		for k, v := range resp.Header {
			w.Header()[k] = v
		}
		w.WriteHeader(resp.StatusCode)
	}))
	defer proxy.Close()
	u, _ := url.Parse(proxy.URL)
	o := options(t)
	o.CertsDirs = []string{hostsFile(t, "far.example", `server = "http://far.example"`)}
	o.Proxy = http.ProxyURL(u)
	if d, err := New(o).Head(t.Context(), mustParse(t, "far.example/x:1")); err != nil || d != m.digest || asked != 1 {
		t.Errorf("%s, %v, %d requests by the proxy", d, err, asked)
	}
}

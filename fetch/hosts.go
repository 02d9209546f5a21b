package fetch

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/imgfs/imgfs/internal/fault"
)

const maxHostsFile = 1 << 20 // bytes of a hosts.toml or a certificate

// hostConfig is one server of a hosts.toml, or what the certificates beside
// it say about the upstream.
type hostConfig struct {
	scheme, host, path string // scheme "" = https, or http where that is allowed
	pull, resolve      bool
	referrers          bool
	skipVerify         bool
	ca                 [][]byte // PEM
	certs              []tls.Certificate
	header             http.Header
	dialTimeout        time.Duration // 0 = the client's
}

// certsDirs returns the directories to search, by falling priority.
func (o Options) certsDirs() []string {
	if len(o.CertsDirs) > 0 {
		return o.CertsDirs
	}
	if d := os.Getenv("IMGFS_CERTS_DIR"); d != "" {
		return []string{d}
	}
	var dirs []string
	home := firstOf(o.Auth.Home, os.Getenv("HOME"))
	if d := firstOf(o.Auth.ConfigHome, os.Getenv("XDG_CONFIG_HOME"), under(home, ".config")); d != "" {
		dirs = append(dirs, filepath.Join(d, "imgfs", "certs.d"))
	}
	return append(dirs, "/etc/containerd/certs.d", "/etc/docker/certs.d")
}

// findHostDir returns the directory that configures domain, "" if there is
// none: the first with the name of the host (containerd also writes the colon
// as underscores), else the first _default.
// Preconditions: domain was parsed, so it has no slash and is not "..".
func findHostDir(dirs []string, domain string) string {
	names := []string{domain}
	if h, port, ok := strings.Cut(domain, ":"); ok && !strings.HasPrefix(domain, "[") {
		names = append(names, h+"_"+port+"_")
	}
	for _, group := range [][]string{names, {"_default"}} {
		for _, d := range dirs {
			for _, n := range group {
				p := filepath.Join(d, n)
				if st, err := os.Stat(p); err == nil && st.IsDir() {
					return p
				}
			}
		}
	}
	return ""
}

// loadHosts returns the servers for domain in the order to try them, the
// upstream last.
func loadHosts(dirs []string, domain string) ([]hostConfig, error) {
	dir := findHostDir(dirs, domain)
	if dir == "" {
		return []hostConfig{upstream(domain)}, nil
	}
	file := filepath.Join(dir, "hosts.toml")
	raw, err := readLimited(file, maxHostsFile)
	var hosts []hostConfig
	switch {
	case err == nil:
		if hosts, err = parseHosts(raw, dir, domain); err != nil {
			err = fmt.Errorf("%s: %w", file, err)
		}
	case errors.Is(err, fs.ErrNotExist):
		hosts = []hostConfig{upstream(domain)}
		err = loadDockerCerts(dir, &hosts[0])
	}
	if err == nil {
		return hosts, nil
	}
	return nil, fault.WithHint(fault.New(fault.Invalid, "registry configuration: %w", err), "see containerd's docs/hosts.md for the format")
}

const hubHost = "registry-1.docker.io"

func upstream(domain string) hostConfig {
	host := domain
	if domain == "docker.io" {
		host = hubHost
	}
	return hostConfig{host: host, path: "/v2", pull: true, resolve: true, referrers: true}
}

// tomlHost is a server as hosts.toml writes it; several keys take a string or
// a list.
type tomlHost struct {
	Server       string         `toml:"server"`
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`
	Client       any            `toml:"client"`
	SkipVerify   bool           `toml:"skip_verify"`
	Header       map[string]any `toml:"header"`
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
}

// parseHosts reads a hosts.toml; relative paths in it are beneath dir.
func parseHosts(raw []byte, dir, domain string) ([]hostConfig, error) {
	var f struct {
		tomlHost
		Host map[string]tomlHost `toml:"host"`
	}
	if err := toml.Unmarshal(raw, &f); err != nil {
		return nil, err
	}
	order, err := hostOrder(raw)
	if err != nil {
		return nil, err
	}
	var hosts []hostConfig
	for _, name := range order {
		t, ok := f.Host[name]
		if !ok {
			continue
		}
		h, err := t.parse(name, dir)
		if err != nil {
			return nil, fmt.Errorf("host %q: %w", name, err)
		}
		hosts = append(hosts, h)
	}
	if len(hosts) != len(f.Host) {
		return nil, errors.New("hosts must be written as [host.\"URL\"] tables")
	}
	up := upstream(domain)
	name := f.Server
	if name == "" {
		name = up.host
	}
	h, err := f.parse(name, dir)
	if err != nil {
		return nil, fmt.Errorf("server %q: %w", name, err)
	}
	if f.Server == "" {
		h.scheme, h.path = "", "/v2"
	}
	return append(hosts, h), nil
}

// hostOrder returns the names of the [host."URL"] tables in file order, which
// is the order to try them and which decoding into a map would lose.
func hostOrder(raw []byte) ([]string, error) {
	var order []string
	seen := map[string]bool{}
	var p unstable.Parser
	p.Reset(raw)
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind != unstable.Table {
			continue
		}
		var parts []string
		for it := e.Key(); it.Next(); {
			parts = append(parts, string(it.Node().Data))
		}
		if len(parts) >= 2 && parts[0] == "host" && !seen[parts[1]] {
			seen[parts[1]] = true
			order = append(order, parts[1])
		}
	}
	return order, p.Error()
}

func (t tomlHost) parse(name, dir string) (hostConfig, error) {
	h := hostConfig{skipVerify: t.SkipVerify, header: http.Header{}}
	full := name
	if !strings.Contains(full, "://") {
		full = "https://" + full
	}
	u, err := url.Parse(full)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return h, errors.New("not a URL of scheme, host and path")
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		return h, fmt.Errorf("scheme %q is not http or https", u.Scheme)
	}
	h.scheme, h.host = u.Scheme, u.Host
	if u.Path != "" {
		h.path = strings.TrimSuffix(path.Clean("/"+u.Path), "/")
	}
	if !t.OverridePath && !strings.HasSuffix(h.path, "/v2") {
		h.path += "/v2"
	}
	if len(t.Capabilities) == 0 {
		h.pull, h.resolve, h.referrers = true, true, true
	}
	for _, c := range t.Capabilities {
		switch strings.ToLower(c) {
		case "pull":
			h.pull = true
		case "resolve":
			h.resolve = true
		case "referrers":
			h.referrers = true
		case "push":
		default:
			return h, fmt.Errorf("unknown capability %q", c)
		}
	}
	if t.DialTimeout != "" {
		if h.dialTimeout, err = time.ParseDuration(t.DialTimeout); err != nil {
			return h, fmt.Errorf("dial_timeout: %w", err)
		}
	}
	for k, v := range t.Header {
		list, err := stringList(v)
		if err != nil {
			return h, fmt.Errorf("header %q: %w", k, err)
		}
		for _, s := range list {
			h.header.Add(k, s)
		}
	}
	return h, t.certificates(&h, dir)
}

func (t tomlHost) certificates(h *hostConfig, dir string) error {
	cas, err := stringList(t.CA)
	if err != nil {
		return fmt.Errorf("ca: %w", err)
	}
	for _, p := range cas {
		if err := h.addCA(inDir(dir, p)); err != nil {
			return err
		}
	}
	// client is a file, a list of files, or a list of [certificate, key].
	list, ok := t.Client.([]any)
	if !ok && t.Client != nil {
		list = []any{t.Client}
	}
	for _, c := range list {
		pair, err := stringList(c)
		if err != nil || len(pair) == 0 || len(pair) > 2 {
			return errors.New("client: neither a file nor a pair of files")
		}
		if err := h.addPair(inDir(dir, pair[0]), inDir(dir, pair[len(pair)-1])); err != nil {
			return err
		}
	}
	return nil
}

func inDir(dir, p string) string {
	if filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(dir, p)
}

// stringList takes what TOML lets be a string or a list of strings.
func stringList(v any) ([]string, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case string:
		return []string{v}, nil
	case []any:
		var out []string
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, fmt.Errorf("holds a %T, not a string", e)
			}
			out = append(out, s)
		}
		return out, nil
	}
	return nil, fmt.Errorf("is a %T, neither string nor list", v)
}

func (h *hostConfig) addCA(file string) error {
	pem, err := readLimited(file, maxHostsFile)
	if err != nil {
		return err
	}
	if !x509.NewCertPool().AppendCertsFromPEM(pem) {
		return fmt.Errorf("%s: holds no certificate", file)
	}
	h.ca = append(h.ca, pem)
	return nil
}

func (h *hostConfig) addPair(cert, key string) error {
	c, err := readLimited(cert, maxHostsFile)
	if err != nil {
		return err
	}
	k, err := readLimited(key, maxHostsFile)
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(c, k)
	if err != nil {
		return fmt.Errorf("%s: %w", cert, err)
	}
	h.certs = append(h.certs, pair)
	return nil
}

// loadDockerCerts reads a directory as docker does: *.crt are CAs, X.cert and
// X.key a client's.
func loadDockerCerts(dir string, h *hostConfig) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		file := filepath.Join(dir, e.Name())
		switch ext := filepath.Ext(e.Name()); ext {
		case ".crt":
			err = h.addCA(file)
		case ".cert":
			key := strings.TrimSuffix(file, ext) + ".key"
			if _, serr := os.Stat(key); serr != nil {
				err = fmt.Errorf("missing key %s for client certificate %s. CA certificates must use the extension .crt", filepath.Base(key), e.Name())
			} else {
				err = h.addPair(file, key)
			}
		case ".key":
			cert := strings.TrimSuffix(file, ext) + ".cert"
			if _, serr := os.Stat(cert); serr != nil {
				err = fmt.Errorf("missing client certificate %s for key %s", filepath.Base(cert), e.Name())
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

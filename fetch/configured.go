package fetch

import (
	"os"
	"slices"
	"strings"
)

// maxConfigured bounds how many registries Configured looks at.
const maxConfigured = 1000

// Configured is a registry as its directory in certs.d says it is reached.
type Configured struct {
	Host    string   // as in references
	Mirrors []string // URLs that are tried before it
	Secure  bool     // TLS is verified at all of them
	Err     error    // why what stands there cannot be used; nil: it can
}

// Configured returns the registries that o's certs.d directories name, sorted,
// and Docker Hub.
func (o Options) Configured() []Configured {
	dirs := o.certsDirs()
	hosts := []string{"docker.io"}
	for _, d := range dirs {
		entries, err := os.ReadDir(d)
		if err != nil {
			continue // most are not there
		}
		for _, e := range entries[:min(len(entries), maxConfigured)] {
			host := e.Name()
			if h, ok := strings.CutSuffix(host, "_"); ok { // host_port_
				if i := strings.LastIndexByte(h, '_'); i > 0 {
					host = h[:i] + ":" + h[i+1:]
				}
			}
			if host != "_default" {
				hosts = append(hosts, host)
			}
		}
	}
	slices.Sort(hosts)
	var out []Configured
	for _, host := range slices.Compact(hosts) {
		c := Configured{Host: host, Mirrors: []string{}, Secure: true}
		var servers []hostConfig
		servers, c.Err = loadHosts(dirs, host)
		for i, s := range servers {
			c.Secure = c.Secure && !s.skipVerify && s.scheme != "http"
			if i < len(servers)-1 {
				scheme := firstOf(s.scheme, "https")
				c.Mirrors = append(c.Mirrors, scheme+"://"+s.host+strings.TrimSuffix(s.path, "/v2")+"/")
			}
		}
		out = append(out, c)
	}
	return out
}

package fetch

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
)

// show writes hosts as scheme://host/path[capabilities], in order.
func show(hosts []hostConfig) string {
	var out []string
	for _, h := range hosts {
		s := h.scheme + "://" + h.host + h.path
		if h.pull {
			s += " pull"
		}
		if h.resolve {
			s += " resolve"
		}
		if h.skipVerify {
			s += " skip"
		}
		out = append(out, s)
	}
	return strings.Join(out, ", ")
}

func TestParseHosts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, domain, text, want string }{
		{"empty", "h:5000", ``, "://h:5000/v2 pull resolve"},
		{"docker hub", "docker.io", ``, "://registry-1.docker.io/v2 pull resolve"},
		{"server", "docker.io", `server = "https://m"`, "https://m/v2 pull resolve"},
		{"server without scheme", "h", `server = "m:1"`, "https://m:1/v2 pull resolve"},
		{"plain server", "h", `server = "http://m:1/"`, "http://m:1/v2 pull resolve"},
		{"server with path", "h", `server = "https://m/sub"`, "https://m/sub/v2 pull resolve"},
		{"server with /v2", "h", `server = "https://m/v2"`, "https://m/v2 pull resolve"},
		{"override_path", "h", "server = \"https://m/sub/\"\noverride_path = true", "https://m/sub pull resolve"},
		{"override_path, none", "h", "server = \"https://m\"\noverride_path = true", "https://m pull resolve"},
		{"file order", "h", "[host.\"https://z\"]\n[host.\"https://a\"]\n[host.\"https://m\"]\n",
			"https://z/v2 pull resolve, https://a/v2 pull resolve, https://m/v2 pull resolve, ://h/v2 pull resolve"},
		{"capabilities", "h", "[host.\"https://a\"]\ncapabilities = [\"pull\"]\n[host.\"https://b\"]\ncapabilities = [\"resolve\"]\n[host.\"https://c\"]\ncapabilities = [\"push\", \"Pull\"]\n",
			"https://a/v2 pull, https://b/v2 resolve, https://c/v2 pull, ://h/v2 pull resolve"},
		{"upstream's capabilities", "h", "capabilities = [\"resolve\"]\n", "://h/v2 resolve"},
		{"skip_verify", "h", "[host.\"https://a\"]\nskip_verify = true\n", "https://a/v2 pull resolve skip, ://h/v2 pull resolve"},
		{"sub-table first", "h", "[host.\"https://b\".header]\nX = \"y\"\n[host.\"https://a\"]\n", "https://b/v2 pull resolve, https://a/v2 pull resolve, ://h/v2 pull resolve"},
		{"keys of later versions", "h", "future = 1\n[host.\"https://a\"]\nwhatever = \"x\"\n", "https://a/v2 pull resolve, ://h/v2 pull resolve"},
	} {
		hosts, err := parseHosts([]byte(c.text), t.TempDir(), c.domain)
		if err != nil || show(hosts) != c.want {
			t.Errorf("%s: got %s, %v, want %s", c.name, show(hosts), err, c.want)
		}
	}
	for text, want := range map[string]string{
		`server = `:                                  "toml",
		`server = "ftp://x"`:                         `scheme "ftp"`,
		`server = "https://u:p@x"`:                   "not a URL",
		`server = "https://x/?q=1"`:                  "not a URL",
		`capabilities = ["fly"]`:                     `unknown capability "fly"`,
		`ca = 5`:                                     "ca: is a int64",
		`ca = "absent.pem"`:                          "no such file",
		`client = [["a", "b", "c"]]`:                 "client",
		`dial_timeout = "soon"`:                      "dial_timeout",
		"[host.\"https://x\"]\nclient = 7":           "client",
		`host = { "https://x" = {} }`:                "must be written as",
		"[header]\nX = 5":                            `header "X"`,
		"[host.\"https://x\"]\n[host.\"https://x\"]": "toml",
	} {
		_, err := parseHosts([]byte(text), t.TempDir(), "h")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
}

func TestParseHostsDetails(t *testing.T) {
	t.Parallel()
	hosts, err := parseHosts([]byte("dial_timeout = \"3s\"\n[header]\nX-One = \"a\"\nX-Two = [\"b\", \"c\"]\n"), "", "h")
	if err != nil || hosts[0].dialTimeout != 3*time.Second || fmt.Sprint(hosts[0].header) != "map[X-One:[a] X-Two:[b c]]" {
		t.Errorf("got %+v, %v", hosts, err)
	}
}

func TestFindHostDir(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	for _, d := range []string{"a/_default", "b/h:5000", "b/x_1_", "c/h:5000", "c/_default", "c/docker.io"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	dirs := []string{filepath.Join(root, "absent"), filepath.Join(root, "a"), filepath.Join(root, "b"), filepath.Join(root, "c")}
	for domain, want := range map[string]string{
		"h:5000": "b/h:5000", "docker.io": "c/docker.io", "x:1": "b/x_1_", "other": "a/_default",
	} {
		if got := findHostDir(dirs, domain); got != filepath.Join(root, want) {
			t.Errorf("%s: got %s", domain, got)
		}
	}
	if got := findHostDir(dirs[:1], "h"); got != "" {
		t.Errorf("got %s", got)
	}
}

func TestCertsDirs(t *testing.T) {
	t.Setenv("IMGFS_CERTS_DIR", "")
	t.Setenv("XDG_CONFIG_HOME", "/x")
	if got := fmt.Sprint(Options{}.certsDirs()); got != "[/x/imgfs/certs.d /etc/containerd/certs.d /etc/docker/certs.d]" {
		t.Error(got)
	}
	t.Setenv("IMGFS_CERTS_DIR", "/own")
	if got := fmt.Sprint(Options{}.certsDirs()); got != "[/own]" {
		t.Error(got)
	}
	if got := fmt.Sprint(Options{CertsDirs: []string{"/asked"}}.certsDirs()); got != "[/asked]" {
		t.Error(got)
	}
}

func TestDockerCertsRefuses(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"client.cert": "missing key client.key for client certificate client.cert",
		"client.key":  "missing client certificate client.cert for key client.key",
		"ca.crt":      "holds no certificate",
		"hosts.toml":  "hosts.toml",
	} {
		root := t.TempDir()
		writeFile(t, filepath.Join(root, "h", name), "nonsense =")
		o := options(t)
		o.CertsDirs = []string{root}
		_, err := New(o).endpoints("h")
		wantFault(t, err, fault.Invalid, want, "docs/hosts.md")
	}
}

func FuzzHostsToml(f *testing.F) {
	f.Add("server = \"https://x\"\n[host.\"http://y:1/v2\"]\ncapabilities = [\"pull\"]\nheader = {a = [\"b\"]}\n")
	f.Add("[host.\"z\"]\nclient = [[\"a\",\"b\"]]\nca = [\"c\"]\n")
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "ca") && strings.Contains(text, "/") || strings.Contains(text, "client") && strings.Contains(text, "/") {
			return // would read the files it names
		}
		hosts, err := parseHosts([]byte(text), filepath.Join(t.TempDir(), "absent"), "h")
		if err != nil {
			return
		}
		if len(hosts) == 0 {
			t.Fatal("no upstream")
		}
		for _, h := range hosts {
			if h.host == "" || h.scheme != "http" && h.scheme != "https" && h.scheme != "" || strings.HasSuffix(h.path, "/") {
				t.Fatalf("%+v", h)
			}
		}
	})
}

// A file that hosts.toml names and that is not there is no hosts.toml that is
// not there: the mirrors would be passed over without a word.
func TestHostsNameMissingFiles(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"ca = \"gone.crt\"\n", "client = \"gone.cert\"\n"} {
		o := options(t)
		o.CertsDirs = []string{hostsFile(t, "h", "[host.\"https://m\"]\n"+text)}
		_, err := New(o).endpoints("h")
		wantFault(t, err, fault.Invalid, "no such file", "docs/hosts.md")
	}
}

package fetch

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
)

// AuthOptions say where credentials come from. The empty fields of the
// second group fall back to the environment variable they are named after.
type AuthOptions struct {
	Username string // --creds; for the reference's own registry, not its mirrors
	Password string
	Token    string // --registry-token: sent as Bearer unchanged, likewise

	// IdentityToken is a refresh token, exchanged for others by the token
	// server; likewise. A user name beside it is the token's owner.
	IdentityToken string

	AuthFile     string // --authfile; else $REGISTRY_AUTH_FILE
	DockerConfig string // directory of config.json; else $DOCKER_CONFIG, else Home/.docker
	Home         string // else $HOME
	RuntimeDir   string // else $XDG_RUNTIME_DIR
	ConfigHome   string // else $XDG_CONFIG_HOME, else Home/.config
}

// credentials are what one registry wants. The zero value is anonymous.
type credentials struct {
	username, password string
	identity           string // a refresh token for the token server
	bearer             string // sent to the registry unchanged
}

func (c credentials) anonymous() bool { return c == credentials{} }

const (
	maxAuthFile   = 1 << 20 // bytes
	helperTimeout = 30 * time.Second
	identityUser  = "<token>"                     // docker's user name for an identity token
	hubKey        = "https://index.docker.io/v1/" // Docker Hub's name in every auth file
)

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

func under(dir string, elem ...string) string {
	if dir == "" {
		return ""
	}
	return filepath.Join(append([]string{dir}, elem...)...)
}

// authFile is a place credentials may stand in.
type authFile struct {
	path     string
	explicit bool // named by the user: must exist and be readable
}

func (a AuthOptions) files() []authFile {
	home := firstOf(a.Home, os.Getenv("HOME"))
	docker := firstOf(a.DockerConfig, os.Getenv("DOCKER_CONFIG"), under(home, ".docker"))
	config := firstOf(a.ConfigHome, os.Getenv("XDG_CONFIG_HOME"), under(home, ".config"))
	files := []authFile{
		{firstOf(a.AuthFile, os.Getenv("REGISTRY_AUTH_FILE")), a.AuthFile != ""},
		{under(docker, "config.json"), false},
		{under(firstOf(a.RuntimeDir, os.Getenv("XDG_RUNTIME_DIR")), "containers", "auth.json"), false},
		{under(config, "containers", "auth.json"), false},
		{under(home, ".dockercfg"), false},
	}
	n := 0
	for _, f := range files {
		if f.path != "" {
			files[n] = f
			n++
		}
	}
	return files[:n]
}

// lookup returns the credentials for a repository on host, from the first
// file that has any; files are read anew each time, so that a login is seen.
// Credential programs that do not work are logged and count as having none.
func (a AuthOptions) lookup(ctx context.Context, log *slog.Logger, host, repository string) (credentials, error) {
	for _, f := range a.files() {
		raw, err := readLimited(f.path, maxAuthFile)
		if errors.Is(err, fs.ErrNotExist) && !f.explicit {
			continue
		}
		var cfg authConfig
		if err == nil {
			cfg, err = parseAuthFile(raw)
		}
		if err != nil {
			if f.explicit {
				return credentials{}, fault.WithHint(fault.New(fault.Invalid, "auth file: %w", err), "see --authfile and REGISTRY_AUTH_FILE")
			}
			log.Warn("auth file skipped", "path", f.path, "err", err)
			continue
		}
		c, err := cfg.find(ctx, host, repository)
		if err != nil {
			log.Warn("credential program", "path", f.path, "registry", host, "err", err)
		}
		if !c.anonymous() {
			return c, nil
		}
	}
	return credentials{}, nil
}

func readLimited(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s: larger than %d bytes", path, limit)
	}
	return b, err
}

// authConfig is a docker config.json, a podman auth.json or a .dockercfg.
type authConfig struct {
	auths       map[string]authEntry // by normalised key
	credHelpers map[string]string    // by normalised key
	credsStore  string
}

type authEntry struct {
	Auth          string `json:"auth"`
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

func parseAuthFile(raw []byte) (authConfig, error) {
	var f struct {
		Auths       map[string]authEntry `json:"auths"`
		CredHelpers map[string]string    `json:"credHelpers"`
		CredsStore  string               `json:"credsStore"`
	}
	if len(bytes.TrimSpace(raw)) == 0 {
		return authConfig{}, nil
	}
	if err := json.Unmarshal(raw, &f); err != nil {
		return authConfig{}, errors.New("not valid JSON") // err could quote a secret
	}
	if f.Auths == nil && f.CredHelpers == nil && f.CredsStore == "" {
		// .dockercfg holds the entries at its top level; so does any other
		// config.json, with values of other shapes.
		var top map[string]json.RawMessage
		if json.Unmarshal(raw, &top) == nil {
			f.Auths = map[string]authEntry{}
			for k, v := range top {
				var e authEntry
				if json.Unmarshal(v, &e) == nil && e != (authEntry{}) {
					f.Auths[k] = e
				}
			}
		}
	}
	c := authConfig{auths: map[string]authEntry{}, credHelpers: map[string]string{}, credsStore: f.CredsStore}
	for k, v := range f.Auths {
		if n := authKey(k); c.auths[n] == (authEntry{}) || v != (authEntry{}) && k == hubKey {
			c.auths[n] = v
		}
	}
	for k, v := range f.CredHelpers {
		c.credHelpers[authKey(k)] = v
	}
	return c, nil
}

// authKey normalises a key: the scheme goes, and with it the path, as docker
// writes https://host/v1/; Docker Hub's three names become docker.io.
func authKey(k string) string {
	rest, old := strings.CutPrefix(k, "https://")
	if !old {
		rest, old = strings.CutPrefix(k, "http://")
	}
	rest = strings.TrimRight(rest, "/")
	host, path, _ := strings.Cut(rest, "/")
	if old || path == "v1" || path == "v2" {
		path = ""
	}
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		host = "docker.io"
	}
	if path == "" {
		return host
	}
	return host + "/" + path
}

// find looks for the most specific key: host/ns/image, host/ns, host.
// Preconditions: repository is valid, so it has no empty elements.
func (c authConfig) find(ctx context.Context, host, repository string) (credentials, error) {
	host = authKey(host)
	var failed error
	program := firstOf(c.credHelpers[host], c.credsStore)
	if program != "" {
		server := host
		if host == "docker.io" {
			server = hubKey
		}
		got, err := askProgram(ctx, program, server)
		if err == nil && !got.anonymous() {
			return got, nil
		}
		failed = err
	}
	for key := host + "/" + repository; ; {
		if e, ok := c.auths[key]; ok {
			if got, err := e.credentials(); err != nil || !got.anonymous() {
				return got, err
			}
		}
		i := strings.LastIndexByte(key, '/')
		if i < 0 {
			return credentials{}, failed
		}
		key = key[:i]
	}
}

func (e authEntry) credentials() (credentials, error) {
	c := credentials{username: e.Username, password: e.Password, identity: e.IdentityToken, bearer: e.RegistryToken}
	if e.Auth == "" {
		return c, nil
	}
	raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(e.Auth, "=\x00"))
	user, pass, ok := strings.Cut(string(raw), ":")
	if err != nil || !ok || user == "" {
		return credentials{}, errors.New("auth is not base64 of user:password")
	}
	u := userCredentials(user, strings.TrimRight(pass, "\x00"))
	u.identity, u.bearer = firstOf(c.identity, u.identity), c.bearer
	return u, nil
}

var programName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// askProgram runs docker-credential-NAME get.
func askProgram(ctx context.Context, name, server string) (credentials, error) {
	if !programName.MatchString(name) {
		return credentials{}, fmt.Errorf("credential program %q: not a valid name", name)
	}
	name = "docker-credential-" + name
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	var out limitedBuffer
	cmd := exec.CommandContext(ctx, name, "get")
	cmd.Stdin = strings.NewReader(server)
	cmd.Stdout = &out
	cmd.WaitDelay = time.Second // a grandchild may hold the pipe
	if err := cmd.Run(); err != nil {
		said := strings.TrimSpace(out.buf.String())
		if strings.Contains(said, "credentials not found") {
			return credentials{}, nil
		}
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return credentials{}, fmt.Errorf("%s: %w", name, err)
	}
	var got struct{ Username, Secret string }
	if err := json.Unmarshal(out.buf.Bytes(), &got); err != nil {
		return credentials{}, fmt.Errorf("%s: its answer is not valid JSON", name)
	}
	return userCredentials(got.Username, got.Secret), nil
}

// userCredentials returns what a name and a secret stand for: docker and its
// credential programs keep an identity token under the name [identityUser].
func userCredentials(name, secret string) credentials {
	if name == identityUser {
		return credentials{identity: secret}
	}
	return credentials{username: name, password: secret}
}

// limitedBuffer keeps what a program says, up to maxAuthFile bytes.
// (The buffer is not embedded: its ReadFrom would know no limit.)
type limitedBuffer struct{ buf bytes.Buffer }

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if b.buf.Len()+len(p) > maxAuthFile {
		return 0, errors.New("output too long")
	}
	return b.buf.Write(p)
}

package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/fault"
)

// credentialFile is a docker config.json or a podman auth.json that a login is
// written to. All that it says beside is kept.
type credentialFile struct {
	path    string
	fields  map[string]json.RawMessage
	auths   map[string]json.RawMessage
	helpers map[string]string // programs by registry
	program string            // for all others; "": the file itself
}

// hubKey is Docker Hub's name in every such file.
const hubKey = "https://index.docker.io/v1/"

const (
	maxCredentials = 1 << 20 // bytes of a file, or of what a program says
	programTime    = 30 * time.Second
)

// openCredentials reads the file that --authfile names, or docker's. One that is
// not there is empty.
func openCredentials(c *cli.Context) (*credentialFile, error) {
	f := &credentialFile{path: c.String("authfile")}
	if f.path == "" {
		dir := os.Getenv("DOCKER_CONFIG")
		if dir == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				return nil, err
			}
			dir = filepath.Join(home, ".docker")
		}
		f.path = filepath.Join(dir, "config.json")
	}
	b, err := readSome(f.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f.fields, f.auths, f.helpers = map[string]json.RawMessage{}, map[string]json.RawMessage{}, map[string]string{}
	if err := f.parse(b, &f.fields); err != nil {
		return nil, err
	}
	for key, into := range map[string]any{"auths": &f.auths, "credHelpers": &f.helpers, "credsStore": &f.program} {
		if err := f.parse(f.fields[key], into); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// parse reads a part of the file; what is not there leaves into as it is.
func (f *credentialFile) parse(raw []byte, into any) error {
	if len(bytes.TrimSpace(raw)) == 0 || string(bytes.TrimSpace(raw)) == "null" {
		return nil
	}
	if json.Unmarshal(raw, into) != nil { // whose error could quote a secret
		return fault.WithHint(fault.New(fault.Invalid, "%s: not valid JSON, or of another form", f.path), "mend it, or move it away")
	}
	return nil
}

func readSome(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, maxCredentials+1))
	if err == nil && len(b) > maxCredentials {
		err = fault.New(fault.Invalid, "%s: larger than %d bytes", path, maxCredentials)
	}
	return b, err
}

// credential is what a login leaves.
type credential struct {
	username, secret string
	token            bool // secret is an identity token
}

// programFor returns the program that keeps a registry's credentials, "" for
// none.
func (f *credentialFile) programFor(registry string) string {
	if p := f.helpers[registry]; p != "" {
		return p
	}
	return f.program
}

// get returns what is kept for a registry; false if nothing is.
func (f *credentialFile) get(ctx context.Context, registry string) (credential, bool) {
	if p := f.programFor(registry); p != "" {
		out, err := runProgram(ctx, p, "get", []byte(registry))
		var got struct{ Username, Secret string }
		if err != nil || json.Unmarshal(out, &got) != nil || got.Secret == "" {
			return credential{}, false
		}
		return credential{got.Username, got.Secret, got.Username == "<token>"}, true
	}
	var e struct {
		Auth          string `json:"auth"`
		IdentityToken string `json:"identitytoken"`
	}
	if json.Unmarshal(f.auths[registry], &e) != nil {
		return credential{}, false
	}
	raw, err := base64.StdEncoding.DecodeString(e.Auth)
	user, password, ok := strings.Cut(string(raw), ":")
	if e.IdentityToken != "" {
		return credential{user, e.IdentityToken, true}, true
	}
	return credential{user, password, false}, err == nil && ok
}

// put keeps c for a registry; plain says that it stands in the file, unencrypted.
func (f *credentialFile) put(ctx context.Context, registry string, c credential) (plain bool, err error) {
	entry := map[string]string{}
	if p := f.programFor(registry); p != "" {
		user := c.username
		if c.token {
			user = "<token>"
		}
		in, err := json.Marshal(map[string]string{"ServerURL": registry, "Username": user, "Secret": c.secret})
		if err != nil {
			return false, err
		}
		if _, err := runProgram(ctx, p, "store", in); err != nil {
			return false, fmt.Errorf("storing credentials: %w", err)
		}
	} else if plain = true; c.token {
		entry["auth"], entry["identitytoken"] = encodeAuth(c.username, ""), c.secret
	} else {
		entry["auth"] = encodeAuth(c.username, c.secret)
	}
	if f.auths[registry], err = json.Marshal(entry); err != nil {
		return plain, err
	}
	return plain, f.save()
}

func encodeAuth(user, password string) string {
	return base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
}

// remove forgets what is kept for a registry; false if nothing was.
func (f *credentialFile) remove(ctx context.Context, registry string) (bool, error) {
	known := false
	for _, key := range []string{registry, "http://" + registry, "https://" + registry} {
		if _, ok := f.auths[key]; ok {
			known = true
			delete(f.auths, key)
		}
	}
	if p := f.programFor(registry); p != "" {
		if _, err := runProgram(ctx, p, "erase", []byte(registry)); err == nil {
			known = true
		} else if known {
			return true, fmt.Errorf("could not erase credentials: %w", err)
		}
	}
	if !known {
		return false, nil
	}
	return true, f.save()
}

// save writes the file anew, readable by its owner alone: complete or not at
// all. Where it is a link, what that leads to is written.
func (f *credentialFile) save() (err error) {
	raw, err := json.Marshal(f.auths)
	if err != nil {
		return err
	}
	f.fields["auths"] = raw
	b, err := json.MarshalIndent(f.fields, "", "\t")
	if err != nil {
		return err
	}
	path := f.path
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)) // of mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			tmp.Close()
			os.Remove(tmp.Name())
		}
	}()
	if _, err := tmp.Write(b); err != nil {
		return err
	}
	if err := tmp.Sync(); err != nil {
		return err
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

var programName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// runProgram has docker-credential-NAME do something, and returns what it says.
func runProgram(ctx context.Context, name, action string, in []byte) ([]byte, error) {
	if !programName.MatchString(name) {
		return nil, fault.New(fault.Invalid, "credential program %q: not a valid name", name)
	}
	name = "docker-credential-" + name
	ctx, cancel := context.WithTimeout(ctx, programTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, action)
	cmd.Stdin = bytes.NewReader(in)
	cmd.WaitDelay = time.Second // a grandchild may hold the pipe
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", name, err, oneLine(truncate(string(out), 200)))
	}
	return out, nil
}

// registryKey returns the name under which credentials for an address are kept:
// its host, or docker's name for Docker Hub, which is meant by "" too.
func registryKey(address string) string {
	host := address
	for _, scheme := range []string{"https://", "http://"} {
		host = strings.TrimPrefix(host, scheme)
	}
	host, _, _ = strings.Cut(host, "/")
	switch host {
	case "", "docker.io", "index.docker.io", "registry-1.docker.io":
		return hubKey
	}
	return host
}

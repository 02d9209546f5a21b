package main

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/daemon"
	"github.com/imgfs/imgfs/internal/engineapi"
)

// A daemon of another build that has mounts is used as it is, with a warning.
func TestOtherBuild(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	p, err := daemon.Locate(root)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(p.Socket), 0o700); err != nil {
		t.Skip(err)
	}
	l, err := net.Listen("unix", p.Socket)
	if err != nil {
		t.Skip(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(engineapi.VersionHeader, "v0.0.1-another")
		switch r.URL.Path {
		case "/imgfs/v1/shutdown":
			http.Error(w, `{"message":"2 mounts","kind":"conflict"}`, http.StatusConflict)
		case "/imgfs/v1/mounts":
			io.WriteString(w, `[{"id":"0123456789ab"}]`)
		}
	})}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	t.Cleanup(func() { srv.Close(); <-ended })

	var stdout, stderr bytes.Buffer
	if code := run([]string{"--root", root, "mounts", "-q"}, &stdout, &stderr); code != 0 || stdout.String() != "0123456789ab\n" {
		t.Errorf("code %d, %q", code, stdout.String())
	}
	if s := stderr.String(); !strings.Contains(s, "another build, v0.0.1-another") || strings.Count(s, "\n") != 1 {
		t.Errorf("stderr %q", s)
	}
}

func TestAbsoluteSource(t *testing.T) {
	t.Chdir("/tmp")
	for ref, want := range map[string]string{
		"oci:layout:v1":             "oci:/tmp/layout:v1",
		"oci:./a/../b:v1":           "oci:/tmp/b:v1",
		"oci:/x:v1":                 "oci:/x:v1",
		"oci-archive:x.tar":         "oci-archive:/tmp/x.tar",
		"docker-archive:x.tar:y:z":  "docker-archive:/tmp/x.tar:y:z",
		"ubuntu:14.04":              "ubuntu:14.04",
		"docker://ubuntu":           "docker://ubuntu",
		"localhost:5000/oci:latest": "localhost:5000/oci:latest",
	} {
		if got, err := absoluteSource(ref); err != nil || got != want {
			t.Errorf("%s: %s, %v, want %s", ref, got, err, want)
		}
	}
	if got, err := absoluteSource("oci:"); err == nil {
		t.Errorf("oci: without a path: %s", got)
	}
}

func TestRegistryOptions(t *testing.T) {
	t.Chdir("/tmp")
	t.Setenv("DOCKER_CONFIG", "d")
	t.Setenv("IMGFS_CERTS_DIR", "/c")
	t.Setenv("REGISTRY_AUTH_FILE", "auth.json")
	app := newApp(io.Discard, io.Discard)
	var got engineapi.RegistryOptions
	for _, c := range app.Commands {
		if c.Name == "pull" {
			c.Action = func(c *cli.Context) (err error) {
				got, err = registryOptions(c)
				return err
			}
		}
	}
	p, err := permute(app, strings.Fields("pull x --creds user:pa:ss --registry-token t --insecure"))
	if err != nil {
		t.Fatal(err)
	}
	if err := app.Run(append([]string{"imgfs"}, p.args...)); err != nil {
		t.Fatal(err)
	}
	want := engineapi.RegistryOptions{Insecure: true, AuthFile: "/tmp/auth.json", DockerConfig: "/tmp/d", CertsDir: "/c",
		Username: "user", Password: "pa:ss", Token: "t"}
	if got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

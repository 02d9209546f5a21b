package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/imgfs/imgfs/internal/id"
)

// configure LAYOUT FILE gives the image of a layout the config in FILE.
func cmdConfigure(ts *testscript.TestScript, _ bool, args []string) {
	dir := args[0]
	read := func(name string) map[string]any {
		b, err := os.ReadFile(filepath.Join(dir, name))
		ts.Check(err)
		var v map[string]any
		ts.Check(json.Unmarshal(b, &v))
		return v
	}
	blob := func(d any) string {
		return "blobs/sha256/" + strings.TrimPrefix(d.(map[string]any)["digest"].(string), "sha256:")
	}
	put := func(d any, v any) {
		b, err := json.Marshal(v)
		ts.Check(err)
		m := d.(map[string]any)
		m["digest"], m["size"] = id.BlobOf(b), len(b)
		ts.Check(os.WriteFile(filepath.Join(dir, "blobs/sha256", strings.TrimPrefix(string(id.BlobOf(b)), "sha256:")), b, 0o644))
	}
	index := read("index.json")
	descriptor := index["manifests"].([]any)[0]
	manifest := read(blob(descriptor))
	config := read(blob(manifest["config"]))
	var inner map[string]any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[1])), &inner))
	config["config"] = inner
	put(manifest["config"], config)
	put(descriptor, manifest)
	b, err := json.Marshal(index)
	ts.Check(err)
	ts.Check(os.WriteFile(filepath.Join(dir, "index.json"), b, 0o644))
}

// exec-code CODE COMMAND ARGS... runs a command that must end with CODE,
// whatever it says.
func cmdExecCode(ts *testscript.TestScript, _ bool, args []string) {
	var exit *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); !errors.As(err, &exit) || strconv.Itoa(exit.ExitCode()) != args[0] {
		ts.Fatalf("%v, want exit status %s", err, args[0])
	}
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	config := imageConfig{Entrypoint: []string{"entry", "x"}, Cmd: []string{"cmd", "y"}}
	for _, tt := range []struct {
		entered    bool
		entrypoint string
		args       string
		want       string
	}{
		{false, "", "", "entry x cmd y"},
		{false, "", "a b", "entry x a b"},
		{true, "e", "", "e"},
		{true, "e", "a b", "e a b"},
		{true, "", "a b", "a b"},
		{true, "", "", ""},
	} {
		if got := strings.Join(commandLine(config, tt.entered, tt.entrypoint, strings.Fields(tt.args)), " "); got != tt.want {
			t.Errorf("%+v: %q", tt, got)
		}
	}
}

func TestTheirs(t *testing.T) {
	t.Parallel()
	app := newApp(&bytes.Buffer{}, &bytes.Buffer{})
	for in, want := range map[string]string{
		"run -it --rm x:1 ls -l --ro": "run --interactive=true --tty=true --rm=true -- x:1 ls -l --ro",
		"run x:1 -- ls -l":            "run -- x:1 ls -l",
		"run x:1 --version":           "run -- x:1 --version",
		"run -- x:1 -- ls":            "run -- x:1 -- ls",
		"chroot -v /a:/b /x -q":       "chroot --volume=/a:/b -- /x -q",
		"bundle x:1 d --ro":           "bundle --ro=true -- x:1 d",
	} {
		p, err := permute(app, strings.Fields(in))
		if got := strings.Join(p.args, " "); err != nil || got != want {
			t.Errorf("%s:\n%s, %v, want\n%s", in, got, err, want)
		}
	}
}

// The spec says what runc takes; that runc does is for the script to see.
func TestRuntimeSpec(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("me:x:7:8::/home/me:/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s, err := runtimeSpec(imageConfig{User: "me", Env: []string{"A=1"}}, root, true, true)
	if err != nil {
		t.Fatal(err)
	}
	if s.Process.User.UID != 7 || s.Process.User.GID != 8 || s.Process.Capabilities.Effective != nil || !s.Root.Readonly || s.Process.Cwd != "/" {
		t.Errorf("%+v", s)
	}
	for _, e := range []string{"A=1", "HOME=/home/me"} {
		if !slices.Contains(s.Process.Env, e) {
			t.Errorf("no %s in %q", e, s.Process.Env)
		}
	}
	for _, m := range s.Mounts {
		if m.Destination == "/etc/hosts" {
			t.Error("a bind where there is no place for it")
		}
	}
}

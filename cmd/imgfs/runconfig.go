package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/sandbox"
)

// imageConfig is what an image says about running it.
type imageConfig struct {
	Env              []string
	User, WorkingDir string
	Entrypoint, Cmd  []string
}

// configOf returns the config of a mount's image; an empty one if it is none.
func configOf(c *cli.Context, client *engineapi.Client, m engineapi.Mount) (imageConfig, error) {
	var config imageConfig
	if m.ID == "" {
		return config, nil
	}
	i, err := client.Inspect(c.Context, string(m.ImageID), engineapi.InspectOptions{})
	if fault.KindOf(err) == fault.NotFound {
		return config, nil // removed, while its layers are kept for the mount
	}
	if err != nil {
		return config, err
	}
	if len(i.Config) == 0 {
		return config, nil
	}
	if err := json.Unmarshal(i.Config, &config); err != nil {
		return config, fault.New(fault.Integrity, "config of %s: %w", m.Image, err)
	}
	return config, nil
}

// runConfigured runs what flags and config say in a sandbox whose tree is
// there, and returns the exit code.
func runConfigured(c *cli.Context, confined bool, client *engineapi.Client, box *sandbox.Sandbox, m engineapi.Mount) (int, error) {
	config, err := configOf(c, client, m)
	if err != nil {
		return sandbox.CodeFailed, err
	}
	spec := sandbox.Spec{
		Args: c.Args().Tail(), User: c.String("user"), WorkDir: c.String("workdir"),
		Hostname: c.String("hostname"), Confined: confined,
	}
	if confined {
		spec.Args = commandLine(config, c.IsSet("entrypoint"), c.String("entrypoint"), spec.Args)
		if spec.User == "" {
			spec.User = config.User
		}
		if spec.WorkDir == "" && config.WorkingDir != "" {
			spec.WorkDir = path.Join("/", config.WorkingDir) // docker takes relative ones
		}
	}
	if spec.WorkDir != "" && !path.IsAbs(spec.WorkDir) {
		return sandbox.CodeFailed, fault.New(fault.Invalid, "--workdir %q: not an absolute path", spec.WorkDir)
	}
	hostname := spec.Hostname
	if hostname == "" {
		if hostname, err = os.Hostname(); err != nil {
			return sandbox.CodeFailed, err
		}
	}
	spec.Env = variables(config.Env, c.StringSlice("env"), hostname)
	spec.Files = hostFiles(confined, hostname, spec.Hostname != "")
	if err := c.Context.Err(); err != nil {
		return sandbox.CodeFailed, err
	}
	return box.Run(spec)
}

// commandLine returns what to run, as docker has it: an entrypoint given on
// the command line replaces the config's command as well.
func commandLine(config imageConfig, entered bool, entrypoint string, args []string) []string {
	entry, command := config.Entrypoint, config.Cmd
	if entered {
		entry, command = nil, nil
		if entrypoint != "" {
			entry = []string{entrypoint}
		}
	}
	if len(args) > 0 {
		command = args
	}
	return append(append([]string{}, entry...), command...)
}

// proxies are passed on, as podman does: the network is the host's.
var proxies = [...]string{"http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"}

// variables returns the environment: what is the host's, then the image's,
// then the caller's.
func variables(config, given []string, hostname string) []string {
	var env []string
	pass := func(name string) {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	for _, name := range proxies {
		pass(name)
		pass(strings.ToUpper(name))
	}
	if term.IsTerminal(0) || term.IsTerminal(1) {
		pass("TERM")
	}
	env = append(append(env, "HOSTNAME="+hostname), config...)
	for _, e := range given {
		if strings.Contains(e, "=") {
			env = append(env, e)
		} else {
			pass(e)
		}
	}
	return env
}

// hostFiles returns the files of /etc that belong to the network, which is
// the host's. What the host does not have the image keeps.
func hostFiles(confined bool, hostname string, renamed bool) []sandbox.File {
	var files []sandbox.File
	for _, name := range [...]string{"/etc/resolv.conf", "/etc/hosts"} {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		if renamed && name == "/etc/hosts" {
			b = fmt.Appendf(b, "\n127.0.1.1\t%s\n", hostname)
		}
		files = append(files, sandbox.File{Path: name, Data: b})
	}
	if confined {
		files = append(files, sandbox.File{Path: "/etc/hostname", Data: []byte(hostname + "\n")})
	}
	return files
}

// volumes returns what --volume says.
func volumes(c *cli.Context) ([]sandbox.Bind, error) {
	var binds []sandbox.Bind
	for _, v := range c.StringSlice("volume") {
		b, err := sandbox.ParseBind(v)
		if err != nil {
			return nil, err
		}
		if b.Source, err = filepath.Abs(b.Source); err != nil {
			return nil, err
		}
		binds = append(binds, b)
	}
	return binds, nil
}

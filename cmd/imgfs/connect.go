package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/daemon"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

// dial returns a client of the store's daemon. It does not start one: where
// none runs, requests end in engineapi.ErrNoDaemon.
func dial(c *cli.Context) (*engineapi.Client, error) {
	if r, err := remote(c); r != nil || err != nil {
		return r, err
	}
	p, err := daemon.Locate(c.String("root"))
	if err != nil {
		return nil, err
	}
	return engineapi.New(p.Socket), nil
}

// connectToShow is connect for commands that take --format: first their
// arguments, from least to most (-1: any number), and the format are checked.
func connectToShow(c *cli.Context, least, most int) (*engineapi.Client, error) {
	if err := argsBetween(c, least, most); err != nil {
		return nil, err
	}
	if err := checkFormat(c); err != nil {
		return nil, err
	}
	return connect(c)
}

// connectToWork is connect for commands that show how far their work is; what
// --progress says is checked first.
func connectToWork(c *cli.Context) (*engineapi.Client, display, error) {
	show, err := newDisplay(c)
	if err != nil {
		return nil, nil, err
	}
	client, err := connect(c)
	return client, show, err
}

// connect returns a client of the store's daemon, which it starts where none
// runs. One of another build is replaced; where mounts keep it, it stays and
// the user is told. One that -H names is taken as it is.
func connect(c *cli.Context) (*engineapi.Client, error) {
	if r, err := remote(c); r != nil || err != nil {
		return r, err
	}
	p, err := daemon.Locate(c.String("root"))
	if err != nil {
		return nil, err
	}
	level, err := logLevel(c)
	if err != nil {
		return nil, err
	}
	// A daemon that is started inherits this environment.
	if err := os.Setenv("IMGFS_LOG_LEVEL", strings.ToLower(level.String())); err != nil {
		return nil, err
	}
	// So are these; one that is wrong is told here rather than by a daemon that
	// does not come up.
	if _, err := cacheLimit(os.Getenv("IMGFS_CACHE_LIMIT")); err != nil {
		return nil, err
	}
	if err := checkLogFormat(os.Getenv("IMGFS_LOG_FORMAT")); err != nil {
		return nil, err
	}
	client := daemon.Connect(p)
	theirs, err := client.Ping(c.Context)
	if err != nil || theirs == engineapi.ThisBuild().String() {
		return client, err
	}
	switch err := daemon.Replace(c.Context, p); {
	case fault.KindOf(err) == fault.Conflict:
		fmt.Fprintf(c.App.ErrWriter, "warning: the daemon is of another build, %s; imgfs daemon stop replaces it once nothing is mounted\n", oneLine(theirs))
	case err != nil:
		return nil, err
	}
	return client, nil
}

// logLevel returns what --log-level or --debug says.
func logLevel(c *cli.Context) (slog.Level, error) {
	if c.Bool("debug") {
		return slog.LevelDebug, nil
	}
	var l slog.Level
	if err := oneOf(c, "log-level", "debug", "info", "warn", "error"); err != nil {
		return l, err
	}
	return l, l.UnmarshalText([]byte(c.String("log-level")))
}

// registryFlags are the flags of every command that may talk to a registry.
func registryFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "platform", Usage: "`OS/ARCH[/VARIANT]` what to take from a multi-platform image (default: this machine's)", EnvVars: []string{"IMGFS_PLATFORM", "DOCKER_DEFAULT_PLATFORM"}},
		&cli.BoolFlag{Name: "insecure", Usage: "allow plain http and unverified TLS"},
		&cli.StringFlag{Name: "authfile", Usage: "`FILE` credentials (docker's config.json or podman's auth.json)", EnvVars: []string{"IMGFS_AUTHFILE", "REGISTRY_AUTH_FILE"}},
		&cli.StringFlag{Name: "creds", Usage: "`USER:PASSWORD` credentials for the registry"},
		&cli.StringFlag{Name: "registry-token", Usage: "`TOKEN` bearer token for the registry"},
		&cli.StringFlag{Name: "progress", Usage: "`HOW` progress on stderr: auto, tty, plain or quiet", Value: "auto"},
		&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "show no progress"},
	}
}

// registryOptions returns what flags and environment say about registries.
// Paths are made absolute: the daemon has another working directory.
func registryOptions(c *cli.Context) (engineapi.RegistryOptions, error) {
	o := engineapi.RegistryOptions{Insecure: c.Bool("insecure"), Token: c.String("registry-token")}
	if creds := c.String("creds"); creds != "" {
		user, password, ok := strings.Cut(creds, ":")
		if !ok || user == "" {
			return o, fault.New(fault.Invalid, "--creds takes USER:PASSWORD")
		}
		o.Username, o.Password = user, password
	}
	dockerConfig, certsDir := os.Getenv("DOCKER_CONFIG"), os.Getenv("IMGFS_CERTS_DIR")
	if hostOf(c) != "" { // directories of this machine, which a daemon elsewhere must not take for its own
		dockerConfig, certsDir = "", ""
	}
	for _, p := range []struct {
		to   *string
		from string
	}{
		{&o.AuthFile, c.String("authfile")},
		{&o.DockerConfig, dockerConfig},
		{&o.CertsDir, certsDir},
	} {
		if p.from == "" {
			continue
		}
		abs, err := filepath.Abs(p.from)
		if err != nil {
			return o, err
		}
		*p.to = abs
	}
	return o, nil
}

// sources are the schemes whose rest is a path.
var sources = [...]string{"oci:", "oci-archive:", "docker-archive:"}

// absoluteSource makes the path in a source like oci:DIR absolute; other
// references are returned as they are.
func absoluteSource(ref string) (string, error) {
	for _, scheme := range sources {
		path, ok := strings.CutPrefix(ref, scheme)
		if !ok {
			continue
		}
		if path == "" {
			return "", fault.New(fault.Invalid, "%s without a path", ref)
		}
		abs, err := filepath.Abs(path)
		if err != nil {
			return "", err
		}
		return scheme + abs, nil
	}
	if ref == "" {
		return "", fault.New(fault.Invalid, "empty image name")
	}
	if strings.HasPrefix(ref, "/") || strings.HasPrefix(ref, "./") || strings.HasPrefix(ref, "../") {
		return "", fault.WithHint(fault.New(fault.Invalid, "invalid reference format: %s is a path", ref),
			"an image in files is oci:DIR, oci-archive:FILE or docker-archive:FILE; a mountpoint comes after the image")
	}
	return ref, nil
}

// oneOf refuses a flag's value that is not among allowed.
func oneOf(c *cli.Context, flag string, allowed ...string) error {
	v := c.String(flag)
	for _, a := range allowed {
		if v == a {
			return nil
		}
	}
	return fault.New(fault.Invalid, "--%s %q: not one of %s", flag, v, strings.Join(allowed, ", "))
}

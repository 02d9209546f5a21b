package main

import (
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func versionCommand() *cli.Command {
	return command(cli.Command{
		Name:  "version",
		Usage: "show the versions of this program and of the running daemon",
		Description: `
Starts no daemon. Template fields: .Client and .Server, each with .Version
.GitCommit .GoVersion .Os .Arch .ApiVersion .BuildTime; .Server is nil where
no daemon runs.

Examples:
  imgfs version
  imgfs version --format '{{.Client.Version}}'

` + exitsText(fault.Failed, fault.Invalid),
		Flags:  []cli.Flag{&cli.StringFlag{Name: "format", Usage: "`TEMPLATE` Go template, or json"}},
		Action: printVersion,
	})
}

// versions is what --format sees; names are docker's.
type versions struct {
	Client build
	Server *build
}

type build struct {
	Version    string
	ApiVersion string //nolint:revive // docker's spelling, part of the output
	GitCommit  string
	GoVersion  string
	Os         string
	Arch       string
	BuildTime  string
}

func thisBuild() build {
	b := engineapi.ThisBuild()
	return build{Version: b.Version, ApiVersion: engineapi.APIVersion, GitCommit: b.Commit, GoVersion: b.Go,
		Os: runtime.GOOS, Arch: runtime.GOARCH, BuildTime: b.Time}
}

func printVersionLine(w io.Writer) error {
	b := thisBuild()
	if b.GitCommit != "" {
		b.Version += ", commit " + b.GitCommit
	}
	_, err := fmt.Fprintf(w, "imgfs version %s\n", b.Version)
	return err
}

func printVersion(c *cli.Context) error {
	if err := argsBetween(c, 0, 0); err != nil {
		return err
	}
	v := versions{Client: thisBuild()}
	client, err := dial(c)
	if err != nil {
		return err
	}
	switch s, err := client.Version(c.Context); {
	case err == nil:
		v.Server = &build{Version: s.Version, ApiVersion: s.APIVersion, GitCommit: s.GitCommit, GoVersion: s.GoVersion,
			Os: s.Os, Arch: s.Arch, BuildTime: s.BuildTime}
	case !errors.Is(err, engineapi.ErrNoDaemon):
		return err
	}
	switch format := c.String("format"); format {
	case "":
		printBuild(c.App.Writer, "Client", &v.Client)
		printBuild(c.App.Writer, "Daemon", v.Server)
		return nil
	case "json":
		return printJSONLines(c.App.Writer, []versions{v})
	default:
		t, err := parseTemplate(unescape.Replace(format), functions)
		if err != nil {
			return err
		}
		return printTemplate(c.App.Writer, t, v)
	}
}

func printBuild(w io.Writer, name string, b *build) {
	if b == nil {
		fmt.Fprintf(w, "%s: not running\n", name)
		return
	}
	fmt.Fprintf(w, "%s:\n Version:      %s\n API version:  %s\n Go version:   %s\n Git commit:   %s\n Built:        %s\n OS/Arch:      %s/%s\n",
		name, b.Version, b.ApiVersion, b.GoVersion, b.GitCommit, b.BuildTime, b.Os, b.Arch)
}

package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/daemon"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func statusCommand() *cli.Command {
	return command(cli.Command{
		Name:  "status",
		Usage: "show the daemon, the store and what ails them",
		Description: `
Starts no daemon: where none runs, that is what is shown. Template fields:
.Running .Version .PID .Root .Socket .Started .Images .Layers .Mounts
.DiskBytes .RssAnon .Transfers .Passes .Problems .Faults

Examples:
  imgfs status
  imgfs status --format '{{.Mounts}}'
  imgfs status --format json

` + exitsText(fault.Failed, fault.Invalid, fault.Unavailable),
		Flags:  []cli.Flag{&cli.StringFlag{Name: "format", Usage: "`TEMPLATE` Go template, or json"}},
		Action: status,
	})
}

// statusDoc is what --format sees.
type statusDoc struct {
	Running bool `json:"running"`
	engineapi.Status
}

func status(c *cli.Context) error {
	if err := argsBetween(c, 0, 0); err != nil {
		return err
	}
	paths, err := daemon.Locate(c.String("root"))
	if err != nil {
		return err
	}
	client, err := dial(c)
	if err != nil {
		return err
	}
	doc := statusDoc{Running: true}
	doc.Status, err = client.Status(c.Context)
	if errors.Is(err, engineapi.ErrNoDaemon) {
		doc = statusDoc{Status: engineapi.Status{Root: paths.Root, Socket: paths.Socket}}
	} else if err != nil {
		return err
	}
	switch format := c.String("format"); format {
	case "":
		return printStatus(c.App.Writer, doc)
	case "json":
		return printJSONLines(c.App.Writer, []statusDoc{doc})
	default:
		t, err := parseTemplate(unescape.Replace(format), functions)
		if err != nil {
			return err
		}
		return printTemplate(c.App.Writer, t, doc)
	}
}

func printStatus(w io.Writer, s statusDoc) error {
	t := tabwriter.NewWriter(w, 0, 1, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(t, "%s:\t%s\n", name, fmt.Sprintf(format, args...))
	}
	if !s.Running {
		line("Daemon", "not running (starts on demand)")
		line("Store", "%s", s.Root)
		line("Socket", "%s", s.Socket)
		return t.Flush()
	}
	line("Daemon", "running, pid %d, version %s, up %s", s.PID, s.Version, strings.ToLower(units.HumanDuration(time.Since(s.Started))))
	line("Store", "%s", s.Root)
	line("Socket", "%s", s.Socket)
	line("Images", "%d, of %d layers", s.Images, s.Layers)
	line("Mounts", "%d", s.Mounts)
	line("Disk", "%s", size(s.DiskBytes))
	line("Memory", "%s", size(s.RssAnon))
	for _, p := range s.Transfers {
		line("Transfer", "%s", oneLine(p))
	}
	for _, p := range s.Passes {
		line("Pulling", "%s", oneLine(p))
	}
	for _, p := range s.Problems {
		line("Problem", "%s", oneLine(p))
	}
	for _, f := range s.Faults {
		line("Read failed", "on %s, %s, last %s ago: %s", oneLine(f.Target), times(f.Count),
			strings.ToLower(units.HumanDuration(time.Since(f.Last))), oneLine(f.Reason))
	}
	return t.Flush()
}

// times returns how often: "once", "3 times".
func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

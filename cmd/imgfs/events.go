package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func eventsCommand() *cli.Command {
	return command(cli.Command{
		Name:  "events",
		Usage: "show what happens in the daemon",
		Description: `
Without --until it goes on until it is interrupted. The daemon remembers the last
events, as long as it runs: --since shows those first. TIME is a date
(2006-01-02T15:04:05), seconds since 1970, or how long ago (10m, 1h30m).

Types and actions: image (pull, push, tag, untag, delete, load, import, save,
prune, commit), mount (mount, unmount), layer (evict, import, remove), daemon
(start, stop).
Filters (-f): type=TYPE, event=ACTION, image=NAME, mount=ID, layer=ID,
label=KEY[=VALUE]. Template fields: .Type .Action .Actor.ID .Actor.Attributes
.Scope .Time .TimeNano

Examples:
  imgfs events
  imgfs events --since 1h --until 0s -f type=image
  imgfs events --format '{{.Time}} {{.Action}} {{.Actor.ID}}' -f event=pull
  imgfs events --format json | jq .

` + exitsText(fault.Failed, fault.Invalid, fault.Unavailable, fault.Canceled),
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "filter", Aliases: []string{"f"}, Usage: "`KEY=VALUE` show only what matches"},
			&cli.StringFlag{Name: "format", Usage: "`TEMPLATE` Go template, or json"},
			&cli.StringFlag{Name: "since", Usage: "`TIME` show also what happened since"},
			&cli.StringFlag{Name: "until", Usage: "`TIME` stop at this time"},
		},
		Action: events,
	})
}

func events(c *cli.Context) error {
	if err := argsBetween(c, 0, 0); err != nil {
		return err
	}
	show, err := eventWriter(c)
	if err != nil {
		return err
	}
	filters, err := filterFlags(c)
	if err != nil {
		return err
	}
	now := time.Now()
	since, err := timeFlag(c, "since", now)
	if err != nil {
		return err
	}
	until, err := timeFlag(c, "until", now)
	if err != nil {
		return err
	}
	client, err := connect(c)
	if err != nil {
		return err
	}
	return client.Events(c.Context, since, until, filters, show)
}

// eventWriter returns what prints an event as --format asks.
func eventWriter(c *cli.Context) (func(engineapi.Event) error, error) {
	w := c.App.Writer
	switch format := c.String("format"); format {
	case "":
		return func(e engineapi.Event) error { return printEvent(w, &e) }, nil
	case "json":
		return func(e engineapi.Event) error { return printJSONLines(w, []engineapi.Event{e}) }, nil
	default:
		t, err := parseTemplate(unescape.Replace(format), functions)
		return func(e engineapi.Event) error { return printTemplate(w, t, e) }, err
	}
}

// printEvent writes an event as docker does.
func printEvent(w io.Writer, e *engineapi.Event) error {
	at := time.Unix(e.Time, 0)
	if e.TimeNano != 0 {
		at = time.Unix(0, e.TimeNano)
	}
	line := fmt.Sprintf("%s %s %s %s", at.Format("2006-01-02T15:04:05.000000000Z07:00"), e.Type, e.Action, e.Actor.ID)
	var attrs []string
	for _, k := range slices.Sorted(maps.Keys(e.Actor.Attributes)) {
		attrs = append(attrs, k+"="+e.Actor.Attributes[k])
	}
	if len(attrs) > 0 {
		line += " (" + strings.Join(attrs, ", ") + ")"
	}
	_, err := fmt.Fprintln(w, oneLine(line))
	return err
}

// timeLayouts are the forms of a date, docker's.
var timeLayouts = []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02Z07:00", "2006-01-02"}

// timeFlag returns a flag's time as seconds since 1970 with a fraction, "" if it
// was not given.
func timeFlag(c *cli.Context, name string, now time.Time) (string, error) {
	v := c.String(name)
	if v == "" {
		return "", nil
	}
	stamp := func(t time.Time) (string, error) { return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()), nil }
	if ago, err := time.ParseDuration(v); err == nil {
		return stamp(now.Add(-ago))
	}
	if s, _, _ := strings.Cut(v, "."); s != "" {
		if _, err := strconv.ParseInt(s, 10, 64); err == nil {
			return v, nil
		}
	}
	for _, layout := range timeLayouts {
		if t, err := time.ParseInLocation(layout, v, time.Local); err == nil {
			return stamp(t)
		}
	}
	return "", fault.WithHint(fault.New(fault.Invalid, "--%s %q: not a time", name, v), "a date (2006-01-02T15:04:05), seconds since 1970, or how long ago (10m)")
}

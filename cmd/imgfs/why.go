package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func whyCommand() *cli.Command {
	return command(cli.Command{
		Name: "why", ArgsUsage: "IMAGE PATH | DIR/PATH",
		Usage: "show which layer a file comes from, and what is hidden there",
		Description: `
Each layer that has the path, or hides it, is listed, uppermost first, with the
line of the image's history that made it. Of a file is told how much of it is
here; of a mounted one also why reads of it failed. A symbolic link at the end
of the path is not followed.

Template fields: .Path .Type .Size .Cached .Upper .Changed .Layers .Image,
.From (.Number .Layer .Blob .CreatedBy .Has .At .Opaque .Hidden) and .Faults
(.Count .Last .Reason)

Examples:
  imgfs why debian:12 /etc/os-release
  imgfs why /mnt/x/etc/os-release
  imgfs why --format json debian:12 /bin/sh

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Unavailable),
		Flags:  []cli.Flag{&cli.StringFlag{Name: "format", Usage: "`TEMPLATE` Go template, or json"}},
		Action: why,
	})
}

func why(c *cli.Context) error {
	client, err := connectToShow(c, 1, 2)
	if err != nil {
		return err
	}
	var s engineapi.Source
	path := c.Args().Get(1)
	if c.NArg() == 2 {
		s, err = sourceArg(c.Context, client, c.Args().First())
	} else {
		s, path, err = mountedAt(c.Context, client, c.Args().First())
	}
	if err != nil {
		return err
	}
	y, err := client.Why(c.Context, s, path)
	if err != nil {
		return err
	}
	if f := c.String("format"); f != "" {
		return printRows(c.App.Writer, f, "", engineapi.Why{}, []engineapi.Why{y})
	}
	printWhy(c.App.Writer, &y)
	return nil
}

// mountedAt returns the mount that path lies in, and what of it is inside. The
// path itself need not exist any more.
func mountedAt(ctx context.Context, client *engineapi.Client, path string) (engineapi.Source, string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return engineapi.Source{}, "", err
	}
	list, err := client.Mounts(ctx)
	if err != nil {
		return engineapi.Source{}, "", err
	}
	for dir := abs; ; dir = filepath.Dir(dir) {
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			for _, m := range slices.Backward(list) { // an older one there has been detached
				if m.Target == real {
					return engineapi.Source{Mount: m.ID}, strings.TrimPrefix(abs, dir), nil
				}
			}
		}
		if dir == filepath.Dir(dir) {
			return engineapi.Source{}, "", fault.WithHint(fault.New(fault.NotFound, "%s: nothing is mounted there by imgfs", path),
				"imgfs why IMAGE PATH, or see imgfs mounts")
		}
	}
}

func printWhy(w io.Writer, y *engineapi.Why) {
	head := oneLine(y.Path) + ": "
	switch {
	case y.Type == "" && y.Changed == "":
		head += "not in the tree"
	case y.Changed == "":
		head += y.Type
	default:
		head += y.Changed + " in upper " + oneLine(y.Upper)
	}
	if y.Type == "file" {
		head += ", " + size(y.Size)
		if y.Changed != "" {
			head += " in the image"
		}
		if y.Cached < y.Size {
			head += fmt.Sprintf(", %s of it cached (%d%%)", size(y.Cached), 100*y.Cached/y.Size)
		} else {
			head += ", cached"
		}
	}
	fmt.Fprintln(w, head)
	for _, l := range y.From {
		fmt.Fprintf(w, "layer %d of %d: %s", l.Number, y.Layers, l.Has)
		if l.Opaque {
			fmt.Fprint(w, ", opaque")
		}
		if l.At != "" {
			fmt.Fprintf(w, " at %s", oneLine(l.At))
		}
		if l.Hidden != "" {
			fmt.Fprintf(w, ", hidden by %s", oneLine(l.Hidden))
		}
		fmt.Fprintln(w)
		if l.Blob != "" {
			fmt.Fprintf(w, "  digest: %s\n", l.Blob)
		} else {
			fmt.Fprintf(w, "  layer: %s\n", l.Layer)
		}
		if l.CreatedBy != "" {
			fmt.Fprintf(w, "  made by: %s\n", oneLine(l.CreatedBy))
		}
	}
	for _, f := range y.Faults {
		fmt.Fprintf(w, "read failed %s, last %s: %s\n", times(f.Count), f.Last.Format(time.RFC3339), oneLine(f.Reason))
	}
}

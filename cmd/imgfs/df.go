package main

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func dfCommand() *cli.Command {
	return command(cli.Command{
		Name:  "df",
		Usage: "show what the store takes on disk",
		Description: `
Reclaimable is what could be dropped now and would be fetched again when it is
read; the cache limit (imgfs daemon --cache-limit) drops what was read longest
ago. What no image needs is deleted by imgfs gc.

Of a layer, KIND is what it is read with: the table of contents or index that it
was found with, or streamed, if all of it came at its first contact; CACHED is
how much of it is here; SEALED, whether all of it was proven once to be what the
image says, or damaged (see imgfs verify).

Template fields: .Type .Count .Size .Reclaimable; with -v those of layers:
.Layer .Blob .Kind .Size .Cached .Disk .Sealed .Pinned .InUse .LastUse .Images
.Problem

Examples:
  imgfs df
  imgfs df -v
  imgfs df -v --format '{{.Layer}} {{.Cached}} {{.Images}}'

` + exitsText(fault.Failed, fault.Invalid, fault.Unavailable),
		Flags: []cli.Flag{
			formatFlag(),
			&cli.BoolFlag{Name: "no-trunc", Usage: "do not shorten digests"},
			&cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Usage: "list the layers"},
		},
		Action: df,
	})
}

// usageRow is one line of `imgfs df`.
type usageRow struct{ Type, Count, Size, Reclaimable string }

// layerRow is one line of `imgfs df -v`.
type layerRow struct {
	Layer, Blob, Kind, Size, Cached, Disk, Sealed, Pinned, InUse, LastUse, Images, Problem string
}

var layerHead = layerRow{"LAYER", "BLOB", "KIND", "SIZE", "CACHED", "DISK", "SEALED", "PINNED", "IN USE", "LAST USED", "IMAGES", "PROBLEM"}

func df(c *cli.Context) error {
	client, err := connectToShow(c, 0, 0)
	if err != nil {
		return err
	}
	u, err := client.DiskUsage(c.Context)
	if err != nil {
		return err
	}
	format := c.String("format")
	if c.Bool("verbose") {
		var rows []layerRow
		for _, l := range u.Layers {
			rows = append(rows, rowOfLayer(&l, c.Bool("no-trunc")))
		}
		return printRows(c.App.Writer, format, `{{.Layer}}\t{{.Kind}}\t{{.Size}}\t{{.Cached}}\t{{.Disk}}\t{{.Sealed}}\t{{.Pinned}}\t{{.LastUse}}\t{{.Images}}`,
			layerHead, rows)
	}
	share := ""
	if u.Data > 0 {
		share = fmt.Sprintf(" (%d%%)", 100*u.Evictable/u.Data)
	}
	err = printRows(c.App.Writer, format, `{{.Type}}\t{{.Count}}\t{{.Size}}\t{{.Reclaimable}}`,
		usageRow{"TYPE", "COUNT", "SIZE", "RECLAIMABLE"}, []usageRow{
			{"Layers", strconv.Itoa(len(u.Layers)), size(u.Data), size(u.Evictable) + share},
			{"Tables", "", size(u.Tables), size(0)},
			{"Trees", "", size(u.Chains), size(0)},
			{"Uppers", strconv.Itoa(u.UpperN), size(u.Uppers), size(0)},
			{"Temporary", "", size(u.Temporary), size(0)},
		})
	if err == nil && u.Limit > 0 && format == "" {
		fmt.Fprintf(c.App.Writer, "Cache limit: %s\n", size(u.Limit))
	}
	return err
}

func rowOfLayer(l *engineapi.LayerUsage, long bool) layerRow {
	row := layerRow{
		Layer: l.Layer.Short(), Blob: l.Blob.Short(), Kind: cmp.Or(l.Kind, "streamed"),
		Size: size(l.Size), Cached: size(l.Present), Disk: size(l.Disk),
		Sealed: yesNo(l.Sealed), Pinned: yesNo(l.Pinned), InUse: yesNo(l.InUse),
		LastUse: since(l.LastUse), Images: strings.Join(l.Images, ","), Problem: l.Problem,
	}
	if l.Problem != "" {
		row.Sealed = "damaged"
	}
	if long {
		row.Layer, row.Blob = string(l.Layer), string(l.Blob)
	}
	return row
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func verifyCommand() *cli.Command {
	return command(cli.Command{
		Name: "verify", ArgsUsage: "[IMAGE...]",
		Usage: "compare the store's layers with their digests",
		Description: `
Without an image all layers are verified. Of a layer that is here in part, the
parts are compared with what was found when they came; one that is here as a
whole is compared with the digest that its image gives it. Prints a line for
each layer that is damaged, and ends with 5 if one stays so.

Examples:
  imgfs verify
  imgfs verify --repair debian:12

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Integrity, fault.Unavailable, fault.Canceled),
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "repair", Usage: "drop what is damaged, to be fetched again when it is read"},
			&cli.StringFlag{Name: "progress", Usage: "`HOW` progress on stderr: auto, tty, plain or quiet", Value: "auto"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "show no progress"},
		},
		Action: verify,
	})
}

func verify(c *cli.Context) error {
	client, show, err := connectToWork(c)
	if err != nil {
		return err
	}
	list, err := client.Verify(c.Context, engineapi.VerifyRequest{Images: c.Args().Slice(), Repair: c.Bool("repair")}, show.step)
	show.end()
	if err != nil {
		return err
	}
	var bytes int64
	sealed, bad := 0, 0
	for _, v := range list {
		bytes += v.Present
		if v.Sealed {
			sealed++
		}
		switch {
		case v.Repaired:
			fmt.Fprintf(c.App.Writer, "%s: repaired, %d damaged parts are fetched again\n", v.Layer, v.Bad)
		case v.Problem != "":
			bad++
			fmt.Fprintf(c.App.Writer, "%s: %s\n", v.Layer, oneLine(strings.TrimPrefix(v.Problem, "layer "+v.Layer.Short()+": ")))
		}
	}
	if bad == 0 {
		if !c.Bool("quiet") {
			fmt.Fprintf(c.App.ErrWriter, "verified %d layers, %s; %d of them are proven as a whole\n", len(list), size(bytes), sealed)
		}
		return nil
	}
	err = fault.New(fault.Integrity, "%d of %d layers are damaged", bad, len(list))
	if !c.Bool("repair") {
		return fault.WithHint(err, "imgfs verify --repair, which drops what can be fetched again")
	}
	return fault.WithHint(err, "imgfs pull their images again")
}

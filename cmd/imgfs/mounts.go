package main

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/fault"
)

func mountsCommand() *cli.Command {
	return command(cli.Command{
		Name:  "mounts",
		Usage: "list the mounts of the store",
		Description: `
Template fields: .ID .Dir .Image .ImageID .ChainID .Driver .Mode .Upper .Writes
.WriteBytes .Changes .Lookups .Getattrs .Readdirs .Opens .Reads .ReadBytes
.Errors .Age .CreatedAt
(the counts are of requests from the kernel; what its caches answer is not
among them).

Examples:
  imgfs mounts
  imgfs mounts -q
  imgfs mounts --format 'table {{.Dir}}\t{{.Reads}}\t{{.ReadBytes}}'

` + exitsText(fault.Failed, fault.Invalid, fault.Unavailable),
		Flags: []cli.Flag{
			formatFlag(),
			&cli.BoolFlag{Name: "no-trunc", Usage: "do not shorten image and chain IDs"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print IDs only"},
		},
		Action: listMounts,
	})
}

// mountRow is one line of `imgfs mounts`.
type mountRow struct {
	ID, Dir, Image, ImageID, ChainID       string
	Driver, Mode, Upper                    string
	Lookups, Getattrs, Readdirs            string
	Opens, Reads, ReadBytes, Other, Errors string
	Writes, WriteBytes, Changes, LastError string
	Age, CreatedAt                         string
}

var mountHead = mountRow{ID: "ID", Dir: "DIR", Image: "IMAGE", ImageID: "IMAGE ID", ChainID: "CHAIN ID",
	Driver: "DRIVER", Mode: "MODE", Upper: "UPPER", Lookups: "LOOKUPS", Getattrs: "GETATTRS", Readdirs: "READDIRS",
	Opens: "OPENS", Reads: "READS", ReadBytes: "READ BYTES", Other: "OTHER", Errors: "ERRORS",
	Writes: "WRITES", WriteBytes: "WRITE BYTES", Changes: "CHANGES", LastError: "LAST ERROR",
	Age: "AGE", CreatedAt: "CREATED AT"}

const mountTable = `{{.Dir}}\t{{.Image}}\t{{.Driver}}\t{{.Mode}}\t{{.Upper}}\t{{.ID}}\t{{.Reads}}\t{{.Age}}`

func listMounts(c *cli.Context) error {
	client, err := connectToShow(c, 0, 0)
	if err != nil {
		return err
	}
	list, err := client.Mounts(c.Context)
	if err != nil {
		return err
	}
	var rows []mountRow
	for _, m := range list {
		if c.Bool("quiet") && c.String("format") == "" {
			fmt.Fprintln(c.App.Writer, m.ID)
			continue
		}
		row := mountRow{
			ID: m.ID, Dir: m.Target, Image: m.Image, ImageID: m.ImageID.Short(), ChainID: m.ChainID.Short(),
			Driver: m.Driver, Mode: m.Mode, Upper: cmp.Or(m.Upper, m.UpperDir, "-"),
			Lookups: count(m.Stats.Lookups), Getattrs: count(m.Stats.Getattrs), Readdirs: count(m.Stats.Readdirs),
			Opens: count(m.Stats.Opens), Reads: count(m.Stats.Reads), ReadBytes: size(int64(m.Stats.ReadBytes)),
			Other: count(m.Stats.Others), Errors: count(m.Stats.ErrorsTotal),
			Writes: count(m.Stats.Writes), WriteBytes: size(int64(m.Stats.WriteBytes)), Changes: count(m.Stats.Changes),
			LastError: oneLine(m.Stats.LastError),
			Age:       strings.ToLower(units.HumanDuration(time.Since(m.Created))),
			CreatedAt: m.Created.Local().String(),
		}
		if m.Layout {
			row.Image = "<layout>"
		}
		if m.Driver == "erofs" { // the kernel reads, and nobody counts
			for _, n := range []*string{&row.Lookups, &row.Getattrs, &row.Readdirs, &row.Opens, &row.Reads, &row.ReadBytes, &row.Other, &row.Errors,
				&row.Writes, &row.WriteBytes, &row.Changes, &row.LastError} {
				*n = "-"
			}
		}
		if c.Bool("no-trunc") {
			row.ImageID, row.ChainID = string(m.ImageID), string(m.ChainID)
		}
		rows = append(rows, row)
	}
	if c.Bool("quiet") && c.String("format") == "" {
		return nil
	}
	return printRows(c.App.Writer, c.String("format"), mountTable, mountHead, rows)
}

func count(n uint64) string { return strconv.FormatUint(n, 10) }

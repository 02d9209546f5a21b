package main

import (
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func historyCommand() *cli.Command {
	return command(cli.Command{
		Name: "history", ArgsUsage: "IMAGE",
		Usage: "show how an image was made",
		Description: `
One line for each step, newest first, as docker history shows them. A step that
changed no files has size 0.

Template fields: .ID .CreatedSince .CreatedAt .CreatedBy .Size .Comment

Examples:
  imgfs history ubuntu:14.04
  imgfs history --no-trunc --format '{{.Size}}\t{{.CreatedBy}}' debian:12
  imgfs history -H=false -q debian:12

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Conflict, fault.Integrity, fault.Unavailable),
		Flags: []cli.Flag{
			formatFlag(),
			&cli.BoolFlag{Name: "human", Aliases: []string{"H"}, Usage: "print sizes and dates in human readable form", Value: true},
			&cli.BoolFlag{Name: "no-trunc", Usage: "do not shorten IDs and commands"},
			&cli.StringFlag{Name: "platform", Usage: "`OS/ARCH[/VARIANT]` show it only if the image is for this platform"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print IDs only"},
		},
		Action: history,
	})
}

// historyRow is one line of `imgfs history`; names and meanings are docker's.
type historyRow struct {
	Comment, CreatedAt, CreatedBy, CreatedSince, ID, Size string
}

var historyHead = historyRow{"COMMENT", "CREATED AT", "CREATED BY", "CREATED", "IMAGE", "SIZE"}

const (
	historyTable      = `{{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}`
	historyTableExact = `{{.ID}}\t{{.CreatedAt}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}`
)

func history(c *cli.Context) error {
	client, err := connectToShow(c, 1, 1)
	if err != nil {
		return err
	}
	list, err := client.History(c.Context, c.Args().First(), c.String("platform"))
	if err != nil {
		return err
	}
	human, long := c.Bool("human"), c.Bool("no-trunc")
	format, standard := c.String("format"), historyTable
	if !human {
		standard = historyTableExact
	}
	if c.Bool("quiet") && format == "" {
		format = "{{.ID}}"
	}
	var rows []historyRow
	for i := range list {
		rows = append(rows, rowOfHistory(&list[i], human, long))
	}
	return printRows(c.App.Writer, format, standard, historyHead, rows)
}

func rowOfHistory(h *engineapi.HistoryItem, human, long bool) historyRow {
	at := time.Unix(h.Created, 0)
	row := historyRow{
		ID: h.ID, CreatedSince: since(at), CreatedAt: at.Format(time.RFC3339), Size: strconv.FormatInt(h.Size, 10),
		CreatedBy: oneLine(strings.ReplaceAll(h.CreatedBy, "\t", " ")), Comment: oneLine(h.Comment),
	}
	if human {
		row.Size = size(h.Size)
	}
	if !long {
		if strings.HasPrefix(row.ID, "sha256:") {
			row.ID = shortDigest(row.ID, false)
		}
		row.CreatedBy = ellipsis(row.CreatedBy, 45)
	}
	return row
}

// ellipsis cuts s to n characters, the last of which then says so.
func ellipsis(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n-1]) + "…"
}

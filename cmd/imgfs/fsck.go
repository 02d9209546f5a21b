package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func fsckCommand() *cli.Command {
	return command(cli.Command{
		Name:  "fsck",
		Usage: "look for damage in the store, and mend it",
		Description: `
Reads images, names, layers and merged trees through, all bytes that are here,
and compares them with their digests and records. Mounts and everything else go
on meanwhile. Prints a line for each problem, and ends with 5 if one stays.

With --repair what is damaged or missing is fetched again, by its digest, from
where it came; records and trees are made anew from what is here. Nothing is
removed that an image needs.

Template fields: .Kind .ID .What .Repaired .Hint

Examples:
  imgfs fsck
  imgfs fsck --repair
  imgfs fsck --format '{{.Kind}} {{.ID}}'

` + exitsText(fault.Failed, fault.Invalid, fault.Integrity, fault.Unavailable, fault.Canceled),
		Flags: append([]cli.Flag{
			formatFlag(),
			&cli.BoolFlag{Name: "repair", Usage: "mend what can be"},
		}, without(registryFlags(), "platform")...),
		Action: fsck,
	})
}

func fsck(c *cli.Context) error {
	if err := argsBetween(c, 0, 0); err != nil {
		return err
	}
	if err := checkFormat(c); err != nil {
		return err
	}
	req := engineapi.FsckRequest{Repair: c.Bool("repair")}
	var err error
	if req.Registry, err = registryOptions(c); err != nil {
		return err
	}
	client, show, err := connectToWork(c)
	if err != nil {
		return err
	}
	res, err := client.Fsck(c.Context, req, show.step)
	show.end()
	if err != nil {
		return err
	}
	left := 0
	var rows []fsckRow
	for _, p := range res.Problems {
		row := fsckRow{p.Kind, p.ID, oneLine(p.What), yesNo(p.Repaired), p.Hint}
		rows = append(rows, row)
		if !p.Repaired {
			left++
		}
	}
	if format := c.String("format"); format != "" {
		err = printRows(c.App.Writer, format, "", fsckRow{"KIND", "ID", "WHAT", "REPAIRED", "HINT"}, rows)
	} else {
		printProblems(c, rows)
	}
	switch {
	case err != nil:
		return err
	case left == 0:
		if !c.Bool("quiet") {
			fmt.Fprintf(c.App.ErrWriter, "checked %s, %s, %s, %s: %s\n", several(res.Images, "image"),
				several(res.Names, "name"), several(res.Layers, "layer"), several(res.Chains, "tree"), outcome(len(rows)))
		}
		return nil
	}
	if !req.Repair {
		return fault.WithHint(fault.New(fault.Integrity, "the store is damaged: %s", several(left, "problem")), "imgfs fsck --repair")
	}
	return fault.New(fault.Integrity, "not repaired: %d of %s", left, several(len(rows), "problem"))
}

// several writes a number of things.
func several(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// fsckRow is one problem.
type fsckRow struct{ Kind, ID, What, Repaired, Hint string }

func printProblems(c *cli.Context, rows []fsckRow) {
	for _, r := range rows {
		repaired := ""
		if r.Repaired == "yes" {
			repaired = " (repaired)"
		}
		fmt.Fprintf(c.App.Writer, "%s %s: %s%s\n", r.Kind, oneLine(r.ID), r.What, repaired)
		if r.Hint != "" && c.Bool("repair") {
			fmt.Fprintf(c.App.Writer, "  try: %s\n", oneLine(r.Hint))
		}
	}
}

// outcome says how many problems there were, all of which are mended.
func outcome(n int) string {
	switch n {
	case 0:
		return "no problems"
	case 1:
		return "1 problem, repaired"
	}
	return fmt.Sprintf("%d problems, all repaired", n)
}

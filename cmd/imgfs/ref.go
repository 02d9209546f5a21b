package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/daemon"
	"github.com/imgfs/imgfs/internal/fault"
)

func refCommand() *cli.Command {
	return command(cli.Command{
		Name:  "ref",
		Usage: "take names of images apart",
		Subcommands: []*cli.Command{command(cli.Command{
			Name: "parse", ArgsUsage: "NAME [NAME...]",
			Usage: "show the parts of a name",
			Description: `
What is left out is filled in, as a pull does: the registry docker.io, the
namespace library, the tag latest. No daemon is needed for it.

Template fields: .Name (as it was given) .Reference (in full) .Familiar (as it is
shown) .Transport .Registry .Path .Repository .Tag .Digest .File

Examples:
  imgfs ref parse ubuntu
  imgfs ref parse --format '{{.Registry}} {{.Path}} {{.Tag}}' quay.io/a/b:1
  imgfs ref parse --format json oci:./layout:v1

` + exitsText(fault.Failed, fault.Invalid),
			Flags:  []cli.Flag{&cli.StringFlag{Name: "format", Usage: "`TEMPLATE` Go template, or json"}},
			Action: parseRefs,
		})},
		Description: `
Examples:
  imgfs ref parse ubuntu
  imgfs ref parse --format '{{.Registry}}' quay.io/a/b:1

` + exitsText(fault.Failed, fault.Invalid),
		Action: func(c *cli.Context) error {
			return printHelp(c.App.Writer, c.App, []*cli.Command{c.Command})
		},
	})
}

func parseRefs(c *cli.Context) error {
	if err := argsBetween(c, 1, -1); err != nil {
		return err
	}
	if err := checkFormat(c); err != nil {
		return err
	}
	var rows []daemon.NameParts
	var first error
	for _, name := range c.Args().Slice() {
		p, err := daemon.ParseName(name)
		if err != nil {
			if c.NArg() == 1 {
				return err
			}
			printError(c.App.ErrWriter, err)
			first = firstOf(first, reported{err})
			continue
		}
		rows = append(rows, p)
	}
	if c.String("format") != "" {
		if err := printRows(c.App.Writer, c.String("format"), "", daemon.NameParts{}, rows); err != nil {
			return err
		}
		return first
	}
	for i, p := range rows {
		if i > 0 {
			fmt.Fprintln(c.App.Writer)
		}
		t := tabwriter.NewWriter(c.App.Writer, 0, 1, 2, ' ', 0)
		for _, part := range [][2]string{
			{"Reference", p.Reference}, {"Familiar", p.Familiar}, {"Transport", p.Transport}, {"Registry", p.Registry},
			{"Path", p.Path}, {"Repository", p.Repository}, {"Tag", p.Tag}, {"Digest", p.Digest}, {"File", p.File},
		} {
			if part[1] != "" {
				fmt.Fprintf(t, "%s:\t%s\n", part[0], oneLine(part[1]))
			}
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	return first
}

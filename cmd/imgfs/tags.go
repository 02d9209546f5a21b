package main

import (
	"cmp"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/fault"
)

func tagsCommand() *cli.Command {
	return command(cli.Command{
		Name: "tags", ArgsUsage: "REPOSITORY",
		Usage: "list the tags of a repository in its registry",
		Description: `
Prints one tag a line, in the registry's order. Template fields: .Tag .Reference

Examples:
  imgfs tags debian
  imgfs tags --format '{{.Reference}}' registry.example.com/app

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Denied, fault.Network, fault.Unavailable, fault.Canceled),
		Flags:  append([]cli.Flag{formatFlag()}, accessFlags()...),
		Action: listTags,
	})
}

// tagRow is one line of `imgfs tags`.
type tagRow struct {
	Tag       string
	Reference string
}

func listTags(c *cli.Context) error {
	client, err := connectToShow(c, 1, 1)
	if err != nil {
		return err
	}
	o, err := registryOptions(c)
	if err != nil {
		return err
	}
	repository := c.Args().First()
	tags, err := client.Tags(c.Context, repository, o)
	if err != nil {
		return err
	}
	rows := []tagRow{}
	for _, t := range tags {
		rows = append(rows, tagRow{oneLine(t), repository + ":" + oneLine(t)})
	}
	return printRows(c.App.Writer, cmp.Or(c.String("format"), "{{.Tag}}"), "{{.Tag}}", tagRow{"TAG", "REFERENCE"}, rows)
}

package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func diffCommand() *cli.Command {
	return command(cli.Command{
		Name: "diff", ArgsUsage: "DIR|UPPER|IMAGE [IMAGE]",
		Usage: "list what a mount has changed, or how images differ",
		Description: `
One line for each name: A added, C changed, D deleted, as docker diff. Of a
writable mount or an upper, what it changes of its image; of an image, what
its uppermost layer does; of two images, what is different in the second.
A renamed directory is a deleted and an added one.
Template fields: .Kind .Path

Examples:
  imgfs diff /mnt/x
  imgfs diff ubuntu-3fa91c
  imgfs diff ubuntu:14.04 me/tool:1
  imgfs diff --format json /mnt/x

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Integrity, fault.Conflict, fault.Unavailable),
		Flags:  []cli.Flag{formatFlag()},
		Action: diff,
	})
}

func diff(c *cli.Context) error {
	client, err := connectToShow(c, 1, 2)
	if err != nil {
		return err
	}
	var s engineapi.Source
	var than string
	if c.NArg() == 1 {
		s, err = sourceArg(c.Context, client, c.Args().First())
	} else if than, err = absoluteSource(c.Args().First()); err == nil {
		s.Image, err = absoluteSource(c.Args().Get(1))
	}
	if err != nil {
		return err
	}
	list, err := client.Changes(c.Context, s, than)
	if err != nil {
		return err
	}
	if format := c.String("format"); format != "" {
		if strings.HasPrefix(format, "table") { // whose writer takes some bytes for its own
			for i := range list {
				list[i].Path = oneLine(list[i].Path)
			}
		}
		return printRows(c.App.Writer, format, `{{.Kind}}\t{{.Path}}`, engineapi.Change{Kind: "KIND", Path: "PATH"}, list)
	}
	for _, ch := range list {
		if _, err := fmt.Fprintf(c.App.Writer, "%s %s\n", ch.Kind, oneLine(ch.Path)); err != nil {
			return err
		}
	}
	return nil
}

package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/fault"
)

func rmiCommand() *cli.Command {
	return command(cli.Command{
		Name: "rmi", ArgsUsage: "IMAGE [IMAGE...]",
		Usage: "remove names of images, and images without a name",
		Description: `
With its last name an image goes, and with it the layers that nothing else
uses. A mounted image is only removed with --force; its mounts go on.

Examples:
  imgfs rmi ubuntu:14.04
  imgfs rmi -f 515ae707f091

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Conflict, fault.Unavailable),
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "remove although in use or known by several names"},
		},
		Action: func(c *cli.Context) error {
			if err := argsBetween(c, 1, -1); err != nil {
				return err
			}
			client, err := connect(c)
			if err != nil {
				return err
			}
			var first error
			for _, name := range c.Args().Slice() {
				items, err := client.Remove(c.Context, name, c.Bool("force"))
				if err != nil {
					if c.Context.Err() != nil {
						return err
					}
					printError(c.App.ErrWriter, err)
					first = firstOf(first, reported{err})
				}
				for _, i := range items {
					if i.Untagged != "" {
						fmt.Fprintf(c.App.Writer, "Untagged: %s\n", i.Untagged)
					}
					if i.Deleted != "" {
						fmt.Fprintf(c.App.Writer, "Deleted: %s\n", i.Deleted)
					}
				}
			}
			return first
		},
	})
}

func gcCommand() *cli.Command {
	return command(cli.Command{
		Name:  "gc",
		Usage: "delete layers that no image, mount, upper or pin uses",
		Description: `
Such layers are left by pulls that failed half-way, by rmi -f of an image that
was mounted, and by unpin. What is kept of layers in use is bounded by the
daemon's --cache-limit, see imgfs df. Prints what was deleted and the disk
space that came free.

Example:
  imgfs gc

` + exitsText(fault.Failed, fault.Invalid, fault.Unavailable),
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print the digests only"},
		},
		Action: func(c *cli.Context) error {
			if err := argsBetween(c, 0, 0); err != nil {
				return err
			}
			client, err := connect(c)
			if err != nil {
				return err
			}
			report, err := client.GC(c.Context)
			if err != nil {
				return err
			}
			prefix := "Deleted: "
			if c.Bool("quiet") {
				prefix = ""
			}
			for _, l := range report.Layers {
				fmt.Fprintf(c.App.Writer, "%s%s\n", prefix, l)
			}
			if !c.Bool("quiet") {
				fmt.Fprintf(c.App.Writer, "Total reclaimed space: %s\n", size(report.Reclaimed))
			}
			return nil
		},
	})
}

package main

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func rmiCommand() *cli.Command {
	return command(cli.Command{
		Name: "rmi", ArgsUsage: "IMAGE [IMAGE...]",
		Usage: "remove names of images, and images without a name",
		Description: `
By name, that name goes, and with its last one the image, and the layers that
nothing else uses. By ID, all its names go: of several repositories only with
--force. An image that others were made of stays; parents without a name go with
their last child. A mounted image is only removed with --force; its mounts go on.
With --force, what is not there is told and is no failure.

Examples:
  imgfs rmi ubuntu:14.04
  imgfs rmi -f 515ae707f091
  imgfs rmi $(imgfs images -q -f dangling=true)

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Conflict, fault.Unavailable),
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "remove although in use or known by several names"},
			&cli.BoolFlag{Name: "no-prune", Usage: "keep parents without a name"},
			&cli.StringSliceFlag{Name: "platform", Usage: "`OS/ARCH[/VARIANT]` remove only if it is for this platform"},
		},
		Action: rmi,
	})
}

func rmi(c *cli.Context) error {
	if err := argsBetween(c, 1, -1); err != nil {
		return err
	}
	client, err := connect(c)
	if err != nil {
		return err
	}
	o := engineapi.RemoveOptions{Force: c.Bool("force"), NoPrune: c.Bool("no-prune"), Platforms: c.StringSlice("platform")}
	var first error
	for _, name := range c.Args().Slice() {
		items, err := client.Remove(c.Context, name, o)
		if err != nil {
			if c.Context.Err() != nil {
				return err
			}
			printError(c.App.ErrWriter, err)
			if !o.Force || fault.KindOf(err) != fault.NotFound {
				first = firstOf(first, reported{err})
			}
		}
		printDeleted(c.App.Writer, items)
	}
	return first
}

// printDeleted tells, in docker's words, what went.
func printDeleted(w io.Writer, items []engineapi.DeleteItem) {
	for _, i := range items {
		if i.Untagged != "" {
			fmt.Fprintf(w, "Untagged: %s\n", i.Untagged)
		}
		if i.Deleted != "" {
			fmt.Fprintf(w, "Deleted: %s\n", i.Deleted)
		}
	}
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

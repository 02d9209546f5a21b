package main

import (
	"cmp"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func loadCommand() *cli.Command {
	return command(cli.Command{
		Name:  "load",
		Usage: "bring in the images of an archive",
		Description: `
Reads what imgfs save, docker save (of any version) or podman save wrote, or an
OCI image layout in a tar; all of them may be compressed with gzip, zstd, bzip2
or xz. Images keep their IDs, and get the names that the archive has for them:
a name that another image has here moves. Layers that are here are not read.
Nothing is stored of an archive that is damaged.

Examples:
  imgfs load -i ubuntu.tar
  docker save debian:12 | imgfs load
  imgfs load -q < images.tar.zst

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Integrity, fault.Unavailable, fault.Canceled),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "input", Aliases: []string{"i"}, Usage: "`FILE` read a file, not standard input"},
			&cli.StringFlag{Name: "platform", Usage: "`OS/ARCH[/VARIANT]` of images for several platforms", EnvVars: []string{"IMGFS_PLATFORM"}},
			&cli.StringFlag{Name: "progress", Usage: "`HOW` progress on stderr: auto, tty, plain or quiet", Value: "auto"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "show no progress"},
		},
		Action: load,
	})
}

func load(c *cli.Context) error {
	if err := argsBetween(c, 0, 0); err != nil {
		return err
	}
	show, err := newDisplay(c)
	if err != nil {
		return err
	}
	in, err := openInput(c, cmp.Or(c.String("input"), "-"))
	if err != nil {
		return err
	}
	defer in.Close()
	client, err := connect(c)
	if err != nil {
		return err
	}
	list, err := client.Load(c.Context, engineapi.LoadRequest{Platform: c.String("platform")}, in, show.step)
	show.end()
	if err != nil {
		return err
	}
	for _, img := range list {
		if img.Reference != "" {
			fmt.Fprintf(c.App.Writer, "Loaded image: %s\n", img.Reference)
		} else {
			fmt.Fprintf(c.App.Writer, "Loaded image ID: %s\n", img.ID)
		}
	}
	return nil
}

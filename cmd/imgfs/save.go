package main

import (
	"io"
	"os"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func saveCommand() *cli.Command {
	return command(cli.Command{
		Name: "save", ArgsUsage: "IMAGE [IMAGE...]",
		Usage: "write images as one archive",
		Description: `
Writes a tar that is docker's archive and an OCI image layout at once, with
uncompressed layers, which each image shares with the others there. docker
load, podman load, skopeo and imgfs load read it. IMAGE without a tag means all
tags of that repository; by an ID an image is written without a name. What is
not here of a layer is fetched first. The same images give the same archive.

Examples:
  imgfs save -o ubuntu.tar ubuntu:14.04
  imgfs save ubuntu debian:12 | ssh host imgfs load
  imgfs save alpine | zstd > alpine.tar.zst

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Integrity, fault.Network, fault.Unavailable, fault.Canceled),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "`FILE` write to a file, not to standard output"},
			&cli.StringFlag{Name: "platform", Usage: "`OS/ARCH[/VARIANT]` which the images must be for", EnvVars: []string{"IMGFS_PLATFORM"}},
		},
		Action: save,
	})
}

func save(c *cli.Context) error {
	if err := argsBetween(c, 1, -1); err != nil {
		return err
	}
	out := c.String("output")
	if err := refuseTerminal(c, out); err != nil {
		return err
	}
	client, err := connect(c)
	if err != nil {
		return err
	}
	req := engineapi.SaveRequest{Names: c.Args().Slice(), Platform: c.String("platform")}
	return writeWhole(c.App.Writer, out, func(w io.Writer) error { return client.Save(c.Context, req, w) })
}

// refuseTerminal is the error about an archive that would go to a terminal, out
// being the file that was given for it.
func refuseTerminal(c *cli.Context, out string) error {
	if f, ok := c.App.Writer.(*os.File); ok && out == "" && term.IsTerminal(int(f.Fd())) {
		return fault.WithHint(fault.New(fault.Invalid, "refusing to write an archive to a terminal"), "give a file (-o FILE), or redirect the output")
	}
	return nil
}

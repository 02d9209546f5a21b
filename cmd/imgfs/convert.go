package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func convertCommand() *cli.Command {
	return command(cli.Command{
		Name: "convert", ArgsUsage: "IMAGE REF",
		Usage: "push an image with its layers in a lazy format",
		Description: `
The new image has the same files and the same config, but for its layers'
digests: each layer is written anew with a table of contents, as eStargz or
zstd:chunked, which any client can pull. In eStargz what the last mounts read
first comes first. A layer that has the format, or that it cannot express,
stays as it is. Of a multi-platform image one platform is converted. An image
that is not here is pulled first. Prints the digest
of the new image. Where the image is to stay as it is, see imgfs index.

Examples:
  imgfs convert --to estargz registry.example.com/app:1 registry.example.com/app:1-esgz
  imgfs convert --to zstd-chunked debian:12 registry.example.com/debian:12

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Denied, fault.Integrity,
			fault.Network, fault.Unavailable, fault.Canceled),
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "to", Usage: "`FORMAT` of the new layers: estargz or zstd-chunked"},
		}, registryFlags()...),
		Action: convertImage,
	})
}

func convertImage(c *cli.Context) error {
	if err := argsBetween(c, 2, 2); err != nil {
		return err
	}
	if c.String("to") == "" {
		return fault.WithHint(fault.New(fault.Invalid, "to which format?"), "--to %s, or --to %s", engineapi.ToEstargz, engineapi.ToZstdChunked)
	}
	if err := oneOf(c, "to", engineapi.ToEstargz, engineapi.ToZstdChunked); err != nil {
		return err
	}
	o, err := registryOptions(c)
	if err != nil {
		return err
	}
	image, err := absoluteSource(c.Args().Get(0))
	if err != nil {
		return err
	}
	client, show, err := connectToWork(c)
	if err != nil {
		return err
	}
	res, err := client.Convert(c.Context, engineapi.ConvertImageRequest{
		Image: image, To: c.String("to"), Target: c.Args().Get(1), Platform: c.String("platform"), Registry: o,
	}, show.step)
	show.end()
	if err != nil {
		return err
	}
	if !c.Bool("quiet") {
		kept := ""
		if res.Kept > 0 {
			kept = fmt.Sprintf(", %d of them as they were", res.Kept)
		}
		fmt.Fprintf(c.App.ErrWriter, "pushed %s: %d layers%s, %s\n", res.Reference, res.Layers, kept, size(res.Size))
	}
	fmt.Fprintln(c.App.Writer, res.Digest)
	return nil
}

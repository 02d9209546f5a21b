package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func importCommand() *cli.Command {
	return command(cli.Command{
		Name: "import", ArgsUsage: "FILE|URL|- [IMAGE]",
		Usage: "make an image of a tar of files",
		Description: `
The tar, which may be compressed with gzip, zstd, bzip2 or xz, becomes the one
layer of a new image, and IMAGE its name. Prints its ID. A URL begins with
http:// or https://, and is fetched by the daemon.

CHANGE is an instruction of a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE,
HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR.

Examples:
  imgfs import rootfs.tar.xz me/base:1
  tar -C tree -c . | imgfs import -c 'CMD ["/init"]' - me/tree
  imgfs import https://example.org/rootfs.tar.gz

` + exitsText(fault.Failed, fault.Invalid, fault.Integrity, fault.Network, fault.Unavailable, fault.Canceled),
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "change", Aliases: []string{"c"}, Usage: "`CHANGE` apply an instruction of a Dockerfile"},
			&cli.StringFlag{Name: "message", Aliases: []string{"m"}, Usage: "`TEXT` message for the history"},
			&cli.StringFlag{Name: "platform", Usage: "`OS/ARCH[/VARIANT]` that the image says it is for", EnvVars: []string{"IMGFS_PLATFORM"}},
			&cli.StringFlag{Name: "progress", Usage: "`HOW` progress on stderr: auto, tty, plain or quiet", Value: "auto"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "show no progress"},
		},
		Action: importImage,
	})
}

func importImage(c *cli.Context) error {
	if err := argsBetween(c, 1, 2); err != nil {
		return err
	}
	show, err := newDisplay(c)
	if err != nil {
		return err
	}
	source := c.Args().First()
	req := engineapi.ImportRequest{
		Reference: c.Args().Get(1), Message: c.String("message"), Changes: c.StringSlice("change"), Platform: c.String("platform"),
	}
	var in io.ReadCloser
	if strings.HasPrefix(source, "http://") || strings.HasPrefix(source, "https://") {
		req.URL = source
	} else if in, err = openInput(c, source); err != nil {
		return err
	} else {
		defer in.Close()
	}
	client, err := connect(c)
	if err != nil {
		return err
	}
	imageID, err := client.Import(c.Context, req, in, show.step)
	show.end()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(c.App.Writer, imageID)
	return err
}

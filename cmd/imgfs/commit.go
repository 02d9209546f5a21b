package main

import (
	"fmt"
	"os"
	"strconv"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func commitCommand() *cli.Command {
	return command(cli.Command{
		Name: "commit", ArgsUsage: "DIR|UPPER [IMAGE]",
		Usage: "make an image of what a mount has changed",
		Description: `
The changes become a layer on top of the image's, and IMAGE the name of the
result. Prints the new image's ID. The mount goes on, with its upper; what
processes write meanwhile is in the layer or not.

CHANGE is an instruction of a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE,
HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR.

The same upper gives the same layer. With SOURCE_DATE_EPOCH in the
environment, which is then the image's time, it gives the same image.

Examples:
  imgfs commit /mnt/x me/tool:1
  imgfs commit -m 'add git' -c 'CMD ["git"]' ubuntu-3fa91c me/git

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Integrity, fault.Conflict, fault.Unavailable),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "author", Aliases: []string{"a"}, Usage: "`NAME` author, as \"Jane Doe <jane@example.org>\""},
			&cli.StringSliceFlag{Name: "change", Aliases: []string{"c"}, Usage: "`CHANGE` apply an instruction of a Dockerfile"},
			&cli.StringFlag{Name: "compression", Value: "gzip", Usage: "`HOW` compression of the layer: gzip, or zstd, which takes half the time"},
			&cli.StringFlag{Name: "message", Aliases: []string{"m"}, Usage: "`TEXT` message for the history"},
		},
		Action: commit,
	})
}

func commit(c *cli.Context) error {
	if err := argsBetween(c, 1, 2); err != nil {
		return err
	}
	req := engineapi.CommitRequest{
		Reference: c.Args().Get(1), Message: c.String("message"), Author: c.String("author"),
		Changes: c.StringSlice("change"), Compression: c.String("compression"),
	}
	if epoch := os.Getenv("SOURCE_DATE_EPOCH"); epoch != "" {
		n, err := strconv.ParseInt(epoch, 10, 64)
		if err != nil {
			return fault.New(fault.Invalid, "SOURCE_DATE_EPOCH: %q is no number of seconds", epoch)
		}
		req.Created = &n
	}
	if req.Compression != "gzip" && req.Compression != "zstd" {
		return fault.New(fault.Invalid, "--compression %s: it is gzip or zstd", req.Compression)
	}
	client, err := connect(c)
	if err != nil {
		return err
	}
	if req.Source, err = sourceArg(c.Context, client, c.Args().First()); err != nil {
		return err
	}
	if err := flush(c.Context, client, req.Source); err != nil {
		return err
	}
	res, err := client.Commit(c.Context, req)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(c.App.Writer, res.ID)
	return err
}

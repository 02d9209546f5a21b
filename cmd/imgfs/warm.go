package main

import (
	"fmt"
	"strconv"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func warmCommand() *cli.Command {
	return command(cli.Command{
		Name: "warm", ArgsUsage: "IMAGE [PATH...]",
		Usage: "fetch what files of an image take, before somebody reads them",
		Description: `
A path is one in the image, of a file or of a directory with all below it;
symbolic links are followed. Without a path all of the image is fetched. An
image that is not here comes in as for a mount.

Examples:
  imgfs warm python:3.12 /usr/local/bin /usr/local/lib/python3.12
  imgfs warm python:3.12

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Denied, fault.Integrity,
			fault.Network, fault.Unavailable, fault.Canceled),
		Flags:  registryFlags(),
		Action: warm,
	})
}

func warm(c *cli.Context) error {
	if err := argsBetween(c, 1, -1); err != nil {
		return err
	}
	req := engineapi.WarmRequest{Paths: c.Args().Tail(), Platform: c.String("platform")}
	var err error
	if req.Registry, err = registryOptions(c); err != nil {
		return err
	}
	if req.Image, err = absoluteSource(c.Args().First()); err != nil {
		return err
	}
	client, show, err := connectToWork(c)
	if err != nil {
		return err
	}
	res, err := client.Warm(c.Context, req, show.step)
	show.end()
	if err != nil || c.Bool("quiet") {
		return err
	}
	what := "all of the image"
	if len(req.Paths) > 0 {
		what = strconv.Itoa(res.Files) + " files"
	}
	fmt.Fprintf(c.App.ErrWriter, "%s: %s, %s of it fetched now\n", what, size(res.Bytes), size(res.Fetched))
	return nil
}

func pinCommand() *cli.Command {
	return command(cli.Command{
		Name: "pin", ArgsUsage: "IMAGE [IMAGE...]",
		Usage: "keep an image's layers and all bytes of them that are here",
		Description: `
Layers of a pinned image are neither deleted with it nor dropped for the cache
limit. Nothing is fetched: see imgfs warm. Prints the names of the pins.

Examples:
  imgfs pin debian:12

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Unavailable),
		Action: func(c *cli.Context) error {
			return eachImage(c, func(client *engineapi.Client, name string) error {
				p, err := client.Pin(c.Context, name)
				if err == nil {
					fmt.Fprintln(c.App.Writer, oneLine(p.Image))
				}
				return err
			})
		},
	})
}

func unpinCommand() *cli.Command {
	return command(cli.Command{
		Name: "unpin", ArgsUsage: "IMAGE [IMAGE...]",
		Usage: "end what imgfs pin began",
		Description: `
Examples:
  imgfs unpin debian:12

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Unavailable),
		Action: func(c *cli.Context) error {
			return eachImage(c, func(client *engineapi.Client, name string) error {
				return client.Unpin(c.Context, name)
			})
		},
	})
}

// eachImage does something with each argument; the first failure's code counts.
func eachImage(c *cli.Context, do func(*engineapi.Client, string) error) error {
	if err := argsBetween(c, 1, -1); err != nil {
		return err
	}
	client, err := connect(c)
	if err != nil {
		return err
	}
	var first error
	for _, name := range c.Args().Slice() {
		err := do(client, name)
		if err != nil && c.NArg() > 1 {
			printError(c.App.ErrWriter, err)
			err = reported{err}
		}
		first = firstOf(first, err)
	}
	return first
}

// pinRow is one line of `imgfs pins`.
type pinRow struct{ Image, Layers, Cached, Size string }

func pinsCommand() *cli.Command {
	return command(cli.Command{
		Name:  "pins",
		Usage: "list the images that are pinned",
		Description: `
Template fields: .Image .Layers .Cached .Size

Examples:
  imgfs pins
  imgfs pins -q

` + exitsText(fault.Failed, fault.Invalid, fault.Unavailable),
		Flags: []cli.Flag{
			formatFlag(),
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print names only"},
		},
		Action: func(c *cli.Context) error {
			client, err := connectToShow(c, 0, 0)
			if err != nil {
				return err
			}
			list, err := client.Pins(c.Context)
			if err != nil {
				return err
			}
			var rows []pinRow
			for _, p := range list {
				if c.Bool("quiet") && c.String("format") == "" {
					fmt.Fprintln(c.App.Writer, oneLine(p.Image))
				}
				rows = append(rows, pinRow{p.Image, strconv.Itoa(p.Layers), size(p.Present), size(p.Size)})
			}
			if c.Bool("quiet") && c.String("format") == "" {
				return nil
			}
			return printRows(c.App.Writer, c.String("format"), `{{.Image}}\t{{.Layers}}\t{{.Cached}}\t{{.Size}}`,
				pinRow{"IMAGE", "LAYERS", "CACHED", "SIZE"}, rows)
		},
	})
}

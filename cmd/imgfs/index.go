package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func indexCommand() *cli.Command {
	return command(cli.Command{
		Name:  "index",
		Usage: "store beside an image what makes it lazy everywhere",
		Description: `
The first mount of an ordinary image streams it, and keeps an index of what it
holds and where. Pushed beside the image in its registry, the index lets every
other host mount the image at once and fetch only what is read: no layer is
changed or copied. imgfs looks for its own index, then for SOCI's.

Examples:
  imgfs index push registry.example.com/app:1
  imgfs index ls registry.example.com/app:1

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Denied, fault.Integrity,
			fault.Network, fault.Unavailable, fault.Canceled),
		Subcommands: []*cli.Command{
			command(cli.Command{
				Name: "push", ArgsUsage: "IMAGE",
				Usage: "push an index of an image's layers to its registry",
				Description: `
An image that is not here is pulled first. Layers that bring a table of
contents along (eStargz, zstd:chunked) and small ones are left out. What the
last mounts read first is pushed as well, so that the next mount anywhere
fetches that before it is asked for. Prints the digest of the index.

soci is SOCI's first version, found beside the image; soci-v2, its second, is
a new image with the same layers, which --tag names.

Examples:
  imgfs index push registry.example.com/app:1
  imgfs index push --format soci registry.example.com/app:1
  imgfs index push --format soci-v2 --tag 1-soci registry.example.com/app:1

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Denied, fault.Integrity,
					fault.Network, fault.Unavailable, fault.Canceled),
				Flags: append([]cli.Flag{
					&cli.StringFlag{Name: "format", Usage: "`FORMAT` of the index: imgfs, soci or soci-v2", Value: engineapi.IndexOwn},
					&cli.StringFlag{Name: "tag", Usage: "`NAME` of the new image, for soci-v2: a tag in the same repository"},
				}, registryFlags()...),
				Action: pushIndex,
			}),
			command(cli.Command{
				Name: "ls", Aliases: []string{"list"}, ArgsUsage: "IMAGE",
				Usage: "list the indexes beside an image",
				Description: `
Template fields: .Format .Digest .Size .Layers .Trace

Examples:
  imgfs index ls registry.example.com/app:1

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Denied, fault.Network, fault.Unavailable),
				Flags:  append([]cli.Flag{formatFlag()}, registryFlags()...),
				Action: listIndexes,
			}),
			command(cli.Command{
				Name: "rm", ArgsUsage: "IMAGE",
				Usage: "remove the indexes beside an image",
				Description: `
The registry has to allow that manifests are deleted. Prints the digests of
what was removed.

Examples:
  imgfs index rm registry.example.com/app:1
  imgfs index rm --format soci registry.example.com/app:1

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Denied, fault.Network, fault.Unavailable),
				Flags: append([]cli.Flag{
					&cli.StringFlag{Name: "format", Usage: "`FORMAT` of the indexes to remove (default: all)"},
				}, registryFlags()...),
				Action: removeIndexes,
			}),
		},
		Action: func(c *cli.Context) error {
			return printHelp(c.App.Writer, c.App, []*cli.Command{c.Command})
		},
	})
}

// indexRequest reads the one argument and the flags.
func indexRequest(c *cli.Context) (engineapi.IndexRequest, error) {
	if err := argsBetween(c, 1, 1); err != nil {
		return engineapi.IndexRequest{}, err
	}
	o, err := registryOptions(c)
	return engineapi.IndexRequest{Image: c.Args().First(), Platform: c.String("platform"), Registry: o}, err
}

func pushIndex(c *cli.Context) error {
	req, err := indexRequest(c)
	if err != nil {
		return err
	}
	req.Format = c.String("format")
	if req.To, err = newName(c, req.Image); err != nil {
		return err
	}
	client, show, err := connectToWork(c)
	if err != nil {
		return err
	}
	res, err := client.PushIndex(c.Context, req, show.step)
	show.end()
	if err != nil {
		return err
	}
	if !c.Bool("quiet") {
		trace := ""
		if res.Trace {
			trace = " and of what is read first"
		}
		fmt.Fprintf(c.App.ErrWriter, "pushed an index of %d layers%s beside %s: %s\n", res.Layers, trace, res.Reference, size(res.Size))
	}
	fmt.Fprintln(c.App.Writer, res.Digest)
	return nil
}

// newName returns what --tag says, the name of an image beside another one.
// That has to be in the same repository, so a tag alone is enough.
func newName(c *cli.Context, image string) (string, error) {
	tag := c.String("tag")
	switch {
	case tag == "":
		return "", nil
	case c.String("format") != engineapi.IndexSociV2:
		return "", fault.New(fault.Invalid, "--tag: only --format %s makes a new image", engineapi.IndexSociV2)
	case strings.ContainsAny(tag, ":/@"):
		return tag, nil
	}
	image, _, _ = strings.Cut(image, "@")
	if i := strings.LastIndexByte(image, ':'); i > strings.LastIndexByte(image, '/') {
		image = image[:i]
	}
	return image + ":" + tag, nil
}

// indexRow is one line of `imgfs index ls`.
type indexRow struct{ Format, Digest, Size, Layers, Trace string }

func listIndexes(c *cli.Context) error {
	req, err := indexRequest(c)
	if err != nil {
		return err
	}
	if err := checkFormat(c); err != nil {
		return err
	}
	client, err := connect(c)
	if err != nil {
		return err
	}
	list, err := client.Indexes(c.Context, req)
	if err != nil {
		return err
	}
	rows := []indexRow{}
	for _, i := range list {
		rows = append(rows, indexRow{i.Format, string(i.Digest), size(i.Size), fmt.Sprint(i.Layers), yesNo(i.Trace)})
	}
	return printRows(c.App.Writer, c.String("format"), `{{.Format}}\t{{.Digest}}\t{{.Size}}\t{{.Layers}}\t{{.Trace}}`,
		indexRow{"FORMAT", "DIGEST", "SIZE", "LAYERS", "TRACE"}, rows)
}

func removeIndexes(c *cli.Context) error {
	req, err := indexRequest(c)
	if err != nil {
		return err
	}
	req.Format = c.String("format")
	client, err := connect(c)
	if err != nil {
		return err
	}
	list, err := client.RemoveIndexes(c.Context, req)
	for _, i := range list {
		fmt.Fprintln(c.App.Writer, i.Digest)
	}
	return err
}

package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func pushCommand() *cli.Command {
	return command(cli.Command{
		Name: "push", ArgsUsage: "NAME[:TAG]",
		Usage: "store an image in its registry",
		Description: `
The name says where it goes; imgfs tag gives an image one more. What the
registry has is not sent, what another of its repositories has is mounted from
there, and layers whose bytes are not here go from the registry they came from
to the new one. The manifest is pushed byte for byte as it came, unless layers
had to be packed anew. Prints NAME@DIGEST; progress goes to standard error.

Examples:
  imgfs tag ubuntu:14.04 registry.example.com/ubuntu:14.04
  imgfs push registry.example.com/ubuntu:14.04
  imgfs push -a registry.example.com/app
  imgfs push --format estargz registry.example.com/app:1

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Denied, fault.Integrity,
			fault.Network, fault.Conflict, fault.Unavailable, fault.Canceled),
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "all-tags", Aliases: []string{"a"}, Usage: "push all tags of the repository"},
			&cli.StringFlag{Name: "format", Usage: "`FORMAT` write the layers anew, to be read lazily: estargz or zstd-chunked"},
			&cli.StringFlag{Name: "platform", Usage: "`OS/ARCH[/VARIANT]` what the image must be for"},
			&cli.StringFlag{Name: "compression", Usage: "`HOW` gzip or zstd, of layers that have to be packed", Value: "gzip"},
		}, without(registryFlags(), "platform")...),
		Action: push,
	})
}

func push(c *cli.Context) error {
	if err := argsBetween(c, 1, 1); err != nil {
		return err
	}
	if c.String("format") != "" {
		if err := oneOf(c, "format", engineapi.ToEstargz, engineapi.ToZstdChunked); err != nil {
			return err
		}
	}
	if err := oneOf(c, "compression", "gzip", "zstd"); err != nil {
		return err
	}
	show, err := newDisplay(c)
	if err != nil {
		return err
	}
	req := engineapi.PushRequest{
		Reference: c.Args().First(), AllTags: c.Bool("all-tags"), Platform: c.String("platform"),
		Format: c.String("format"), Compression: c.String("compression"),
	}
	if err := checkTag(c, req.Reference, show); err != nil {
		return err
	}
	if req.Registry, err = registryOptions(c); err != nil {
		return err
	}
	client, err := connect(c)
	if err != nil {
		return err
	}
	tags, err := client.Push(c.Context, req, show.step)
	show.end()
	for _, t := range tags {
		fmt.Fprintf(c.App.Writer, "%s@%s\n", withoutTag(req.Reference), t.Digest)
	}
	return err
}

// checkTag refuses a tag where all are meant, and says which is meant where none
// is given, as docker does.
func checkTag(c *cli.Context, name string, show display) error {
	tagged := withoutTag(name) != name
	switch {
	case c.Bool("all-tags") && tagged:
		return fault.New(fault.Invalid, "tag can't be used with --all-tags/-a")
	case c.Bool("all-tags") || tagged || isSource(name):
	default:
		show.step(engineapi.Progress{Status: "Using default tag: latest"})
	}
	return nil
}

// withoutTag returns a name without its tag or digest.
func withoutTag(name string) string {
	if isSource(name) {
		return name
	}
	slash := strings.LastIndexByte(name, '/') + 1
	if i := strings.IndexAny(name[slash:], ":@"); i >= 0 {
		return name[:slash+i]
	}
	return name
}

// isSource reports whether a name is one of an image in files.
func isSource(name string) bool {
	for _, scheme := range sources {
		if strings.HasPrefix(name, scheme) {
			return true
		}
	}
	return false
}

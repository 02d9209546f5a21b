package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func pullCommand() *cli.Command {
	return command(cli.Command{
		Name: "pull", ArgsUsage: "IMAGE",
		Usage: "bring an image into the store without mounting it",
		Description: `
Asks the registry even if the image is known, and fetches what is missing.
Prints the name of the image; progress goes to standard error. With -a, all
tags of a repository are pulled, one after the other, and the first that fails
ends it.

Examples:
  imgfs pull ubuntu:14.04
  imgfs pull -q --platform linux/arm64 debian:12
  imgfs pull -a registry.example.com/app
  imgfs pull docker-archive:./saved.tar

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Denied, fault.Integrity,
			fault.Network, fault.Unavailable, fault.Canceled),
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "all-tags", Aliases: []string{"a"}, Usage: "pull all tags of the repository"},
		}, registryFlags()...),
		Action: func(c *cli.Context) error {
			if err := argsBetween(c, 1, 1); err != nil {
				return err
			}
			show, err := newDisplay(c)
			if err != nil {
				return err
			}
			req := engineapi.PullRequest{Platform: c.String("platform"), AllTags: c.Bool("all-tags")}
			if req.Registry, err = registryOptions(c); err != nil {
				return err
			}
			if req.Reference, err = absoluteSource(c.Args().First()); err != nil {
				return err
			}
			if err := checkTag(c, req.Reference, show); err != nil {
				return err
			}
			client, err := connect(c)
			if err != nil {
				return err
			}
			result, err := client.Pull(c.Context, req, show.step)
			show.end()
			if err != nil {
				return err
			}
			fmt.Fprintln(c.App.Writer, result.Reference)
			return nil
		},
	})
}

package main

import (
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func tagCommand() *cli.Command {
	return command(cli.Command{
		Name: "tag", ArgsUsage: "IMAGE NAME[:TAG]",
		Usage: "give an image one more name",
		Description: `
IMAGE is a name, an ID or the beginning of one. Without a tag it is latest. A
name that another image has moves to this one, unless --no-clobber is given.

Examples:
  imgfs tag ubuntu:14.04 registry.example.com/base/trusty
  imgfs tag 3fa91c0d app:1.0
  imgfs tag --no-clobber app:1.0 app:stable

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Conflict, fault.Unavailable),
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "no-clobber", Aliases: []string{"n"}, Usage: "refuse to take the name from another image"},
		},
		Action: func(c *cli.Context) error {
			if err := argsBetween(c, 2, 2); err != nil {
				return err
			}
			client, err := connect(c)
			if err != nil {
				return err
			}
			return client.Tag(c.Context, c.Args().Get(0), c.Args().Get(1), c.Bool("no-clobber"))
		},
	})
}

func untagCommand() *cli.Command {
	return command(cli.Command{
		Name: "untag", ArgsUsage: "IMAGE [NAME...]",
		Usage: "remove names of an image, which stays",
		Description: `
As with podman: without a NAME the image loses all its names, and is then known
by its ID alone. To remove an image with its last name, see imgfs rmi. With the
last tag of a repository go the digests that it was pulled by.

Examples:
  imgfs untag app:1.0 app:1.0
  imgfs untag 3fa91c0d app:1.0 app:stable
  imgfs untag app:1.0

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Conflict, fault.Unavailable),
		Action: untag,
	})
}

func untag(c *cli.Context) error {
	if err := argsBetween(c, 1, -1); err != nil {
		return err
	}
	client, err := connect(c)
	if err != nil {
		return err
	}
	image := c.Args().First()
	i, err := client.Inspect(c.Context, image, engineapi.InspectOptions{})
	if err != nil {
		return err
	}
	names := c.Args().Tail()
	if len(names) == 0 {
		names = slices.Concat(i.RepoTags, i.RepoDigests)
	}
	gone := map[string]bool{}
	var first error
	for _, n := range names {
		if gone[n] {
			continue
		}
		err := belongs(c, client, &i, n)
		var items []engineapi.DeleteItem
		if err == nil {
			items, err = client.Untag(c.Context, n)
		}
		if err != nil {
			if c.Context.Err() != nil || len(names) == 1 {
				return err
			}
			printError(c.App.ErrWriter, err)
			first = firstOf(first, reported{err})
		}
		for _, item := range items {
			gone[item.Untagged] = true
		}
	}
	return first
}

// belongs refuses a name that is another image's. One that is nobody's is for
// the daemon to tell.
func belongs(c *cli.Context, client *engineapi.Client, i *engineapi.ImageInspect, name string) error {
	if slices.Contains(i.RepoTags, name) || slices.Contains(i.RepoDigests, name) {
		return nil
	}
	other, err := client.Inspect(c.Context, name, engineapi.InspectOptions{})
	if err == nil && other.ID != i.ID {
		return fault.New(fault.Conflict, "%s is a name of another image, %s", name, other.ID.Short())
	}
	return nil
}

package main

import (
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

// imageCommands are the commands of the images in the store.
func imageCommands() []*cli.Command {
	return []*cli.Command{
		imagesCommand(), inspectCommand(), historyCommand(), tagCommand(), untagCommand(), rmiCommand(), pruneCommand(),
		graphCommand(), gcCommand(), refCommand(), refsCommand(), imageCommand(),
	}
}

// imageCommand is the group that docker and podman have: its commands are those
// of the program, but for exists.
func imageCommand() *cli.Command {
	return command(cli.Command{
		Name:  "image",
		Usage: "the commands of images under docker's and podman's names",
		Description: `
imgfs image ls is imgfs images, image rm is rmi, and the others are the commands
of the same name: see their help.

Examples:
  imgfs image exists ubuntu:14.04 || imgfs pull ubuntu:14.04
  imgfs image ls -q
  imgfs image prune -f

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Denied, fault.Integrity, fault.Network,
			fault.Conflict, fault.Unavailable, fault.Canceled),
		Subcommands: []*cli.Command{
			existsCommand(),
			named("history", historyCommand()), named("import", importCommand()), inspectImageCommand(), named("load", loadCommand()),
			named("ls", imagesCommand(), "list"), named("prune", pruneCommand()), named("pull", pullCommand()), named("push", pushCommand()),
			named("rm", rmiCommand(), "remove"), named("save", saveCommand()), named("tag", tagCommand()), named("tree", graphCommand()), named("untag", untagCommand()),
		},
		Action: func(c *cli.Context) error {
			return printHelp(c.App.Writer, c.App, []*cli.Command{c.Command})
		},
	})
}

// aliasCategory marks a command that stands elsewhere under another name: its
// help and manual are there.
const aliasCategory = "alias"

// named returns a command under another name.
func named(name string, c *cli.Command, aliases ...string) *cli.Command {
	c.Name, c.Aliases, c.Category = name, aliases, aliasCategory
	return c
}

// inspectImageCommand is `imgfs inspect` for images alone.
func inspectImageCommand() *cli.Command {
	c := named("inspect", inspectCommand())
	c.ArgsUsage = "IMAGE [IMAGE...]"
	c.Flags = slices.DeleteFunc(c.Flags, func(f cli.Flag) bool { return f.Names()[0] == "type" })
	c.Flags = append(c.Flags, &cli.StringFlag{Name: "type", Value: "image", Hidden: true})
	return c
}

func existsCommand() *cli.Command {
	return command(cli.Command{
		Name: "exists", ArgsUsage: "IMAGE",
		Usage: "tell by the exit code whether an image is in the store",
		Description: `
Prints nothing. Whether its bytes are here already is another question: see
CACHED in imgfs images.

Examples:
  imgfs image exists ubuntu:14.04 && echo here
  imgfs image exists --platform linux/arm64 debian:12

Exit codes:
    0  it is
    1  it is not
    2  wrong usage or malformed input
    8  daemon or FUSE unavailable`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "platform", Usage: "`OS/ARCH[/VARIANT]` whether it is, for this platform"},
		},
		Action: func(c *cli.Context) error {
			if err := argsBetween(c, 1, 1); err != nil {
				return err
			}
			client, err := connect(c)
			if err != nil {
				return err
			}
			_, err = client.Inspect(c.Context, c.Args().First(), engineapi.InspectOptions{Platform: c.String("platform")})
			if fault.KindOf(err) == fault.NotFound {
				return ended(1)
			}
			return err
		},
	})
}

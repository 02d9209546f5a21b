package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func upperCommand() *cli.Command {
	return command(cli.Command{
		Name:  "upper",
		Usage: "manage the changes that writable mounts have left",
		Description: `
An upper holds what was changed in one writable mount. It is kept after the
mount if it holds changes, with the layers of its image, also when the image
itself is removed; imgfs mount --upper NAME goes on with it.

Examples:
  imgfs upper ls
  imgfs mount --upper ubuntu-3fa91c /mnt/x
  imgfs upper rm ubuntu-3fa91c

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Integrity, fault.Conflict, fault.Unavailable),
		Subcommands: []*cli.Command{
			command(cli.Command{
				Name: "ls", Aliases: []string{"list"},
				Usage: "list the uppers of the store",
				Description: `
Template fields: .Name .Image .ImageID .Size .Created .CreatedAt .InUse .Path

Examples:
  imgfs upper ls
  imgfs upper ls -q
  imgfs upper ls --format '{{.Name}} {{.InUse}}'

` + exitsText(fault.Failed, fault.Invalid, fault.Unavailable),
				Flags: []cli.Flag{
					formatFlag(),
					&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print names only"},
				},
				Action: listUppers,
			}),
			command(cli.Command{
				Name: "rm", ArgsUsage: "NAME [NAME...]",
				Usage: "remove uppers with all their changes",
				Description: `
One in use is refused. The layers of its image go with it if nothing else
uses them. Prints the names of what was removed.

Examples:
  imgfs upper rm ubuntu-3fa91c
  imgfs upper rm -a

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Conflict, fault.Unavailable),
				Flags: []cli.Flag{
					&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "remove all that are not in use"},
				},
				Action: removeUppers,
			}),
			command(cli.Command{
				Name: "inspect", ArgsUsage: "NAME [NAME...]",
				Usage: "show everything known about uppers",
				Description: `
Prints a JSON array, or each upper through a template. Each is checked: what
is damaged stands in .Problems, with .Path and .What; the rest can be read.

Examples:
  imgfs upper inspect ubuntu-3fa91c
  imgfs upper inspect --format '{{.Path}}' ubuntu-3fa91c

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Unavailable),
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "format", Aliases: []string{"f"}, Usage: "`TEMPLATE` Go template, or json"},
				},
				Action: inspectUppers,
			}),
			command(cli.Command{
				Name: "convert", ArgsUsage: "NAME",
				Usage: "rewrite an upper so that kernel overlayfs can take it",
				Description: `
In a user namespace, kernel overlayfs follows neither renamed directories nor
files whose data still is in the image, and it never knows of owners that
could only be noted. What the upper has of these is written out: files and
directories are copied from the image, and owners become what the file system
can hold. It then works with all drivers, and takes more room.

Examples:
  imgfs upper convert ubuntu-3fa91c
  imgfs upper convert --xattrs user ubuntu-3fa91c

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Integrity, fault.Conflict, fault.Unavailable),
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "xattrs", Usage: "`KIND` of overlayfs' attributes: trusted (root's) or user (default: yours)"},
				},
				Action: convertUpper,
			}),
		},
		Action: func(c *cli.Context) error {
			return printHelp(c.App.Writer, c.App, []*cli.Command{c.Command})
		},
	})
}

// upperRow is one line of `imgfs upper ls`.
type upperRow struct {
	Name, Image, ImageID, Size, Created, CreatedAt, InUse, Path string
}

var upperHead = upperRow{Name: "NAME", Image: "IMAGE", ImageID: "IMAGE ID", Size: "SIZE", Created: "CREATED",
	CreatedAt: "CREATED AT", InUse: "IN USE", Path: "PATH"}

const upperTable = `{{.Name}}\t{{.Image}}\t{{.Size}}\t{{.Created}}\t{{.InUse}}`

func listUppers(c *cli.Context) error {
	client, err := connectToShow(c, 0, 0)
	if err != nil {
		return err
	}
	list, err := client.Uppers(c.Context)
	if err != nil {
		return err
	}
	if c.Bool("quiet") && c.String("format") == "" {
		for _, u := range list {
			fmt.Fprintln(c.App.Writer, u.Name)
		}
		return nil
	}
	rows := []upperRow{}
	for _, u := range list {
		row := upperRow{
			Name: u.Name, Image: u.Image, ImageID: u.ImageID.Short(), Size: size(u.Size),
			Created: since(u.Created), CreatedAt: u.Created.Local().String(), InUse: u.Target, Path: u.Path,
		}
		if u.Problem != "" {
			row.Image = "<damaged>"
		}
		if row.InUse == "" {
			row.InUse = "-"
		}
		rows = append(rows, row)
	}
	return printRows(c.App.Writer, c.String("format"), upperTable, upperHead, rows)
}

func removeUppers(c *cli.Context) error {
	low, high := 1, -1
	if c.Bool("all") {
		low, high = 0, 0
	}
	if err := argsBetween(c, low, high); err != nil {
		return err
	}
	client, err := connect(c)
	if err != nil {
		return err
	}
	names := c.Args().Slice()
	if c.Bool("all") {
		list, err := client.Uppers(c.Context)
		if err != nil {
			return err
		}
		for _, u := range list {
			if u.MountID == "" {
				names = append(names, u.Name)
			}
		}
	}
	var first error
	for _, name := range names {
		if err := report(c, client.RemoveUpper(c.Context, name)); err != nil {
			first = firstOf(first, err)
			continue
		}
		fmt.Fprintln(c.App.Writer, name)
	}
	return first
}

func inspectUppers(c *cli.Context) error {
	client, err := connectToShow(c, 1, -1)
	if err != nil {
		return err
	}
	list := []engineapi.Upper{}
	var first error
	for _, name := range c.Args().Slice() {
		u, err := client.Upper(c.Context, name)
		if err := report(c, err); err != nil {
			first = firstOf(first, err)
			continue
		}
		if u.Problems, err = client.CheckUpper(c.Context, name); err != nil && u.Problem == "" {
			u.Problem = "not checked: " + err.Error()
		}
		list = append(list, u)
	}
	if err := printInspect(c, list); err != nil {
		return err
	}
	return first
}

func convertUpper(c *cli.Context) error {
	if err := argsBetween(c, 1, 1); err != nil {
		return err
	}
	if err := oneOf(c, "xattrs", "", "trusted", "user"); err != nil {
		return err
	}
	client, err := connect(c)
	if err != nil {
		return err
	}
	return client.ConvertUpper(c.Context, c.Args().First(), engineapi.ConvertRequest{Xattrs: c.String("xattrs")})
}

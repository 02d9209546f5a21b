package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func layerCommand() *cli.Command {
	return command(cli.Command{
		Name:  "layer",
		Usage: "show, export and import single layers",
		Description: `
A layer is named by its diff ID, the digest of its uncompressed tar; by the
digest of its blob, as a manifest has it; by the ID of a chain that it is the
top of; or by the start of one of these.

Examples:
  imgfs layer ls
  imgfs layer inspect 5f70bf18a086
  imgfs layer export 5f70bf18a086 | tar -tv

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Denied, fault.Integrity,
			fault.Network, fault.Conflict, fault.Unavailable, fault.Canceled),
		Subcommands: []*cli.Command{
			layerListCommand(), layerInspectCommand(), layerExportCommand(), layerImportCommand(), layerRemoveCommand(),
		},
		Action: func(c *cli.Context) error {
			return printHelp(c.App.Writer, c.App, []*cli.Command{c.Command})
		},
	})
}

func layerListCommand() *cli.Command {
	return command(cli.Command{
		Name: "ls", Aliases: []string{"list"},
		Usage: "list the layers in the store",
		Description: `
KIND and SEALED are as with imgfs df -v. The ID of a layer that is not sealed is
none that a manifest has: what it is was not proven yet.

Template fields: .Layer .Blob .Kind .Size .Cached .Disk .Sealed .Pinned .InUse
.LastUse .Images .Problem

Examples:
  imgfs layer ls
  imgfs layer ls --no-trunc --format '{{.Layer}} {{.Images}}'

` + exitsText(fault.Failed, fault.Invalid, fault.Unavailable),
		Flags: []cli.Flag{
			formatFlag(),
			&cli.BoolFlag{Name: "no-trunc", Usage: "do not shorten digests"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print IDs only"},
		},
		Action: listLayers,
	})
}

func listLayers(c *cli.Context) error {
	client, err := connectToShow(c, 0, 0)
	if err != nil {
		return err
	}
	u, err := client.DiskUsage(c.Context)
	if err != nil {
		return err
	}
	var rows []layerRow
	for _, l := range u.Layers {
		rows = append(rows, rowOfLayer(&l, c.Bool("no-trunc")))
	}
	if c.Bool("quiet") && c.String("format") == "" {
		for _, r := range rows {
			fmt.Fprintln(c.App.Writer, r.Layer)
		}
		return nil
	}
	return printRows(c.App.Writer, c.String("format"), `{{.Layer}}\t{{.Kind}}\t{{.Size}}\t{{.Cached}}\t{{.Sealed}}\t{{.LastUse}}\t{{.Images}}`, layerHead, rows)
}

func layerInspectCommand() *cli.Command {
	return command(cli.Command{
		Name: "inspect", ArgsUsage: "LAYER [LAYER...]",
		Usage: "show everything known about layers",
		Description: `
Prints a JSON array, or each layer through a template: its digests, the blobs
that give it and the repositories that have these, the chains that it is the
top of, and the images that it is part of.

Examples:
  imgfs layer inspect 5f70bf18a086
  imgfs layer inspect --format '{{.DiffID}} {{json .Sources}}' 5f70bf18a086

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Conflict, fault.Unavailable),
		Flags:  []cli.Flag{&cli.StringFlag{Name: "format", Aliases: []string{"f"}, Usage: "`TEMPLATE` Go template, or json"}},
		Action: inspectLayers,
	})
}

func inspectLayers(c *cli.Context) error {
	client, err := connectToShow(c, 1, -1)
	if err != nil {
		return err
	}
	return inspectEach(c, func(name string) (engineapi.LayerInspect, error) { return client.Layer(c.Context, name) })
}

func layerExportCommand() *cli.Command {
	return command(cli.Command{
		Name: "export", ArgsUsage: "LAYER",
		Usage: "write a layer's uncompressed tar",
		Description: `
Writes the very bytes that the layer's diff ID is the digest of; what is missing
of them is fetched. A layer's whiteouts stand there as .wh. files.

Examples:
  imgfs layer export 5f70bf18a086 -o layer.tar
  imgfs layer export 5f70bf18a086 | sha256sum

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Denied, fault.Integrity,
			fault.Network, fault.Conflict, fault.Unavailable, fault.Canceled),
		Flags:  []cli.Flag{&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "`FILE` write to a file, not to standard output"}},
		Action: exportLayer,
	})
}

func exportLayer(c *cli.Context) error {
	if err := argsBetween(c, 1, 1); err != nil {
		return err
	}
	out := c.String("output")
	if err := refuseTerminal(c, out); err != nil {
		return err
	}
	client, err := connect(c)
	if err != nil {
		return err
	}
	return writeWhole(c.App.Writer, out, func(w io.Writer) error {
		return client.ExportLayer(c.Context, c.Args().First(), w)
	})
}

func layerImportCommand() *cli.Command {
	return command(cli.Command{
		Name: "import", ArgsUsage: "FILE|- [REFERENCE]",
		Usage: "store a layer out of a tar, alone or as the top of an image",
		Description: `
The tar may be compressed (gzip, zstd, bzip2, xz). With --parent it lies on the
layers of an image, or on the chain of that ID. With --config it becomes an
image, whose config is kept byte for byte, so that the image's ID is the digest
of the file; it must list the layers below and this one. Prints the image's ID,
or without --config that of the chain, which stays until imgfs layer rm.

Examples:
  imgfs layer import rootfs.tar
  imgfs layer import --config config.json rootfs.tar.xz example.com/base:1
  imgfs layer import --parent debian:12 --config new.json top.tar debian:mine

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Integrity, fault.Conflict, fault.Unavailable, fault.Canceled),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Usage: "`FILE` the image's config, in JSON"},
			&cli.StringFlag{Name: "parent", Usage: "`IMAGE|CHAIN` what the layer lies on"},
			&cli.StringFlag{Name: "progress", Usage: "`HOW` progress on stderr: auto, tty, plain or quiet", Value: "auto"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "show no progress"},
		},
		Action: importLayer,
	})
}

func importLayer(c *cli.Context) error {
	if err := argsBetween(c, 1, 2); err != nil {
		return err
	}
	req := engineapi.LayerImport{Parent: c.String("parent"), Reference: c.Args().Get(1)}
	if name := c.String("config"); name != "" {
		var err error
		if req.Config, err = readConfig(name); err != nil {
			return err
		}
	}
	in, err := openInput(c, c.Args().First())
	if err != nil {
		return err
	}
	defer in.Close()
	client, show, err := connectToWork(c)
	if err != nil {
		return err
	}
	l, err := client.ImportLayer(c.Context, req, in, show.step)
	show.end()
	switch {
	case err != nil:
		return err
	case l.Image != "":
		fmt.Fprintln(c.App.Writer, l.Image)
	default:
		fmt.Fprintln(c.App.Writer, l.Chain)
	}
	return nil
}

// readConfig reads an image's config, all of it.
func readConfig(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, noFile(err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, engineapi.MaxConfig+1))
	switch {
	case err != nil:
		return nil, err
	case len(b) > engineapi.MaxConfig:
		return nil, fault.New(fault.Invalid, "%s: a config has at most %d bytes", name, engineapi.MaxConfig)
	case len(b) == 0:
		return nil, fault.New(fault.Invalid, "%s: Invalid empty data", name)
	}
	return b, nil
}

// openInput opens a file, or standard input for "-".
func openInput(c *cli.Context, name string) (io.ReadCloser, error) {
	if name != "-" {
		f, err := os.Open(name)
		return f, noFile(err)
	}
	if f, ok := c.App.Reader.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return nil, fault.WithHint(fault.New(fault.Invalid, "refusing to read an archive from a terminal"), "give a file, or redirect the input")
	}
	return io.NopCloser(c.App.Reader), nil
}

// noFile gives the error about a file that is not there its kind.
func noFile(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fault.New(fault.NotFound, "%w", err)
	}
	return err
}

func layerRemoveCommand() *cli.Command {
	return command(cli.Command{
		Name: "rm", ArgsUsage: "LAYER [LAYER...]",
		Usage: "give up layers that were imported alone",
		Description: `
Removes what imgfs layer import has stored without --config, and the layers
below it, as far as nothing else needs them. Layers of images go with these.

Examples:
  imgfs layer rm 5f70bf18a086

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Conflict, fault.Unavailable),
		Action: func(c *cli.Context) error {
			return eachImage(c, func(client *engineapi.Client, name string) error {
				return client.RemoveLayer(c.Context, name)
			})
		},
	})
}

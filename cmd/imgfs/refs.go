package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func refsCommand() *cli.Command {
	return command(cli.Command{
		Name:  "refs",
		Usage: "copy the names of images in docker's form",
		Description: `
The form is docker's repositories.json: what it keeps below
/var/lib/docker/image/DRIVER/, and what stands in docker save's archives.

Examples:
  imgfs refs export -o names.json
  imgfs refs import /var/lib/docker/image/overlay2/repositories.json

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Unavailable),
		Action: func(c *cli.Context) error {
			return printHelp(c.App.Writer, c.App, []*cli.Command{c.Command})
		},
		Subcommands: []*cli.Command{
			command(cli.Command{
				Name:  "export",
				Usage: "write all names, and which image each points to",
				Description: `
Examples:
  imgfs refs export
  imgfs refs export -o names.json

` + exitsText(fault.Failed, fault.Invalid, fault.Unavailable),
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "`FILE` to write to, instead of standard output"},
				},
				Action: exportRefs,
			}),
			command(cli.Command{
				Name: "import", ArgsUsage: "FILE|-",
				Usage: "give images that are here names from a repositories.json",
				Description: `
Prints the names that came. Those are skipped, with the reason, whose image is
not here, or that point to another one here; with --force these move, but
for digests, which never do. The file may be of any docker: repositories.json
of 1.10 and later, repositories-DRIVER of those before.

Examples:
  imgfs refs import /var/lib/docker/image/overlay2/repositories.json
  imgfs refs export | ssh host imgfs refs import --force -

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Unavailable),
				Flags: []cli.Flag{
					&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "move tags that point to another image"},
				},
				Action: importRefs,
			}),
		},
	})
}

// maxRefs is how many bytes of a file of names are read.
const maxRefs = 64 << 20

func exportRefs(c *cli.Context) error {
	if err := argsBetween(c, 0, 0); err != nil {
		return err
	}
	client, err := connect(c)
	if err != nil {
		return err
	}
	refs, err := client.ExportRefs(c.Context)
	if err != nil {
		return err
	}
	return writeWhole(c.App.Writer, c.String("output"), func(w io.Writer) error { return json.NewEncoder(w).Encode(refs) })
}

func importRefs(c *cli.Context) error {
	if err := argsBetween(c, 1, 1); err != nil {
		return err
	}
	refs, err := readRefs(c)
	if err != nil {
		return err
	}
	client, err := connect(c)
	if err != nil {
		return err
	}
	rep, err := client.ImportRefs(c.Context, refs, c.Bool("force"))
	if err != nil {
		return err
	}
	for _, name := range rep.Added {
		fmt.Fprintln(c.App.Writer, oneLine(name))
	}
	for _, s := range rep.Skipped {
		fmt.Fprintf(c.App.ErrWriter, "skipped %s: %s\n", oneLine(s.Name), oneLine(s.Why))
	}
	if n := len(rep.Skipped); n > 0 {
		return fault.New(fault.Failed, "%d of the names did not come", n)
	}
	return nil
}

// readRefs reads the file, or standard input, that the argument names.
func readRefs(c *cli.Context) (engineapi.Repositories, error) {
	var refs engineapi.Repositories
	path, in := c.Args().First(), c.App.Reader
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return refs, noFile(err)
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxRefs+1))
	if err != nil {
		return refs, err
	}
	if len(b) > maxRefs {
		return refs, fault.New(fault.Invalid, "%s: longer than %s", path, size(maxRefs))
	}
	if err := json.Unmarshal(b, &refs); err != nil {
		return refs, fault.New(fault.Invalid, "%s: this is no repositories.json: %w", path, err)
	}
	if refs.Repositories == nil {
		return refs, fault.New(fault.Invalid, "%s: this is no repositories.json: there is no object Repositories in it", path)
	}
	return refs, nil
}

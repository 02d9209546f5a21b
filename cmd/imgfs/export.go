package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/fault"
)

func exportCommand() *cli.Command {
	return command(cli.Command{
		Name: "export", ArgsUsage: "DIR|UPPER|IMAGE",
		Usage: "write a tree as a tar archive",
		Description: `
Writes all that is seen in a mount, an upper on its image, or an image, as
docker export does; with --layer only what the upper changes, as the layer
that imgfs commit would add (what is gone stands there as .wh. files). Nothing
has to be mounted. The same tree gives the same archive.

Examples:
  imgfs export ubuntu:14.04 -o ubuntu.tar
  imgfs export /mnt/x | tar -tv
  imgfs export --layer ubuntu-3fa91c -o layer.tar

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Integrity, fault.Conflict, fault.Unavailable),
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "layer", Usage: "only what the upper changes"},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "`FILE` write to a file, not to standard output"},
		},
		Action: export,
	})
}

func export(c *cli.Context) error {
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
	s, err := sourceArg(c.Context, client, c.Args().First())
	if err != nil {
		return err
	}
	if err := flush(c.Context, client, s); err != nil {
		return err
	}
	return writeWhole(c.App.Writer, out, func(w io.Writer) error {
		return client.Export(c.Context, s, c.Bool("layer"), w)
	})
}

// writeWhole has write write to stdout or, if name is not "", to a file that
// appears when it is complete. What is there and is no regular file, as
// /dev/stdout, is written to.
func writeWhole(stdout io.Writer, name string, write func(io.Writer) error) error {
	if name == "" {
		return write(stdout)
	}
	if st, err := os.Stat(name); err == nil && !st.Mode().IsRegular() {
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		return errors.Join(write(f), f.Close())
	}
	dir := filepath.Dir(name)
	f, err := os.CreateTemp(dir, "."+filepath.Base(name)+".*")
	if errors.Is(err, os.ErrNotExist) {
		return fault.New(fault.NotFound, "invalid output path: directory %q does not exist", dir) // as docker
	}
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // which the rename has left nothing of
	err = write(f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

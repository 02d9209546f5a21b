package main

import (
	"archive/tar"
	"cmp"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func loadCommand() *cli.Command {
	return command(cli.Command{
		Name:  "load",
		Usage: "bring in the images of an archive",
		Description: `
Reads what imgfs save, docker save (of any version) or podman save wrote, or an
OCI image layout, a directory or in a tar; all of them may be compressed with
gzip, zstd, bzip2 or xz. Images keep their IDs, and get the names that the
archive has for them: a name that another image has here moves. Layers that are
here are not read. Nothing is stored of an archive that is damaged.

Examples:
  imgfs load -i ubuntu.tar
  docker save debian:12 | imgfs load
  imgfs load -q < images.tar.zst

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Integrity, fault.Unavailable, fault.Canceled),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "input", Aliases: []string{"i"}, Usage: "`FILE` read a file, or the directory of a layout, not standard input"},
			&cli.StringFlag{Name: "platform", Usage: "`OS/ARCH[/VARIANT]` of images for several platforms", EnvVars: []string{"IMGFS_PLATFORM"}},
			&cli.StringFlag{Name: "progress", Usage: "`HOW` progress on stderr: auto, tty, plain or quiet", Value: "auto"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "show no progress"},
		},
		Action: load,
	})
}

func load(c *cli.Context) error {
	if err := argsBetween(c, 0, 0); err != nil {
		return err
	}
	show, err := newDisplay(c)
	if err != nil {
		return err
	}
	in, err := openArchive(c, cmp.Or(c.String("input"), "-"))
	if err != nil {
		return err
	}
	defer in.Close()
	client, err := connect(c)
	if err != nil {
		return err
	}
	list, err := client.Load(c.Context, engineapi.LoadRequest{Platform: c.String("platform")}, in, show.step)
	show.end()
	if err != nil {
		return err
	}
	for _, img := range list {
		if img.Reference != "" {
			fmt.Fprintf(c.App.Writer, "Loaded image: %s\n", img.Reference)
		} else {
			fmt.Fprintf(c.App.Writer, "Loaded image ID: %s\n", img.ID)
		}
	}
	return nil
}

// openArchive opens a file, standard input for "-", or a directory as the tar
// of what is in it.
func openArchive(c *cli.Context, name string) (io.ReadCloser, error) {
	if st, err := os.Stat(name); name == "-" || err != nil || !st.IsDir() {
		return openInput(c, name)
	}
	root, err := os.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	d := directory{r, make(chan struct{})}
	go func() {
		defer close(d.ended)
		defer root.Close()
		t := tar.NewWriter(w)
		err := t.AddFS(root.FS())
		if err == nil {
			err = t.Close()
		}
		w.CloseWithError(err)
	}()
	return d, nil
}

// directory is the tar of one, which is made while it is read.
type directory struct {
	*io.PipeReader
	ended chan struct{}
}

func (d directory) Close() error {
	err := d.PipeReader.Close()
	<-d.ended
	return err
}

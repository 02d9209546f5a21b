package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func cpCommand() *cli.Command {
	return command(cli.Command{
		Name: "cp", ArgsUsage: "IMAGE:PATH DEST|-",
		Usage: "copy files out of an image",
		Description: treeText + `
As with docker cp: a file goes to DEST, or into it, if that is a directory. A
directory becomes DEST, or, if that is there, a directory in it; with /. at the
end of PATH it is what is in it that is copied. A link is copied as a link, but
with -L what it leads to. With - for DEST a tar goes to standard output.

Files belong to the user who copies, have the modes they have in the image but
for set-user-ID and set-group-ID, and its times; devices are left out. With -a,
as root, owners, all modes, attributes and devices are kept too. Nothing is
written outside DEST, whatever links are there or in the image.

Examples:
  imgfs cp debian:12:/etc/apt/sources.list.d .
  imgfs cp debian:12:/etc/passwd passwd.orig
  imgfs cp app:/srv/www/. /var/www
  imgfs cp app:/srv - | tar -tv

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Denied, fault.Integrity,
			fault.Network, fault.Conflict, fault.Unavailable, fault.Canceled),
		Flags: treeFlags(
			&cli.BoolFlag{Name: "archive", Aliases: []string{"a"}, Usage: "keep owners, modes, attributes and devices"},
			&cli.BoolFlag{Name: "follow-link", Aliases: []string{"L"}, Usage: "copy what a link at the end of PATH leads to"},
		),
		Action: copyOut,
	})
}

func copyOut(c *cli.Context) error {
	if err := argsBetween(c, 2, 2); err != nil {
		return err
	}
	from, dest := c.Args().Get(0), c.Args().Get(1)
	if _, _, ok := splitPath(dest); ok {
		if _, _, ok := splitPath(from); !ok {
			return fault.WithHint(fault.New(fault.Invalid, "an image is not written to"), "imgfs mount it, and copy into the mount; imgfs commit makes an image of that")
		}
	}
	tree, path, err := needPath(from)
	if err != nil {
		return err
	}
	terminal := false
	if f, ok := c.App.Writer.(*os.File); ok && dest == "-" {
		terminal = term.IsTerminal(int(f.Fd()))
	}
	switch {
	case dest == "":
		return fault.New(fault.Invalid, "empty destination")
	case terminal:
		return fault.WithHint(fault.New(fault.Invalid, "refusing to write an archive to a terminal"), "redirect the output, or name a destination")
	}
	t, err := openTrees(c)
	if err != nil {
		return err
	}
	defer t.show.end()
	req, err := t.request(tree, path)
	if err != nil {
		return err
	}
	req.NoFollow = !c.Bool("follow-link")
	if dest == "-" {
		return t.client.ReadTree(c.Context, req, t.show.step, c.App.Writer)
	}
	x := &extraction{archive: c.Bool("archive"), root: os.Geteuid() == 0, skipped: func(name, what string) {
		fmt.Fprintf(c.App.ErrWriter, "warning: %s is left out: %s\n", oneLine(name), what)
	}}
	if err := t.extract(req, dest, x); err != nil {
		return err
	}
	if f, ok := c.App.ErrWriter.(*os.File); ok && !c.Bool("quiet") && term.IsTerminal(int(f.Fd())) {
		fmt.Fprintf(f, "Successfully copied %s to %s\n", size(x.bytes), dest)
	}
	return nil
}

// extract copies what a request names to dest.
func (t *treeReader) extract(req engineapi.TreeRequest, dest string, x *extraction) error {
	r, w := io.Pipe()
	sent := make(chan error, 1)
	go func() {
		err := t.client.ReadTree(t.Context.Context, req, t.show.step, w)
		w.CloseWithError(err) // nil is EOF
		sent <- err
	}()
	err := x.run(tar.NewReader(r), dest, inside(req.Path))
	if err == nil {
		_, err = io.Copy(io.Discard, r) // what stands behind the archive's end, and its error
	}
	r.CloseWithError(errStopped)
	if serr := <-sent; serr != nil && !errors.Is(serr, errStopped) {
		return serr
	}
	return err
}

// errStopped tells the writer of a pipe that its reader has gone.
var errStopped = errors.New("stopped")

// inside reports whether a path means what is in a directory, not itself.
func inside(path string) bool {
	return strings.HasSuffix(path, "/.") || strings.Trim(path, "/") == ""
}

// place returns the directory of the host that a copy called name, a directory
// or not, goes to, and what it is called there; "" is that directory itself.
func place(dest, name string, dir, contents bool) (parent, as string, err error) {
	st, err := os.Stat(dest)
	slash := strings.HasSuffix(dest, "/") || strings.HasSuffix(dest, "/.")
	switch {
	case err == nil && st.IsDir() && dir && contents:
		return dest, "", nil
	case err == nil && st.IsDir():
		return dest, name, nil
	case err == nil && dir:
		return "", "", fault.New(fault.Conflict, "%s: cannot copy a directory to a file", dest)
	case err == nil && slash:
		return "", "", fault.New(fault.Invalid, "%s: not a directory", dest)
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return "", "", err
	case err != nil && slash && !dir:
		return "", "", fault.WithHint(fault.New(fault.NotFound, "%s: no such directory", dest), "mkdir -p %s", fault.Word(dest))
	}
	// A link that leads to a file is written through, as cp(1) does; one that
	// leads nowhere is replaced.
	real, err := filepath.EvalSymlinks(dest)
	if err != nil {
		real = filepath.Clean(dest)
	}
	parent = filepath.Dir(real)
	if st, err := os.Stat(parent); err != nil || !st.IsDir() {
		return "", "", fault.WithHint(fault.New(fault.NotFound, "%s: no such directory", parent), "mkdir -p %s", fault.Word(parent))
	}
	return parent, filepath.Base(real), nil
}

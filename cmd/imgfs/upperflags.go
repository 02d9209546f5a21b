package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/daemon"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

// upperFlags say where the changes to a mount go.
func upperFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "ro", Usage: "mount read-only"},
		&cli.BoolFlag{Name: "rw", Usage: "mount writable (default)"},
		&cli.StringFlag{Name: "upper", Usage: "`NAME` go on with an upper that was kept (see imgfs upper ls)"},
		&cli.StringFlag{Name: "upper-dir", Usage: "`DIR` keep the changes in this directory, made if it is not there"},
		&cli.BoolFlag{Name: "tmp", Usage: "drop the changes when unmounted"},
		&cli.BoolFlag{Name: "force", Usage: "take an upper that was made on another image"},
	}
}

// setUpper reads upperFlags.
func setUpper(c *cli.Context, req *engineapi.MountRequest) error {
	var where []string
	for _, f := range []string{"upper", "upper-dir", "tmp"} {
		if c.String(f) != "" && c.String(f) != "false" {
			where = append(where, "--"+f)
		}
	}
	switch {
	case c.Bool("ro") && c.Bool("rw"):
		return fault.New(fault.Invalid, "--ro and --rw exclude each other")
	case c.Bool("ro") && len(where) > 0:
		return fault.New(fault.Invalid, "--ro and %s exclude each other", where[0])
	case len(where) > 1:
		return fault.New(fault.Invalid, "%s and %s exclude each other", where[0], where[1])
	case c.IsSet("upper") && c.String("upper") == "", c.IsSet("upper-dir") && c.String("upper-dir") == "":
		return fault.New(fault.Invalid, "--upper takes a name, --upper-dir a directory, not an empty string")
	case c.Bool("force") && c.String("upper") == "" && c.String("upper-dir") == "":
		return fault.New(fault.Invalid, "--force goes with --upper or --upper-dir: a fresh upper belongs to no other image")
	case c.Bool("ro") && req.Driver == "overlay":
		return fault.WithHint(fault.New(fault.Invalid, "--driver overlay is for writable mounts"), "leave --driver out")
	}
	req.Mode = "rw"
	if c.Bool("ro") {
		req.Mode = "ro"
	}
	req.Upper, req.Tmp, req.Force = c.String("upper"), c.Bool("tmp"), c.Bool("force")
	return nil
}

// makeUpperDir names dir in req, made if it is not there; "" is none. undo
// removes what was made, if nothing has come into it.
func makeUpperDir(dir string, req *engineapi.MountRequest) (undo func(), err error) {
	undo = func() {}
	if dir == "" {
		return undo, nil
	}
	if req.UpperDir, err = resolve(dir); err != nil {
		return nil, err
	}
	switch err := os.Mkdir(req.UpperDir, 0o700); {
	case err == nil:
		undo = func() { os.Remove(req.UpperDir) } // refused if it is not empty
	case errors.Is(err, os.ErrNotExist):
		up := filepath.Dir(req.UpperDir)
		return nil, fault.WithHint(fault.New(fault.NotFound, "--upper-dir: %s: no such directory", up), "mkdir -p %s", fault.Word(up))
	case errors.Is(err, os.ErrPermission):
		return nil, fault.New(fault.Denied, "--upper-dir: %w", err)
	case !errors.Is(err, os.ErrExist):
		return nil, fmt.Errorf("--upper-dir: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(req.UpperDir, &st); err != nil {
		return nil, fmt.Errorf("--upper-dir: %s: %w", req.UpperDir, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, fault.New(fault.Invalid, "--upper-dir: %s: not a directory", req.UpperDir)
	}
	req.UpperAt = fmt.Sprintf("%d:%d", st.Dev, st.Ino)
	return undo, nil
}

// anUpper gives err, that there is no such image, the hint that helps where
// image is the name of an upper.
func anUpper(c *cli.Context, client *engineapi.Client, image string, err error) error {
	if strings.ContainsAny(image, "/:@") || image == "" {
		return err
	}
	up, e := client.Upper(c.Context, image)
	if e != nil {
		return err
	}
	return fault.WithHint(err, "%s is an upper: imgfs %s --upper %s %s", image, c.Command.Name, image, fault.Word(up.Image))
}

// tellKept says that the changes to a mount were kept, and what can be done
// with them.
func tellKept(w io.Writer, m engineapi.Mount) {
	force := ""
	if m.Foreign {
		force = "--force "
	}
	fmt.Fprintf(w, "changes kept as %s; reattach: imgfs mount %s--upper %s %s %s; drop: imgfs upper rm %s\n",
		m.Upper, force, m.Upper, oneLine(fault.Word(m.Image)), oneLine(fault.Word(m.Target)), m.Upper)
}

// tellIfKept is tellKept where no daemon is left to say whether there is
// anything to tell.
func tellIfKept(w io.Writer, p daemon.Paths, m engineapi.Mount) {
	if m.Upper == "" {
		return
	}
	if _, err := os.Lstat(p.Upper(m.Upper)); err == nil {
		tellKept(w, m)
	}
}

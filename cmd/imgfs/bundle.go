package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/fs"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func bundleCommand() *cli.Command {
	return command(cli.Command{
		Name: "bundle", ArgsUsage: "IMAGE DIR",
		Usage: "make a bundle for an OCI runtime, such as runc",
		Description: `
Mounts the image on DIR/rootfs, as imgfs mount does, and writes DIR/config.json
from the image's config: command, environment, user and working directory,
docker's default capabilities, the host's network. DIR is made if it is not
there. Made without root, the bundle is one for a runtime without root.

Examples:
  imgfs bundle debian:12 /tmp/b && runc run -b /tmp/b mine
  imgfs umount /tmp/b/rootfs && rm -r /tmp/b

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Denied, fault.Integrity,
			fault.Network, fault.Conflict, fault.Unavailable, fault.Canceled),
		Flags: append(append([]cli.Flag{
			&cli.BoolFlag{Name: "tty", Aliases: []string{"t"}, Usage: "give the command a terminal"},
			&cli.StringFlag{Name: "pull", Usage: "`WHEN` ask the registry: missing, always or never", Value: "missing"},
		}, upperFlags()...), registryFlags()...),
		Action: makeBundle,
	})
}

func makeBundle(c *cli.Context) error {
	if err := argsBetween(c, 2, 2); err != nil {
		return err
	}
	req, show, err := imageRequest(c)
	if err != nil {
		return err
	}
	req.Tmp = c.Bool("tmp")
	req.Suid = os.Geteuid() == 0
	dir, err := resolve(c.Args().Get(1))
	if err != nil {
		return err
	}
	b := &bundle{dir: dir}
	if err := b.make(); err != nil {
		return errors.Join(err, b.remove())
	}
	if err := b.fill(c, req, show); err != nil {
		return errors.Join(err, b.remove())
	}
	return nil
}

// bundle is one being made.
type bundle struct {
	dir  string
	made []string // files and directories that were not there
}

func (b *bundle) rootfs() string { return filepath.Join(b.dir, "rootfs") }
func (b *bundle) config() string { return filepath.Join(b.dir, "config.json") }

// make makes the directories.
func (b *bundle) make() error {
	if _, err := os.Lstat(b.config()); err == nil {
		return fault.WithHint(fault.New(fault.Conflict, "%s: there is a bundle already", b.dir),
			"imgfs umount %s && rm %s", fault.Word(b.rootfs()), fault.Word(b.config()))
	}
	for _, dir := range []string{b.dir, b.rootfs()} {
		switch err := os.Mkdir(dir, 0o755); {
		case err == nil:
			b.made = append(b.made, dir)
		case errors.Is(err, os.ErrNotExist):
			up := filepath.Dir(dir)
			return fault.WithHint(fault.New(fault.NotFound, "%s: no such directory", up), "mkdir -p %s", fault.Word(up))
		case errors.Is(err, os.ErrPermission):
			return fault.New(fault.Denied, "bundle: %w", err)
		case !errors.Is(err, os.ErrExist):
			return fmt.Errorf("bundle: %w", err)
		}
	}
	return nil
}

// remove takes away what was made.
func (b *bundle) remove() error {
	var errs []error
	for i := len(b.made) - 1; i >= 0; i-- {
		errs = append(errs, os.Remove(b.made[i]))
	}
	return errors.Join(errs...)
}

// fill mounts the image and writes the config. When it fails, nothing is
// mounted.
func (b *bundle) fill(c *cli.Context, req engineapi.MountRequest, show display) (err error) {
	if req.Target, err = fs.CheckTarget(b.rootfs(), false); err != nil {
		return err
	}
	if err := setCaller(&req); err != nil {
		return err
	}
	undo, err := makeUpperDir(c.String("upper-dir"), &req)
	if err != nil {
		return err
	}
	client, err := connect(c)
	if err != nil {
		undo()
		return err
	}
	m, err := mount(c.Context, client, req, show)
	if err != nil {
		undo()
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, fs.Unmount(req.Target, true), settle(c, client, m))
		}
	}()
	config, err := configOf(c, client, m)
	if err != nil {
		return err
	}
	spec, err := runtimeSpec(config, b.rootfs(), req.Mode == "ro", c.Bool("tty"))
	if err != nil {
		return err
	}
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "\t")
	if err := enc.Encode(spec); err != nil {
		return err
	}
	f, err := os.OpenFile(b.config(), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	b.made = append(b.made, b.config())
	_, err = f.Write(text.Bytes())
	return errors.Join(err, f.Close())
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/fs"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func umountCommand() *cli.Command {
	return command(cli.Command{
		Name: "umount", Aliases: []string{"unmount"}, ArgsUsage: "DIR|ID [DIR|ID...]",
		Usage: "unmount what imgfs has mounted",
		Description: `
Takes mount points, or mount IDs as imgfs mounts shows them. umount(8) and
fusermount3 -u do the same to a mount point. A mount that is in use is not
unmounted unless --lazy is given: it then disappears at once and ends with
its last user.

Changes made in a writable mount are kept, however it is unmounted, unless it
was mounted with --tmp; this command says under which name. See imgfs upper.

Examples:
  imgfs umount /mnt/x
  imgfs umount -a

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Denied, fault.Conflict, fault.Unavailable),
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "unmount all mounts of the store"},
			&cli.BoolFlag{Name: "lazy", Aliases: []string{"l"}, Usage: "detach now, even if in use"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "do not say what is kept"},
		},
		Action: umount,
	})
}

func umount(c *cli.Context) error {
	if c.Bool("all") {
		if err := argsBetween(c, 0, 0); err != nil {
			return err
		}
	} else if err := argsBetween(c, 1, -1); err != nil {
		return err
	}
	client, known, err := knownMounts(c)
	if err != nil {
		return err
	}
	if c.Bool("all") {
		var first error
		for _, m := range slices.Backward(known) {
			if err := report(c, unmountRecorded(c, client, m)); err != nil {
				first = firstOf(first, err)
			}
		}
		return first
	}
	var first error
	for _, arg := range c.Args().Slice() {
		if err := report(c, unmountArg(c, client, known, arg)); err != nil {
			first = firstOf(first, err)
		}
	}
	return first
}

// report prints err at once, so that the arguments after it are still done.
func report(c *cli.Context, err error) error {
	if err == nil || c.Context.Err() != nil {
		return err
	}
	printError(c.App.ErrWriter, err)
	return reported{err}
}

// idForm is the form of a mount's ID or its beginning.
var idForm = regexp.MustCompile(`^[0-9a-f]{4,12}$`)

// knownMounts returns the daemon's mounts. A daemon that does not run is
// started only where its records are needed, for -a and for IDs: to unmount a
// directory it must not come first and mount the tree again.
func knownMounts(c *cli.Context) (*engineapi.Client, []engineapi.Mount, error) {
	need := c.Bool("all")
	for _, arg := range c.Args().Slice() {
		if _, err := os.Lstat(arg); idForm.MatchString(arg) && errors.Is(err, os.ErrNotExist) {
			need = true
		}
	}
	get := dial
	if need {
		get = connect
	}
	client, err := get(c)
	if err != nil {
		return nil, nil, err
	}
	list, err := client.Mounts(c.Context)
	if err != nil && !need && !errors.Is(err, context.Canceled) {
		// Whatever ails the daemon, unmounting is a matter of the kernel.
		return nil, nil, nil
	}
	return client, list, err
}

// unmountArg unmounts the mount that arg, a directory or an ID, names.
func unmountArg(c *cli.Context, client *engineapi.Client, known []engineapi.Mount, arg string) error {
	target, err := resolve(arg)
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(known) { // an older one there has been detached
		if m.Target == target {
			return unmountRecorded(c, client, m)
		}
	}
	m, err := fs.MountAt(target)
	if err != nil {
		return err
	}
	if m != nil {
		if !m.Imgfs() {
			return fault.WithHint(fault.New(fault.NotFound, "%s: not a mount of imgfs but of type %s", arg, m.Type), "umount %s", fault.Word(arg))
		}
		return fs.Unmount(target, c.Bool("lazy"))
	}
	if m, err := mountCalled(known, arg); m != nil || err != nil {
		if err != nil {
			return err
		}
		return unmountRecorded(c, client, *m)
	}
	return fault.WithHint(fault.New(fault.NotFound, "%s: not mounted by imgfs", arg), "see imgfs mounts")
}

// mountCalled returns the mount whose ID begins with arg, nil if there is none;
// fault.Conflict, naming them, if there are several.
func mountCalled(known []engineapi.Mount, arg string) (*engineapi.Mount, error) {
	if !idForm.MatchString(arg) {
		return nil, nil
	}
	var found []engineapi.Mount
	var ids []string
	for _, m := range known {
		if strings.HasPrefix(m.ID, arg) {
			found, ids = append(found, m), append(ids, m.ID)
		}
	}
	switch len(found) {
	case 0:
		return nil, nil
	case 1:
		return &found[0], nil
	}
	return nil, fault.WithHint(fault.New(fault.Conflict, "ambiguous id prefix %q: matches %s (%d)", arg, strings.Join(ids, ", "), len(ids)),
		"give more digits; see imgfs mounts")
}

// usedElsewhere is how long a mount that was not busy is waited for. A copy of
// it in another mount namespace, as each service with one of its own has, keeps
// it for as long as that lives.
const usedElsewhere = 3 * time.Second

// unmountRecorded unmounts a mount that the daemon knows and waits until it
// has forgotten it.
func unmountRecorded(c *cli.Context, client *engineapi.Client, m engineapi.Mount) error {
	here, err := fs.MountAt(m.Target)
	if err != nil {
		return err
	}
	if here == nil || !here.Imgfs() {
		return fault.WithHint(fault.New(fault.NotFound, "%s: mounted in another mount namespace", m.Target), "unmount it where it was mounted")
	}
	if err := fs.Unmount(m.Target, c.Bool("lazy")); err != nil {
		return err
	}
	if c.Bool("lazy") {
		return nil // its users decide when it ends
	}
	ctx, cancel := context.WithTimeout(c.Context, usedElsewhere)
	defer cancel()
	err = client.WaitGone(ctx, m.ID)
	switch {
	case errors.Is(err, engineapi.ErrNoDaemon):
		return nil // killed meanwhile; the next one finds the mount gone
	case errors.Is(err, context.DeadlineExceeded):
		kept := ""
		if m.Upper != "" && !m.Tmp {
			kept = "; changes, if any, are kept as " + m.Upper
		}
		fmt.Fprintf(c.App.ErrWriter, "warning: %s is unmounted here, but goes on in another mount namespace, such as an imgfs chroot has%s\n", oneLine(m.Target), kept)
		return nil
	}
	if err == nil && m.Upper != "" && !c.Bool("quiet") {
		if _, err := client.Upper(c.Context, m.Upper); err == nil { // else it held no changes
			tellKept(c.App.ErrWriter, m)
		}
	}
	return err
}

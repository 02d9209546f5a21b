package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/fs"
	"github.com/imgfs/imgfs/internal/daemon"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/sandbox"
)

// commandArgs ends the ArgsUsage of a command behind whose first argument no
// flag of ours can stand: the rest is another program's.
const commandArgs = "[COMMAND [ARG...]]"

// sandboxCommand is what a sandbox's init is executed as.
const sandboxCommand = "__sandbox"

const sandboxText = `
IMAGE is what imgfs mount takes; it is mounted for the time of the command,
where nobody else sees it. Changes are dropped unless --rw keeps them in a new
upper, or --upper or --upper-dir say where. DIR is a directory on which imgfs
has mounted something, or, where it begins with a slash or a dot, any other;
changes go where its changes go.
`

const sandboxExits = `
Exit codes: that of the command, 128+N if signal N ended it, and
  125  imgfs failed
  126  the command cannot be executed
  127  there is no such command
  130  interrupted before the command ran`

func runCommand() *cli.Command {
	return command(cli.Command{
		Name: "run", ArgsUsage: "IMAGE|DIR " + commandArgs,
		Usage: "run a command in an image as a container would",
		Description: sandboxText + `
What the image's config says of entrypoint, command, environment, user and
working directory holds, as with docker. /proc, /dev, /sys, /etc/resolv.conf,
/etc/hosts and /etc/hostname are made for the command; it has the host's
network and terminal. It has docker's default capabilities but CAP_MKNOD, and no more; where
imgfs does not run as root, root inside is the user outside. This is no
security boundary such as a container runtime with all its filters is.

Examples:
  imgfs run ubuntu:14.04
  imgfs run -v $PWD:/src -w /src golang:1.26 go build ./...
  imgfs run --rw debian:12 apt-get install -y git
  imgfs run /mnt/x /bin/sh
` + sandboxExits,
		Flags:  append(sandboxFlags(), &cli.StringFlag{Name: "entrypoint", Usage: "`COMMAND` in place of the image's entrypoint and command"}, &cli.StringFlag{Name: "hostname", Usage: "`NAME` of the machine inside (default: the host's)"}),
		Action: func(c *cli.Context) error { return enterImage(c, true) },
	})
}

func chrootCommand() *cli.Command {
	return command(cli.Command{
		Name: "chroot", ArgsUsage: "IMAGE|DIR " + commandArgs,
		Usage: "run a command with an image as its root directory",
		Description: sandboxText + `
Like chroot(8), but with /proc, /dev, /sys, /etc/resolv.conf and /etc/hosts in
place. Of the image's config only the environment counts: the command, a shell
where none is given, runs as root in / with all capabilities. It can do to the
host what root can: take imgfs run for images that are not trusted.

Without root, the capabilities are those of a user namespace. Users other than
root are there where newuidmap is installed; in a DIR, programs that become one
of them, as apt-get does, are refused by FUSE: take --rw IMAGE instead.

Examples:
  imgfs chroot /mnt/x apt-get install -y git
  imgfs chroot debian:12
` + sandboxExits,
		Flags:  sandboxFlags(),
		Action: func(c *cli.Context) error { return enterImage(c, false) },
	})
}

func sandboxFlags() []cli.Flag {
	return append(append([]cli.Flag{
		&cli.StringSliceFlag{Name: "volume", Aliases: []string{"v"}, Usage: "`SRC:DST[:ro]` show a file or directory of the host inside"},
		&cli.StringSliceFlag{Name: "env", Aliases: []string{"e"}, Usage: "`NAME[=VALUE]` set a variable, or pass the caller's"},
		&cli.StringFlag{Name: "user", Aliases: []string{"u"}, Usage: "`NAME|UID[:GROUP]` who the command runs as"},
		&cli.StringFlag{Name: "workdir", Aliases: []string{"w"}, Usage: "`DIR` where the command starts"},
		&cli.BoolFlag{Name: "interactive", Aliases: []string{"i"}, Usage: "taken for docker's sake: standard input is always the caller's"},
		&cli.BoolFlag{Name: "tty", Aliases: []string{"t"}, Usage: "taken for docker's sake: the terminal is always the caller's"},
		&cli.BoolFlag{Name: "rm", Usage: "taken for docker's sake: the mount always ends with the command"},
		&cli.StringFlag{Name: "pull", Usage: "`WHEN` ask the registry: missing, always or never", Value: "missing"},
	}, upperFlags()...), registryFlags()...)
}

// ended is the exit code of a command in an image; there is nothing to print.
type ended int

func (e ended) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// enterImage is `imgfs run` and `imgfs chroot`.
func enterImage(c *cli.Context, confined bool) error {
	code, err := runIn(c, confined)
	switch {
	case err != nil && c.Context.Err() != nil && code == sandbox.CodeFailed:
		return err // interrupted, and so it is said
	case err != nil:
		printError(c.App.ErrWriter, err)
		return ended(cmp.Or(code, sandbox.CodeFailed))
	case code != 0:
		return ended(code)
	}
	return nil
}

// runIn runs the command and returns its exit code; with an error it is the
// one that docker has for such.
func runIn(c *cli.Context, confined bool) (int, error) {
	const failed = sandbox.CodeFailed
	if err := argsBetween(c, 1, -1); err != nil {
		return failed, err
	}
	paths, err := daemon.Locate(c.String("root"))
	if err != nil {
		return failed, err
	}
	o := sandbox.Options{Program: []string{os.Args[0], sandboxCommand}, ReadOnly: c.Bool("ro"), Inert: confined}
	if o.Binds, err = volumes(c); err != nil {
		return failed, err
	}
	if isDirectory(c.Args().First()) {
		return runInDirectory(c, confined, paths, o)
	}
	req, show, err := imageRequest(c)
	if err != nil {
		return failed, err
	}
	client, err := connect(c)
	if err != nil {
		return failed, err
	}
	if o.Staging, err = stagingDir(paths); err != nil {
		return failed, err
	}
	undo, err := makeUpperDir(c.String("upper-dir"), &req)
	if err != nil {
		return failed, err
	}
	box, err := sandbox.Start(o)
	if err != nil {
		undo()
		return failed, err
	}
	m, err := mountInside(c.Context, client, box, req, show)
	if err != nil {
		undo()
		return failed, errors.Join(anUpper(c, client, req.Image, err), box.Close())
	}
	code, err := runConfigured(c, confined, client, box, m)
	err = errors.Join(err, box.Close())
	return code, errors.Join(err, settle(c, client, m))
}

// runInDirectory enters a directory of the host.
func runInDirectory(c *cli.Context, confined bool, paths daemon.Paths, o sandbox.Options) (int, error) {
	const failed = sandbox.CodeFailed
	for _, f := range []string{"rw", "upper", "upper-dir", "tmp", "force", "pull", "platform"} {
		// Some have a value from the environment.
		if c.IsSet(f) && f != "platform" {
			return failed, fault.WithHint(fault.New(fault.Invalid, "--%s goes with an image, and %s is a directory", f, c.Args().First()),
				"it was for imgfs mount to say")
		}
	}
	var err error
	if o.Dir, err = resolve(c.Args().First()); err != nil {
		return failed, err
	}
	if o.Staging, err = stagingDir(paths); err != nil {
		return failed, err
	}
	client, err := dial(c)
	if err != nil {
		return failed, err
	}
	// A directory need not be a mount of ours; then it has no config.
	var m engineapi.Mount
	list, err := client.Mounts(c.Context)
	if err != nil && !errors.Is(err, engineapi.ErrNoDaemon) {
		return failed, err
	}
	for _, known := range list {
		if known.Target == o.Dir && !known.Layout {
			m = known
		}
	}
	box, err := sandbox.Start(o)
	if err != nil {
		return failed, err
	}
	code, err := runConfigured(c, confined, client, box, m)
	return code, errors.Join(err, box.Close())
}

// isDirectory tells a directory from the name of an image: by its form, or
// because imgfs has mounted something there.
func isDirectory(arg string) bool {
	if strings.HasPrefix(arg, "/") || arg == "." || arg == ".." || strings.HasPrefix(arg, "./") || strings.HasPrefix(arg, "../") {
		return true
	}
	target, err := resolve(arg)
	if err != nil {
		return false
	}
	at, err := fs.MountAt(target)
	return err == nil && at != nil && at.Imgfs()
}

// imageRequest returns the request for the mount of an image, all but where.
func imageRequest(c *cli.Context) (engineapi.MountRequest, display, error) {
	req := engineapi.MountRequest{Driver: "fuse", Platform: c.String("platform"), Pull: c.String("pull")}
	if err := oneOf(c, "pull", "missing", "always", "never"); err != nil {
		return req, nil, err
	}
	show, err := newDisplay(c)
	if err != nil {
		return req, nil, err
	}
	if err := setUpper(c, &req); err != nil {
		return req, nil, err
	}
	if req.Registry, err = registryOptions(c); err != nil {
		return req, nil, err
	}
	if req.Image, err = absoluteSource(c.Args().First()); err != nil {
		return req, nil, err
	}
	if req.Mode == "rw" && req.Upper == "" && c.String("upper-dir") == "" && !c.Bool("rw") {
		req.Tmp = true
	}
	return req, show, checkDriver(req.Driver)
}

// stagingDir returns a directory for a sandbox to work in, unseen.
func stagingDir(paths daemon.Paths) (string, error) {
	if st, err := os.Stat(paths.Runtime); err == nil && st.IsDir() {
		return resolve(paths.Runtime)
	}
	return resolve(os.TempDir())
}

// insideOrder is what a sandbox's init needs to know for the mount.
type insideOrder struct {
	Request engineapi.MountRequest
	Ready   engineapi.MountReady
}

// mountInside has the daemon serve req, and the sandbox's init mount it.
func mountInside(ctx context.Context, client *engineapi.Client, box *sandbox.Sandbox, req engineapi.MountRequest, show display) (engineapi.Mount, error) {
	req.Target, req.MountNS, req.UserNS = box.Target(), box.MountNS(), box.UserNS()
	req.Suid = true // within the namespaces; run takes the capabilities away
	show = &ifNeeded{display: show}
	defer show.end()
	return client.Mount(ctx, req, show.step, func(r engineapi.MountReady) (int, engineapi.MountReply, error) {
		order := insideOrder{Ready: r, Request: engineapi.MountRequest{Target: req.Target, Driver: req.Driver, Mode: req.Mode, Suid: req.Suid}}
		data, err := json.Marshal(order)
		if err != nil {
			return -1, engineapi.MountReply{}, err
		}
		fd, err := box.Mount(data)
		return fd, engineapi.MountReply{}, err
	})
}

// sandboxInit is the main function of a sandbox's init.
func sandboxInit() int {
	return sandbox.Init(func(target string, data []byte) (int, error) {
		var order insideOrder
		if err := json.Unmarshal(data, &order); err != nil {
			return -1, err
		}
		if order.Request.Target != target {
			return -1, fault.New(fault.Invalid, "not the place of the mount: %s", order.Request.Target)
		}
		mt := &mounter{req: order.Request}
		fd, _, err := mt.mount(order.Ready)
		return fd, err
	})
}

// settle waits until the daemon has forgotten a mount whose namespace has
// gone, and says what has become of the changes.
func settle(c *cli.Context, client *engineapi.Client, m engineapi.Mount) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Context), usedElsewhere)
	defer cancel()
	err := client.WaitGone(ctx, m.ID)
	if errors.Is(err, engineapi.ErrNoDaemon) || errors.Is(err, context.DeadlineExceeded) {
		return nil // it will be
	}
	if err != nil || m.Upper == "" || m.Tmp || c.Bool("quiet") {
		return err
	}
	if _, err := client.Upper(ctx, m.Upper); err == nil { // else it held no changes
		fmt.Fprintf(c.App.ErrWriter, "changes kept as %s; go on: imgfs %s --upper %s %s; drop: imgfs upper rm %s\n",
			m.Upper, c.Command.Name, m.Upper, oneLine(fault.Word(m.Image)), m.Upper)
	}
	return nil
}

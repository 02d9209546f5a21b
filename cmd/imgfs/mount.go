package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/fs"
	"github.com/imgfs/imgfs/internal/daemon"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func mountCommand() *cli.Command {
	return command(cli.Command{
		Name: "mount", ArgsUsage: "IMAGE DIR",
		Usage: "mount an image on a directory",
		Description: `
IMAGE is a reference as docker takes it (ubuntu:14.04, quay.io/org/name@sha256:...),
the ID of an image in the store, or oci:DIR[:TAG], oci-archive:FILE[:TAG],
docker-archive:FILE[:TAG]. The command returns when the tree is complete and
readable, and prints nothing; progress goes to standard error.

The tree can be written to. Changes go into an upper, a directory of the
store's of its own for each mount; the image stays as it is. When it is
unmounted, an upper with changes is kept, and imgfs umount says under which
name; one without is dropped. --upper NAME goes on with one (IMAGE may be left
out: the upper knows its own), --upper-dir DIR keeps the changes in a directory
of yours, --tmp drops them, --ro forbids them.

Set-uid bits and device nodes of the image have no effect unless --suid and
--dev are given. Without root, fusermount3 does the mounting, and what the
image gives to root is shown as yours.

What the image's layers hold is fetched when it is read, a piece at a time, where
the layers allow that: eStargz, zstd:chunked, plain tar, those with an index beside
the image (ours or SOCI's), and all that were streamed through here once. Others
are fetched whole first. Each piece is verified before it is shown; --verify
sealed has whole layers fetched and proven before anything is. --prefetch trace
begins with what the image's maker marked and what was read first the last times;
all goes on to fetch the rest while the tree is mounted; none does neither. A read
that the registry does not answer waits for it for 30 seconds, then fails with
EIO; --on-error says otherwise. imgfs status shows why reads failed.

Drivers:
  fuse      works everywhere, and is the most correct one: one file, one inode
  overlay   kernel overlayfs above what FUSE serves (root, or unshare -Urm)
  erofs     the kernel reads the image itself, with kernel overlayfs above it
            unless --ro (root, Linux 6.12)
  auto      fuse; where there is no /dev/fuse, erofs as root

Examples:
  imgfs mount ubuntu:14.04 /mnt/x
  imgfs mount --upper ubuntu-3fa91c /mnt/x
  imgfs mount --ro --platform linux/arm64 debian:12 /mnt/arm
  imgfs mount --suid --dev debian:12 /mnt/x && chroot /mnt/x
  imgfs mount --prefetch all --on-error retry=5m ubuntu:14.04 /mnt/x
  imgfs mount oci:./layout:v1 /mnt/x
  imgfs mount -f --tmp ubuntu:14.04 /mnt/x        # until Ctrl-C

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Denied, fault.Integrity,
			fault.Network, fault.Conflict, fault.Unavailable, fault.Canceled),
		Flags: append(append(upperFlags(),
			&cli.StringFlag{Name: "pull", Usage: "`WHEN` ask the registry: missing, always or never", Value: "missing"},
			&cli.StringFlag{Name: "prefetch", Usage: "`WHAT` to fetch before it is read: none, trace or all", Value: engineapi.PrefetchTrace},
			&cli.StringFlag{Name: "on-error", Usage: "`HOW` reads take it that the registry does not answer: eio, or retry=DURATION", Value: "retry=" + engineapi.DefaultPatience.String()},
			&cli.StringFlag{Name: "verify", Usage: "`WHAT` must be proven before it is shown: digests, of what is read, or sealed, whole layers", Value: "digests"},
			&cli.BoolFlag{Name: "provenance", Usage: "have files say what layer they are of, in attributes user.imgfs.layer, .digest and .cached"},
			&cli.StringFlag{Name: "driver", Usage: "`DRIVER` who serves the tree: auto, fuse, overlay or erofs", Value: "auto"},
			&cli.BoolFlag{Name: "suid", Usage: "let set-uid and set-gid bits take effect"},
			&cli.BoolFlag{Name: "dev", Usage: "let device nodes take effect"},
			&cli.BoolFlag{Name: "nonempty", Usage: "mount over a directory that has entries"},
			foregroundFlag(),
		), registryFlags()...),
		Action: mountImage,
	})
}

func foregroundFlag() cli.Flag {
	return &cli.BoolFlag{Name: "foreground", Aliases: []string{"f"}, Usage: "serve from this process until unmounted or interrupted, without a daemon"}
}

func layoutCommand() *cli.Command {
	return command(cli.Command{
		Name: "layout", ArgsUsage: "DIR",
		Usage: "mount a view of the whole store, laid out as docker's aufs driver did",
		Description: `
Below DIR:
  layers/CHAIN            text: the layer's ancestors, nearest first
  diff/CHAIN/             the layer alone, deletions shown as .wh. files
  mnt/CHAIN/              everything up to that layer
  images/HOST/PATH:TAG/   images by name

Example:
  imgfs layout /mnt/store && ls /mnt/store/images/docker.io/library

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Denied, fault.Conflict, fault.Unavailable),
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "nonempty", Usage: "mount over a directory that has entries"},
			foregroundFlag(),
		},
		Action: func(c *cli.Context) error {
			if err := argsBetween(c, 1, 1); err != nil {
				return err
			}
			if err := checkDriver("fuse"); err != nil {
				return err
			}
			target, err := fs.CheckTarget(c.Args().First(), c.Bool("nonempty"))
			if err != nil {
				return err
			}
			req := engineapi.MountRequest{Layout: true, Target: target, Driver: "fuse"}
			return serveMount(c, req, quiet{})
		},
	})
}

func mountImage(c *cli.Context) error {
	least := 2
	if c.String("upper") != "" || c.String("upper-dir") != "" {
		least = 1 // the upper knows its image
	}
	if err := argsBetween(c, least, 2); err != nil {
		return err
	}
	if err := oneOf(c, "pull", "missing", "always", "never"); err != nil {
		return err
	}
	if err := oneOf(c, "driver", "auto", "fuse", "overlay", "erofs"); err != nil {
		return err
	}
	if err := oneOf(c, "prefetch", engineapi.PrefetchNone, engineapi.PrefetchTrace, engineapi.PrefetchAll); err != nil {
		return err
	}
	if err := oneOf(c, "verify", "digests", engineapi.VerifySealed); err != nil {
		return err
	}
	if _, err := engineapi.ParseOnError(c.String("on-error")); err != nil {
		return fault.WithHint(fault.New(fault.Invalid, "--%w", err), "%s", fault.HintOf(err))
	}
	show, err := newDisplay(c)
	if err != nil {
		return err
	}
	req := engineapi.MountRequest{
		Prefetch: c.String("prefetch"),
		OnError:  c.String("on-error"),
		Driver:   chosenDriver(c.String("driver")),
		Platform: c.String("platform"),
		Pull:     c.String("pull"),
		Suid:     c.Bool("suid"),
		Dev:      c.Bool("dev"),

		Provenance: c.Bool("provenance"),
	}
	if req.Provenance && req.Driver == "erofs" {
		return fault.WithHint(fault.New(fault.Invalid, "--provenance: with --driver erofs the kernel serves the tree, which knows of no layers"),
			"take --driver fuse, or imgfs why")
	}
	if c.String("verify") == engineapi.VerifySealed {
		req.Verify = engineapi.VerifySealed
	}
	if err := setUpper(c, &req); err != nil {
		return err
	}
	if req.Registry, err = registryOptions(c); err != nil {
		return err
	}
	if c.NArg() == 2 {
		if req.Image, err = absoluteSource(c.Args().First()); err != nil {
			return err
		}
	}
	// Before any network: a pull for a mount that cannot be made is wasted.
	if err := checkDriver(req.Driver); err != nil {
		return err
	}
	if req.Target, err = fs.CheckTarget(c.Args().Get(c.NArg()-1), c.Bool("nonempty")); err != nil {
		return swapped(c.Args().Slice(), err)
	}
	undo, err := makeUpperDir(c.String("upper-dir"), &req)
	if err != nil {
		return err
	}
	if err := serveMount(c, req, show); err != nil {
		undo()
		return err
	}
	return nil
}

// swapped gives err, that there is no directory to mount on, the hint that helps
// where image and directory have changed places.
func swapped(args []string, err error) error {
	if len(args) != 2 || fault.KindOf(err) != fault.NotFound {
		return err
	}
	if st, e := os.Stat(args[0]); e != nil || !st.IsDir() {
		return err
	}
	return fault.WithHint(err, "the image comes first: imgfs mount %s %s", fault.Word(args[1]), fault.Word(args[0]))
}

// serveMount has the store's daemon serve req, or with --foreground this
// process.
func serveMount(c *cli.Context, req engineapi.MountRequest, show display) error {
	if err := setCaller(&req); err != nil {
		return err
	}
	if c.Bool("foreground") {
		return mountForeground(c, req, show)
	}
	client, err := connect(c)
	if err != nil {
		return err
	}
	_, err = mount(c.Context, client, req, show)
	if err != nil {
		return anUpper(c, client, req.Image, err)
	}
	return nil
}

// setCaller says from where req comes.
func setCaller(req *engineapi.MountRequest) (err error) {
	if req.MountNS, err = os.Readlink("/proc/self/ns/mnt"); err != nil {
		return err
	}
	if req.UserNS, err = os.Readlink("/proc/self/ns/user"); err != nil {
		return err
	}
	req.Squash = os.Geteuid() != 0 // root, of whatever namespace, has the IDs it wants
	return nil
}

// mountForeground runs the engine in this process until the mount goes or
// the user interrupts.
func mountForeground(c *cli.Context, req engineapi.MountRequest, show display) error {
	paths, err := daemon.Locate(c.String("root"))
	if err != nil {
		return err
	}
	level, err := logLevel(c)
	if err != nil {
		return err
	}
	limit, err := cacheLimit(os.Getenv("IMGFS_CACHE_LIMIT"))
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(c.Context)
	defer stop()
	serving, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- daemon.Run(ctx, daemon.Options{
			Paths: paths, Idle: -1, Foreground: true, CacheLimit: limit,
			Logger:  slog.New(slog.NewTextHandler(c.App.ErrWriter, &slog.HandlerOptions{Level: max(level, slog.LevelWarn)})),
			Serving: func() { close(serving) },
		})
	}()
	select {
	case err := <-ended:
		return err
	case <-serving:
	}
	client := engineapi.New(paths.Socket)
	defer client.Close()
	m, err := mount(ctx, client, req, show)
	if err == nil {
		if !c.Bool("quiet") {
			fmt.Fprintf(c.App.ErrWriter, "mounted on %s; Ctrl-C unmounts it\n", oneLine(m.Target))
		}
		// It ends by being unmounted, by an interruption or with the engine,
		// which then says why; an error of the waiting says no more.
		_ = client.WaitGone(ctx, m.ID)
	}
	stop()
	if err = firstOf(err, <-ended); err == nil && !c.Bool("quiet") {
		tellIfKept(c.App.ErrWriter, paths, m)
	}
	return err
}

// resolve returns dir absolute and free of symlinks. The last element is
// taken as it is where it cannot be looked at, as below a dead mount.
func resolve(dir string) (string, error) {
	if dir == "" {
		return "", fault.New(fault.Invalid, "empty directory name")
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	real, err := filepath.EvalSymlinks(abs)
	if err == nil {
		return real, nil
	}
	parent, perr := filepath.EvalSymlinks(filepath.Dir(abs))
	if perr != nil {
		return abs, nil // what is wrong with it is for the caller to say
	}
	return filepath.Join(parent, filepath.Base(abs)), nil
}

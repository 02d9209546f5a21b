package main

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/daemon"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func daemonCommand() *cli.Command {
	return command(cli.Command{
		Name:  "daemon",
		Usage: "run the store's daemon in the foreground",
		Description: `
There is no need to: every command starts one where none runs, and such a
one ends after a minute without mounts. This command runs one under a
supervisor or to watch its log, until interrupted. Its socket speaks the
image part of Docker's Engine API.

Examples:
  imgfs daemon --debug
  docker -H unix:///run/imgfs/imgfs.sock images
  imgfs daemon stop

` + exitsText(fault.Failed, fault.Invalid, fault.Denied, fault.Conflict, fault.Unavailable),
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "idle", Usage: "`DURATION` end after so long without mounts and requests (default: never)"},
			&cli.StringFlag{Name: "cache-limit", Usage: "`SIZE` of the layers kept on disk, as 20G; beyond it those that were read longest ago are dropped, to be fetched again (default: no limit)", EnvVars: []string{"IMGFS_CACHE_LIMIT"}},
			&cli.BoolFlag{Name: "spawned", Usage: "started by another imgfs command", Hidden: true},
		},
		Subcommands: []*cli.Command{
			command(cli.Command{
				Name:  "stop",
				Usage: "stop the store's daemon",
				Description: `
Refused while there are mounts, unless --force is given: they are unmounted
first. Does nothing where no daemon runs.

Example:
  imgfs daemon stop --force

` + exitsText(fault.Failed, fault.Invalid, fault.Conflict, fault.Unavailable),
				Flags: []cli.Flag{
					&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "unmount all mounts first"},
				},
				Action: stopDaemon,
			}),
		},
		Action: runDaemon,
	})
}

func runDaemon(c *cli.Context) error {
	if err := argsBetween(c, 0, 0); err != nil {
		return err
	}
	paths, err := daemon.Locate(c.String("root"))
	if err != nil {
		return err
	}
	level, err := logLevel(c)
	if err != nil {
		return err
	}
	o := daemon.Options{Paths: paths, Idle: c.Duration("idle"), Spawned: c.Bool("spawned"), Level: level}
	if o.CacheLimit, err = cacheLimit(c.String("cache-limit")); err != nil {
		return err
	}
	if o.Idle < 0 {
		return fault.New(fault.Invalid, "--idle: negative duration")
	}
	if !o.Spawned {
		o.Logger = slog.New(slog.NewTextHandler(c.App.ErrWriter, &slog.HandlerOptions{Level: level}))
		if o.Idle == 0 {
			o.Idle = -1
		}
	}
	return daemon.Run(c.Context, o)
}

// cacheLimit reads a size: of --cache-limit, or of the variable that stands for
// it where no daemon command is given.
func cacheLimit(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	n, err := units.RAMInBytes(text)
	if err != nil || n <= 0 {
		return 0, fault.WithHint(fault.New(fault.Invalid, "cache limit %q: not a size", text), "for example: --cache-limit 20G or IMGFS_CACHE_LIMIT=20G")
	}
	return n, nil
}

// stopTimeout bounds the wait for a daemon to end.
const stopTimeout = time.Minute

func stopDaemon(c *cli.Context) error {
	if err := argsBetween(c, 0, 0); err != nil {
		return err
	}
	paths, err := daemon.Locate(c.String("root"))
	if err != nil {
		return err
	}
	client := engineapi.New(paths.Socket)
	// What is kept of them can be seen when they are gone; nothing is lost
	// where the daemon does not say.
	mounts, _ := client.Mounts(c.Context)
	ctx, cancel := context.WithTimeoutCause(c.Context, stopTimeout, errors.New("the daemon does not end"))
	defer cancel()
	err = client.Shutdown(ctx, c.Bool("force"))
	if errors.Is(err, engineapi.ErrNoDaemon) {
		return nil
	}
	if err == nil {
		for _, m := range mounts {
			tellIfKept(c.App.ErrWriter, paths, m)
		}
	}
	return err
}

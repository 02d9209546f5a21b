package main

import (
	"context"
	"errors"
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

With -H it listens elsewhere too, for others than its user and root: they may
list, pull, push, save, load and remove images as by Docker's API, and read
them, but not mount, nor have files of this machine read for them. A unix
socket is for the members of --group; tcp is for who shows a certificate
(--tlsverify), or on a loopback address for every user of this machine; fd://
takes the sockets that systemd passed. SIGHUP has the files of TLS read again.

Examples:
  imgfs daemon --debug
  imgfs daemon -H unix:///run/imgfs.sock --group imgfs
  imgfs daemon -H tcp://0.0.0.0:2376 --tlsverify --tlscacert ca.pem --tlscert cert.pem --tlskey key.pem
  docker -H unix:///run/imgfs.sock images
  imgfs daemon stop

` + exitsText(fault.Failed, fault.Invalid, fault.Denied, fault.Conflict, fault.Unavailable),
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "idle", Usage: "`DURATION` end after so long without mounts and requests (default: never)"},
			&cli.StringFlag{Name: "cache-limit", Usage: "`SIZE` of the layers kept on disk, as 20G; beyond it those that were read longest ago are dropped, to be fetched again (default: no limit)", EnvVars: []string{"IMGFS_CACHE_LIMIT"}},
			&cli.StringSliceFlag{Name: "host", Aliases: []string{"H"}, Usage: "`URL` listen at unix://PATH, tcp://HOST:PORT or fd://[NAME] as well (repeatable)", EnvVars: []string{"IMGFS_LISTEN"}},
			&cli.StringFlag{Name: "group", Usage: "`GROUP` that may use the unix sockets of -H (default: root and this user alone)", EnvVars: []string{"IMGFS_GROUP"}},
			&cli.StringFlag{Name: "tlscacert", Usage: "`FILE` certificate that clients' certificates are signed with", EnvVars: []string{"IMGFS_TLSCACERT"}},
			&cli.StringFlag{Name: "tlscert", Usage: "`FILE` the daemon's certificate: TLS is spoken on tcp", EnvVars: []string{"IMGFS_TLSCERT"}},
			&cli.StringFlag{Name: "tlskey", Usage: "`FILE` its key", EnvVars: []string{"IMGFS_TLSKEY"}},
			&cli.BoolFlag{Name: "tlsverify", Usage: "let in who shows a certificate signed with --tlscacert, and nobody else", EnvVars: []string{"IMGFS_TLSVERIFY"}},
			&cli.BoolFlag{Name: "insecure-tcp", Usage: "listen at any tcp address without verifying clients: whoever reaches it may use the images", EnvVars: []string{"IMGFS_INSECURE_TCP"}},
			&cli.StringFlag{Name: "metrics-addr", Usage: "`HOST:PORT` or unix://PATH where Prometheus finds /metrics", EnvVars: []string{"IMGFS_METRICS_ADDR"}},
			&cli.StringFlag{Name: "debug-addr", Usage: "`HOST:PORT` of loopback, or unix://PATH, of /debug/pprof and /debug/vars", EnvVars: []string{"IMGFS_DEBUG_ADDR"}},
			&cli.StringFlag{Name: "log-format", Usage: "`FORMAT` of the log: text or json", Value: "text", EnvVars: []string{"IMGFS_LOG_FORMAT"}},
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
					&cli.StringFlag{Name: "host", Aliases: []string{"H"}, Usage: "`URL` of the daemon, as in imgfs -H"},
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
	if err := checkLogFormat(c.String("log-format")); err != nil {
		return err
	}
	o := daemon.Options{Paths: paths, Idle: c.Duration("idle"), Spawned: c.Bool("spawned"), Level: level, JSON: c.String("log-format") == "json"}
	if o.CacheLimit, err = cacheLimit(c.String("cache-limit")); err != nil {
		return err
	}
	if o.Idle < 0 {
		return fault.New(fault.Invalid, "--idle: negative duration")
	}
	if o.Spawned {
		return daemon.Run(c.Context, o) // and listens nowhere else: those variables speak for another
	}
	o.Logger = daemon.NewLogger(c.App.ErrWriter, o.JSON, level)
	if o.Idle == 0 {
		o.Idle = -1
	}
	o.Listening = daemon.Listening{
		Hosts: c.StringSlice("host"), Group: c.String("group"), InsecureTCP: c.Bool("insecure-tcp"),
		TLS: daemon.TLS{CA: c.String("tlscacert"), Cert: c.String("tlscert"), Key: c.String("tlskey"), Verify: c.Bool("tlsverify")},
	}
	o.MetricsAddr, o.DebugAddr = c.String("metrics-addr"), c.String("debug-addr")
	ctx := c.Context
	if o.Reloads() {
		ctx = context.WithoutCancel(ctx) // which a hangup ends; Run itself heeds the others
	}
	return daemon.Run(ctx, o)
}

// checkLogFormat reads --log-format, or the variable that stands for it.
func checkLogFormat(s string) error {
	if s != "" && s != "text" && s != "json" {
		return fault.New(fault.Invalid, "log format %q: not one of text, json", s)
	}
	return nil
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
	client, err := dial(c)
	if err != nil {
		return err
	}
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

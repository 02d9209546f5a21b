// Imgfs mounts container images as directories.
//
// This command is the thin end: it reads flags and the environment, asks the
// store's daemon over its socket (package engineapi), and prints. Two things
// it does itself, because they must happen in the caller's namespaces: the
// mount system calls and the unmounting (package fs). `imgfs daemon` runs the
// engine (package daemon); everything else starts one where none answers.
//
// # What goes where
//
// Data goes to standard output, progress and errors to standard error. A
// successful mount or umount prints nothing. An error is one line,
//
//	imgfs: text in lower case without a full stop
//	hint: the command that mends it
//
// the second only where there is such a command. The exit code says what
// kind of failure it was: see the table in fail.go, the only place that knows.
//
// # Flags
//
// urfave/cli stops reading flags at the first positional argument and takes
// later ones as arguments, silently. permute.go therefore parses every
// argument before the library sees it, by the library's own declarations, so
// that flags work everywhere and an unknown one is an error.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/sandbox"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run executes one command line and returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 && args[0] == sandboxCommand {
		return sandboxInit()
	}
	// What the caller has set to be ignored (nohup) stays so.
	signals := slices.DeleteFunc([]os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP}, signal.Ignored)
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	defer stop()
	app := newApp(stdout, stderr)
	if len(args) > 0 && args[0] == completeCommand {
		complete(ctx, app, args[1:])
		return 0
	}
	parsed, err := permute(app, args)
	if err != nil {
		code := fail(ctx, stderr, err)
		if runsProgram(parsed.path) {
			code = sandbox.CodeFailed // the others are the program's
		}
		return code
	}
	if parsed.help {
		if err := printHelp(stdout, app, parsed.path); err != nil {
			return fail(ctx, stderr, err)
		}
		return 0
	}
	if err := app.RunContext(ctx, append([]string{app.Name}, parsed.args...)); err != nil {
		return fail(ctx, stderr, err)
	}
	return 0
}

// newApp returns the command tree. It holds no state: every command finds
// its writers and flags in its context.
func newApp(stdout, stderr io.Writer) *cli.App {
	return &cli.App{
		Name:   "imgfs",
		Usage:  "mount any container image as a directory",
		Writer: stdout, ErrWriter: stderr,
		HideHelp: true, HideHelpCommand: true, HideVersion: true,
		DisableSliceFlagSeparator: true,
		// Errors are printed by run, in one form; the library must not exit.
		ExitErrHandler: func(*cli.Context, error) {},
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "root", Usage: "`STORE` directory of the store (default: /var/lib/imgfs, or $XDG_DATA_HOME/imgfs without root)", EnvVars: []string{"IMGFS_ROOT"}},
			&cli.StringFlag{Name: "host", Aliases: []string{"H"}, Usage: "`URL` of a daemon that runs already, unix://PATH or tcp://HOST:PORT, instead of the store's own; IMGFS_CERT_PATH is a directory of ca.pem, cert.pem and key.pem for TLS", EnvVars: []string{"IMGFS_HOST"}},
			&cli.StringFlag{Name: "log-level", Usage: "`LEVEL` log level of the daemon that this command starts or runs: debug, info, warn, error", Value: "info", EnvVars: []string{"IMGFS_LOG_LEVEL"}},
			&cli.BoolFlag{Name: "debug", Aliases: []string{"D"}, Usage: "same as --log-level debug"},
			&cli.BoolFlag{Name: "help", Aliases: []string{"h"}, Usage: "show help"},
			&cli.BoolFlag{Name: "version", Aliases: []string{"v"}, Usage: "print the version"},
		},
		Commands: allCommands(),
		Action: func(c *cli.Context) error {
			if c.Bool("version") {
				return printVersionLine(c.App.Writer)
			}
			return printHelp(c.App.Writer, c.App, nil)
		},
	}
}

// command completes the declaration of a command with what all have in common.
func command(c cli.Command) *cli.Command {
	c.HideHelp, c.HideHelpCommand = true, true
	return &c
}

// argsBetween refuses a wrong number of arguments.
func argsBetween(c *cli.Context, low, high int) error {
	n := c.NArg()
	if n >= low && (high < 0 || n <= high) {
		return nil
	}
	text := "too many arguments"
	if n < low {
		text = "missing argument"
	}
	return fault.WithHint(fault.New(fault.Invalid, "%s", text), "usage: %s", strings.TrimSpace(c.Command.HelpName+" "+c.Command.ArgsUsage))
}

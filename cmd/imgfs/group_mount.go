package main

import "github.com/urfave/cli/v2"

// mountCommands are the commands that make and end mounts.
func mountCommands() []*cli.Command {
	return []*cli.Command{
		mountCommand(), umountCommand(), mountsCommand(), upperCommand(), layoutCommand(),
		runCommand(), chrootCommand(), bundleCommand(),
		diffCommand(), exportCommand(), commitCommand(),
	}
}

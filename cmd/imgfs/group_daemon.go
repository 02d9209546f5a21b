package main

import "github.com/urfave/cli/v2"

// daemonCommands are the commands of the daemon and of this program.
func daemonCommands() []*cli.Command {
	return []*cli.Command{
		statusCommand(), infoCommand(), statsCommand(), eventsCommand(), daemonCommand(), versionCommand(), completionCommand(),
	}
}

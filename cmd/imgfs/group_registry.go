package main

import "github.com/urfave/cli/v2"

// registryCommands are the commands that talk to registries.
func registryCommands() []*cli.Command {
	return []*cli.Command{
		pullCommand(), pushCommand(), searchCommand(), tagsCommand(), manifestCommand(),
		loginCommand(), logoutCommand(), indexCommand(), convertCommand(),
	}
}

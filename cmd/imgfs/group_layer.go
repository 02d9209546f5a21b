package main

import "github.com/urfave/cli/v2"

// layerCommands are the commands of layers and their bytes.
func layerCommands() []*cli.Command {
	return []*cli.Command{
		warmCommand(), pinCommand(), unpinCommand(), pinsCommand(), dfCommand(), verifyCommand(), whyCommand(),
		layerCommand(), fsckCommand(),
	}
}

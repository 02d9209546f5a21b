package main

import "github.com/urfave/cli/v2"

// readCommands are the commands that read a tree without a mount.
func readCommands() []*cli.Command {
	return []*cli.Command{catCommand(), lsCommand(), cpCommand()}
}

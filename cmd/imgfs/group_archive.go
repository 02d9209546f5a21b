package main

import "github.com/urfave/cli/v2"

// archiveCommands are the commands of archives of images.
func archiveCommands() []*cli.Command {
	return []*cli.Command{saveCommand(), loadCommand(), importCommand()}
}

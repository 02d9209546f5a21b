package main

import "github.com/urfave/cli/v2"

// imageCommands are the commands of the images in the store.
func imageCommands() []*cli.Command {
	return []*cli.Command{
		imagesCommand(), inspectCommand(), rmiCommand(), gcCommand(), refsCommand(),
	}
}

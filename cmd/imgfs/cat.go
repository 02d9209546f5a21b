package main

import (
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/fault"
)

func catCommand() *cli.Command {
	return command(cli.Command{
		Name: "cat", ArgsUsage: "IMAGE:PATH [[IMAGE:]PATH...]",
		Usage: "print files of an image",
		Description: treeText + `
A PATH alone is of the image before it. Of an image that is held lazily, only
these files are fetched. What is missing is told, and the rest is printed.

Examples:
  imgfs cat ubuntu:14.04:/etc/os-release
  imgfs cat debian:12:/etc/passwd /etc/group
  imgfs cat --platform linux/arm64 alpine:/bin/busybox | file -
  imgfs cat /mnt/x:/etc/hosts

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Denied, fault.Integrity,
			fault.Network, fault.Unavailable, fault.Canceled),
		Flags:  treeFlags(),
		Action: cat,
	})
}

func cat(c *cli.Context) error {
	if err := argsBetween(c, 1, -1); err != nil {
		return err
	}
	type file struct{ tree, path string }
	var files []file
	for i, arg := range c.Args().Slice() {
		f := file{path: arg}
		if _, _, own := splitPath(arg); i > 0 && !own && strings.HasPrefix(arg, "/") {
			f.tree = files[i-1].tree
		} else {
			var err error
			if f.tree, f.path, err = needPath(arg); err != nil {
				return err
			}
		}
		files = append(files, f)
	}
	t, err := openTrees(c)
	if err != nil {
		return err
	}
	defer t.show.end()
	var first error
	for _, f := range files {
		req, err := t.request(f.tree, f.path)
		if err == nil {
			req.Raw = true
			err = t.client.ReadTree(c.Context, req, t.show.step, c.App.Writer)
		}
		if err != nil {
			if c.Context.Err() != nil || len(files) == 1 {
				return err
			}
			printError(c.App.ErrWriter, err)
			first = firstOf(first, reported{err})
		}
	}
	return first
}

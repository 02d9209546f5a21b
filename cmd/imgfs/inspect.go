package main

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func inspectCommand() *cli.Command {
	return command(cli.Command{
		Name: "inspect", ArgsUsage: "IMAGE [IMAGE...]",
		Usage: "show everything known about images",
		Description: `
Prints a JSON array as docker does, or each image through a template. What
is not found is left out of the array.

Examples:
  imgfs inspect ubuntu:14.04
  imgfs inspect --format '{{.Os}}/{{.Architecture}}' ubuntu:14.04
  imgfs inspect --format '{{json .Config.Env}}' ubuntu:14.04

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Conflict, fault.Unavailable),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "format", Aliases: []string{"f"}, Usage: "`TEMPLATE` Go template, or json"},
		},
		Action: inspect,
	})
}

func inspect(c *cli.Context) error {
	client, err := connectToShow(c, 1, -1)
	if err != nil {
		return err
	}
	list := []engineapi.ImageInspect{}
	var first error
	for _, name := range c.Args().Slice() {
		i, err := client.Inspect(c.Context, name)
		switch {
		case fault.KindOf(err) == fault.NotFound:
			// docker's words: scripts look for them.
			fmt.Fprintf(c.App.ErrWriter, "Error: No such image: %s\n", oneLine(name))
			first = firstOf(first, reported{err})
		case err != nil && fault.KindOf(err) != fault.Unavailable && c.Context.Err() == nil:
			printError(c.App.ErrWriter, err)
			first = firstOf(first, reported{err})
		case err != nil:
			return err
		default:
			list = append(list, i)
		}
	}
	if err := printInspect(c, list); err != nil {
		return err
	}
	return first
}

// printInspect writes list as one JSON array, or each element as --format asks.
func printInspect[T any](c *cli.Context, list []T) error {
	switch format := c.String("format"); format {
	case "":
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "    ")
		if err := enc.Encode(list); err != nil {
			return err
		}
		_, err := b.WriteTo(c.App.Writer)
		return err
	case "json":
		return printJSONLines(c.App.Writer, list)
	default:
		t, err := parseTemplate(unescape.Replace(format), functions)
		if err != nil {
			return err
		}
		for _, i := range list {
			// A name may be a field of the type (.ID) or one of the JSON
			// document (.Id, .Config.Env): docker takes both.
			if printTemplate(c.App.Writer, t, i) == nil {
				continue
			}
			doc, err := document(i)
			if err != nil {
				return err
			}
			if err := printTemplate(c.App.Writer, t, doc); err != nil {
				return err
			}
		}
		return nil
	}
}

// document returns v as its JSON form read back: maps, slices and scalars.
func document(v any) (any, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var doc any
	return doc, dec.Decode(&doc)
}

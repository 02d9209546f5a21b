package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func inspectCommand() *cli.Command {
	return command(cli.Command{
		Name: "inspect", ArgsUsage: "IMAGE|DIR|LAYER [IMAGE|DIR|LAYER...]",
		Usage: "show everything known about images, mounts or layers",
		Description: `
Prints a JSON array as docker does, or each thing through a template. What is not
found is left out of the array. What a name means is tried in the order image,
mount (its directory, or its ID), layer, unless --type says which.

--raw prints an image's config, --manifest its manifest: the very bytes that
their digests are of.

Examples:
  imgfs inspect ubuntu:14.04
  imgfs inspect --format '{{.Os}}/{{.Architecture}}' ubuntu:14.04
  imgfs inspect --format '{{json .Config.Env}}' ubuntu:14.04
  imgfs inspect --type mount /mnt/x
  imgfs inspect --raw ubuntu:14.04 | sha256sum

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Conflict, fault.Integrity, fault.Unavailable),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "format", Aliases: []string{"f"}, Usage: "`TEMPLATE` Go template, or json"},
			&cli.BoolFlag{Name: "manifest", Usage: "print the manifest of the image, byte for byte"},
			&cli.StringFlag{Name: "platform", Usage: "`OS/ARCH[/VARIANT]` show what an image's name stands for on this platform"},
			&cli.BoolFlag{Name: "raw", Usage: "print the config of the image, byte for byte"},
			&cli.StringFlag{Name: "type", Usage: "`TYPE` of what the names mean: image, mount or layer"},
		},
		Action: inspect,
	})
}

func inspect(c *cli.Context) error {
	if c.String("type") != "" {
		if err := oneOf(c, "type", "image", "mount", "layer"); err != nil {
			return err
		}
	} else if c.String("platform") != "" {
		c.Set("type", "image")
	}
	if c.Bool("raw") || c.Bool("manifest") {
		return inspectRaw(c)
	}
	client, err := connectToShow(c, 1, -1)
	if err != nil {
		return err
	}
	return inspectEach(c, func(name string) (any, error) {
		found, err := inspectOne(c, client, name)
		if fault.KindOf(err) == fault.NotFound {
			// docker's words: scripts look for them.
			what := c.String("type")
			if what == "" {
				what = "object"
			}
			fmt.Fprintf(c.App.ErrWriter, "Error: No such %s: %s\n", what, oneLine(name))
			err = reported{err}
		}
		return found, err
	})
}

// inspectEach prints what look finds of each argument as printInspect does.
// What cannot be shown is told and left out, and its error returned in the end;
// a daemon that has gone ends it.
func inspectEach[T any](c *cli.Context, look func(name string) (T, error)) error {
	list := []T{}
	var first error
	for _, name := range c.Args().Slice() {
		found, err := look(name)
		var told reported
		switch {
		case errors.As(err, &told):
			first = firstOf(first, told)
		case err != nil && fault.KindOf(err) != fault.Unavailable && c.Context.Err() == nil:
			printError(c.App.ErrWriter, err)
			first = firstOf(first, reported{err})
		case err != nil:
			return err
		default:
			list = append(list, found)
		}
	}
	if err := printInspect(c, list); err != nil {
		return err
	}
	return first
}

// inspectOne returns what a name means.
func inspectOne(c *cli.Context, client *engineapi.Client, name string) (any, error) {
	var missing error
	for _, kind := range []struct {
		name string
		look func() (any, error)
	}{
		{"image", func() (any, error) {
			return client.Inspect(c.Context, name, engineapi.InspectOptions{Platform: c.String("platform")})
		}},
		{"mount", func() (any, error) { return inspectMount(c, client, name) }},
		{"layer", func() (any, error) { return client.Layer(c.Context, name) }},
	} {
		if want := c.String("type"); want != "" && want != kind.name {
			continue
		}
		found, err := kind.look()
		switch fault.KindOf(err) {
		case fault.NotFound:
			missing = err
		case fault.Invalid: // a path is no name of an image
			missing = firstOf(missing, err)
		default:
			return found, err
		}
	}
	return nil, missing
}

// inspectMount returns the uppermost mount at a directory, or that of an ID or
// the beginning of one.
func inspectMount(c *cli.Context, client *engineapi.Client, name string) (found engineapi.Mount, err error) {
	list, err := client.Mounts(c.Context)
	if err != nil {
		return found, err
	}
	target, err := resolve(name)
	if err != nil {
		return found, err
	}
	err = fault.New(fault.NotFound, "No such mount: %s", name)
	for _, m := range list {
		if m.Target == target {
			found, err = m, nil
		}
	}
	if err != nil {
		if m, several := mountCalled(list, name); m != nil {
			return *m, nil
		} else if several != nil {
			return found, several
		}
	}
	return found, err
}

// inspectRaw prints documents of images, one behind the other.
func inspectRaw(c *cli.Context) error {
	if err := argsBetween(c, 1, -1); err != nil {
		return err
	}
	kind := engineapi.DocumentConfig
	if c.Bool("manifest") {
		kind = engineapi.DocumentManifest
	}
	switch {
	case c.Bool("raw") && c.Bool("manifest"):
		return fault.New(fault.Invalid, "--raw and --manifest: only one at a time")
	case c.IsSet("format") || c.String("type") != "" && c.String("type") != "image":
		return fault.New(fault.Invalid, "an image's %s is printed as it is, without --format and --type", kind)
	}
	client, err := connect(c)
	if err != nil {
		return err
	}
	for _, name := range c.Args().Slice() {
		b, err := client.Document(c.Context, name, kind, c.String("platform"))
		if err != nil {
			return err
		}
		if _, err := c.App.Writer.Write(b); err != nil {
			return err
		}
	}
	return nil
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

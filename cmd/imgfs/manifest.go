package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func manifestCommand() *cli.Command {
	platform := &cli.StringFlag{Name: "platform", Usage: "`OS/ARCH[/VARIANT]` of an index, the manifest for this platform"}
	exits := exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Denied, fault.Integrity, fault.Network, fault.Unavailable, fault.Canceled)
	return command(cli.Command{
		Name:  "manifest",
		Usage: "show what a name stands for in its registry",
		Description: `
Examples:
  imgfs manifest inspect debian:12
  imgfs manifest digest --platform linux/arm64 debian:12

` + exits,
		Action: func(c *cli.Context) error {
			return printHelp(c.App.Writer, c.App, []*cli.Command{c.Command})
		},
		Subcommands: []*cli.Command{
			command(cli.Command{
				Name: "inspect", ArgsUsage: "IMAGE",
				Usage: "print a manifest, or an index of several",
				Description: `
Nothing is pulled.

Examples:
  imgfs manifest inspect debian:12
  imgfs manifest inspect --platform linux/arm64 debian:12
  imgfs manifest inspect --raw debian:12 | sha256sum

` + exits,
				Flags:  append([]cli.Flag{&cli.BoolFlag{Name: "raw", Usage: "print its very bytes"}, platform}, accessFlags()...),
				Action: inspectManifest,
			}),
			command(cli.Command{
				Name: "digest", ArgsUsage: "IMAGE",
				Usage: "print the digest that a name stands for",
				Description: `
Examples:
  imgfs manifest digest debian:12
  imgfs manifest digest --platform linux/arm64 debian:12

` + exits,
				Flags: append([]cli.Flag{platform}, accessFlags()...),
				Action: func(c *cli.Context) error {
					m, err := manifest(c)
					if err == nil {
						fmt.Fprintln(c.App.Writer, m.Digest)
					}
					return err
				},
			}),
		},
	})
}

func inspectManifest(c *cli.Context) error {
	m, err := manifest(c)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if c.Bool("raw") {
		out.Write(m.Raw)
	} else if err := json.Indent(&out, m.Raw, "", "    "); err != nil {
		return fault.WithHint(fault.New(fault.Integrity, "manifest: %w", err), "--raw prints it as it is")
	} else {
		out.WriteByte('\n')
	}
	_, err = out.WriteTo(c.App.Writer)
	return err
}

// manifest gets what a command's argument names.
func manifest(c *cli.Context) (engineapi.RegistryManifest, error) {
	if err := argsBetween(c, 1, 1); err != nil {
		return engineapi.RegistryManifest{}, err
	}
	o, err := registryOptions(c)
	if err != nil {
		return engineapi.RegistryManifest{}, err
	}
	client, err := connect(c)
	if err != nil {
		return engineapi.RegistryManifest{}, err
	}
	name := c.Args().First()
	m, err := client.Manifest(c.Context, name, o)
	if err != nil || c.String("platform") == "" {
		return m, err
	}
	digest, err := manifestFor(&m, c.String("platform"))
	if err != nil || digest == "" {
		return m, err
	}
	return client.Manifest(c.Context, withoutTag(name)+"@"+digest, o)
}

// manifestFor returns the digest that an index has for a platform; "" if m is
// no index, but for that platform.
func manifestFor(m *engineapi.RegistryManifest, platform string) (string, error) {
	parts := strings.Split(platform, "/")
	fits := func(p *engineapi.Platform) bool {
		return p != nil && len(parts) >= 2 && p.OS == parts[0] && p.Architecture == parts[1] && (len(parts) < 3 || p.Variant == parts[2])
	}
	var index struct {
		Manifests []engineapi.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(m.Raw, &index); err != nil {
		return "", fault.New(fault.Integrity, "manifest: %w", err)
	}
	for _, d := range index.Manifests {
		if fits(d.Platform) {
			return d.Digest, nil
		}
	}
	var have []string
	for _, p := range m.Platforms {
		if len(index.Manifests) == 0 && fits(&p) {
			return "", nil
		}
		have = append(have, oneLine(p.String()))
	}
	return "", fault.WithHint(fault.New(fault.NotFound, "no matching manifest for %s in the manifest list entries", platform),
		"there are: %s", strings.Join(have, ", "))
}

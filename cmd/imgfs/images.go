package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func imagesCommand() *cli.Command {
	return command(cli.Command{
		Name: "images", ArgsUsage: "[REPOSITORY[:TAG]]",
		Usage: "list the images in the store",
		Description: `
Filters (-f): dangling=BOOL, reference=PATTERN, label=KEY[=VALUE],
before=IMAGE, since=IMAGE, until=TIME.
Template fields: .ID .Repository .Tag .Digest .CreatedSince .CreatedAt .Size

Examples:
  imgfs images
  imgfs images ubuntu
  imgfs images -q --no-trunc -f dangling=true
  imgfs images --format 'table {{.ID}}\t{{.Repository}}:{{.Tag}}'
  imgfs images --format json

` + exitsText(fault.Failed, fault.Invalid, fault.Unavailable),
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "show all images (there are no hidden ones; for docker's sake)"},
			&cli.BoolFlag{Name: "digests", Usage: "show digests"},
			&cli.StringSliceFlag{Name: "filter", Aliases: []string{"f"}, Usage: "`KEY=VALUE` list only what matches"},
			formatFlag(),
			&cli.BoolFlag{Name: "no-trunc", Usage: "do not shorten IDs"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print IDs only"},
		},
		Action: listImages,
	})
}

func formatFlag() cli.Flag {
	return &cli.StringFlag{Name: "format", Usage: "`TEMPLATE` Go template, json, table, or 'table TEMPLATE'"}
}

// imageRow is one line of `imgfs images`; names and meanings are docker's.
type imageRow struct {
	ID           string
	Repository   string
	Tag          string
	Digest       string
	CreatedSince string
	CreatedAt    string
	Size         string
}

var imageHead = imageRow{ID: "IMAGE ID", Repository: "REPOSITORY", Tag: "TAG", Digest: "DIGEST",
	CreatedSince: "CREATED", CreatedAt: "CREATED AT", Size: "SIZE"}

const (
	imageTable       = `{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}`
	imageTableDigest = `{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}`
)

func listImages(c *cli.Context) error {
	if err := argsBetween(c, 0, 1); err != nil {
		return err
	}
	if err := checkFormat(c); err != nil {
		return err
	}
	filters := map[string][]string{}
	for _, f := range c.StringSlice("filter") {
		k, v, ok := strings.Cut(f, "=")
		if !ok {
			return fault.New(fault.Invalid, "invalid filter %q: not KEY=VALUE", f)
		}
		k = strings.ToLower(strings.TrimSpace(k))
		filters[k] = append(filters[k], strings.TrimSpace(v))
	}
	if c.NArg() == 1 {
		filters["reference"] = append(filters["reference"], c.Args().First())
	}
	client, err := connect(c)
	if err != nil {
		return err
	}
	list, err := client.Images(c.Context, filters)
	if err != nil {
		return err
	}
	if c.Bool("quiet") && c.String("format") == "" {
		for _, i := range list {
			fmt.Fprintln(c.App.Writer, imageID(i, c.Bool("no-trunc")))
		}
		return nil
	}
	format, standard := c.String("format"), imageTable
	if c.Bool("digests") {
		standard = imageTableDigest
	}
	digests := c.Bool("digests") || asksDigest(format)
	var rows []imageRow
	for _, i := range list {
		rows = append(rows, imageRows(i, digests, c.Bool("no-trunc"))...)
	}
	return printRows(c.App.Writer, format, standard, imageHead, rows)
}

// asksDigest says whether a template names the field that only --digests
// fills otherwise; docker decides likewise.
func asksDigest(format string) bool { return strings.Contains(format, ".Digest") }

func imageID(i engineapi.ImageSummary, long bool) string {
	if long {
		return string(i.ID)
	}
	return i.ID.Short()
}

const none = "<none>"

// imageRows returns one row for each tag of an image; with digests, one for
// each pair of a tag and a digest of its repository; for a repository known
// by digest only, one without a tag; and one without a name for an image
// that has none.
func imageRows(i engineapi.ImageSummary, digests, long bool) []imageRow {
	base := imageRow{ID: imageID(i, long), Repository: none, Tag: none, Digest: none,
		CreatedSince: since(time.Unix(i.Created, 0)), CreatedAt: time.Unix(i.Created, 0).String(), Size: size(i.Size)}
	byRepo := map[string][]string{} // digests
	var order []string              // repositories that have digests
	for _, d := range i.RepoDigests {
		repo, digest, ok := strings.Cut(d, "@")
		if !ok || digest == none {
			continue
		}
		if byRepo[repo] == nil {
			order = append(order, repo)
		}
		byRepo[repo] = append(byRepo[repo], digest)
	}
	var rows []imageRow
	tagged := map[string]bool{}
	for _, t := range i.RepoTags {
		repo, tag := splitTag(t)
		if tag == none {
			continue
		}
		tagged[repo] = true
		row := base
		row.Repository, row.Tag = repo, tag
		if ds := byRepo[repo]; digests && len(ds) > 0 {
			for _, d := range ds {
				row.Digest = d
				rows = append(rows, row)
			}
			continue
		}
		rows = append(rows, row)
	}
	for _, repo := range order {
		if tagged[repo] {
			continue
		}
		row := base
		row.Repository = repo
		if !digests {
			rows = append(rows, row)
			continue
		}
		for _, d := range byRepo[repo] {
			row.Digest = d
			rows = append(rows, row)
		}
	}
	if len(rows) == 0 {
		rows = append(rows, base)
	}
	return rows
}

// splitTag cuts NAME:TAG at the tag's colon, not at a registry's port.
func splitTag(ref string) (repo, tag string) {
	i := strings.LastIndexByte(ref, ':')
	if i < 0 || strings.Contains(ref[i:], "/") {
		return ref, none
	}
	return ref[:i], ref[i+1:]
}

package main

import (
	"bufio"
	"fmt"
	"runtime/debug"
	"slices"
	"strconv"
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
SIZE counts the files of an image, as docker does; CACHED is how much of its
layers is here, LAZY what would be fetched if it were read. An image that others
were made of, and that has no name, is only shown with -a. --tree shows what each name
stands for, by platform; U says that it is mounted.

Filters (-f): dangling=BOOL, reference=PATTERN, label=KEY[=VALUE],
label!=KEY[=VALUE], before=IMAGE, since=IMAGE, until=TIME, mounted=BOOL,
cached=BOOL.
Template fields: .ID .Repository .Tag .Digest .CreatedSince .CreatedAt .Size
.SharedSize .UniqueSize .Containers .Cached .Lazy

Examples:
  imgfs images
  imgfs images ubuntu
  imgfs images --tree
  imgfs images -q --no-trunc -f dangling=true
  imgfs images --format 'table {{.ID}}\t{{.Repository}}:{{.Tag}}'
  imgfs images --format json

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Unavailable),
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "show also images without a name that others were made of"},
			&cli.BoolFlag{Name: "digests", Usage: "show digests"},
			&cli.StringSliceFlag{Name: "filter", Aliases: []string{"f"}, Usage: "`KEY=VALUE` list only what matches"},
			formatFlag(),
			&cli.BoolFlag{Name: "no-trunc", Usage: "do not shorten IDs"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print IDs only"},
			&cli.BoolFlag{Name: "tree", Usage: "show what each name stands for, by platform"},
		},
		Action: listImages,
	})
}

func formatFlag() cli.Flag {
	return &cli.StringFlag{Name: "format", Usage: "`TEMPLATE` Go template, json, table, or 'table TEMPLATE'"}
}

// imageRow is one line of `imgfs images`; names and meanings are docker's, but
// for the last two.
type imageRow struct {
	Containers   string
	CreatedAt    string
	CreatedSince string
	Digest       string
	ID           string
	Repository   string
	SharedSize   string
	Size         string
	Tag          string
	UniqueSize   string
	Cached, Lazy string
}

var imageHead = imageRow{ID: "IMAGE ID", Repository: "REPOSITORY", Tag: "TAG", Digest: "DIGEST",
	CreatedSince: "CREATED", CreatedAt: "CREATED AT", Size: "SIZE", SharedSize: "SHARED SIZE",
	UniqueSize: "UNIQUE SIZE", Containers: "CONTAINERS", Cached: "CACHED", Lazy: "LAZY"}

const (
	imageTable       = `{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}\t{{.Cached}}\t{{.Lazy}}`
	imageTableDigest = `{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}\t{{.Cached}}\t{{.Lazy}}`
)

// filterFlags returns what --filter says, in lower case, as docker has it.
func filterFlags(c *cli.Context) (map[string][]string, error) {
	filters := map[string][]string{}
	for _, f := range c.StringSlice("filter") {
		k, v, ok := strings.Cut(f, "=")
		if !ok {
			return nil, fault.New(fault.Invalid, "invalid filter %q: not KEY=VALUE", f)
		}
		k = strings.ToLower(strings.TrimSpace(k))
		filters[k] = append(filters[k], strings.TrimSpace(v))
	}
	return filters, nil
}

func listImages(c *cli.Context) error {
	if err := argsBetween(c, 0, 1); err != nil {
		return err
	}
	if err := checkFormat(c); err != nil {
		return err
	}
	filters, err := filterFlags(c)
	if err != nil {
		return err
	}
	if c.NArg() == 1 {
		filters["reference"] = append(filters["reference"], c.Args().First())
	}
	format, quiet := c.String("format"), c.Bool("quiet")
	if c.Bool("tree") {
		for _, f := range []string{"quiet", "digests", "format"} {
			if c.IsSet(f) {
				return fault.New(fault.Invalid, "--%s is not yet supported with --tree", f)
			}
		}
	}
	client, err := connect(c)
	if err != nil {
		return err
	}
	digests := c.Bool("digests") || asksDigest(format)
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // all of a long list is needed to the end
	table := format == "" || format == "table"
	list, err := client.Images(c.Context, filters, engineapi.ListOptions{
		All:        c.Bool("all"),
		Manifests:  c.Bool("tree"),
		Brief:      true, // no row has labels
		Digests:    digests || c.Bool("tree"),
		Cached:     table && !quiet || format == "json" || strings.Contains(format, ".Cached") || strings.Contains(format, ".Lazy"),
		SharedSize: strings.Contains(format, ".SharedSize") || strings.Contains(format, ".UniqueSize") || strings.Contains(format, ".Containers"),
	})
	if err != nil {
		return err
	}
	for _, i := range list {
		if i.Broken != "" {
			fmt.Fprintf(c.App.ErrWriter, "warning: image %s is damaged: %s; imgfs fsck --repair\n", i.ID.Short(), oneLine(i.Broken))
		}
	}
	if c.Bool("tree") {
		return printTree(c.App.Writer, list, c.Bool("no-trunc"))
	}
	if quiet && format == "" {
		out := bufio.NewWriter(c.App.Writer)
		for _, i := range list {
			fmt.Fprintln(out, imageID(i, c.Bool("no-trunc")))
		}
		return out.Flush()
	}
	standard := imageTable
	if c.Bool("digests") {
		standard = imageTableDigest
	}
	dates := format == "json" || strings.Contains(format, ".CreatedAt")
	rows, long := make([]imageRow, 0, len(list)), c.Bool("no-trunc")
	for _, i := range list {
		at := len(rows)
		rows = appendImageRows(rows, &i, digests, long)
		for ; dates && at < len(rows); at++ {
			rows[at].CreatedAt = time.Unix(i.Created, 0).String()
		}
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

// notAsked stands where a figure was not computed.
const notAsked = "N/A"

// appendImageRows appends one row for each tag of an image; with digests, one
// for each pair of a tag and a digest of its repository; for a repository known
// by digest only, one without a tag; and one without a name for an image that
// has none. CreatedAt, which takes longer than all the rest, is not filled in.
func appendImageRows(rows []imageRow, i *engineapi.ImageSummary, digests, long bool) []imageRow {
	before := len(rows)
	row := imageRow{ID: imageID(*i, long), CreatedSince: since(time.Unix(i.Created, 0)), Size: size(i.Size),
		SharedSize: notAsked, UniqueSize: notAsked, Containers: notAsked, Cached: notAsked, Lazy: notAsked}
	if i.SharedSize >= 0 {
		row.SharedSize, row.UniqueSize = size(i.SharedSize), size(i.Size-i.SharedSize)
	}
	if i.Containers >= 0 {
		row.Containers = strconv.FormatInt(i.Containers, 10)
	}
	if i.Cached != nil && i.Lazy != nil {
		row.Cached, row.Lazy = size(*i.Cached), size(*i.Lazy)
	}
	add := func(repo, tag, digest string) {
		row.Repository, row.Tag, row.Digest = repo, tag, digest
		rows = append(rows, row)
	}
	// of returns the digests of a repository, or, if they are not asked for, none.
	of := func(repo string) []string {
		list := []string{none}
		for _, d := range i.RepoDigests {
			r, digest, ok := strings.Cut(d, "@")
			if !digests || !ok || digest == none || r != repo {
				continue
			}
			if list[0] == none {
				list = list[:0]
			}
			list = append(list, digest)
		}
		return list
	}
	for _, t := range i.RepoTags {
		if repo, tag := splitTag(t); tag != none {
			for _, d := range of(repo) {
				add(repo, tag, d)
			}
		}
	}
	for n, d := range i.RepoDigests {
		repo, digest, ok := strings.Cut(d, "@")
		inRepo := func(name string) bool {
			rest, ok := strings.CutPrefix(name, repo)
			return ok && rest != "" && (rest[0] == '@' || rest[0] == ':' && !strings.Contains(rest, "/"))
		}
		if !ok || digest == none || slices.ContainsFunc(i.RepoTags, inRepo) || slices.ContainsFunc(i.RepoDigests[:n], inRepo) {
			continue
		}
		for _, d := range of(repo) {
			add(repo, none, d)
		}
	}
	if len(rows) == before {
		add(none, none, none)
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

package main

import (
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func searchCommand() *cli.Command {
	return command(cli.Command{
		Name: "search", ArgsUsage: "TERM",
		Usage: "look for repositories",
		Description: `
Searches Docker Hub, or the registry whose host the term begins with: by its
search, or, where it has none, in the names that its catalog lists. A host
with nothing behind the slash lists what there is.

Filters (-f): stars=N (at least), is-official=BOOL, is-automated=BOOL.
Template fields: .Name .Description .StarCount .IsOfficial .IsAutomated

Examples:
  imgfs search --limit 5 ubuntu
  imgfs search -f is-official=true --no-trunc ubuntu
  imgfs search registry.example.com/app
  imgfs search --format '{{.Name}}' registry.example.com/

` + exitsText(fault.Failed, fault.Invalid, fault.Denied, fault.Network, fault.Unavailable, fault.Canceled),
		Flags: append([]cli.Flag{
			&cli.IntFlag{Name: "limit", Usage: "`N` how many to show, up to 100", Value: 25},
			&cli.StringSliceFlag{Name: "filter", Aliases: []string{"f"}, Usage: "`KEY=VALUE` list only what matches"},
			formatFlag(),
			&cli.BoolFlag{Name: "no-trunc", Usage: "do not shorten descriptions"},
		}, accessFlags()...),
		Action: search,
	})
}

// without returns flags but for those of these names.
func without(flags []cli.Flag, names ...string) []cli.Flag {
	return slices.DeleteFunc(flags, func(f cli.Flag) bool { return slices.Contains(names, f.Names()[0]) })
}

// accessFlags are the flags of commands that ask a registry something short.
func accessFlags() []cli.Flag { return without(registryFlags(), "platform", "progress", "quiet") }

// searchRow is one line of `imgfs search`; names and meanings are docker's.
type searchRow struct {
	Name        string
	Description string
	StarCount   string
	IsOfficial  string
	IsAutomated string
}

var searchHead = searchRow{"NAME", "DESCRIPTION", "STARS", "OFFICIAL", "AUTOMATED"}

const searchTable = `{{.Name}}\t{{.Description}}\t{{.StarCount}}\t{{.IsOfficial}}`

func search(c *cli.Context) error {
	client, err := connectToShow(c, 1, 1)
	if err != nil {
		return err
	}
	req := engineapi.SearchRequest{Term: c.Args().First(), Limit: c.Int("limit")}
	if req.Limit < 1 || req.Limit > 100 {
		return fault.New(fault.Invalid, "Limit %d is outside the range of [1, 100]", req.Limit)
	}
	if req.Registry, err = registryOptions(c); err != nil {
		return err
	}
	automated, err := searchFilters(c.StringSlice("filter"), &req)
	if err != nil {
		return err
	}
	list, err := client.Search(c.Context, req)
	if err != nil {
		return err
	}
	rows := []searchRow{}
	for _, r := range list {
		if automated {
			break // nothing is, any more
		}
		d := oneLine(r.Description)
		if short := truncate(d, 44); short != d && !c.Bool("no-trunc") {
			d = short + "…"
		}
		rows = append(rows, searchRow{oneLine(r.Name), d, strconv.Itoa(r.StarCount), ok(r.IsOfficial), ok(r.IsAutomated)})
	}
	return printRows(c.App.Writer, c.String("format"), searchTable, searchHead, rows)
}

// ok is how docker shows that something is so.
func ok(b bool) string {
	if b {
		return "[OK]"
	}
	return ""
}

// searchFilters puts filters into req; automated says that only automated
// builds are wanted.
func searchFilters(filters []string, req *engineapi.SearchRequest) (automated bool, err error) {
	for _, f := range filters {
		k, v, found := strings.Cut(f, "=")
		if !found {
			return false, fault.New(fault.Invalid, "invalid filter %q: not KEY=VALUE", f)
		}
		b, berr := strconv.ParseBool(v)
		switch k {
		case "stars":
			n, err := strconv.Atoi(v)
			if err != nil {
				return false, fault.New(fault.Invalid, "invalid filter 'stars=%s'", v)
			}
			req.Stars = max(req.Stars, n)
			continue
		case "is-official":
			req.Official = &b
		case "is-automated":
			automated = b
		default:
			return false, fault.New(fault.Invalid, "invalid filter '%s'", k)
		}
		if berr != nil {
			return false, fault.New(fault.Invalid, "invalid filter '%s'", f)
		}
	}
	return automated, nil
}

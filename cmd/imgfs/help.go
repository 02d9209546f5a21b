package main

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/fault"
)

// printHelp writes the help of the program (path empty) or of the last
// command in path.
func printHelp(w io.Writer, app *cli.App, path []*cli.Command) error {
	b := bufio.NewWriter(w)
	if len(path) == 0 {
		programHelp(b, app)
		return b.Flush()
	}
	c := path[len(path)-1]
	var names []string
	for _, p := range path {
		names = append(names, p.Name)
	}
	name := "imgfs " + strings.Join(names, " ")
	options := ""
	if len(c.Flags) > 0 {
		options = " [OPTIONS]"
	}
	fmt.Fprintf(b, "Usage:  %s\n", strings.TrimRight(name+options+" "+c.ArgsUsage, " "))
	fmt.Fprintf(b, "\n%s.\n", upperFirst(c.Usage))
	if len(c.Aliases) > 0 {
		fmt.Fprintf(b, "\nAlias:  %s\n", strings.Join(c.Aliases, ", "))
	}
	if len(c.Subcommands) > 0 {
		b.WriteString("\nCommands:\n")
		printCommands(b, c.Subcommands)
	}
	if len(c.Flags) > 0 {
		b.WriteString("\nOptions:\n")
		printFlags(b, c.Flags)
	}
	if c.Description != "" {
		fmt.Fprintf(b, "\n%s\n", strings.Trim(c.Description, "\n"))
	}
	b.WriteString("\nGlobal options: see imgfs --help\n")
	return b.Flush()
}

func programHelp(b *bufio.Writer, app *cli.App) {
	fmt.Fprintf(b, "Usage:  imgfs [OPTIONS] COMMAND\n\n%s.\n", upperFirst(app.Usage))
	b.WriteString(`
Example:
  imgfs mount ubuntu:14.04 /mnt/x
  cat /mnt/x/etc/os-release
  imgfs umount /mnt/x

Commands:
`)
	printCommands(b, app.Commands)
	b.WriteString("\nOptions:\n")
	printFlags(b, app.Flags)
	b.WriteString("\nExit codes:\n")
	b.WriteString("    0  done\n")
	for _, e := range exits {
		fmt.Fprintf(b, "%5d  %s\n", e.code, e.text)
	}
	b.WriteString("\nimgfs COMMAND --help says more about a command.\n")
}

func printCommands(b io.Writer, commands []*cli.Command) {
	t := tabwriter.NewWriter(b, 0, 1, 3, ' ', 0)
	for _, c := range commands {
		if !c.Hidden {
			fmt.Fprintf(t, "  %s\t%s\n", strings.Join(c.Names(), ", "), upperFirst(c.Usage))
		}
	}
	t.Flush()
}

func printFlags(b io.Writer, flags []cli.Flag) {
	t := tabwriter.NewWriter(b, 0, 1, 3, ' ', 0)
	for _, f := range flags {
		if line := flagLine(f); line != "" {
			fmt.Fprintln(t, line)
		}
	}
	t.Flush()
}

// flagLine returns a flag as docker shows one: "  -q, --quiet\tusage".
func flagLine(f cli.Flag) string {
	d, ok := f.(cli.DocGenerationFlag)
	if v, has := f.(cli.VisibleFlag); !ok || has && !v.IsVisible() {
		return ""
	}
	var short, long []string
	for _, n := range f.Names() {
		if len(n) == 1 {
			short = append(short, "-"+n)
		} else {
			long = append(long, "--"+n)
		}
	}
	names := strings.Join(slices.Concat(short, long), ", ")
	if len(short) == 0 {
		names = "    " + names
	}
	value, usage := placeholder(d.GetUsage())
	if d.TakesValue() {
		names += " " + value
	}
	if env := d.GetEnvVars(); len(env) > 0 {
		usage += " [$" + strings.Join(env, ", $") + "]"
	}
	if v := d.GetValue(); d.TakesValue() && v != "" && v != "0s" {
		usage += fmt.Sprintf(" (default %s)", v)
	}
	return "  " + names + "\t" + usage
}

// placeholder takes the back-quoted word off the front of a usage text: the
// name of the flag's value.
func placeholder(usage string) (value, text string) {
	if rest, ok := strings.CutPrefix(usage, "`"); ok {
		if word, text, ok := strings.Cut(rest, "` "); ok {
			return word, text
		}
	}
	return "VALUE", usage
}

// exitsText lists the codes that a command can end with, for its help.
func exitsText(kinds ...fault.Kind) string {
	var b strings.Builder
	b.WriteString("Exit codes:\n    0  done\n")
	for _, e := range exits {
		if slices.Contains(kinds, e.kind) {
			fmt.Fprintf(&b, "%5d  %s\n", e.code, e.text)
		}
	}
	return strings.TrimRight(b.String(), "\n")
}

func upperFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

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
		printCommands(b, c.Subcommands, widest(c.Subcommands))
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

// group is commands that the program's help shows together.
type group struct {
	title    string
	commands []*cli.Command
}

// groups returns all commands.
func groups() []group {
	return []group{
		{"Mount images, run programs in them, keep what they change", mountCommands()},
		{"Read files of images without mounting them", readCommands()},
		{"Images in the store, and their names", imageCommands()},
		{"Registries", registryCommands()},
		{"Archives", archiveCommands()},
		{"Layers, and which of their bytes are here", layerCommands()},
		{"The daemon and this program", daemonCommands()},
	}
}

// allCommands returns the commands of all groups, which know their group.
func allCommands() []*cli.Command {
	var all []*cli.Command
	for _, g := range groups() {
		for _, c := range g.commands {
			c.Category = g.title
			all = append(all, c)
		}
	}
	return all
}

const programExamples = `
Examples:
  imgfs mount ubuntu:14.04 /mnt/x           # an image as a directory to write to
  cat /mnt/x/etc/os-release
  imgfs umount /mnt/x                       # what was changed is kept: imgfs upper ls
  imgfs run ubuntu:14.04 bash               # a shell in it, as in a container
  imgfs cat ubuntu:14.04:/etc/os-release    # one file of it, nothing mounted
  imgfs images                              # what is in the store, and what is lazy
`

func programHelp(b *bufio.Writer, app *cli.App) {
	fmt.Fprintf(b, "Usage:  imgfs [OPTIONS] COMMAND\n\n%s.\n%s", upperFirst(app.Usage), programExamples)
	wide := widest(app.Commands)
	for rest := app.Commands; len(rest) > 0; {
		n := slices.IndexFunc(rest, func(c *cli.Command) bool { return c.Category != rest[0].Category })
		if n < 0 {
			n = len(rest)
		}
		fmt.Fprintf(b, "\n%s:\n", rest[0].Category)
		printCommands(b, rest[:n], wide)
		rest = rest[n:]
	}
	b.WriteString("\nOptions:\n")
	printFlags(b, app.Flags)
	b.WriteString("\nExit codes:\n")
	b.WriteString("    0  done\n")
	for _, e := range exits {
		fmt.Fprintf(b, "%5d  %s\n", e.code, e.text)
	}
	b.WriteString("\nimgfs COMMAND --help says more about a command, with examples.\n")
}

// widest returns the length of the longest of the commands' names.
func widest(commands []*cli.Command) int {
	n := 0
	for _, c := range commands {
		n = max(n, len(strings.Join(c.Names(), ", ")))
	}
	return n
}

func printCommands(b io.Writer, commands []*cli.Command, wide int) {
	for _, c := range commands {
		if !c.Hidden {
			fmt.Fprintf(b, "  %-*s   %s\n", wide, strings.Join(c.Names(), ", "), upperFirst(c.Usage))
		}
	}
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

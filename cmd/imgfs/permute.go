package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/fault"
)

// parsed is a command line in the order urfave/cli needs: each command's
// flags, in their long form and with their values attached, directly behind
// its name, then "--", then the arguments.
type parsed struct {
	args []string
	path []*cli.Command // the commands named, outermost first
	help bool           // --help was among the flags
}

// level is the program or one command of the path.
type level struct {
	name  string // "" for the program
	flags []cli.Flag
	out   []string
}

// permute parses args, the command line without the program's name, by the
// declarations in app. Flags may stand anywhere up to "--", or up to the command
// line of another program; a command's flag hides a global one of the same name. Short flags may be joined (-aq), and
// the last may carry its value (-fdangling=true). With an error, the path is
// that of the commands before it.
func permute(app *cli.App, args []string) (parsed, error) {
	p := &permuter{levels: []*level{{flags: app.Flags}}, commands: app.Commands}
	if len(args) > 0 && args[0] == "help" {
		p.help, args = true, args[1:]
	}
	for len(args) > 0 {
		if args[0] != "--" && p.theirs() {
			p.positional = append(p.positional, args...)
			break
		}
		tok := args[0]
		args = args[1:]
		var err error
		switch {
		case tok == "--":
			p.positional = append(p.positional, args...)
			args = nil
		case strings.HasPrefix(tok, "--"):
			args, err = p.long(tok[2:], args)
		case len(tok) > 1 && tok[0] == '-':
			args, err = p.short(tok[1:], args)
		default:
			err = p.word(tok)
		}
		if err != nil {
			return parsed{path: p.path}, err
		}
	}
	out := parsed{path: p.path, help: p.help}
	for _, l := range p.levels {
		if l.name != "" {
			out.args = append(out.args, l.name)
		}
		out.args = append(out.args, l.out...)
	}
	if len(p.positional) > 0 {
		out.args = append(append(out.args, "--"), p.positional...)
	}
	return out, nil
}

type permuter struct {
	levels     []*level // innermost last
	commands   []*cli.Command
	path       []*cli.Command
	positional []string
	help       bool
}

// word takes a token that is no flag: a command's name or an argument.
func (p *permuter) word(tok string) error {
	if len(p.positional) == 0 && len(p.commands) > 0 {
		for _, c := range p.commands {
			if c.HasName(tok) {
				p.levels = append(p.levels, &level{name: c.Name, flags: c.Flags})
				p.path = append(p.path, c)
				p.commands = c.Subcommands
				return nil
			}
		}
		var names []string
		for _, c := range p.commands {
			names = append(names, c.Names()...)
		}
		err := fault.New(fault.Invalid, "unknown command %q", strings.TrimSpace(p.name()+" "+tok))
		if s := nearest(tok, names); s != "" {
			return fault.WithHint(err, "did you mean %q?", strings.TrimSpace(p.name()+" "+s))
		}
		return fault.WithHint(err, "see %s --help", p.program())
	}
	p.positional = append(p.positional, tok)
	return nil
}

// theirs reports whether what follows is the command line of another program.
func (p *permuter) theirs() bool {
	return len(p.positional) > 0 && runsProgram(p.path)
}

// runsProgram reports whether the command named by path runs another program,
// and so ends with its exit code.
func runsProgram(path []*cli.Command) bool {
	return len(path) > 0 && strings.HasSuffix(path[len(path)-1].ArgsUsage, commandArgs)
}

// long takes --name, --name=value or --name value.
func (p *permuter) long(tok string, rest []string) ([]string, error) {
	name, value, attached := strings.Cut(tok, "=")
	l, f := p.find(name)
	if f == nil || len(name) == 1 {
		return nil, p.unknown("--"+name, name)
	}
	if !takesValue(f) {
		if !attached {
			value = "true"
		}
		return rest, p.set(l, f, "--"+name, value)
	}
	if !attached {
		if len(rest) == 0 {
			return nil, fault.WithHint(fault.New(fault.Invalid, "flag needs a value: --%s", name), "see %s --help", p.program())
		}
		value, rest = rest[0], rest[1:]
	}
	return rest, p.set(l, f, "--"+name, value)
}

// short takes -x, joined short flags -xyz, -x value, -xvalue and -x=value.
func (p *permuter) short(tok string, rest []string) ([]string, error) {
	for after := tok; after != ""; {
		_, width := utf8.DecodeRuneInString(after)
		name := after[:width]
		after = after[width:]
		l, f := p.find(name)
		if f == nil {
			return nil, p.unknown("-"+name, tok)
		}
		value, attached := strings.CutPrefix(after, "=")
		if !takesValue(f) {
			if !attached {
				value = "true"
			}
			if err := p.set(l, f, "-"+name, value); err != nil || attached {
				return rest, err
			}
			continue
		}
		if after == "" {
			if len(rest) == 0 {
				return nil, fault.WithHint(fault.New(fault.Invalid, "flag needs a value: -%s", name), "see %s --help", p.program())
			}
			value, rest = rest[0], rest[1:]
		}
		return rest, p.set(l, f, "-"+name, value)
	}
	return rest, nil
}

// set records a flag, or that help is wanted.
func (p *permuter) set(l *level, f cli.Flag, shown, value string) error {
	name := f.Names()[0]
	if takesValue(f) {
		l.out = append(l.out, "--"+name+"="+value)
		return nil
	}
	on, err := strconv.ParseBool(value)
	if err != nil {
		return fault.New(fault.Invalid, "flag %s takes true or false, not %q", shown, value)
	}
	if name == "help" {
		p.help = p.help || on
		return nil
	}
	l.out = append(l.out, fmt.Sprintf("--%s=%t", name, on))
	return nil
}

// find returns the innermost declaration of a flag.
func (p *permuter) find(name string) (*level, cli.Flag) {
	for _, l := range slices.Backward(p.levels) {
		for _, f := range l.flags {
			if slices.Contains(f.Names(), name) {
				return l, f
			}
		}
	}
	return nil, nil
}

// unknown is the error for a flag that no level declares; typed is what the
// user may have meant as a long name.
func (p *permuter) unknown(shown, typed string) error {
	err := fault.New(fault.Invalid, "unknown flag: %s", shown)
	var names []string
	for _, l := range p.levels {
		for _, f := range l.flags {
			for _, n := range f.Names() {
				if len(n) > 1 {
					names = append(names, n)
				}
			}
		}
	}
	if s := nearest(typed, names); s != "" {
		return fault.WithHint(err, "did you mean --%s?", s)
	}
	return fault.WithHint(err, "see %s --help", p.program())
}

// name returns the commands named so far, "" for none.
func (p *permuter) name() string {
	var names []string
	for _, c := range p.path {
		names = append(names, c.Name)
	}
	return strings.Join(names, " ")
}

func (p *permuter) program() string { return strings.TrimSpace("imgfs " + p.name()) }

func takesValue(f cli.Flag) bool {
	d, ok := f.(cli.DocGenerationFlag)
	return ok && d.TakesValue()
}

// nearest returns the name that typed is most likely a slip of, or "".
func nearest(typed string, names []string) string {
	best, at := "", 3 // two slips at most
	for _, n := range names {
		d := distance(typed, n)
		if len(typed) >= 3 && strings.HasPrefix(n, typed) {
			d = min(d, 1)
		}
		if d < at && 2*d <= len(typed) {
			best, at = n, d
		}
	}
	return best
}

// distance returns the number of insertions, deletions, replacements and
// swaps of neighbours that make b from a (optimal string alignment).
func distance(a, b string) int {
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		d[i][0] = i
	}
	for j := range d[0] {
		d[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			d[i][j] = min(d[i-1][j]+1, d[i][j-1]+1, d[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d[i][j] = min(d[i][j], d[i-2][j-2]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}

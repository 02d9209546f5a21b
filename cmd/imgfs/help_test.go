package main

import (
	"io"
	"regexp"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// exampleEnd is where the shell's part of an example begins: what follows is
// not imgfs'.
var exampleEnd = regexp.MustCompile(` *(\||>|<|;|&&|#|\$\(|"\$).*$`)

// Every command says what it does, shows how, and how it can end; what it shows
// is right as far as its flags tell.
func TestHelp(t *testing.T) {
	t.Parallel()
	app := newApp(io.Discard, io.Discard)
	var check func(list []*cli.Command, above []*cli.Command)
	check = func(list []*cli.Command, above []*cli.Command) {
		for _, c := range list {
			path := append(above[:len(above):len(above)], c)
			var name []string
			for _, p := range path {
				name = append(name, p.Name)
			}
			full := "imgfs " + strings.Join(name, " ")
			var b strings.Builder
			if err := printHelp(&b, app, path); err != nil {
				t.Fatal(err)
			}
			text := b.String()
			if c.Usage == "" || strings.HasSuffix(c.Usage, ".") || c.Usage != strings.ToLower(c.Usage[:1])+c.Usage[1:] {
				t.Errorf("%s: usage %q: not a phrase", full, c.Usage)
			}
			if !regexp.MustCompile(`(?m)^Examples?:$`).MatchString(text) {
				t.Errorf("%s: no examples", full)
			}
			if len(c.Subcommands) == 0 && !strings.Contains(text, "\nExit codes:") {
				t.Errorf("%s: no exit codes", full)
			}
			shown := false
			for line := range strings.Lines(text) {
				line = strings.TrimRight(line, "\n")
				if len(line) > 110 && !strings.HasPrefix(line, "  -") && !strings.HasPrefix(line, "      --") {
					t.Errorf("%s: a long line: %q", full, line)
				}
				example, ok := strings.CutPrefix(line, "  imgfs ")
				if !ok {
					continue
				}
				shown = true
				if err := parses(example); err != nil {
					t.Errorf("%s: example %q: %v", full, line, err)
				}
			}
			if !shown && c.Category != aliasCategory && c.Name != "completion" {
				t.Errorf("%s: no example of it", full)
			}
			check(c.Subcommands, path)
		}
	}
	check(app.Commands, nil)
}

// parses reads an example of a command line.
func parses(example string) error {
	// Quotes hold blanks and what the shell would take.
	hidden := regexp.MustCompile(`'[^']*'|"[^"$]*"`).ReplaceAllString(example, "x")
	words := strings.Fields(exampleEnd.ReplaceAllString(hidden, ""))
	_, err := permute(newApp(io.Discard, io.Discard), words)
	return err
}

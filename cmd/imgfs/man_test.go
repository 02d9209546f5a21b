package main

import (
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// The man page names every command, flag, environment variable and exit code
// of the program, and no others.
func TestManPage(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../../docs/imgfs.1")
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	app := newApp(io.Discard, io.Discard)

	want := map[string][]string{}
	var env []string
	add := func(section string, flags []cli.Flag) {
		want[section] = []string{}
		for _, f := range flags {
			if v, ok := f.(cli.VisibleFlag); ok && !v.IsVisible() {
				continue
			}
			want[section] = append(want[section], f.Names()...)
			env = append(env, f.(cli.DocGenerationFlag).GetEnvVars()...)
		}
		slices.Sort(want[section])
	}
	add("GLOBAL OPTIONS", app.Flags)
	for _, c := range app.Commands {
		add(strings.TrimSpace("imgfs "+c.Name+" "+c.ArgsUsage), c.Flags)
		for _, sub := range c.Subcommands {
			if sub.Category == aliasCategory {
				if name := "imgfs " + c.Name + " " + sub.Name; !strings.Contains(page, name) {
					t.Errorf("%q is missing", name)
				}
				continue
			}
			add(strings.TrimSpace("imgfs "+c.Name+" "+sub.Name+" "+sub.ArgsUsage), sub.Flags)
		}
	}

	got := sections(page)
	for section, flags := range want {
		if _, ok := got[section]; !ok {
			t.Errorf("no section %q", section)
			continue
		}
		if !slices.Equal(got[section], flags) {
			t.Errorf("section %q: flags %v, want %v", section, got[section], flags)
		}
	}
	for section := range got {
		if _, ok := want[section]; !ok && strings.HasPrefix(section, "imgfs ") {
			t.Errorf("section %q: no such command", section)
		}
	}
	for _, e := range env {
		if !strings.Contains(page, e) {
			t.Errorf("environment variable %s is missing", e)
		}
	}
	for _, e := range exits {
		if !strings.Contains(page, fmt.Sprintf("\n.B %d\n%s\n", e.code, e.text)) {
			t.Errorf("exit code %d (%s) is missing", e.code, e.text)
		}
	}
	for _, c := range app.Commands {
		for _, alias := range c.Aliases {
			if !strings.Contains(page, "imgfs "+alias) {
				t.Errorf("alias %q of %q is missing", alias, c.Name)
			}
		}
	}
}

var (
	flagLines = regexp.MustCompile(`^\.B[RI]? (\\-.*)$`)
	flagWord  = regexp.MustCompile(`(?:^|[ ,"])\\-(\\-)?([A-Za-z](?:[a-z]|\\-)*)`)
)

// sections returns the flags that each section of a roff page lists with .TP
// or .TQ, sorted.
func sections(page string) map[string][]string {
	all := map[string][]string{}
	section, tag := "", false
	for line := range strings.Lines(page) {
		line = strings.TrimSuffix(line, "\n")
		for _, macro := range []string{".SH ", ".SS "} {
			if name, ok := strings.CutPrefix(line, macro); ok {
				section = strings.ReplaceAll(name, " DIR|ID...", " DIR|ID [DIR|ID...]")
				section = strings.ReplaceAll(section, " IMAGE...", " IMAGE [IMAGE...]")
				section = strings.ReplaceAll(section, " NAME...", " NAME [NAME...]")
				all[section] = []string{}
			}
		}
		if m := flagLines.FindStringSubmatch(line); m != nil && tag {
			for _, f := range flagWord.FindAllStringSubmatch(m[1], -1) {
				all[section] = append(all[section], strings.ReplaceAll(f[2], `\-`, "-"))
			}
			slices.Sort(all[section])
		}
		tag = line == ".TP" || line == ".TQ"
	}
	return all
}

package main

import (
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/fault"
)

func TestPermute(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ line, want string }{
		// Flags behind the arguments: the library alone would take them as arguments.
		{"mount ubuntu:14.04 /mnt/x --ro", "mount --ro=true -- ubuntu:14.04 /mnt/x"},
		{"mount ubuntu:14.04 --pull always /mnt/x -q", "mount --pull=always --quiet=true -- ubuntu:14.04 /mnt/x"},
		{"mount --pull=always ubuntu:14.04 /mnt/x", "mount --pull=always -- ubuntu:14.04 /mnt/x"},
		// Global flags anywhere; they go before the command.
		{"images --root /s", "--root=/s images"},
		{"--root /s images -q", "--root=/s images --quiet=true"},
		{"daemon stop --root=/s -f", "--root=/s daemon stop --force=true"},
		// Joined short flags, values attached and not.
		{"images -aq", "images --all=true --quiet=true"},
		{"images -aqf dangling=true", "images --all=true --quiet=true --filter=dangling=true"},
		{"images -fdangling=true -f=label=x", "images --filter=dangling=true --filter=label=x"},
		// A value may look like a flag, or be empty.
		{"mount a b --creds -x", "mount --creds=-x -- a b"},
		{"images --format=", "images --format="},
		// Booleans may carry their value.
		{"images --no-trunc=false", "images --no-trunc=false"},
		{"images -q=0", "images --quiet=false"},
		// "--" ends the flags; "-" is an argument.
		{"rmi -- -f", "rmi -- -f"},
		{"mount -- --ro /mnt/x", "mount -- --ro /mnt/x"},
		{"inspect -", "inspect -- -"},
		// A command's flag hides a global one; aliases become the name.
		{"umount -l /mnt/x", "umount --lazy=true -- /mnt/x"},
		{"unmount /mnt/x", "umount -- /mnt/x"},
		{"viz", "graph"},
		// An argument that is named like a command is an argument.
		{"pull images", "pull -- images"},
		{"", ""},
		{"--version", "--version=true"},
	} {
		p, err := permute(newApp(io.Discard, io.Discard), strings.Fields(test.line))
		if got := strings.Join(p.args, " "); err != nil || got != test.want {
			t.Errorf("%q: %q, %v, want %q", test.line, got, err, test.want)
		}
	}
}

func TestPermuteRefuses(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ line, text, hint string }{
		{"mount a b --rwx", "unknown flag: --rwx", "did you mean --rw?"},
		{"mount a b --progess plain", "unknown flag: --progess", "did you mean --progress?"},
		{"mount a b --frobnicate", "unknown flag: --frobnicate", "see imgfs mount --help"},
		{"mount a b -root /s", "unknown flag: -r", "did you mean --root?"},
		{"images -aqx", "unknown flag: -x", "see imgfs images --help"},
		{"images --q", "unknown flag: --q", "see imgfs images --help"},
		{"mount a b --pull", "flag needs a value: --pull", "see imgfs mount --help"},
		{"images -qf", "flag needs a value: -f", "see imgfs images --help"},
		{"images --all=maybe", `flag --all takes true or false, not "maybe"`, ""},
		{"mout a b", `unknown command "mout"`, `did you mean "mount"?`},
		{"imgaes", `unknown command "imgaes"`, `did you mean "images"?`},
		{"frobnicate", `unknown command "frobnicate"`, "see imgfs --help"},
		{"layer frobnicate", `unknown command "layer frobnicate"`, "see imgfs layer --help"},
		{"daemon stpo", `unknown command "daemon stpo"`, `did you mean "daemon stop"?`},
	} {
		_, err := permute(newApp(io.Discard, io.Discard), strings.Fields(test.line))
		if err == nil || err.Error() != test.text || fault.HintOf(err) != test.hint || exitCode(err) != 2 {
			t.Errorf("%q: %v, hint %q, code %d, want %q, hint %q, code 2", test.line, err, fault.HintOf(err), exitCode(err), test.text, test.hint)
		}
	}
}

func TestPermuteHelp(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"--help":               "",
		"help":                 "",
		"help mount":           "mount",
		"mount --help":         "mount",
		"mount a b -h":         "mount",
		"daemon stop --help":   "daemon stop",
		"help daemon stop":     "daemon stop",
		"--root x images -qh":  "images",
		"mount --help=false a": "-",
	} {
		p, err := permute(newApp(io.Discard, io.Discard), strings.Fields(line))
		var names []string
		for _, c := range p.path {
			names = append(names, c.Name)
		}
		if got := strings.Join(names, " "); err != nil || p.help != (want != "-") || p.help && got != want {
			t.Errorf("%q: help %v of %q, %v", line, p.help, got, err)
		}
	}
}

// What permute puts out must mean to urfave/cli what was typed.
func TestPermutedIsUnderstood(t *testing.T) {
	t.Parallel()
	app := newApp(io.Discard, io.Discard)
	for _, c := range app.Commands {
		for _, f := range c.Flags {
			for _, n := range f.Names() {
				if n == "" || strings.Contains(n, "=") {
					t.Errorf("%s: flag %q", c.Name, n)
				}
			}
			d, ok := f.(interface{ GetUsage() string })
			if !ok || d.GetUsage() == "" {
				t.Errorf("%s --%s: no usage text", c.Name, f.Names()[0])
			}
		}
	}
	seen := map[string]string{}
	for _, c := range app.Commands {
		for _, n := range c.Names() {
			if seen[n] != "" {
				t.Errorf("command %s: name %q is also %s's", c.Name, n, seen[n])
			}
			seen[n] = c.Name
		}
		if !strings.Contains(c.Description, "Example") || !strings.Contains(c.Description, "Exit codes:") {
			t.Errorf("command %s: help without examples or exit codes", c.Name)
		}
		var names []string
		for _, f := range c.Flags {
			names = append(names, f.Names()...)
		}
		slices.Sort(names)
		if len(slices.Compact(slices.Clone(names))) != len(names) {
			t.Errorf("command %s: a flag twice among %v", c.Name, names)
		}
	}
}

func FuzzPermute(f *testing.F) {
	for _, line := range []string{"mount a b --ro", "images -aqf x=y", "-- x", "--root", "daemon stop -f", "-é", "-\x99"} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		p, err := permute(newApp(io.Discard, io.Discard), strings.Split(line, " "))
		if err != nil {
			if oneLine(err.Error()) == "" {
				t.Error("an error without a text")
			}
			return
		}
		again, err := permute(newApp(io.Discard, io.Discard), p.args)
		if err != nil || !slices.Equal(again.args, p.args) {
			t.Errorf("%q: %q, and that again: %q, %v", line, p.args, again.args, err)
		}
	})
}

package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/fault"
)

// completeCommand is what the shells' scripts call: imgfs __complete WORDS...,
// the last of WORDS being the one under the cursor. It prints one candidate
// per line, behind a tab what it means; a line ":dir" or ":file" asks
// the shell to add names of directories or files.
const completeCommand = "__complete"

const (
	wantDirs  = ":dir"
	wantFiles = ":file"
)

// completionPatience bounds the wait for a daemon that is busy.
const completionPatience = time.Second

func completionCommand() *cli.Command {
	return command(cli.Command{
		Name: "completion", ArgsUsage: "bash|zsh|fish",
		Usage: "print a completion script for a shell",
		Description: `
Commands, flags, their values, images and mounts are completed; no daemon is
started for it.

Examples:
  source <(imgfs completion bash)
  imgfs completion bash > /etc/bash_completion.d/imgfs
  imgfs completion zsh > "${fpath[1]}/_imgfs"
  imgfs completion fish > ~/.config/fish/completions/imgfs.fish

` + exitsText(fault.Failed, fault.Invalid),
		Action: func(c *cli.Context) error {
			if err := argsBetween(c, 1, 1); err != nil {
				return err
			}
			script, ok := completionScripts[c.Args().First()]
			if !ok {
				return fault.WithHint(fault.New(fault.Invalid, "no completion for the shell %q", c.Args().First()), "there is bash, zsh and fish")
			}
			_, err := fmt.Fprint(c.App.Writer, script)
			return err
		},
	})
}

var completionScripts = map[string]string{
	"bash": `# bash completion of imgfs
_imgfs() {
	local cur=${COMP_WORDS[COMP_CWORD]} line words i
	# A reference holds colons, at which bash splits words: work on the line.
	IFS=$' \t\n' read -ra words <<<"${COMP_LINE:0:COMP_POINT}"
	[[ ${COMP_LINE:0:COMP_POINT} == *' ' ]] && words+=("")
	local last=${words[${#words[@]}-1]}
	local colon=""
	[[ $last == *:* && $COMP_WORDBREAKS == *:* ]] && colon=${last%"${last##*:}"}
	COMPREPLY=()
	while IFS= read -r line; do
		case $line in
		:dir) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -d -- "$cur") ;;
		:file) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$cur") ;;
		*) line=${line%%$'\t'*}; printf -v line %q "${line#"$colon"}"; COMPREPLY+=("$line") ;;
		esac
	done < <("${words[0]}" __complete "${words[@]:1}" 2>/dev/null)
	[[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=:/] ]] && compopt -o nospace 2>/dev/null
}
complete -F _imgfs imgfs
`,
	"zsh": `#compdef imgfs
_imgfs() {
	local line
	local -a found
	while IFS= read -r line; do
		case $line in
		:dir) _files -/ ;;
		:file) _files ;;
		*) found+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}") ;;
		esac
	done < <("${words[1]}" __complete "${(@)words[2,CURRENT]}" 2>/dev/null)
	(( ${#found} )) && _describe imgfs found
}
compdef _imgfs imgfs
`,
	"fish": `# fish completion of imgfs
function __imgfs_complete
	set -l words (commandline -opc) (commandline -ct)
	for line in (command $words[1] __complete $words[2..-1] 2>/dev/null)
		switch $line
		case :dir
			__fish_complete_directories (commandline -ct)
		case :file
			__fish_complete_path (commandline -ct)
		case '*'
			echo $line
		end
	end
end
complete -c imgfs -f -a '(__imgfs_complete)'
`,
}

// candidate is one thing the word may be completed to.
type candidate struct{ word, about string }

// complete prints the candidates for the last of words. It never fails:
// where nothing is known, nothing is printed.
func complete(ctx context.Context, app *cli.App, words []string) {
	if len(words) == 0 {
		words = []string{""}
	}
	ctx, cancel := context.WithTimeout(ctx, completionPatience)
	defer cancel()
	current := words[len(words)-1]
	for _, c := range candidates(ctx, app, words[:len(words)-1], current) {
		switch {
		case c.word == wantDirs || c.word == wantFiles:
			fmt.Fprintln(app.Writer, c.word)
		case strings.HasPrefix(c.word, current):
			fmt.Fprintf(app.Writer, "%s\t%s\n", oneLine(c.word), oneLine(c.about))
		}
	}
}

// candidates returns what may stand behind the words before, not yet
// filtered by what of it is typed.
func candidates(ctx context.Context, app *cli.App, before []string, current string) []candidate {
	p := &permuter{levels: []*level{{flags: app.Flags}}, commands: app.Commands}
	a := &asked{permuter: p, Context: ctx, root: os.Getenv("IMGFS_ROOT"), current: current}
	for i := 0; i < len(before); i++ {
		word := before[i]
		if !strings.HasPrefix(word, "-") || word == "-" {
			if p.word(word) != nil {
				return nil
			}
			continue
		}
		name, value, attached := strings.Cut(strings.TrimLeft(word, "-"), "=")
		_, f := p.find(name)
		if f == nil || !takesValue(f) || attached {
			if name == "root" {
				a.root = value
			}
			continue
		}
		if i+1 == len(before) {
			return a.values(name)
		}
		if i++; name == "root" {
			a.root = before[i]
		}
	}
	if name, _, ok := strings.Cut(current, "="); ok && strings.HasPrefix(current, "--") {
		var all []candidate
		for _, v := range a.values(name[2:]) {
			all = append(all, candidate{name + "=" + v.word, v.about})
		}
		return all
	}
	if strings.HasPrefix(current, "-") {
		return a.flags()
	}
	if len(p.commands) > 0 && len(p.positional) == 0 {
		var all []candidate
		for _, c := range p.commands {
			if !c.Hidden {
				all = append(all, candidate{c.Name, c.Usage})
			}
		}
		return all
	}
	if len(p.path) == 0 {
		return nil
	}
	return a.arguments()
}

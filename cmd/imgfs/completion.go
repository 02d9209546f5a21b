package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/daemon"
	"github.com/imgfs/imgfs/internal/engineapi"
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
	root := os.Getenv("IMGFS_ROOT")
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
				root = value
			}
			continue
		}
		if i+1 == len(before) {
			return flagValues(ctx, p, root, name)
		}
		if i++; name == "root" {
			root = before[i]
		}
	}
	if name, _, ok := strings.Cut(current, "="); ok && strings.HasPrefix(current, "--") {
		var all []candidate
		for _, v := range flagValues(ctx, p, root, name[2:]) {
			all = append(all, candidate{name + "=" + v.word, v.about})
		}
		return all
	}
	if strings.HasPrefix(current, "-") {
		return flagNames(p)
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
	return arguments(ctx, p, root, current)
}

// arguments returns the candidates for the next argument of a command.
func arguments(ctx context.Context, p *permuter, root, current string) []candidate {
	switch p.path[0].Name {
	case "mount":
		if len(p.positional) > 0 {
			return []candidate{{wantDirs, ""}}
		}
		return append(images(ctx, root), sourceNames(current)...)
	case "run", "chroot":
		if len(p.positional) > 0 {
			return []candidate{{wantFiles, ""}} // a path inside, most likely, which may be one here too
		}
		return append(append(mountPoints(ctx, root), images(ctx, root)...), append(sourceNames(current), candidate{wantDirs, ""})...)
	case "bundle":
		if len(p.positional) > 0 {
			return []candidate{{wantDirs, ""}}
		}
		return append(images(ctx, root), sourceNames(current)...)
	case "diff":
		if len(p.positional) > 0 {
			return images(ctx, root)
		}
		return trees(ctx, root)
	case "export":
		return trees(ctx, root)
	case "commit":
		if len(p.positional) > 0 {
			return images(ctx, root)
		}
		return append(mountPoints(ctx, root), uppers(ctx, root)...)
	case "layout":
		return []candidate{{wantDirs, ""}}
	case "pull":
		return append(images(ctx, root), sourceNames(current)...)
	case "images", "inspect", "rmi", "index", "convert", "pin", "verify":
		return images(ctx, root)
	case "warm":
		if len(p.positional) == 0 { // a path inside follows
			return append(images(ctx, root), sourceNames(current)...)
		}
	case "unpin":
		return pins(ctx, root)
	case "why":
		if len(p.positional) == 0 {
			return append(images(ctx, root), candidate{wantFiles, ""})
		}
	case "umount":
		return mountPoints(ctx, root)
	case "upper":
		if len(p.path) > 1 && p.path[1].Name != "ls" {
			return uppers(ctx, root)
		}
	case "completion":
		return []candidate{{"bash", ""}, {"zsh", ""}, {"fish", ""}}
	}
	return nil
}

// trees returns all that has a tree: mounts, uppers and images.
func trees(ctx context.Context, root string) []candidate {
	return append(append(mountPoints(ctx, root), uppers(ctx, root)...), images(ctx, root)...)
}

func flagNames(p *permuter) []candidate {
	var all []candidate
	for _, l := range slices.Backward(p.levels) {
		for _, f := range l.flags {
			d, ok := f.(cli.DocGenerationFlag)
			v, visible := f.(cli.VisibleFlag)
			if !ok || visible && !v.IsVisible() {
				continue
			}
			_, about := placeholder(d.GetUsage())
			all = append(all, candidate{"--" + f.Names()[0], about})
		}
	}
	return all
}

// flagValues returns the values of the flags that have few.
func flagValues(ctx context.Context, p *permuter, root, name string) []candidate {
	var values []string
	if name == "format" && len(p.path) > 1 && p.path[0].Name == "index" && p.path[1].Name != "ls" {
		name = "index-format" // of an index, not of what is printed
	}
	switch name {
	case "index-format":
		values = []string{engineapi.IndexOwn, engineapi.IndexSoci, engineapi.IndexSociV2}
	case "to":
		values = []string{engineapi.ToEstargz, engineapi.ToZstdChunked}
	case "root", "upper-dir":
		values = []string{wantDirs}
	case "output", "o":
		values = []string{wantFiles}
	case "compression":
		values = []string{"gzip", "zstd"}
	case "upper":
		return uppers(ctx, root)
	case "xattrs":
		values = []string{"trusted", "user"}
	case "authfile":
		values = []string{wantFiles}
	case "driver":
		values = []string{"auto", "fuse", "overlay", "erofs"}
	case "pull":
		values = []string{"missing", "always", "never"}
	case "prefetch":
		values = []string{"none", "trace", "all"}
	case "on-error":
		values = []string{"eio", "retry="}
	case "verify":
		values = []string{"digests", "sealed"}
	case "progress":
		values = []string{"auto", "tty", "plain", "quiet"}
	case "log-level":
		values = []string{"debug", "info", "warn", "error"}
	case "platform":
		values = []string{"linux/amd64", "linux/arm64", "linux/arm/v7", "linux/386", "linux/ppc64le", "linux/riscv64", "linux/s390x"}
	case "format":
		values = []string{"json", "table"}
	case "filter", "f":
		values = []string{"dangling=", "reference=", "label=", "before=", "since=", "until="}
	}
	var all []candidate
	for _, v := range values {
		all = append(all, candidate{v, ""})
	}
	return all
}

// images returns the names of the store's images if its daemon runs.
func images(ctx context.Context, root string) []candidate {
	p, err := daemon.Locate(root)
	if err != nil {
		return nil
	}
	list, err := engineapi.New(p.Socket).Images(ctx, nil, engineapi.ListOptions{})
	if err != nil {
		return nil
	}
	var all []candidate
	for _, i := range list {
		for _, t := range i.RepoTags {
			all = append(all, candidate{t, i.ID.Short() + ", " + size(i.Size)})
		}
	}
	return all
}

// sourceNames returns what current, which may begin with oci: and the like, can
// become: a source's prefix, or behind one the names of files.
func sourceNames(current string) []candidate {
	var all []candidate
	for _, s := range []candidate{{"oci:", "an OCI layout"}, {"oci-archive:", "an OCI layout in a tar"}, {"docker-archive:", "what docker save writes"}} {
		path, ok := strings.CutPrefix(current, s.word)
		if !ok {
			all = append(all, s)
			continue
		}
		dir, _ := filepath.Split(path)
		entries, err := os.ReadDir(cmp.Or(dir, "."))
		if err != nil {
			return nil
		}
		all = nil
		for _, e := range entries {
			name := s.word + dir + e.Name()
			if st, err := os.Stat(dir + e.Name()); err == nil && st.IsDir() {
				name += "/"
			} else if s.word == "oci:" {
				continue
			}
			all = append(all, candidate{name, ""})
		}
		return all
	}
	return all
}

// mountPoints returns the directories imgfs has mounted on.
func mountPoints(ctx context.Context, root string) []candidate {
	p, err := daemon.Locate(root)
	if err != nil {
		return nil
	}
	list, err := engineapi.New(p.Socket).Mounts(ctx)
	if err != nil {
		return nil
	}
	var all []candidate
	for _, m := range list {
		all = append(all, candidate{m.Target, m.Image})
	}
	return all
}

// uppers returns the names of the store's uppers.
func uppers(ctx context.Context, root string) []candidate {
	p, err := daemon.Locate(root)
	if err != nil {
		return nil
	}
	list, err := engineapi.New(p.Socket).Uppers(ctx)
	if err != nil {
		return nil
	}
	var all []candidate
	for _, u := range list {
		all = append(all, candidate{u.Name, u.Image})
	}
	return all
}

// pins returns the names of the store's pins.
func pins(ctx context.Context, root string) []candidate {
	p, err := daemon.Locate(root)
	if err != nil {
		return nil
	}
	list, err := engineapi.New(p.Socket).Pins(ctx)
	if err != nil {
		return nil
	}
	var all []candidate
	for _, p := range list {
		all = append(all, candidate{p.Image, size(p.Size)})
	}
	return all
}

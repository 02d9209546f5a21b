package main

import (
	"bytes"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

func TestComplete(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		words string // the last is under the cursor, "_" is an empty one
		want  string
	}{
		{"mo", "mount mounts"},
		{"--root /s mo", "mount mounts"},
		{"daemon _", "stop"},
		{"daemon --id", "--idle"},
		{"mount --pu", "--pull"},
		{"mount --pull _", "always missing never"},
		{"mount --pull n", "never"},
		{"mount --driver=e", "--driver=erofs"},
		{"mount --driver _", "auto erofs fuse overlay"},
		{"mount --upper-dir _", ":dir"},
		{"upper _", "convert inspect ls rm"},
		{"upper convert --xattrs _", "trusted user"},
		{"mount --root _", ":dir"},
		{"mount x --authfile _", ":file"},
		{"mount ubuntu _", ":dir"},
		{"mount ubuntu -q _", ":dir"},
		{"layout _", ":dir"},
		{"export x -o _", ":file"},
		{"commit --compression _", "gzip zstd"},
		{"mount oc", "oci-archive: oci:"},
		{"pull --root /none oci:testd", "oci:testdata/"},
		{"pull --root /none oci-archive:testdata/../completion.g", "oci-archive:testdata/../completion.go"},
		{"pull --root /none oci:completion.g", ""},
		{"pull --root /none docker-archive:/nonexistent/_", ""},
		{"images -f _", "before= cached= dangling= label!= label= mounted= reference= since= until="},
		{"image ls --filter mou", "mounted="},
		{"prune --filter u", "until="},
		{"image prune --filter u", "until="},
		{"events -f type=l", "type=layer"},
		{"graph --format _", "dot json mermaid tree"},
		{"image tree --format d", "dot"},
		{"push --format _", "estargz zstd-chunked"},
		{"history --format _", "json table"},
		{"inspect --type _", "image layer mount"},
		{"image _", "exists history import inspect load ls prune pull push rm save tag tree untag"},
		{"cat --root /none oc", "oci-archive: oci:"},
		{"cp --root /none x:/y _", ":file"},
		{"load -i _", ":file"},
		{"import --root /none _", ":file"},
		{"layer import --root /none _", ":file"},
		{"daemon --tlscert _", ":file"},
		{"-H _", "tcp:// unix://"},
		{"index push --format _", "imgfs soci soci-v2"},
		{"index rm --format i", "imgfs"},
		{"index ls --format _", "json table"},
		{"convert --to _", "estargz zstd-chunked"},
		{"why --root /none _", ":file"},
		{"completion _", "bash fish zsh"},
		{"nonsense _", ""},
		{"gc --roo", "--root"},
	} {
		var b bytes.Buffer
		words := strings.Fields(test.words)
		if n := len(words) - 1; words[n] == "_" {
			words[n] = ""
		}
		app := newApp(&b, io.Discard)
		complete(t.Context(), app, words)
		var got []string
		for line := range strings.Lines(b.String()) {
			word, _, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
			got = append(got, word)
		}
		slices.Sort(got)
		if s := strings.Join(got, " "); s != test.want {
			t.Errorf("%q: %q, want %q", test.words, s, test.want)
		}
	}
}

// The scripts are at least valid in the shells that are installed.
func TestCompletionScripts(t *testing.T) {
	t.Parallel()
	for shell, script := range completionScripts {
		path, err := exec.LookPath(shell)
		if err != nil {
			t.Logf("%s is not installed", shell)
			continue
		}
		cmd := exec.CommandContext(t.Context(), path, "-n")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", shell, err, out)
		}
	}
}

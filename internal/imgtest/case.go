package imgtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Case is one odd or hostile stack of layers, and the tree it has to give.
type Case struct {
	Name   string
	About  string   // what it shows
	Layers [][]byte // tar streams, lowest first
	Want   string   // the merged tree as [List] writes it
	Error  string   // instead of Want: part of the error with which it is refused
	// Differs names independent unpackers that give another tree, and why.
	Differs map[string]string
}

// Cases reads every *.txtar below dir:
//
//	what the case shows
//	-- layer0 --
//	LINES OF A LAYER, see Tar
//	-- layer1 --
//	...
//	-- want --
//	A TREE, see List
//
// or, in place of want, "error" with a part of the message. A section
// "differs NAME" excuses an independent unpacker and says why.
func Cases(t testing.TB, dir string) []Case {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.txtar"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases in %s: %v", dir, err)
	}
	var all []Case
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		c, err := ParseCase(b)
		if err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		c.Name = strings.TrimSuffix(filepath.Base(f), ".txtar")
		all = append(all, c)
	}
	return all
}

// ParseCase reads one case, see [Cases].
func ParseCase(b []byte) (Case, error) {
	about, sections := txtar(string(b))
	c := Case{About: strings.TrimSpace(about), Differs: map[string]string{}}
	for _, f := range sections {
		switch {
		case strings.HasPrefix(f.name, "layer"):
			b, err := Tar(f.text)
			if err != nil {
				return c, fmt.Errorf("%s: %w", f.name, err)
			}
			c.Layers = append(c.Layers, b)
		case f.name == "want":
			c.Want = f.text
		case f.name == "error":
			c.Error = strings.TrimSpace(f.text)
		case strings.HasPrefix(f.name, "differs "):
			c.Differs[strings.TrimPrefix(f.name, "differs ")] = strings.TrimSpace(f.text)
		default:
			return c, fmt.Errorf("unknown section %q", f.name)
		}
	}
	if len(c.Layers) == 0 || (c.Want == "") == (c.Error == "") {
		return c, fmt.Errorf("a case has layers and one of want and error")
	}
	return c, nil
}

type section struct{ name, text string }

// txtar splits a text at its "-- NAME --" lines.
func txtar(s string) (comment string, sections []section) {
	text := &comment
	for line := range strings.Lines(s) {
		name, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), "-- ")
		if ok {
			name, ok = strings.CutSuffix(name, " --")
		}
		if ok {
			sections = append(sections, section{name: name})
			text = &sections[len(sections)-1].text
		} else {
			*text += line
		}
	}
	return comment, sections
}

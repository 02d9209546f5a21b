package main

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/imgfs/imgfs/internal/engineapi"
)

// printTree writes images as docker images --tree does: each with its names
// above each other, and below it what it has for each platform; U says that it
// is in use.
func printTree(w io.Writer, list []engineapi.ImageSummary, long bool) error {
	t := &treeTable{head: []string{"IMAGE", "ID", "DISK USAGE", "CONTENT SIZE", "CACHED", "LAZY", "EXTRA"}}
	for _, i := range list {
		t.image(&i, long)
	}
	return t.print(w)
}

// treeTable is a table whose columns but the first two are to the right.
type treeTable struct {
	head []string
	rows [][]string
}

// image adds one image.
func (t *treeTable) image(i *engineapi.ImageSummary, long bool) {
	names := slices.Clone(i.RepoTags)
	if len(names) == 0 {
		names = slices.Clone(i.RepoDigests)
	}
	if len(names) == 0 {
		names = []string{"<untagged>"}
	}
	manifests := slices.DeleteFunc(slices.Clone(i.Manifests), func(m engineapi.ManifestSummary) bool { return m.Kind != "image" || m.ImageData == nil })
	var all engineapi.ManifestSize
	for _, m := range manifests {
		all.Content += m.Size.Content
		all.Total += m.Size.Total
	}
	for _, n := range names[:len(names)-1] {
		t.rows = append(t.rows, []string{n})
	}
	t.add(names[len(names)-1], imageID(*i, long), i.Size, all, i.Containers > 0)
	for n, m := range manifests {
		branch := "├─ "
		if n == len(manifests)-1 {
			branch = "└─ "
		}
		t.add(branch+platformName(m.ImageData.Platform), shortDigest(m.ID, long), m.ImageData.Size.Unpacked, m.Size, len(m.ImageData.Containers) > 0)
	}
}

func (t *treeTable) add(name, id string, unpacked int64, s engineapi.ManifestSize, used bool) {
	extra := ""
	if used {
		extra = "U"
	}
	t.rows = append(t.rows, []string{name, id, size(unpacked), size(s.Total), size(s.Content), size(s.Total - s.Content), extra})
}

// platformName returns a platform as it is typed: linux/arm/v7.
func platformName(p engineapi.Platform) string {
	return oneLine(p.String())
}

// shortDigest returns the first characters of a digest, as IDs are shown.
func shortDigest(digest string, long bool) string {
	hex := digest[strings.IndexByte(digest, ':')+1:]
	if long || len(hex) < 12 {
		return digest
	}
	return hex[:12]
}

// print writes the table.
func (t *treeTable) print(w io.Writer) error {
	wide := make([]int, len(t.head))
	for _, row := range append([][]string{t.head}, t.rows...) {
		if len(row) == 1 {
			continue // a name above others takes what room it needs
		}
		for i, cell := range row {
			wide[i] = max(wide[i], utf8.RuneCountInString(cell))
		}
	}
	out := bufio.NewWriter(w)
	for _, row := range append([][]string{t.head}, t.rows...) {
		line := ""
		for i, cell := range row {
			gap := strings.Repeat(" ", max(0, wide[i]-utf8.RuneCountInString(cell)))
			if i < 2 {
				line += cell + gap + "   "
			} else {
				line += gap + cell + "   "
			}
		}
		fmt.Fprintln(out, strings.TrimRight(line, " "))
	}
	return out.Flush()
}

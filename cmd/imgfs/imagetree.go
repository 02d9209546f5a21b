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
// above each other, and below it what it has for each platform.
func printTree(w io.Writer, list []engineapi.ImageSummary, long bool) error {
	t := &treeTable{head: []string{"IMAGE", "ID", "DISK USAGE", "CONTENT SIZE", "LAZY", "IN USE"}}
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
	var here, missing, lazy int64
	mounts := 0
	manifests := slices.DeleteFunc(slices.Clone(i.Manifests), func(m engineapi.ManifestSummary) bool { return m.Kind != "image" || m.ImageData == nil })
	for _, m := range manifests {
		here += m.Size.Content
		missing += max(0, m.Size.Total-m.Size.Content)
		mounts += len(m.ImageData.Containers)
	}
	if i.Lazy != nil {
		lazy = *i.Lazy
	} else {
		lazy = missing
	}
	for _, n := range names[:len(names)-1] {
		t.rows = append(t.rows, []string{n})
	}
	id := imageID(*i, long)
	t.rows = append(t.rows, []string{names[len(names)-1], id, size(i.Size), size(here), size(lazy), inUse(mounts > 0 || i.Containers > 0)})
	for n, m := range manifests {
		branch := "├─ "
		if n == len(manifests)-1 {
			branch = "└─ "
		}
		t.rows = append(t.rows, []string{
			branch + platformName(m.ImageData.Platform), shortDigest(m.ID, long),
			size(m.ImageData.Size.Unpacked), size(m.Size.Content), size(max(0, m.Size.Total-m.Size.Content)), inUse(len(m.ImageData.Containers) > 0),
		})
	}
}

func inUse(yes bool) string {
	if yes {
		return "✔"
	}
	return ""
}

// platformName returns a platform as it is typed: linux/arm/v7.
func platformName(p engineapi.Platform) string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return oneLine(s)
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

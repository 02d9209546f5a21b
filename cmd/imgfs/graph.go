package main

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func graphCommand() *cli.Command {
	return command(cli.Command{
		Name: "graph", Aliases: []string{"viz"}, ArgsUsage: "[IMAGE...]",
		Usage: "show which images lie on which layers, and where they are mounted",
		Description: `
Layers that images have in common, from the lowest on, are drawn once: a branch
begins where they part. Of a layer is shown its size, and how much of that is not
here. Without IMAGE all are shown.

Examples:
  imgfs graph
  imgfs graph debian:12 app:1
  imgfs graph --format dot | dot -Tsvg > images.svg
  imgfs graph --format mermaid >> README.md
  imgfs graph --format json | jq '.layers[] | select(.images > 1)'

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Unavailable),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "format", Usage: "`FORMAT` tree, dot (Graphviz), mermaid or json", Value: "tree"},
			&cli.BoolFlag{Name: "no-trunc", Usage: "do not shorten IDs"},
		},
		Action: graph,
	})
}

func graph(c *cli.Context) error {
	if err := oneOf(c, "format", "tree", "dot", "mermaid", "json"); err != nil {
		return err
	}
	client, err := connect(c)
	if err != nil {
		return err
	}
	g, err := client.Graph(c.Context)
	if err != nil {
		return err
	}
	if c.NArg() > 0 {
		wanted := map[string]bool{}
		for _, name := range c.Args().Slice() {
			i, err := client.Inspect(c.Context, name, engineapi.InspectOptions{})
			if err != nil {
				return err
			}
			wanted[string(i.ID)] = true
		}
		narrow(&g, wanted)
	}
	out := bufio.NewWriter(c.App.Writer)
	switch c.String("format") {
	case "json":
		if err := printJSON(out, g); err != nil {
			return err
		}
	case "dot":
		printDot(out, stacksOf(&g, c.Bool("no-trunc")))
	case "mermaid":
		printMermaid(out, stacksOf(&g, c.Bool("no-trunc")))
	default:
		for _, n := range stacksOf(&g, c.Bool("no-trunc")) {
			printBranch(out, n, "", "")
		}
	}
	return out.Flush()
}

// narrow leaves of a graph what belongs to some images.
func narrow(g *engineapi.Graph, wanted map[string]bool) {
	g.Images = slices.DeleteFunc(g.Images, func(i engineapi.GraphImage) bool { return !wanted[string(i.ID)] })
	g.Mounts = slices.DeleteFunc(g.Mounts, func(m engineapi.GraphMount) bool { return !wanted[string(m.Image)] })
	has := map[string]bool{}
	for _, i := range g.Images {
		for _, l := range i.Layers {
			has[string(l)] = true
		}
	}
	g.Layers = slices.DeleteFunc(g.Layers, func(l engineapi.GraphLayer) bool { return !has[string(l.ID)] })
}

// Kinds of nodes.
const (
	layerNode = iota
	imageNode
	mountNode
)

// node is a layer on those below it, an image on its uppermost layer, or a mount
// of an image.
type node struct {
	kind   int
	name   string   // what it is called in a drawing
	text   []string // lines
	above  []*node
	layers map[string]*node // of above, those that are layers
}

// stacksOf returns the lowest layers, and images that have none.
func stacksOf(g *engineapi.Graph, long bool) []*node {
	short := func(s string) string { return shortDigest(s, long) }
	sizes := map[string]engineapi.GraphLayer{}
	for _, l := range g.Layers {
		sizes[string(l.ID)] = l
	}
	ground := &node{layers: map[string]*node{}}
	total := 0
	add := func(below *node, kind int, text ...string) *node {
		total++
		n := &node{kind: kind, name: fmt.Sprintf("%c%d", "lim"[kind], total), text: text, layers: map[string]*node{}}
		below.above = append(below.above, n)
		return n
	}
	images := slices.Clone(g.Images)
	slices.SortFunc(images, func(a, b engineapi.GraphImage) int {
		return cmp.Or(slices.Compare(a.Names, b.Names), cmp.Compare(a.ID, b.ID))
	})
	for _, i := range images {
		at := ground
		for _, k := range i.Layers {
			next := at.layers[string(k)]
			if next == nil {
				l := sizes[string(k)]
				text := size(l.Size)
				if l.Present < l.Size {
					text += ", " + size(l.Size-l.Present) + " lazy"
				}
				next = add(at, layerNode, short(string(k)), text)
				at.layers[string(k)] = next
			}
			at = next
		}
		names := slices.DeleteFunc(slices.Clone(i.Names), func(s string) bool { return strings.Contains(s, "@") && !long })
		if len(names) == 0 {
			names = []string{none}
		}
		n := add(at, imageNode, append([]string{short(string(i.ID))}, names...)...)
		for _, m := range g.Mounts {
			if m.Image == i.ID {
				add(n, mountNode, m.Target, m.Mode)
			}
		}
	}
	return ground.above
}

// printBranch writes a node and what is above it as a tree.
func printBranch(w io.Writer, n *node, first, rest string) {
	text := oneLine(strings.Join(n.text, " "))
	switch n.kind {
	case imageNode:
		text = oneLine(strings.Join(n.text[1:], ", ")) + " (" + n.text[0] + ")"
	case mountNode:
		text = "mounted at " + oneLine(n.text[0]) + " (" + n.text[1] + ")"
	}
	fmt.Fprintf(w, "%s%s\n", first, text)
	for i, a := range n.above {
		if i == len(n.above)-1 {
			printBranch(w, a, rest+"└─ ", rest+"   ")
		} else {
			printBranch(w, a, rest+"├─ ", rest+"│  ")
		}
	}
}

// each calls f for all nodes, a node before those above it, with the name of
// what it lies on.
func each(list []*node, below string, f func(n *node, below string)) {
	for _, n := range list {
		f(n, below)
		each(n.above, n.name, f)
	}
}

// printDot writes nodes for Graphviz, in the manner of docker's viz.
func printDot(w io.Writer, list []*node) {
	quote := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	fmt.Fprintln(w, "digraph imgfs {")
	each(list, "", func(n *node, below string) {
		var lines []string
		for _, t := range n.text {
			lines = append(lines, quote.Replace(oneLine(t)))
		}
		look := "shape=box"
		switch n.kind {
		case imageNode:
			look = `shape=box,fillcolor="paleturquoise",style="filled,rounded"`
		case mountNode:
			look = "shape=folder"
		}
		if below == "" {
			fmt.Fprintf(w, " base -> %q [style=invis]\n", n.name)
		} else {
			fmt.Fprintf(w, " %q -> %q\n", below, n.name)
		}
		fmt.Fprintf(w, " %q [label=\"%s\",%s];\n", n.name, strings.Join(lines, `\n`), look)
	})
	fmt.Fprintln(w, " base [style=invisible]\n}")
}

// printMermaid writes nodes for Mermaid.
func printMermaid(w io.Writer, list []*node) {
	quote := strings.NewReplacer(`"`, "#quot;", "<", "#lt;", ">", "#gt;")
	fmt.Fprintln(w, "graph BT")
	each(list, "", func(n *node, below string) {
		var lines []string
		for _, t := range n.text {
			lines = append(lines, quote.Replace(oneLine(t)))
		}
		open, end := `["`, `"]`
		switch n.kind {
		case imageNode:
			open, end = `("`, `")`
		case mountNode:
			open, end = `[("`, `")]`
		}
		fmt.Fprintf(w, "  %s%s%s%s\n", n.name, open, strings.Join(lines, "<br/>"), end)
		if below != "" {
			fmt.Fprintf(w, "  %s --> %s\n", n.name, below)
		}
	})
}

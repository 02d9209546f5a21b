package main

import (
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

// treeText says, in the help of the commands that read trees, what one is.
const treeText = `
IMAGE is what imgfs mount takes; one that is not here is pulled first. In its
place stand a directory on which imgfs has mounted something, an upper's name,
or the directory of an upper. PATH begins with a slash; links on the way are
followed inside the tree. Nothing is mounted for it.
`

// treeFlags are those of commands that read a tree.
func treeFlags(more ...cli.Flag) []cli.Flag {
	return append(append(more,
		&cli.StringFlag{Name: "pull", Usage: "`WHEN` ask the registry: missing, always or never", Value: "missing"}), registryFlags()...)
}

// treeReader reads what the arguments of a command name.
type treeReader struct {
	*cli.Context
	client *engineapi.Client
	show   display
	req    engineapi.TreeRequest // what all requests have in common
}

// openTrees checks flags and connects. The caller ends show.
func openTrees(c *cli.Context) (*treeReader, error) {
	if err := oneOf(c, "pull", "missing", "always", "never"); err != nil {
		return nil, err
	}
	t := &treeReader{Context: c, req: engineapi.TreeRequest{Platform: c.String("platform"), Pull: c.String("pull")}}
	var err error
	if t.show, err = newDisplay(c); err != nil {
		return nil, err
	}
	t.show = &ifNeeded{display: t.show}
	if t.req.Registry, err = registryOptions(c); err != nil {
		return nil, err
	}
	t.client, err = connect(c)
	return t, err
}

// request returns the request for an argument's tree and path.
func (t *treeReader) request(tree, path string) (engineapi.TreeRequest, error) {
	req := t.req
	req.Path = path
	var err error
	if req.Source, err = sourceArg(t.Context.Context, t.client, tree); err != nil {
		return req, err
	}
	if req.Source.Image == "" {
		err = flush(t.Context.Context, t.client, req.Source)
	}
	return req, err
}

// splitPath cuts TREE:/PATH. The colon before the path is the first that a slash
// follows, but for one that ends the scheme of a source. ok is false where there
// is no path.
func splitPath(arg string) (tree, path string, ok bool) {
	scheme := ""
	for _, s := range append(sources[:], "docker:") {
		if strings.HasPrefix(arg, s) {
			scheme = s
		}
	}
	i := strings.Index(arg[len(scheme):], ":/")
	if i < 0 {
		return arg, "", false
	}
	i += len(scheme)
	return arg[:i], arg[i+1:], true
}

// needPath is splitPath for an argument that must have a path.
func needPath(arg string) (tree, path string, err error) {
	tree, path, ok := splitPath(arg)
	if !ok || tree == "" {
		return "", "", fault.WithHint(fault.New(fault.Invalid, "%s: not of the form IMAGE:/PATH", arg), "for example ubuntu:14.04:/etc/os-release")
	}
	return tree, path, nil
}

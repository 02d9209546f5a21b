package main

import (
	"cmp"
	"context"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/daemon"
	"github.com/imgfs/imgfs/internal/engineapi"
)

// asked is a command line that is being completed.
type asked struct {
	*permuter
	context.Context
	root    string // of the store
	current string // the word under the cursor
}

// inImageGroup are the commands of the group image that are called otherwise
// outside of it.
var inImageGroup = map[string]string{"ls": "images", "rm": "rmi", "tree": "graph"}

// command returns the names of the command in question, as it is called outside
// of the group image.
func (a *asked) command() string {
	group, name, _ := strings.Cut(a.name(), " ")
	if group != "image" || name == "" {
		return a.name()
	}
	return cmp.Or(inImageGroup[name], name)
}

// arguments returns the candidates for the next argument of a command.
func (a *asked) arguments() []candidate {
	n := len(a.positional)
	switch name := a.command(); name {
	case "mount", "bundle":
		if n > 0 {
			return []candidate{{wantDirs, ""}}
		}
		return slices.Concat(a.images(), a.sources())
	case "run", "chroot":
		if n > 0 {
			return []candidate{{wantFiles, ""}} // a path inside, most likely, which may be one here too
		}
		return slices.Concat(a.mounts(), a.images(), a.sources(), []candidate{{wantDirs, ""}})
	case "diff", "export":
		if n > 0 {
			return a.images()
		}
		return a.trees()
	case "commit":
		if n > 0 {
			return a.images()
		}
		return slices.Concat(a.mounts(), a.uppers())
	case "cat", "ls":
		return a.paths()
	case "cp":
		if n > 0 {
			return []candidate{{wantFiles, ""}}
		}
		return a.paths()
	case "layout":
		return []candidate{{wantDirs, ""}}
	case "pull", "ref parse":
		return slices.Concat(a.images(), a.sources())
	case "images", "history", "tag", "untag", "rmi", "push", "save", "graph", "exists", "index push", "index ls", "index rm", "convert",
		"pin", "verify", "manifest inspect", "manifest digest":
		return a.images()
	case "tags":
		return a.repositories()
	case "inspect":
		return slices.Concat(a.images(), a.mounts())
	case "stats":
		return a.mounts()
	case "import":
		if n > 0 {
			return a.images()
		}
		return []candidate{{wantFiles, ""}}
	case "layer import", "refs import":
		return []candidate{{wantFiles, ""}}
	case "layer inspect", "layer export", "layer rm":
		return a.layers()
	case "warm":
		if n == 0 { // a path inside follows
			return slices.Concat(a.images(), a.sources())
		}
	case "unpin":
		return a.pins()
	case "why":
		if n == 0 {
			return append(a.images(), candidate{wantFiles, ""})
		}
	case "umount":
		return a.mounts()
	case "upper inspect", "upper rm", "upper convert":
		return a.uppers()
	case "completion":
		return words("bash", "zsh", "fish")
	}
	return nil
}

func words(list ...string) []candidate {
	var all []candidate
	for _, w := range list {
		all = append(all, candidate{w, ""})
	}
	return all
}

// valuesOf are the values of flags that have few, by flag, or by command and
// flag where they differ.
var valuesOf = map[string][]string{
	"index push format": {engineapi.IndexOwn, engineapi.IndexSoci, engineapi.IndexSociV2},
	"index rm format":   {engineapi.IndexOwn, engineapi.IndexSoci, engineapi.IndexSociV2},
	"push format":       {engineapi.ToEstargz, engineapi.ToZstdChunked},
	"graph format":      {"tree", "dot", "mermaid", "json"},
	"format":            {"json", "table"},
	"to":                {engineapi.ToEstargz, engineapi.ToZstdChunked},
	"type":              {"image", "mount", "layer"},
	"compression":       {"gzip", "zstd"},
	"xattrs":            {"trusted", "user"},
	"driver":            {"auto", "fuse", "overlay", "erofs"},
	"pull":              {"missing", "always", "never"},
	"prefetch":          {"none", "trace", "all"},
	"on-error":          {"eio", "retry="},
	"verify":            {"digests", "sealed"},
	"progress":          {"auto", "tty", "plain", "quiet"},
	"log-level":         {"debug", "info", "warn", "error"},
	"log-format":        {"text", "json"},
	"host":              {"unix://", "tcp://"},
	"platform":          {"linux/amd64", "linux/arm64", "linux/arm/v7", "linux/386", "linux/ppc64le", "linux/riscv64", "linux/s390x"},
	"images filter":     {"dangling=", "reference=", "label=", "label!=", "before=", "since=", "until=", "mounted=", "cached="},
	"prune filter":      {"until=", "label=", "label!="},
	"search filter":     {"stars=", "is-official=", "is-automated="},
	"events filter":     {"type=image", "type=mount", "type=layer", "type=daemon", "event=", "image=", "mount=", "layer=", "label="},
	"root":              {wantDirs},
	"upper-dir":         {wantDirs},
	"output":            {wantFiles},
	"input":             {wantFiles},
	"authfile":          {wantFiles},
	"tlscacert":         {wantFiles},
	"tlscert":           {wantFiles},
	"tlskey":            {wantFiles},
	"config":            {wantFiles},
}

// values returns the values of the flags that have few.
func (a *asked) values(flag string) []candidate {
	if _, f := a.find(flag); f != nil {
		flag = f.Names()[0]
	}
	if flag == "upper" {
		return a.uppers()
	}
	if list, ok := valuesOf[a.command()+" "+flag]; ok {
		return words(list...)
	}
	return words(valuesOf[flag]...)
}

// flags returns the names of the flags that may stand there.
func (a *asked) flags() []candidate {
	var all []candidate
	for _, l := range slices.Backward(a.levels) {
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

// client returns a client of the store's daemon, which is not started for it;
// nil if there is no telling where it would be.
func (a *asked) client() *engineapi.Client {
	p, err := daemon.Locate(a.root)
	if err != nil {
		return nil
	}
	return engineapi.New(p.Socket)
}

// listed returns the candidates that a list of the daemon's gives; none if no
// daemon answers.
func listed[T any](a *asked, list func(*engineapi.Client, context.Context) ([]T, error), each func(T) []candidate) []candidate {
	client := a.client()
	if client == nil {
		return nil
	}
	found, err := list(client, a)
	if err != nil {
		return nil
	}
	var all []candidate
	for _, x := range found {
		all = append(all, each(x)...)
	}
	return all
}

// images returns the names of the store's images.
func (a *asked) images() []candidate {
	return listed(a, func(c *engineapi.Client, ctx context.Context) ([]engineapi.ImageSummary, error) {
		return c.Images(ctx, nil, engineapi.ListOptions{})
	}, func(i engineapi.ImageSummary) (all []candidate) {
		for _, t := range i.RepoTags {
			all = append(all, candidate{t, i.ID.Short() + ", " + size(i.Size)})
		}
		return all
	})
}

// repositories returns the names of the store's images without their tags.
func (a *asked) repositories() []candidate {
	var all []candidate
	for _, i := range a.images() {
		repo, _ := splitTag(i.word)
		all = append(all, candidate{repo, ""})
	}
	slices.SortFunc(all, func(a, b candidate) int { return strings.Compare(a.word, b.word) })
	return slices.Compact(all)
}

// mounts returns the directories imgfs has mounted on.
func (a *asked) mounts() []candidate {
	return listed(a, (*engineapi.Client).Mounts, func(m engineapi.Mount) []candidate { return []candidate{{m.Target, m.Image}} })
}

// uppers returns the names of the store's uppers.
func (a *asked) uppers() []candidate {
	return listed(a, (*engineapi.Client).Uppers, func(u engineapi.Upper) []candidate { return []candidate{{u.Name, u.Image}} })
}

// pins returns the names of the store's pins.
func (a *asked) pins() []candidate {
	return listed(a, (*engineapi.Client).Pins, func(p engineapi.Pin) []candidate { return []candidate{{p.Image, size(p.Size)}} })
}

// layers returns the IDs of the store's layers.
func (a *asked) layers() []candidate {
	return listed(a, func(c *engineapi.Client, ctx context.Context) ([]engineapi.LayerUsage, error) {
		u, err := c.DiskUsage(ctx)
		return u.Layers, err
	}, func(l engineapi.LayerUsage) []candidate {
		return []candidate{{l.Layer.Short(), size(l.Size) + ", " + strings.Join(l.Images, ", ")}}
	})
}

// trees returns all that has a tree: mounts, uppers and images.
func (a *asked) trees() []candidate {
	return slices.Concat(a.mounts(), a.uppers(), a.images())
}

// paths returns what TREE:/PATH can become: a tree, or what is in the directory
// of it that is being typed. Nothing is pulled for it.
func (a *asked) paths() []candidate {
	tree, typed, ok := splitPath(a.current)
	if !ok {
		var all []candidate
		for _, t := range slices.Concat(a.trees(), a.sources()) {
			if !strings.HasSuffix(t.word, ":") && !strings.HasSuffix(t.word, "/") {
				t.word += ":/"
			}
			all = append(all, t)
		}
		return all
	}
	client := a.client()
	if client == nil {
		return nil
	}
	dir, _ := path.Split(typed)
	req := engineapi.TreeRequest{Path: dir, Pull: "never"}
	var err error
	if req.Source, err = sourceArg(a, client, tree); err != nil {
		return nil
	}
	var all []candidate
	err = client.ListTree(a, req, nil, func(e engineapi.TreeEntry) error {
		c := candidate{tree + ":" + dir + e.Path, engineapi.FileType(e.Mode)}
		switch e.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			c.word += "/"
		case unix.S_IFREG:
			c.about = size(e.Size)
		}
		all = append(all, c)
		return nil
	})
	if err != nil {
		return nil
	}
	return all
}

// sources returns what the word, which may begin with oci: and the like, can
// become: a source's prefix, or behind one the names of files.
func (a *asked) sources() []candidate {
	var all []candidate
	for _, s := range []candidate{{"oci:", "an OCI layout"}, {"oci-archive:", "an OCI layout in a tar"}, {"docker-archive:", "what docker save writes"}} {
		path, ok := strings.CutPrefix(a.current, s.word)
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

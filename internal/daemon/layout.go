package daemon

import (
	"context"
	"maps"
	"slices"

	"github.com/imgfs/imgfs/fetch"
	"github.com/imgfs/imgfs/fs"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/lower"
)

// layoutSource is the store as the layout view wants it. It reads the store
// anew for each question, so that what is pulled or removed shows.
type layoutSource struct {
	e        *engine
	registry engineapi.RegistryOptions // for names not yet known
	platform string
}

var _ fs.LayoutSource = (*layoutSource)(nil)

// openLayout opens the view of the whole store.
func (e *engine) openLayout(r *record) (*tree, error) {
	src := &layoutSource{e: e, registry: r.Registry, platform: r.Platform}
	if r.auth != nil {
		src.registry = *r.auth
	}
	o := fs.Options{Logger: e.log.With("mount", r.ID)}
	l := fs.NewLayout(src, o)
	serve := func(ctx context.Context, fd int) (*fs.Server, error) { return fs.Serve(ctx, l, fd, o) }
	return &tree{serve: serve, close: l.Close, source: r.Source}, nil
}

// stacks returns the chains of all images, and of all stacks below them, whose
// layers are there: the layers of each, lowest first.
func (s *layoutSource) stacks() map[id.ChainKey][]id.LayerKey {
	all := map[id.ChainKey][]id.LayerKey{}
	for _, img := range s.e.images.List() {
		keys := s.e.keysOf(&img)
		var c id.ChainKey
		for i, d := range keys {
			if !s.e.layers.Has(d) {
				break
			}
			c = c.Append(d)
			all[c] = keys[:i+1]
		}
	}
	return all
}

// stack returns the layers of one chain, lowest first.
func (s *layoutSource) stack(c id.ChainKey) ([]id.LayerKey, error) {
	diffs, ok := s.stacks()[c]
	if !ok {
		return nil, fault.New(fault.NotFound, "no such chain: %s", c)
	}
	return diffs, nil
}

// Chains implements fs.LayoutSource.
func (s *layoutSource) Chains(context.Context) ([]id.ChainKey, error) {
	return slices.Collect(maps.Keys(s.stacks())), nil
}

// Ancestors implements fs.LayoutSource.
func (s *layoutSource) Ancestors(_ context.Context, c id.ChainKey) ([]id.ChainKey, error) {
	diffs, err := s.stack(c)
	if err != nil {
		return nil, err
	}
	var list []id.ChainKey
	var below id.ChainKey
	for _, d := range diffs[:len(diffs)-1] {
		below = below.Append(d)
		list = append(list, below)
	}
	slices.Reverse(list)
	return list, nil
}

// OpenLayer implements fs.LayoutSource.
func (s *layoutSource) OpenLayer(_ context.Context, c id.ChainKey) (*fs.Content, error) {
	diffs, err := s.stack(c)
	if err != nil {
		return nil, err
	}
	l, err := s.e.layers.Layer(diffs[len(diffs)-1])
	if err != nil {
		return nil, err
	}
	return &fs.Content{Image: l.Image(), Data: []lower.Data{l.Data()}, Release: l.Release}, nil
}

// OpenChain implements fs.LayoutSource.
func (s *layoutSource) OpenChain(ctx context.Context, c id.ChainKey) (*fs.Content, error) {
	diffs, err := s.stack(c)
	if err != nil {
		return nil, err
	}
	return s.content(ctx, diffs)
}

func (s *layoutSource) content(ctx context.Context, diffs []id.LayerKey) (*fs.Content, error) {
	c, err := s.e.layers.Chain(ctx, diffs)
	if err != nil {
		return nil, err
	}
	return &fs.Content{Image: c.Image(), Data: s.e.dataOf(c), Release: c.Release}, nil
}

// Images implements fs.LayoutSource.
func (s *layoutSource) Images(context.Context) ([]string, error) {
	return slices.Collect(maps.Keys(s.e.images.Names())), nil
}

// Resolve implements fs.LayoutSource.
func (s *layoutSource) Resolve(ctx context.Context, name string) error {
	if _, err := s.e.images.Lookup(name); err == nil {
		return nil
	}
	ref, err := fetch.ParseReference(name)
	if err != nil {
		return fault.New(fault.NotFound, "%w", err) // a path that is no name
	}
	client := fetch.New(s.e.fetchOptions(s.registry))
	defer client.Close()
	_, err = client.Head(ctx, ref)
	return err
}

// OpenImage implements fs.LayoutSource.
func (s *layoutSource) OpenImage(ctx context.Context, name string) (*fs.Content, error) {
	req := engineapi.MountRequest{Image: name, Platform: s.platform, Registry: s.registry}
	img, err := s.e.imageFor(ctx, req, func(engineapi.Progress) {})
	if err != nil {
		return nil, err
	}
	return s.content(ctx, img.layers)
}

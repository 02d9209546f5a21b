package daemon

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/imgfs/imgfs/fetch"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/lower"
	"github.com/imgfs/imgfs/internal/upperdir"
	"github.com/imgfs/imgfs/layerdb"
)

// source is a tree that is read without a mount, or beside one.
type source struct {
	chain *layerdb.Chain
	low   *lower.Tree
	upper *upperdir.Dir // nil: there is none
	image image
	free  []func()
}

func (s *source) close() {
	for _, f := range s.free {
		f()
	}
}

// source opens what req names. The caller closes it.
func (e *engine) source(ctx context.Context, req engineapi.Source) (_ *source, err error) {
	s := &source{}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	switch {
	case req.Mount != "":
		err = e.sourceMount(s, req.Mount)
	case req.Upper != "":
		if err := checkUpperName(req.Upper); err != nil {
			return nil, err
		}
		err = e.sourceUpper(ctx, s, e.paths.Upper(req.Upper), engineapi.MountRequest{Upper: req.Upper})
	case req.UpperDir != "":
		err = e.sourceUpper(ctx, s, req.UpperDir, engineapi.MountRequest{UpperDir: req.UpperDir})
	default:
		err = e.sourceImage(s, req.Image)
	}
	if err != nil {
		return nil, err
	}
	if err := e.openChain(ctx, s); err != nil {
		return nil, err
	}
	return s, nil
}

// openChain opens the chain of the source's layers.
func (e *engine) openChain(ctx context.Context, s *source) error {
	for _, l := range s.image.layers {
		if !e.layers.Has(l) {
			return fault.WithHint(fault.New(fault.NotFound, "layers of image %s are missing from the store", s.image.name),
				"imgfs pull %s", fault.Word(s.image.name))
		}
	}
	var err error
	if s.chain, err = e.layers.Chain(ctx, s.image.layers); err != nil {
		return err
	}
	s.free = append([]func(){s.chain.Release}, s.free...)
	low := lower.New(s.chain.Image(), e.dataOf(s.chain), 0, lower.Root)
	s.low = &low
	return nil
}

// sourceMount takes the tree of a live mount, whose end then waits for s.
func (e *engine) sourceMount(s *source, mountID string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	m := e.mounts[mountID]
	if m == nil || m.closing {
		return fault.WithHint(fault.New(fault.NotFound, "no such mount: %s", mountID), "see imgfs mounts")
	}
	if m.rec.Layout {
		return fault.New(fault.Invalid, "%s is the layout view, not the tree of an image", m.rec.Target)
	}
	e.readLocked(s, m)
	return nil
}

// readLocked has s read what m shows.
//
// Preconditions: e.mu is held, and m is not closing.
func (e *engine) readLocked(s *source, m *mount) {
	m.readers.Add(1)
	s.free = append(s.free, m.readers.Done)
	s.upper = m.tree.upper
	s.image = image{id: m.rec.ImageID, name: m.rec.Image, layers: m.rec.Layers}
}

// sourceUpper opens an upper, or takes that of the mount that has it.
func (e *engine) sourceUpper(ctx context.Context, s *source, at string, req engineapi.MountRequest) error {
	info, err := e.knownUpper(&req)
	if err != nil {
		return err
	}
	if info == nil {
		return fault.New(fault.NotFound, "no upper at %s", at)
	}
	e.mu.Lock()
	if m := e.mounts[e.uppers[at].mount]; m != nil && !m.closing {
		e.readLocked(s, m)
		e.mu.Unlock()
		return nil
	}
	e.mu.Unlock()
	if err := e.holdUpper(ctx, at, usedUpper{what: "a command that reads it"}); err != nil {
		return err
	}
	s.free = append(s.free, func() { e.freeUpper(at) })
	if s.upper, err = upperdir.Open(at); err != nil {
		return adviseUpper(err, req.Upper, at)
	}
	s.free = append([]func(){func() { s.upper.Close() }}, s.free...)
	s.image = upperOf(info)
	return nil
}

// sourceImage takes a stored image.
func (e *engine) sourceImage(s *source, name string) error {
	if ref, err := fetch.ParseReference(name); err == nil && ref.Local() {
		return e.sourceFiles(s, name)
	}
	img, ref, err := e.lookup(name)
	if err != nil {
		return fault.WithHint(err, "see imgfs images, imgfs upper ls and imgfs mounts")
	}
	s.image = image{id: img.ID, name: img.ID.Short(), layers: e.keysOf(&img)}
	if n := ref.String(); n != "" {
		s.image.name = ref.Familiar()
	}
	return nil
}

// sourceFiles takes the image that was read from files, of which the store
// keeps no name. The last mount or upper that was made of it has its ID.
func (e *engine) sourceFiles(s *source, name string) error {
	var last time.Time
	take := func(created time.Time, img image) {
		if img.name == name && !created.Before(last) {
			last, s.image = created, img
		}
	}
	names, err := e.upperNames()
	if err != nil {
		return err
	}
	for _, n := range names {
		if info, err := upperdir.Load(e.paths.Upper(n)); err == nil {
			take(info.Created, upperOf(&info))
		}
	}
	e.mu.Lock()
	for _, m := range e.mounts {
		take(m.rec.Created, image{id: m.rec.ImageID, name: m.rec.Image, layers: m.rec.Layers})
	}
	e.mu.Unlock()
	if s.image.id == "" {
		return noNames(name)
	}
	return nil
}

// Changes implements engineapi.Contents.
func (e *engine) Changes(ctx context.Context, req engineapi.Source, than string) ([]engineapi.Change, error) {
	s, err := e.source(ctx, req)
	if err != nil {
		return nil, err
	}
	defer s.close()
	list := []engineapi.Change{}
	add := func(c upperdir.Change) error {
		list = append(list, engineapi.Change{Kind: c.Kind.String(), Path: c.Path})
		return nil
	}
	if s.upper != nil {
		if than != "" {
			return nil, fault.New(fault.Invalid, "only images are compared with another one")
		}
		err := s.upper.Changes(ctx, s.low, add)
		return list, adviseDamage(err, s.upper)
	}
	if req.Image == "" {
		return list, nil // mounted read-only
	}
	old := &source{}
	defer old.close()
	if than != "" {
		err = e.sourceImage(old, than)
	} else if n := len(s.image.layers); n > 0 {
		old.image = image{name: s.image.name, layers: s.image.layers[:n-1]}
	}
	if err != nil {
		return nil, err
	}
	if err := e.openChain(ctx, old); err != nil {
		return nil, err
	}
	err = upperdir.Diff(ctx, old.low, s.low, add)
	return list, err
}

// Export implements engineapi.Contents.
func (e *engine) Export(ctx context.Context, req engineapi.Source, layer bool, w io.Writer) error {
	s, err := e.source(ctx, req)
	if err != nil {
		return err
	}
	defer s.close()
	switch {
	case !layer:
		err = upperdir.Export(ctx, w, s.low, s.upper)
	case s.upper == nil:
		return fault.New(fault.Invalid, "%s has no upper, so there is no layer to write", s.image.name)
	default:
		err = s.upper.WriteLayer(ctx, w, s.low)
	}
	return adviseDamage(err, s.upper)
}

// adviseDamage makes damage of an upper the kind of error that it is.
func adviseDamage(err error, d *upperdir.Dir) error {
	if d == nil || !errors.Is(err, upperdir.ErrDamaged) {
		return err
	}
	return adviseUpper(err, d.Info().Name, d.Path())
}

var _ engineapi.Contents = (*engine)(nil)

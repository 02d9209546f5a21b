package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/layertar"
	"github.com/imgfs/imgfs/internal/toc"
	"github.com/imgfs/imgfs/internal/upperdir"
)

// Why implements engineapi.Layers. What a layer hides is told by the layers'
// own indexes; where a file's bytes are, by the tree that is mounted.
func (e *engine) Why(ctx context.Context, req engineapi.Source, path string) (engineapi.Why, error) {
	s, err := e.source(ctx, req)
	if err != nil {
		return engineapi.Why{}, err
	}
	defer s.close()
	y := engineapi.Why{Image: s.image.name, Layers: len(s.image.layers), From: []engineapi.WhyLayer{}}
	img := s.chain.Image()
	n, at, err := resolveIn(img, path, false)
	if err != nil && !errors.Is(err, erofs.ErrNotExist) {
		return y, err
	}
	y.Path = "/" + at
	seen := -1 // the layer that the file's bytes are in
	if err == nil {
		if seen, err = e.seenAt(s, n, &y); err != nil {
			return y, err
		}
	}
	if y.From, err = e.whyLayers(s, at, seen); err != nil {
		return y, err
	}
	if s.upper != nil {
		if err := whyUpper(ctx, s, &y); err != nil {
			return y, err
		}
	}
	if len(y.From) == 0 && y.Changed == "" && y.Type == "" {
		return y, fault.New(fault.NotFound, "%s: neither the image nor any layer of it has that path", y.Path)
	}
	if req.Mount != "" && len(y.From) > 0 {
		e.mu.Lock()
		for _, f := range e.faults {
			if f.Mount == req.Mount && f.Layer == y.From[0].Layer {
				y.Faults = append(y.Faults, f)
			}
		}
		e.mu.Unlock()
	}
	return y, nil
}

// seenAt fills in what the image has at a path, and returns the layer that a
// file's bytes are in, -1 if there are none.
func (e *engine) seenAt(s *source, n erofs.NID, y *engineapi.Why) (layer int, err error) {
	img := s.chain.Image()
	var a erofs.Attr
	if err := img.Stat(n, &a); err != nil {
		return -1, err
	}
	y.Type = engineapi.FileType(a.Mode)
	if y.Type != "file" {
		return -1, nil
	}
	y.Size = int64(a.Size)
	ranges := map[int][]toc.Range{}
	size, err := rangesOf(img, n, ranges)
	y.Cached = y.Size - min(size, y.Size) // holes
	layer = -1
	data := s.chain.Data()
	for i, list := range ranges {
		layer = i
		for _, r := range list {
			y.Cached += data[i].PresentIn(r.Off, r.Len)
		}
	}
	return layer, err
}

const whiteout = "whiteout"

// whyLayers returns what the layers have at a path, uppermost first. seen, if
// it is not -1, is known to have what is seen: a layer's own index may have it
// under another path, which a symbolic link of a lower layer leads to.
func (e *engine) whyLayers(s *source, path string, seen int) ([]engineapi.WhyLayer, error) {
	lines, err := e.historyOf(s.image.id, len(s.image.layers))
	if err != nil {
		return nil, err
	}
	list := []engineapi.WhyLayer{}
	hidden := "" // by what, for those below
	for i, k := range slices.Backward(s.image.layers) {
		h, err := e.layers.Layer(k)
		if err != nil {
			return nil, err
		}
		w := engineapi.WhyLayer{Number: i + 1, Layer: k, Blob: h.Info().Blob, CreatedBy: lines[i], Hidden: hidden}
		hides, err := layerHas(h.Image(), path, &w)
		h.Release()
		if err != nil {
			return nil, err
		}
		if w.Has == "" && i == seen {
			w.Has = "file"
			hides = true
		}
		if w.Has == "" {
			continue
		}
		list = append(list, w)
		if hides && hidden == "" {
			hidden = hiding(&w)
		}
	}
	return list, nil
}

// hiding says by what a layer hides those below it.
func hiding(w *engineapi.WhyLayer) string {
	what := "the " + w.Has
	switch {
	case w.Has == whiteout:
		what = "a whiteout"
	case w.Opaque:
		what = "the opaque directory"
	}
	if w.At != "" {
		what += " " + w.At
	}
	return fmt.Sprintf("%s of layer %d", what, w.Number)
}

// layerHas fills in what a layer has at a path, or at the parent of it that
// keeps lower layers from being seen there; hides says that there is one such,
// or the thing itself is.
func layerHas(img *erofs.Image, path string, w *engineapi.WhyLayer) (hides bool, err error) {
	n := img.Root()
	names := strings.Split(path, "/")
	if path == "" {
		names = nil
	}
	at := ""
	for i := 0; ; i++ {
		last := i == len(names)
		var a erofs.Attr
		if err := img.Stat(n, &a); err != nil {
			return false, err
		}
		what := engineapi.FileType(a.Mode)
		switch {
		case what == "directory":
			opaque, err := hasMark(img, n, layertar.MarkOpaque)
			if err != nil {
				return false, err
			}
			if opaque && !hides {
				hides = true
				w.Has, w.At, w.Opaque = what, cmp.Or(at, "/"), true
			}
			if last {
				implied, err := hasMark(img, n, layertar.MarkImplied)
				if err != nil || implied && !opaque {
					return hides, err
				}
				w.Has, w.At = what, ""
				return hides, nil
			}
		case what == "device":
			white, err := hasMark(img, n, layertar.MarkWhiteout)
			if err != nil {
				return false, err
			}
			if white {
				what = whiteout
			}
			fallthrough
		default:
			w.Has, w.At = what, at
			if last {
				w.At = ""
			}
			return true, nil
		}
		next, _, err := img.Lookup(n, []byte(names[i]))
		if errors.Is(err, erofs.ErrNotExist) {
			return hides, nil
		}
		if err != nil {
			return false, err
		}
		n, at = next, at+"/"+names[i]
	}
}

func hasMark(img *erofs.Image, n erofs.NID, mark string) (bool, error) {
	_, err := img.Xattr(n, mark)
	if errors.Is(err, erofs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// historyOf returns, by layer, the line of the image's history that made it, ""
// where there is none. A history that does not have a line for each layer, as
// that of a commit on an image without any, does not say which layers it is of.
func (e *engine) historyOf(image id.ImageID, layers int) ([]string, error) {
	lines := make([]string, layers)
	img, err := e.images.Get(image)
	if fault.KindOf(err) == fault.NotFound {
		return lines, nil // of a mount whose image was removed
	}
	if err != nil {
		return nil, err
	}
	var c struct {
		History []history `json:"history"`
	}
	if json.Unmarshal(img.Config, &c) != nil {
		return lines, nil // nobody is bound to write one
	}
	full := slices.DeleteFunc(c.History, func(h history) bool { return h.Empty })
	if len(full) != layers {
		return lines, nil
	}
	for i, h := range full {
		lines[i] = h.CreatedBy
	}
	return lines, nil
}

// whyUpper fills in what the upper does to the path.
func whyUpper(ctx context.Context, s *source, y *engineapi.Why) error {
	y.Upper = s.upper.Info().Name
	if y.Upper == "" {
		y.Upper = s.upper.Path()
	}
	err := s.upper.Changes(ctx, s.low, func(c upperdir.Change) error {
		deleted := c.Kind == upperdir.Deleted
		switch {
		case c.Path == y.Path && deleted && y.Changed == "":
			y.Changed = "deleted"
		case c.Path == y.Path && !deleted && y.Changed == "deleted":
			y.Changed = "replaced" // a directory by a new one
		case c.Path == y.Path && c.Kind == upperdir.Added:
			y.Changed = "added"
		case c.Path == y.Path:
			y.Changed = "changed"
		case deleted && strings.HasPrefix(y.Path, c.Path+"/"):
			y.Changed = "deleted with " + c.Path
		}
		return nil
	})
	return adviseDamage(err, s.upper)
}

var _ engineapi.Layers = (*engine)(nil)

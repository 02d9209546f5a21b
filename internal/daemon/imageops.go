package daemon

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/imgfs/imgfs/fetch"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// maxAncestors bounds the images whose ID and tags a history shows.
const maxAncestors = 1000

// missing stands in a history for the ID of an image that is not here.
const missing = "<missing>"

// History implements engineapi.Images. A layer that is not here has no size.
func (e *engine) History(_ context.Context, name, platform string) ([]engineapi.HistoryItem, error) {
	img, _, err := e.findFor(name, platform)
	if err != nil {
		return nil, err
	}
	if img, err = e.images.Get(img.ID); err != nil {
		return nil, err
	}
	var c struct {
		History []struct {
			Created   *time.Time `json:"created"`
			CreatedBy string     `json:"created_by"`
			Comment   string     `json:"comment"`
			Empty     bool       `json:"empty_layer"`
		} `json:"history"`
	}
	if err := json.Unmarshal(img.Config, &c); err != nil {
		return nil, fault.New(fault.Integrity, "image %s: config: %w", img.ID.Short(), err)
	}
	keys := e.keysOf(&img)
	items := make([]engineapi.HistoryItem, 0, len(c.History))
	for _, h := range c.History {
		i := engineapi.HistoryItem{ID: missing, CreatedBy: h.CreatedBy, Comment: h.Comment}
		if h.Created != nil {
			i.Created = h.Created.Unix()
		}
		if !h.Empty && len(keys) > 0 { // imagedb has seen that there are enough
			if i.Size, err = e.layers.Size(keys[0]); err != nil && fault.KindOf(err) != fault.NotFound {
				return nil, err
			}
			keys = keys[1:]
		}
		items = append(items, i)
	}
	slices.Reverse(items)
	for n := 0; n < min(len(items), maxAncestors); n++ {
		items[n].ID = string(img.ID)
		items[n].Tags = e.tags(img.ID)
		if img, err = e.images.Peek(img.Parent); err != nil {
			break // there is none
		}
	}
	return items, nil
}

// tags returns the tags of an image as docker shows them; nil if it has none.
func (e *engine) tags(imageID id.ImageID) []string {
	list, _ := e.familiar(imageID)
	if len(list) == 0 {
		return nil
	}
	return list
}

// Tag implements engineapi.Images.
func (e *engine) Tag(_ context.Context, source, target string, noClobber bool) error {
	ref, err := parseTag(target)
	if err != nil {
		return err
	}
	e.names.Lock()
	defer e.names.Unlock()
	img, _, err := e.find(source)
	if err != nil {
		return err
	}
	set := e.images.Tag
	if noClobber {
		set = e.images.TagNew
	}
	if err := set(ref.String(), img.ID); err != nil {
		return err
	}
	e.imageEvent("tag", &img, "name", ref.Familiar())
	e.log.Info("tagged", "image", img.ID, "reference", ref.String())
	return nil
}

// parseTag reads a name that an image is to get here.
func parseTag(name string) (fetch.Reference, error) {
	if name == "" {
		return fetch.Reference{}, fault.New(fault.Invalid, "Repository name can't be empty")
	}
	ref, err := fetch.ParseReference(name)
	switch {
	case err != nil:
		return ref, err
	case ref.Local():
		return ref, fault.New(fault.Invalid, "an image cannot be called %s", name)
	case ref.Digest() != "":
		return ref, fault.New(fault.Invalid, "refusing to create a tag with a digest reference")
	case ref.FamiliarName() == "scratch":
		return ref, fault.New(fault.Invalid, "'scratch' is a reserved name")
	case ref.FamiliarName() == "sha256":
		return ref, fault.New(fault.Invalid, "refusing to create an ambiguous tag using digest algorithm as name")
	}
	return ref, nil
}

// Untag implements engineapi.Images. With the last tag of a repository go its
// digests, as with Remove.
func (e *engine) Untag(_ context.Context, name string) ([]engineapi.DeleteItem, error) {
	ref, err := fetch.ParseReference(name)
	if err != nil {
		return nil, err
	}
	e.names.Lock()
	defer e.names.Unlock()
	imageID, err := e.images.Lookup(ref.String())
	if err != nil {
		return nil, e.noSuchTag(ref, name)
	}
	img, err := e.images.Peek(imageID)
	if err != nil {
		return nil, err
	}
	r := removal{e: e, items: []engineapi.DeleteItem{}}
	gone, err := e.images.Untag(ref.String())
	if err != nil {
		return nil, err
	}
	r.untagged(&img, gone)
	e.imageEvent("untag", &img, "reference", ref.Familiar())
	return r.items, nil
}

// noSuchTag is the error for a name that nothing has, in docker's words.
func (e *engine) noSuchTag(ref fetch.Reference, name string) error {
	if len(e.images.ReferencesByName(ref.Name())) > 0 {
		if ref.Digest() != "" {
			return fault.New(fault.NotFound, "No such digest: %s", ref.Familiar())
		}
		return fault.New(fault.NotFound, "No such tag: %s", ref.Familiar())
	}
	if imageID, err := e.images.Search(name); err == nil {
		return fault.WithHint(fault.New(fault.Invalid, "%s is no name of image %s", name, imageID.Short()), "see imgfs inspect %s", imageID.Short())
	}
	return fault.New(fault.NotFound, "No such repository: %s", ref.FamiliarName())
}

// Graph implements engineapi.Images.
func (e *engine) Graph(context.Context) (engineapi.Graph, error) {
	g := engineapi.Graph{Images: []engineapi.GraphImage{}, Layers: []engineapi.GraphLayer{}, Mounts: []engineapi.GraphMount{}}
	users := map[id.LayerKey]int{}
	for _, img := range e.images.List() {
		keys := e.keysOf(&img)
		tags, digests := e.familiar(img.ID)
		g.Images = append(g.Images, engineapi.GraphImage{
			ID: img.ID, Parent: img.Parent, Names: append(tags, digests...), Layers: keys, Size: e.size(img),
		})
		countOnce(users, keys)
	}
	layers, err := e.layers.Layers()
	if err != nil {
		return g, err
	}
	for _, l := range layers {
		g.Layers = append(g.Layers, engineapi.GraphLayer{ID: l.Key, DiffID: l.DiffID, Size: l.DataSize, Present: l.Present, Images: users[l.Key]})
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, m := range e.mounts {
		w := m.rec.mount()
		g.Mounts = append(g.Mounts, engineapi.GraphMount{ID: w.ID, Target: w.Target, Image: w.ImageID, Mode: w.Mode})
	}
	slices.SortFunc(g.Mounts, func(a, b engineapi.GraphMount) int { return strings.Compare(a.Target+a.ID, b.Target+b.ID) })
	return g, nil
}

// countOnce counts an image for each of its layers.
func countOnce(users map[id.LayerKey]int, keys []id.LayerKey) {
	for i, k := range keys {
		if !slices.Contains(keys[:i], k) {
			users[k]++
		}
	}
}

// presence counts the bytes of an image's layers that are here, and those that
// are not yet.
func (e *engine) presence(keys []id.LayerKey) (cached, lazy int64) {
	f := e.layers.FiguresOf(keys, true)
	return f.Present, f.Data - f.Present
}

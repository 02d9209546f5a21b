package daemon

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/imgfs/imgfs/fetch"
	"github.com/imgfs/imgfs/imagedb"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/upperdir"
)

// Prune implements engineapi.Images. As with docker an image without a tag is
// dangling, whatever digests name it, unless others were made of it; and an
// image that is in use keeps all its names.
func (e *engine) Prune(ctx context.Context, o engineapi.PruneOptions) (report engineapi.PruneReport, err error) {
	if !e.pruning.CompareAndSwap(false, true) {
		return report, fault.New(fault.Conflict, "a prune operation is already running")
	}
	defer e.pruning.Store(false)
	layers, err := e.layers.Layers()
	if err != nil {
		return report, err
	}
	disk := make(map[id.LayerKey]int64, len(layers))
	for _, l := range layers {
		disk[l.Key] = l.Disk
	}
	going, err := e.prunable(o)
	if err != nil {
		return report, err
	}
	for _, imageID := range going {
		if ctx.Err() != nil {
			break // what is gone is told
		}
		items, freed, err := e.pruneImage(imageID, o.All)
		report.ImagesDeleted = append(report.ImagesDeleted, items...)
		for _, k := range freed {
			report.SpaceReclaimed += disk[k]
		}
		if err != nil {
			return report, err
		}
	}
	e.event(imageEvents, "prune", "", "reclaimed", strconv.FormatInt(report.SpaceReclaimed, 10))
	return report, nil
}

// prunable returns the images that a prune is to look at, as they are now.
func (e *engine) prunable(o engineapi.PruneOptions) ([]id.ImageID, error) {
	used, err := e.usedImages()
	if err != nil {
		return nil, err
	}
	var going []id.ImageID
	for _, img := range e.images.List() {
		parent := len(e.images.Children(img.ID)) > 0
		switch {
		case used[img.ID]:
		case parent && (!o.All || len(e.images.References(img.ID)) == 0):
		case !o.All && len(e.tags(img.ID)) > 0:
		case !o.Until.IsZero() && (img.Created.IsZero() || img.Created.After(o.Until)):
		case !matchesLabels(&img, o):
		default:
			going = append(going, img.ID)
		}
	}
	return going, nil
}

// usedImages returns the images that are mounted, or that an upper of the store
// lies on, whose changes could not be committed without.
func (e *engine) usedImages() (map[id.ImageID]bool, error) {
	used := map[id.ImageID]bool{}
	names, err := e.upperNames()
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		if info, err := upperdir.Load(e.paths.Upper(n)); err == nil {
			used[info.ImageID] = true
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, m := range e.mounts {
		used[m.rec.ImageID] = true
	}
	return used, nil
}

// matchesLabels reports whether an image has all labels that it must have, and
// none that it must not.
func matchesLabels(img *imagedb.Image, o engineapi.PruneOptions) bool {
	has := func(l string) bool {
		k, v, hasValue := strings.Cut(l, "=")
		have, ok := img.Labels[k]
		return ok && (!hasValue || have == v)
	}
	return !slices.ContainsFunc(o.NoLabels, has) &&
		!slices.ContainsFunc(o.Labels, func(l string) bool { return !has(l) })
}

// pruneImage removes an image by all its names, or, if it has none, by its ID.
// What is against that has come up since, and is no error.
func (e *engine) pruneImage(imageID id.ImageID, tagged bool) ([]engineapi.DeleteItem, []id.LayerKey, error) {
	e.names.Lock()
	defer e.names.Unlock()
	img, err := e.images.Peek(imageID)
	if err != nil || len(e.usedBy(imageID)) > 0 || !tagged && len(e.tags(imageID)) > 0 {
		return nil, nil, nil
	}
	r := removal{e: e, prune: true}
	for _, n := range e.images.References(imageID) {
		if _, err := e.images.Lookup(n); err != nil {
			continue // gone with another
		}
		ref, err := fetch.ParseReference(n)
		if err == nil {
			err = r.remove(img, ref, n)
		}
		if err != nil && fault.KindOf(err) != fault.Conflict {
			return r.items, r.freed, err
		}
	}
	if e.images.Has(imageID) && len(e.images.References(imageID)) == 0 {
		if err := r.delete(img, false); err != nil && fault.KindOf(err) != fault.Conflict {
			return r.items, r.freed, err
		}
	}
	return r.items, r.freed, nil
}

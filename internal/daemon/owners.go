package daemon

import (
	"fmt"
	"strings"

	"github.com/imgfs/imgfs/imagedb"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/layerdb"
)

// Owners of layers, see the package documentation.
const (
	imageOwner = "image:"
	pullOwner  = "pull:"
)

// layerOwner is followed by the chain of a stack that ImportLayer stored without
// an image: it stays until RemoveLayer.
const layerOwner = "layer:"

// keysOf returns the stored layers of an image, lowest first: those that it
// retains, which are its diffIDs unless a layer came in unproven.
func (e *engine) keysOf(img *imagedb.Image) []id.LayerKey {
	if held := e.layers.Held(imageOwner + string(img.ID)); len(held) == len(img.Layers) {
		return held
	}
	return id.Keys(img.DiffIDs())
}

// create records an image, and has it hold its layers, which are all there. If
// that fails it holds what it held before.
//
// Preconditions: e.names is held.
func (e *engine) create(img imagedb.Image, keys []id.LayerKey) (id.ImageID, error) {
	owner := imageOwner + string(id.ImageIDOf(img.Config))
	had := e.layers.Held(owner)
	if err := e.layers.Retain(owner, keys); err != nil {
		return "", err
	}
	imageID, err := e.images.Create(img)
	if err == nil {
		return imageID, nil
	}
	if had == nil {
		e.release("image", owner)
	} else {
		e.logError("image", e.layers.Retain(owner, had))
	}
	return "", err
}

// holdLayers keeps layers in the store until free is called.
func (e *engine) holdLayers(what string, keys []id.LayerKey) (free func(), err error) {
	owner := pullOwner + newID()
	if err := e.layers.Retain(owner, keys); err != nil {
		return nil, err
	}
	return func() { e.release(what, owner) }, nil
}

// release ends what owner holds, for what is done, if with an error.
func (e *engine) release(what, owner string) {
	_, err := e.layers.Release(owner)
	e.logError(what, err)
}

// logError logs what nobody can be told any more.
func (e *engine) logError(what string, err error) {
	if err != nil {
		e.log.Error(what, "err", err)
	}
}

// staleOwners returns the owners of layers that a kill has left: its pulls,
// and images and uppers that are no more.
//
// Preconditions: nothing is pulled yet.
func (e *engine) staleOwners() []string {
	stale := append(e.layers.Owners(pullOwner), e.staleUppers()...)
	for _, o := range e.layers.Owners(imageOwner) {
		if !e.images.Has(id.ImageID(strings.TrimPrefix(o, imageOwner))) {
			stale = append(stale, o)
		}
	}
	return stale
}

// dropOwners ends what owners hold.
func (e *engine) dropOwners(owners []string) error {
	for _, o := range owners {
		if _, err := e.layers.Release(o); err != nil {
			return fmt.Errorf("owner %s: %w", o, err)
		}
	}
	return nil
}

// unheld returns the images that do not hold their layers.
func (e *engine) unheld() []imagedb.Image {
	var list []imagedb.Image
	e.images.Each(func(img *imagedb.Image) {
		if len(img.Layers) > 0 && len(e.layers.Held(imageOwner+string(img.ID))) != len(img.Layers) {
			list = append(list, *img)
		}
	})
	return list
}

// mendOwners has images hold their layers again whose records of that were lost,
// before a collection takes these for nobody's.
//
// Preconditions: no request is served yet.
func (e *engine) mendOwners() {
	for _, img := range e.unheld() {
		if err := e.holdImage(&img); err != nil {
			e.problem("nothing keeps the layers of image %s: %v", img.ID.Short(), err)
		}
	}
}

// holdImage has an image hold the layers that are, as far as can be known, its
// own.
func (e *engine) holdImage(img *imagedb.Image) error {
	keys := make([]id.LayerKey, len(img.Layers))
	var claims map[id.DiffID][]layerdb.LayerInfo // of those that are not proven
	for i, l := range img.Layers {
		key, ok := e.layers.Proven(l.DiffID)
		if !ok {
			key = l.DiffID.Key()
			if claims == nil {
				claims = map[id.DiffID][]layerdb.LayerInfo{}
				for _, have := range e.layers.Known() {
					if have.Damage == "" {
						claims[have.DiffID] = append(claims[have.DiffID], have)
					}
				}
			}
			for _, have := range claims[l.DiffID] {
				if have.Blob == l.Blob {
					key = have.Key
				}
			}
		}
		keys[i] = key
	}
	e.names.Lock()
	defer e.names.Unlock()
	if !e.images.Has(img.ID) {
		return nil // removed meanwhile
	}
	return e.layers.Retain(imageOwner+string(img.ID), keys)
}

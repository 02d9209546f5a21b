package daemon

import (
	"context"
	"slices"
	"strings"

	"github.com/imgfs/imgfs/fetch"
	"github.com/imgfs/imgfs/imagedb"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// Removing an image is docker's imageDelete, with mounts in the place of
// containers:
//
//	asked for by   and                          what happens
//	name           its only one, mounted        refused; forced, the image goes
//	name           there are others             the name goes; with the last tag of a
//	                                            repository go the repository's digests
//	name           its only one                 the image goes, unless it has children:
//	                                            then it stays, without a name
//	ID             names in one repository,     all names go, and the image
//	               at most one of them a tag
//	ID             more names                   refused; forced, all go
//	any            it has children              by ID refused, whether forced or not
//	ID             mounted                      refused; forced, it goes
//
// A mount is what a stopped container is to docker, as it can do without the
// image: it keeps the layers. With an image go its ancestors that have neither
// name nor other children nor mounts, up to the first that has.

// removal is one removal under way.
//
// Preconditions of its methods: engine.names is held.
type removal struct {
	e     *engine
	force bool
	prune bool // ancestors go too
	items []engineapi.DeleteItem
	freed []id.LayerKey
}

// Remove implements engineapi.Images.
func (e *engine) Remove(_ context.Context, name string, o engineapi.RemoveOptions) ([]engineapi.DeleteItem, error) {
	e.names.Lock()
	defer e.names.Unlock()
	img, ref, err := e.findAny(name, o.Platforms)
	if err != nil {
		return nil, err
	}
	r := removal{e: e, force: o.Force, prune: !o.NoPrune, items: []engineapi.DeleteItem{}}
	err = r.remove(img, ref, name)
	return r.items, err
}

// findAny is findFor for the first of platforms that there is an image for. That
// repo:shortid names an image is not for who removes: a tag that is not there
// must not take another image along.
func (e *engine) findAny(name string, platforms []string) (img imagedb.Image, ref fetch.Reference, err error) {
	if len(platforms) == 0 {
		img, ref, err = e.find(name)
		if err == nil && ref == (fetch.Reference{}) && !strings.HasPrefix(string(img.ID), "sha256:"+strings.TrimPrefix(name, "sha256:")) {
			return img, ref, fault.New(fault.NotFound, "No such image: %s", name)
		}
		return img, ref, err
	}
	for _, p := range platforms {
		if img, ref, err = e.findFor(name, p); err == nil {
			break
		}
	}
	return img, ref, err
}

// remove removes the image asked for as name, by its name ref or by its ID.
func (r *removal) remove(img imagedb.Image, ref fetch.Reference, name string) error {
	refs := r.e.images.References(img.ID)
	if ref == (fetch.Reference{}) {
		return r.delete(img, oneRepository(refs))
	}
	if at := r.e.usedBy(img.ID); !r.force && oneRepository(refs) && len(at) > 0 {
		return fault.WithHint(fault.New(fault.Conflict,
			"conflict: unable to remove repository reference %q (must force) - mount %s is using its referenced image %s", name, at[0], img.ID.Short()),
			"imgfs umount %s", fault.Word(at[0]))
	}
	gone, err := r.e.images.Untag(ref.String())
	if err != nil {
		return err
	}
	r.untagged(&img, gone)
	r.e.imageEvent("untag", &img, "reference", ref.Familiar())
	if len(gone) < len(refs) || r.conflict(&img, false) != nil {
		return nil
	}
	return r.delete(img, false)
}

// delete removes an image, its names and what of its ancestors nobody needs. It
// is refused if the image has names, unless named is set.
func (r *removal) delete(img imagedb.Image, named bool) error {
	if err := r.conflict(&img, named); err != nil {
		return err
	}
	for {
		if err := r.take(img); err != nil {
			return err
		}
		parent, err := r.e.images.Peek(img.Parent)
		if !r.prune || err != nil { // there may be none
			return nil
		}
		r.force = false
		if r.conflict(&parent, false) != nil {
			return nil
		}
		img = parent
	}
}

// take removes an image, whatever is against it.
func (r *removal) take(img imagedb.Image) error {
	e := r.e
	keys := e.keysOf(&img)
	gone, err := e.images.Delete(img.ID)
	if err != nil {
		return err
	}
	r.untagged(&img, gone)
	for _, n := range gone {
		e.imageEvent("untag", &img, "reference", imagedb.Familiar(n))
	}
	freed, err := e.layers.Release(imageOwner + string(img.ID))
	r.items = append(r.items, engineapi.DeleteItem{Deleted: string(img.ID)})
	r.freed = append(r.freed, freed...)
	chains := make([]id.ChainID, 0, len(keys))
	var c id.ChainID
	for _, d := range img.DiffIDs() {
		c = c.Append(d)
		chains = append(chains, c)
	}
	for i, k := range slices.Backward(keys) { // as docker lets go of them
		if at := slices.Index(freed, k); at >= 0 {
			freed = slices.Delete(freed, at, at+1)
			r.items = append(r.items, engineapi.DeleteItem{Deleted: string(chains[i])})
		}
	}
	e.imageEvent("delete", &imagedb.Image{ID: img.ID})
	e.log.Info("removed", "image", img.ID, "names", len(gone))
	return err
}

// untagged tells of names that are gone.
func (r *removal) untagged(img *imagedb.Image, gone []string) {
	for _, n := range gone {
		r.items = append(r.items, engineapi.DeleteItem{Untagged: imagedb.Familiar(n)})
	}
}

// conflict returns what is against removing an image, nil if nothing is. Its
// names are not, if named is set.
func (r *removal) conflict(img *imagedb.Image, named bool) error {
	refuse := func(force, reason string) error {
		return fault.New(fault.Conflict, "conflict: unable to delete %s (%s) - %s", img.ID.Short(), force, reason)
	}
	if len(r.e.images.Children(img.ID)) > 0 {
		return fault.WithHint(refuse("cannot be forced", "image has dependent child images"), "see imgfs graph")
	}
	if r.force {
		return nil
	}
	if !named && len(r.e.images.References(img.ID)) > 0 {
		return refuse("must be forced", "image is referenced in multiple repositories")
	}
	if at := r.e.usedBy(img.ID); len(at) > 0 {
		return fault.WithHint(refuse("must be forced", "image is being used by mount "+at[0]), "imgfs umount %s", fault.Word(at[0]))
	}
	return nil
}

// oneRepository reports whether an image's names, which there are, are all of
// one repository, and at most one of them is a tag.
func oneRepository(names []string) bool {
	tags := 0
	for _, n := range names {
		if imagedb.Repository(n) != imagedb.Repository(names[0]) {
			return false
		}
		if !strings.Contains(n, "@") {
			tags++
		}
	}
	return len(names) > 0 && tags <= 1
}

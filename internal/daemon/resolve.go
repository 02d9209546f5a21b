package daemon

import (
	"context"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/imgfs/imgfs/fetch"
	"github.com/imgfs/imgfs/imagedb"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/layerdb"
)

// find returns the record of the stored image called name: a reference, an
// image ID or a prefix of one, in docker's order. ref is set where name is a
// reference. No file is looked at, and a broken image is found as well.
func (e *engine) find(name string) (img imagedb.Image, ref fetch.Reference, err error) {
	parsed, perr := fetch.ParseReference(name)
	shown := name
	if perr == nil && !parsed.Local() && !strings.HasPrefix(name, "sha256:") {
		shown = parsed.Familiar()
		imageID, err := e.images.Lookup(parsed.String())
		if err == nil {
			img, err = e.images.Peek(imageID)
			return img, parsed, err
		}
		if fault.KindOf(err) != fault.NotFound {
			return img, ref, err
		}
	}
	imageID, err := e.images.Resolve(name)
	switch {
	case err == nil:
		img, err = e.images.Peek(imageID)
		return img, ref, err
	case fault.KindOf(err) == fault.NotFound && perr == nil && parsed.Local():
		return img, ref, noNames(shown)
	case fault.KindOf(err) == fault.NotFound:
		return img, ref, fault.New(fault.NotFound, "No such image: %s", shown)
	}
	return img, ref, err
}

// lookup is find with the image's bytes; fault.Integrity if it is broken.
func (e *engine) lookup(name string) (img imagedb.Image, ref fetch.Reference, err error) {
	if img, ref, err = e.find(name); err == nil {
		img, err = e.images.Get(img.ID)
	}
	return img, ref, err
}

// findFor is find for an image of a platform, "" being any. An index names an
// image for each of its platforms, of which a tag points to one: if that is for
// another platform, the one of the same index and repository is taken that is
// for the wanted one, and ref is not set, as it is not its name.
func (e *engine) findFor(name, platform string) (img imagedb.Image, ref fetch.Reference, err error) {
	if img, ref, err = e.find(name); err != nil || platform == "" {
		return img, ref, err
	}
	want, err := fetch.ParsePlatform(platform)
	if err != nil || satisfies(img.Platform, want) {
		return img, ref, err
	}
	if other, ok := e.sibling(&img, ref, want); ok {
		return other, fetch.Reference{}, nil
	}
	return img, ref, fault.New(fault.NotFound,
		"image with reference %s was found but its platform (%s) does not match the specified platform (%s)", name, img.Platform, want)
}

// forPlatform returns img, which was found as ref, or the image of the same
// index that is for want, the zero value being any.
func (e *engine) forPlatform(img imagedb.Image, ref fetch.Reference, want fetch.Platform) (imagedb.Image, error) {
	if want == (fetch.Platform{}) || satisfies(img.Platform, want) {
		return img, nil
	}
	if other, ok := e.sibling(&img, ref, want); ok {
		return e.images.Get(other.ID)
	}
	return img, fault.WithHint(fault.New(fault.NotFound, "image with reference %s was found but does not provide the specified platform (%s)", shownAs(&img, ref), want),
		"it provides %s", img.Platform)
}

// shownAs is what a user calls an image that was found as ref.
func shownAs(img *imagedb.Image, ref fetch.Reference) string {
	if ref == (fetch.Reference{}) {
		return img.ID.Short()
	}
	return ref.Familiar()
}

// sibling returns the image for a platform that came by the same index as img,
// from the repository of ref.
func (e *engine) sibling(img *imagedb.Image, ref fetch.Reference, want fetch.Platform) (imagedb.Image, bool) {
	if ref == (fetch.Reference{}) || img.Digest == "" || img.Digest == img.ManifestDigest {
		return imagedb.Image{}, false
	}
	for _, i := range e.images.ByDigest(ref.Name(), img.Digest) {
		if other, err := e.images.Peek(i); err == nil && satisfies(other.Platform, want) {
			return other, true
		}
	}
	return imagedb.Image{}, false
}

// noNames is the error for an image in files where a stored one is meant.
func noNames(name string) error {
	return fault.WithHint(fault.New(fault.NotFound, "No such image: %s", name),
		"the store keeps no names of images in files: give its ID, from imgfs images")
}

// imageFor returns the image a mount asks for, pulled if need be. An image
// that is known needs no network, unless the request says so.
func (e *engine) imageFor(ctx context.Context, req engineapi.MountRequest, report func(engineapi.Progress)) (image, error) {
	want, err := fetch.ParsePlatform(req.Platform)
	if err != nil {
		return image{}, err
	}
	known, ref, err := e.lookup(req.Image)
	byID := err == nil && ref == (fetch.Reference{})
	if err == nil && req.Platform != "" && !satisfies(known.Platform, want) {
		if other, ok := e.sibling(&known, ref, want); ok {
			known, err = e.images.Get(other.ID)
		}
	}
	if err == nil && (req.Pull != "always" || byID) {
		switch {
		case req.Platform != "" && !satisfies(known.Platform, want):
			if byID || req.Pull == "never" {
				return image{}, fault.New(fault.NotFound, "image %s is for %s, not %s", req.Image, known.Platform, want)
			}
		case !e.hasAll(e.keysOf(&known)):
			if byID || req.Pull == "never" {
				return image{}, fault.WithHint(
					fault.New(fault.NotFound, "image %s: layers are missing from the store", req.Image), "imgfs pull it again")
			}
		default:
			keys := e.keysOf(&known)
			if err := e.noteAgain(&known, ref, req.Registry); err != nil {
				return image{}, err
			}
			if wholly(&req) && !byID && req.Pull != "never" {
				_, err := e.finishAll(ctx, keys, report)
				if fault.KindOf(err) == fault.Integrity {
					e.log.Warn("image is fetched anew", "image", known.ID, "err", err)
					break // what lies may be the index beside it
				}
				if err != nil {
					return image{}, err
				}
			}
			return image{id: known.ID, name: shownName(&known, ref), layers: keys}, nil
		}
	} else if err != nil && fault.KindOf(err) != fault.NotFound {
		return image{}, err
	}
	switch {
	case req.Pull == "never":
		return image{}, fault.WithHint(err, "pull it first: imgfs pull %s", fault.Word(req.Image))
	case strings.HasPrefix(req.Image, "sha256:"):
		return image{}, fault.WithHint(err, "an ID names what is here (see imgfs images); pull by a name")
	}
	if ref, err = fetch.ParseReference(req.Image); err != nil {
		return image{}, err
	}
	res, err := e.pull(ctx, ref, engineapi.PullRequest{Platform: req.Platform, Registry: req.Registry}, wholly(&req), report)
	if err != nil {
		return image{}, err
	}
	img, err := e.images.Get(res.ImageID)
	if err != nil {
		return image{}, err
	}
	return image{id: img.ID, name: ref.Familiar(), layers: e.keysOf(&img), met: true}, nil
}

// noteAgain notes how the user reaches an image that is here, if it came from
// where ref says: what is missing of it is fetched so.
func (e *engine) noteAgain(img *imagedb.Image, ref fetch.Reference, r engineapi.RegistryOptions) error {
	if ref.Local() || ref == (fetch.Reference{}) || img.Digest == "" || !e.goesBy(ref.At(img.Digest), img) {
		return nil // by its ID, or made here
	}
	var layers []fetch.Layer
	for _, l := range img.Layers {
		layers = append(layers, fetch.Layer{Blob: l.Blob, Size: l.Size})
	}
	return e.origins.note(ref, layers, r)
}

// shownName returns what a stored image was asked for as: by ref, or by its ID.
func shownName(img *imagedb.Image, ref fetch.Reference) string {
	if ref == (fetch.Reference{}) {
		return img.ID.Short()
	}
	return ref.Familiar()
}

// wholly reports whether all bytes are to be here before a mount is: the kernel
// does not ask for those that are not, and a layer is proven by all of it.
func wholly(req *engineapi.MountRequest) bool {
	return req.Driver == "erofs" || req.Verify == engineapi.VerifySealed
}

// upToDate returns the stored image if it is what ref names now for the
// platform want, the zero value being the host's. A digest is known for ever;
// for a tag the registry is asked with one HEAD. When it cannot tell, neither
// can this, nor for an image of another platform: it may be one of several.
func (e *engine) upToDate(ctx context.Context, c *fetch.Client, ref fetch.Reference, want fetch.Platform) (imagedb.Image, bool) {
	if ref.Local() {
		return imagedb.Image{}, false
	}
	if want == (fetch.Platform{}) {
		want = fetch.HostPlatform()
	}
	imageID, err := e.images.Lookup(ref.String())
	if err != nil {
		return imagedb.Image{}, false
	}
	img, err := e.images.Get(imageID)
	if err == nil && ref.Digest() != "" && !satisfies(img.Platform, want) {
		if other, ok := e.sibling(&img, ref, want); ok {
			img, err = e.images.Get(other.ID)
		}
	}
	if err != nil || !satisfies(img.Platform, want) || !e.hasAll(e.keysOf(&img)) {
		return imagedb.Image{}, false
	}
	if ref.Digest() != "" {
		return img, true
	}
	now, err := c.Head(ctx, ref)
	return img, err == nil && now == img.Digest
}

// hasAll reports whether all layers are stored, be their bytes here or not.
func (e *engine) hasAll(keys []id.LayerKey) bool {
	return !slices.ContainsFunc(keys, func(k id.LayerKey) bool { return !e.layers.Has(k) })
}

// finishAll brings in what is missing of layers, and proves them; fetched says
// that something was.
func (e *engine) finishAll(ctx context.Context, keys []id.LayerKey, report func(engineapi.Progress)) (fetched bool, err error) {
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	keys = slices.Clone(keys)
	slices.Sort(keys)
	for _, k := range slices.Compact(keys) {
		l, err := e.layers.Info(k)
		if err != nil {
			return false, err
		}
		name := l.Blob.Short()
		g.Go(func() error {
			return e.finish(ctx, k, func(done, total int64) {
				mu.Lock()
				defer mu.Unlock()
				fetched = true
				report(engineapi.Progress{ID: name, Status: layerdb.StatusDownloading, Current: done, Total: total})
			})
		})
	}
	err = g.Wait()
	return fetched, err
}

// finish brings in what is missing of a layer and proves it. progress may be nil.
func (e *engine) finish(ctx context.Context, k id.LayerKey, progress func(done, total int64)) error {
	if err := e.layers.Seal(ctx, k, progress); err != nil {
		return err
	}
	return e.layers.Complete(ctx, k, progress) // of a proven layer bytes may have been evicted
}

// satisfies reports whether an image of platform have serves who wants want:
// variants count only where both name one.
func satisfies(have string, want fetch.Platform) bool {
	p, err := fetch.ParsePlatform(have)
	return err == nil && p.OS == want.OS && p.Architecture == want.Architecture &&
		(p.Variant == want.Variant || p.Variant == "" || want.Variant == "")
}

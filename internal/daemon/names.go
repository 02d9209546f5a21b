package daemon

import (
	"slices"

	"github.com/imgfs/imgfs/fetch"
	"github.com/imgfs/imgfs/imagedb"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// names returns the names an image gets by being pulled as ref: NAME:TAG, if
// a tag was asked for, and NAME@DIGEST. An image from a local source has none.
func names(ref fetch.Reference, digest id.Blob) (tag, byDigest string) {
	if ref.Local() {
		return "", ""
	}
	if ref.Tag() != "" {
		tag = ref.String()
	}
	return tag, ref.Name() + "@" + string(digest)
}

// goesBy reports whether an image has the names of what it came as, if that was
// pulled as ref.
func (e *engine) goesBy(ref fetch.Reference, img *imagedb.Image) bool {
	have := e.images.References(img.ID)
	tag, digest := names(ref, img.Digest)
	own := ref.Name() + "@" + string(img.ManifestDigest)
	return digest == "" ||
		(tag == "" || slices.Contains(have, tag)) && (slices.Contains(have, digest) || slices.Contains(have, own))
}

// nameImage gives an image the names of what it was pulled as. The digest of an
// index belongs to the image that had it first, of whatever platform; others
// are named by the digest of their own manifests.
//
// Preconditions: e.names is held.
func (e *engine) nameImage(ref fetch.Reference, img *fetch.Image) error {
	tag, digest := names(ref, img.Digest)
	if digest == "" {
		return nil
	}
	want := map[string]id.ImageID{digest: img.ID}
	if tag != "" {
		want[tag] = img.ID
	}
	_, failed, err := e.images.TagAll(want, true)
	if err != nil {
		return err
	}
	if fault.KindOf(failed[digest]) == fault.Conflict && img.ManifestDigest != img.Digest {
		delete(failed, digest)
		if err := e.images.Tag(ref.At(img.ManifestDigest).String(), img.ID); err != nil {
			return err
		}
	}
	for _, err := range failed {
		return err
	}
	return nil
}

package daemon

import (
	"context"
	"errors"

	"github.com/imgfs/imgfs/fetch"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/toc"
)

// tocSuffix is behind the tag of the image that has the tables of contents of
// another's layers, where they are not in the layers themselves.
const tocSuffix = "-esgztoc"

// open reads the table of contents that layer i announces.
func (a *arrival) open(ctx context.Context, i int, d toc.Descriptor) (*toc.Index, error) {
	x, err := toc.Open(ctx, blobReader{a.m.Blob(i)}, d)
	if !errors.Is(err, toc.ErrExternal) {
		return x, err
	}
	if _, digest := toc.Announced(d); digest == "" {
		return nil, err // whoever may push a tag may have written it
	}
	m, err := a.tocs()
	if err != nil {
		return nil, err
	}
	for _, l := range m.Layers {
		if of, err := id.ParseBlob(l.Annotations[toc.ExternalAnnotation]); err != nil || of != d.Blob {
			continue
		}
		b, err := a.client.FetchBlob(ctx, m.Reference, l.Blob, l.Size)
		if err != nil {
			return nil, err
		}
		return toc.OpenExternal(d, b)
	}
	return nil, toc.ErrNone
}

// tocImage asks for the image that has the tables of contents of this one's
// layers.
func (a *arrival) tocImage(ctx context.Context) (*fetch.Manifest, error) {
	ref := a.m.Reference
	if ref.Tag() == "" {
		return nil, toc.ErrNone // its name is made of the image's
	}
	ref, err := fetch.ParseReference(ref.Name() + ":" + ref.Tag() + tocSuffix)
	if err != nil {
		return nil, err
	}
	return a.client.ResolveManifest(ctx, ref, fetch.Platform{})
}

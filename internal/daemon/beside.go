package daemon

import (
	"context"

	"github.com/imgfs/imgfs/fetch"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/toc"
)

// maxTraceBlob is how many bytes of a trace are fetched.
const maxTraceBlob = 1 << 20

// besides is what lies beside an image in its registry: an index of its layers,
// and perhaps a trace.
type besides struct {
	client   *fetch.Client
	ref      fetch.Reference
	artifact *toc.Artifact
	trace    *promise[[]toc.Touch] // nil: there is none
}

// lookBeside finds what lies beside the image: our own index, else SOCI's of
// version 2, which the manifest itself names, else one of version 1. Of several
// of a kind the first that the registry lists is taken.
func (a *arrival) lookBeside(ctx context.Context) (*besides, error) {
	ref := a.m.Reference
	v2, _ := id.ParseBlob(a.m.Annotations[toc.SociAnnotation])
	list, err := a.client.Referrers(ctx, ref, a.m.ManifestDigest, "")
	if err != nil && v2 == "" {
		return nil, err
	}
	var candidates []id.Blob
	add := func(artifact string) {
		for _, d := range list {
			if d.ArtifactType == artifact {
				candidates = append(candidates, d.Digest)
			}
		}
	}
	add(toc.OwnArtifact)
	if v2 != "" {
		candidates = append(candidates, v2)
	}
	add(toc.SociArtifact)
	for _, d := range candidates {
		b := &besides{client: a.client, ref: ref}
		if err := b.read(ctx, d, a.m.ManifestDigest); err == nil {
			return b, nil
		} else if ctx.Err() != nil {
			return nil, ctx.Err()
		} else {
			a.e.log.Warn("index beside the image is not used", "image", ref, "index", d, "err", err)
		}
	}
	return nil, toc.ErrNone
}

// read reads the manifest of an index of image, and begins to fetch its trace.
func (b *besides) read(ctx context.Context, index, image id.Blob) error {
	body, _, err := b.client.FetchManifest(ctx, b.ref, index)
	if err != nil {
		return err
	}
	if b.artifact, err = toc.ParseManifest(body); err != nil {
		return err
	}
	if s := b.artifact.Subject.Digest; b.artifact.Type != toc.SociArtifactV2 && s != image {
		return fault.New(fault.Integrity, "index %s is of manifest %s, not %s", index.Short(), s.Short(), image.Short())
	}
	if p := b.artifact.Trace; p != nil && p.Size <= maxTraceBlob {
		b.trace = begin(func() ([]toc.Touch, error) {
			body, err := b.client.FetchBlob(ctx, b.ref, p.Digest, p.Size)
			if err != nil {
				return nil, err
			}
			return toc.DecodeTrace(body)
		})
	}
	return nil
}

// part returns what there is for a layer.
func (b *besides) part(layer id.Blob) (toc.Part, bool) {
	for _, p := range b.artifact.Layers {
		if p.Layer == layer {
			return p, true
		}
	}
	return toc.Part{}, false
}

// imported returns the key of a layer that is here by its index in b, "" if it
// is not.
func (b *besides) imported(a *arrival, d toc.Descriptor) id.LayerKey {
	p, ok := b.part(d.Blob)
	if !ok {
		return ""
	}
	return a.here(toc.Stream, d.Blob, p.Digest)
}

// index fetches the index of a layer; toc.ErrNone if there is none.
func (b *besides) index(ctx context.Context, d toc.Descriptor) (*toc.Index, error) {
	p, ok := b.part(d.Blob)
	if !ok {
		return nil, toc.ErrNone
	}
	if p.Size > d.Size/2 { // anybody may have put it there
		return nil, fault.New(fault.Integrity, "index of %d bytes for a layer of %d is not worth reading", p.Size, d.Size)
	}
	body, err := b.client.FetchBlob(ctx, b.ref, p.Digest, p.Size)
	if err != nil {
		return nil, err
	}
	return toc.Decode(b.artifact.Kind, body, d)
}

// keepTrace remembers the trace beside the image, behind what was read here.
func (a *arrival) keepTrace(keys []id.LayerKey) error {
	if a.beside == nil {
		return nil
	}
	b, err := a.beside.wait()
	if err != nil || b.trace == nil {
		return nil // there is none, or what there is was found to be bad
	}
	given, err := b.trace.wait()
	if err != nil {
		return err
	}
	index, size := map[id.Blob]int{}, map[id.Blob]int64{}
	for i, k := range keys {
		// A trace is of streams.
		if l, err := a.e.layers.Info(k); err == nil && l.Form == toc.Stream {
			index[l.Blob], size[l.Blob] = i, l.DataSize
		}
	}
	var t trace
	for _, p := range given {
		if n := size[p.Layer]; p.Off >= 0 && p.Len > 0 && p.Off < n {
			t = append(t, part{index[p.Layer], p.Off, min(p.Len, n-p.Off)})
		}
	}
	c := id.Stack(keys)
	known, err := loadTrace(a.e.db, c)
	if err != nil {
		return err
	}
	return saveTrace(a.e.db, c, known.then(t), known)
}

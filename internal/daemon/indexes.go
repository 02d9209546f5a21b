package daemon

import (
	"context"
	"slices"

	"github.com/imgfs/imgfs/fetch"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/toc"
)

// found is an index beside an image.
type found struct {
	digest   id.Blob
	artifact *toc.Artifact
}

// beside returns the indexes beside an image's manifest.
func (e *engine) beside(ctx context.Context, c *fetch.Client, ref fetch.Reference, manifest id.Blob) ([]found, error) {
	var all []found
	list, err := c.Referrers(ctx, ref, manifest, "")
	if err != nil {
		return nil, err
	}
	for _, d := range list {
		if d.ArtifactType != toc.OwnArtifact && d.ArtifactType != toc.SociArtifact {
			continue
		}
		body, _, err := c.FetchManifest(ctx, ref, d.Digest)
		if err != nil {
			return nil, err
		}
		a, err := toc.ParseManifest(body)
		if err != nil {
			e.log.Warn("index beside an image", "image", ref, "index", d.Digest, "err", err)
			continue
		}
		all = append(all, found{d.Digest, a})
	}
	return all, nil
}

// info returns what is told of an index.
func (f found) info() engineapi.IndexInfo {
	i := engineapi.IndexInfo{Format: engineapi.IndexOwn, Digest: f.digest, Layers: len(f.artifact.Layers), Trace: f.artifact.Trace != nil}
	switch f.artifact.Type {
	case toc.SociArtifact:
		i.Format = engineapi.IndexSoci
	case toc.SociArtifactV2:
		i.Format = engineapi.IndexSociV2
	}
	for _, p := range f.artifact.Layers {
		i.Size += p.Size
	}
	if t := f.artifact.Trace; t != nil {
		i.Size += t.Size
	}
	return i
}

// ListIndexes implements engineapi.Indexes.
func (e *engine) ListIndexes(ctx context.Context, req engineapi.IndexRequest) ([]engineapi.IndexInfo, error) {
	_, _, all, err := e.indexesOf(ctx, req)
	list := []engineapi.IndexInfo{}
	for _, f := range all {
		list = append(list, f.info())
	}
	return list, advise(err)
}

// indexesOf returns the indexes of an image as its registry has it now, which
// need not be here.
func (e *engine) indexesOf(ctx context.Context, req engineapi.IndexRequest) (c *fetch.Client, ref fetch.Reference, all []found, err error) {
	if ref, err = e.named(req.Image); err != nil {
		return nil, ref, nil, err
	}
	if !slices.Contains([]string{"", engineapi.IndexOwn, engineapi.IndexSoci, engineapi.IndexSociV2}, req.Format) {
		return nil, ref, nil, fault.New(fault.Invalid, "index format %q: it is %s, %s or %s", req.Format, engineapi.IndexOwn, engineapi.IndexSoci, engineapi.IndexSociV2)
	}
	want, err := fetch.ParsePlatform(req.Platform)
	if err != nil {
		return nil, ref, nil, err
	}
	c = e.origins.client(req.Registry)
	m, err := c.ResolveManifest(ctx, ref, want)
	if err != nil {
		e.origins.drop(c)
		return nil, ref, nil, err
	}
	all, err = e.beside(ctx, c, ref, m.ManifestDigest)
	if v2, perr := id.ParseBlob(m.Annotations[toc.SociAnnotation]); err == nil && perr == nil {
		var body []byte
		if body, _, err = c.FetchManifest(ctx, ref, v2); err == nil {
			if a, perr := toc.ParseManifest(body); perr == nil {
				all = append(all, found{v2, a})
			}
		}
	}
	return c, ref, slices.DeleteFunc(all, func(f found) bool { return req.Format != "" && f.info().Format != req.Format }), err
}

// RemoveIndexes implements engineapi.Indexes. What an image's own manifest
// names stays: the image cannot be had without it.
func (e *engine) RemoveIndexes(ctx context.Context, req engineapi.IndexRequest) ([]engineapi.IndexInfo, error) {
	c, ref, all, err := e.indexesOf(ctx, req)
	if err != nil {
		return nil, advise(err)
	}
	list := []engineapi.IndexInfo{}
	for _, f := range all {
		if f.artifact.Type == toc.SociArtifactV2 {
			if req.Format == engineapi.IndexSociV2 {
				return list, fault.WithHint(fault.New(fault.Invalid, "index %s is named by the manifest of %s", f.digest.Short(), ref.Familiar()),
					"push the image without it under that name")
			}
			continue
		}
		if err := c.DeleteManifest(ctx, ref, f.digest); err != nil {
			return list, advise(err)
		}
		list = append(list, f.info())
	}
	if len(list) == 0 {
		return list, fault.New(fault.NotFound, "no index beside %s", ref.Familiar())
	}
	return list, nil
}

var _ engineapi.Indexes = (*engine)(nil)

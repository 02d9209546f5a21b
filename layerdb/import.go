package layerdb

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/layertar"
	"github.com/imgfs/imgfs/internal/lazy"
	"github.com/imgfs/imgfs/internal/toc"
)

// ImportSpec is a layer that is to be stored by its table of contents alone.
type ImportSpec struct {
	Desc  toc.Descriptor // with DiffID: a layer that claims nothing cannot be sealed
	Index *toc.Index
	// Scope is part of what the key depends on, beside form, blob and index; ""
	// where the manifest vouches for the index. An index without a digest is
	// believed of who gave it, and not of others.
	Scope string
}

// Key returns the key under which the layer is stored.
func (i *ImportSpec) Key() id.LayerKey {
	return id.Unproven(string(i.Index.Form)+i.Scope, i.Desc.Blob, i.Index.Digest)
}

// Import stores a layer of which no byte is here yet: its index is made from a
// table of contents, its data is fetched when it is read. It does nothing if it
// is stored already. The key is none that a proven layer has, now or later:
// what was not proven is never found by its diffID.
//
// fault.Integrity if the table of contents is none that a layer can have, or
// was found to lie before; fault.Invalid if the layer cannot be lazy.
func (s *Store) Import(ctx context.Context, spec ImportSpec) (id.LayerKey, error) {
	key := spec.Key()
	if s.Has(key) {
		return key, nil
	}
	s.mu.Lock()
	l, closed := s.layers[key], s.closed
	var bad string
	if l != nil {
		bad = l.info.Bad
	}
	s.mu.Unlock()
	switch {
	case closed:
		return "", fault.New(fault.Unavailable, "layer store is closed")
	case bad != "":
		return "", fault.New(fault.Integrity, "layer %s: its %s index is not used: %s", spec.Desc.Blob.Short(), spec.Index.Kind, bad)
	case spec.Desc.DiffID == "":
		return "", fault.New(fault.Invalid, "layer %s: its diff ID is not known", spec.Desc.Blob.Short())
	}
	err := s.guard("import", func() error { return s.importTo(ctx, key, &spec) })
	if err != nil {
		return "", fmt.Errorf("layer %s: %s index: %w", spec.Desc.Blob.Short(), spec.Index.Kind, s.diskError(err))
	}
	return key, nil
}

func (s *Store) importTo(ctx context.Context, key id.LayerKey, spec *ImportSpec) error {
	dir, forget, err := s.tempDir("import-")
	if err != nil {
		return err
	}
	defer forget()
	index := spec.Index
	info := LayerInfo{
		Key: key, DiffID: spec.Desc.DiffID, Form: index.Form, Kind: index.Kind,
		Blob: spec.Desc.Blob, BlobSize: spec.Desc.Size, Compression: index.Spans.Codec().String(),
		Prefetch: index.Prefetch,
	}
	x := layertar.NewIndexer(s.opts.Limits)
	if err := index.Fill(x); err != nil {
		return err
	}
	sum, err := writeIndex(dir, x, &info)
	if err != nil {
		return err
	}
	switch {
	case len(sum.Annex) > 0:
		// Its sparse files would have to be expanded out of what is not here.
		return fault.New(fault.Invalid, "has sparse files that have to be laid out anew")
	case index.Spans.DataSize() > sum.DataSize || index.DataSize > sum.DataSize:
		return fault.New(fault.Integrity, "%w: its spans give %d bytes of %d", toc.ErrCorrupt, index.Spans.DataSize(), sum.DataSize)
	}
	if index.Form == toc.Stream {
		info.StreamSize = index.DataSize
	}
	if info.Spans, err = writeBytes(filepath.Join(dir, spansFile), index.Spans.Encode()); err != nil {
		return err
	}
	if index.Raw != nil {
		if info.Table, err = writeBytes(filepath.Join(dir, info.tableFile()), index.Raw); err != nil {
			return err
		}
	}
	if err := lazy.Create(dir, lazy.Options{Table: index.Spans, Size: info.DataSize}); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.publish(dir, info)
}

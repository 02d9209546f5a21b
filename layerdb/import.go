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
	// Scope is who vouches for the index, if that is not the manifest: it is
	// believed for those of the same scope, and nobody else gets the layer
	// before it is sealed. "": the index's own digest is enough.
	Scope string
}

// Imported returns the key of a layer that is stored by the table of contents
// of that digest; form and scope as Import had them. One that was imported for
// an image which claims another diffID for the same blob is not meant: whose
// claim is false must not be another's trouble. Without a claim, any is.
func (s *Store) Imported(d toc.Descriptor, form toc.Form, index id.Blob, scope string) (id.LayerKey, bool) {
	key := s.importKey(d, form, index, scope)
	return key, s.Has(key)
}

// importKey returns the key that Imported has, or that it will have.
func (s *Store) importKey(d toc.Descriptor, form toc.Form, index id.Blob, scope string) id.LayerKey {
	if scope != "" {
		scope = fmt.Sprintf(" of %q", scope)
	}
	what := string(form) + scope
	key := id.Unproven(what, d.Blob, index)
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.layers[key]; l != nil && d.DiffID != "" && l.info.DiffID != d.DiffID {
		return id.Unproven(what+" as "+string(d.DiffID), d.Blob, index)
	}
	return key
}

// Import stores a layer of which no byte is here yet: its index is made from a
// table of contents, its data is fetched when it is read. It does nothing if it
// is stored already. The key is none that a proven layer has, now or later:
// what was not proven is never found by its diffID.
//
// fault.Integrity if the table of contents is none that a layer can have, or
// was found to lie before; fault.Invalid if the layer cannot be lazy.
func (s *Store) Import(ctx context.Context, spec ImportSpec) (id.LayerKey, error) {
	if spec.Desc.DiffID == "" {
		return "", fault.New(fault.Invalid, "layer %s: its diff ID is not known", spec.Desc.Blob.Short())
	}
	for {
		key, ok := s.Imported(spec.Desc, spec.Index.Form, spec.Index.Digest, spec.Scope)
		if ok {
			return key, nil
		}
		s.mu.Lock()
		l, closed := s.layers[key], s.closed
		var bad string
		if l != nil {
			bad = l.info.Bad
		}
		s.mu.Unlock()
		var err error
		switch {
		case closed:
			return "", fault.New(fault.Unavailable, "layer store is closed")
		case bad != "":
			err = fault.New(fault.Integrity, "was found to lie: %s", bad)
		default:
			err = s.guard("import", func() error { return s.importTo(ctx, key, &spec) })
		}
		if err != nil {
			return "", fmt.Errorf("layer %s: %s index: %w", spec.Desc.Blob.Short(), spec.Index.Kind, s.diskError(err))
		}
		if s.claims(key) == spec.Desc.DiffID {
			return key, nil
		}
		// Somebody else was first, with another claim.
	}
}

// claims returns the diffID that a stored layer has, or is said to have.
func (s *Store) claims(k id.LayerKey) id.DiffID {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.layers[k]; l != nil {
		return l.info.DiffID
	}
	return ""
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

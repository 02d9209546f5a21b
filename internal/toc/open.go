package toc

import (
	"context"
	"fmt"

	"github.com/imgfs/imgfs/internal/id"
)

const (
	maxTOC  = 150 << 20 // bytes of a TOC, compressed or not; as containers/storage
	minTail = 192 << 10 // bytes fetched from a blob's end for a TOC of unknown size
	maxTail = 1 << 20
)

// Open reads the table of contents that d announces and b holds. ErrNone and
// ErrCorrupt say that the layer is to be read some other way; any other error
// is that of b.
func Open(ctx context.Context, b Blob, d Descriptor) (*Index, error) {
	var (
		x   *Index
		err error
	)
	switch kind := Detect(d); kind {
	case Estargz:
		x, err = openEstargz(ctx, b, d)
	case ZstdChunked:
		x, err = openChunked(ctx, b, d)
	default:
		return nil, ErrNone
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", Detect(d), err)
	}
	return x, nil
}

// readTail returns the last n bytes of the blob, or all of it.
func readTail(ctx context.Context, b Blob, d Descriptor, n int64) ([]byte, error) {
	p := make([]byte, min(n, d.Size))
	return p, b.ReadAt(ctx, p, d.Size-int64(len(p)))
}

// promised compares a digest with the one that the annotation key has, if it has one.
func promised(d Descriptor, key string, got id.Blob) error {
	want := d.Annotations[key]
	if want == "" {
		return nil
	}
	w, err := id.ParseBlob(want)
	if err != nil {
		return fmt.Errorf("%w: annotation %s: %w", ErrCorrupt, key, err)
	}
	if w != got {
		return fmt.Errorf("%w: its digest is %s, and %s was promised", ErrCorrupt, got, w)
	}
	return nil
}

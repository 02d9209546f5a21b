package toc

import (
	"context"
	"errors"
	"fmt"

	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/layertar"
	"github.com/imgfs/imgfs/internal/span"
)

const (
	plainSpan = 1 << 20   // bytes of a span of plain tar
	tarWindow = 128 << 10 // bytes fetched at a header: the next ones are often near

	// A request that passes over less than this is not worth its round trip:
	// a link delivers about as much in the time. Judged after a few, as archives
	// begin with directories and small files.
	worthwhile = 2 << 20
	trial      = 3 // requests
)

// errSmall says that a plain tar is better streamed.
var errSmall = fmt.Errorf("%w: the files of this tar are too small to pass over them", ErrNone)

// OpenTar makes the index of an uncompressed layer by reading its headers and
// skipping what lies between. ErrNone says that this would take longer than to
// stream the layer.
//
// Nothing proves what a range holds before the layer is sealed. So that at
// least the headers stay what they were, the Index has a Proof.
func OpenTar(ctx context.Context, b Blob, d Descriptor) (*Index, error) {
	if Detect(d) != Tar {
		return nil, ErrNone
	}
	raw, err := tarHeaders(ctx, b, d.Size)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", Tar, err)
	}
	skeleton, err := parseSkeleton(raw)
	if err != nil {
		return nil, err
	}
	spans := span.NewBuilder(span.Plain, d.Size)
	for off := int64(0); off < d.Size; off += plainSpan {
		end := min(off+plainSpan, d.Size)
		if err := spans.Add(span.Entry{Off: off, Len: end - off, From: off, To: end}); err != nil {
			return nil, err
		}
	}
	table, err := spans.Table()
	if err != nil {
		return nil, err
	}
	return &Index{
		Kind: Tar, Digest: id.BlobOf(raw), Form: Stream, Spans: table, DataSize: d.Size,
		Fill: skeleton.Fill, Proof: skeleton.Proof(), Raw: raw,
	}, nil
}

// tarHeaders returns the skeleton of the tar archive that b is.
func tarHeaders(ctx context.Context, b Blob, size int64) ([]byte, error) {
	if size <= 0 {
		return nil, ErrNone
	}
	x := layertar.NewIndexer(layertar.Limits{})
	w := NewSkeleton()
	x.Record(w.Record)
	window := make([]byte, min(tarWindow, size))
	requests := int64(0)
	for off := int64(0); off < size; {
		if requests >= trial && off < requests*worthwhile {
			return nil, errSmall
		}
		requests++
		p := window[:min(int64(len(window)), size-off)]
		if err := b.ReadAt(ctx, p, off); err != nil {
			return nil, err
		}
		off += int64(len(p))
		if _, err := x.Write(p); err != nil {
			return nil, errors.Join(ErrCorrupt, err)
		}
		if n := min(x.Payload(), size-off); n > 0 {
			if err := x.Skip(n); err != nil {
				return nil, errors.Join(ErrCorrupt, err)
			}
			off += n
		}
	}
	return w.Finish(size)
}

package toc

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/span"
)

// Our own index of a layer is its skeleton and its span table:
//
//	"imgfs layer 1\n", uvarint length, the skeleton, uvarint length, the table
const layerMagic = "imgfs layer 1\n"

// EncodeLayer returns our index of a layer: a skeleton as Finish returned it
// and a span table of the same stream.
func EncodeLayer(skeleton []byte, spans *span.Table) []byte {
	table := spans.Encode()
	b := append(make([]byte, 0, len(layerMagic)+len(skeleton)+len(table)+20), layerMagic...)
	for _, part := range [][]byte{skeleton, table} {
		b = binary.AppendUvarint(b, uint64(len(part)))
		b = append(b, part...)
	}
	return b
}

// decodeLayer reads what EncodeLayer returned as the index of layer d. It keeps b.
func decodeLayer(b []byte, d Descriptor) (*Index, error) {
	rest, ok := bytes.CutPrefix(b, []byte(layerMagic))
	if !ok {
		return nil, fmt.Errorf("%w: not an index of a layer", ErrCorrupt)
	}
	var parts [2][]byte
	for i := range parts {
		n, k := binary.Uvarint(rest)
		if k <= 0 || n > uint64(len(rest)-k) {
			return nil, fmt.Errorf("%w: an index of %d bytes is truncated", ErrCorrupt, len(b))
		}
		parts[i], rest = rest[k:k+int(n)], rest[k+int(n):]
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("%w: %d bytes behind the index", ErrCorrupt, len(rest))
	}
	s, err := parseSkeleton(parts[0])
	if err != nil {
		return nil, err
	}
	t, err := span.Parse(parts[1])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if err := covers(t, s.Size(), d); err != nil {
		return nil, err
	}
	return &Index{
		Kind:     Own,
		Digest:   id.BlobOf(b),
		Form:     Stream,
		Spans:    t,
		DataSize: s.Size(),
		Fill:     s.Fill,
		Proof:    s.Proof(),
		Raw:      parts[0],
	}, nil
}

// covers checks that a span table from beside the image is one of layer d, that
// every byte of its stream of size bytes is in a span, and every span proven.
func covers(t *span.Table, size int64, d Descriptor) error {
	if t.BlobSize() != d.Size {
		return fmt.Errorf("%w: it is of a blob of %d bytes, the layer has %d", ErrCorrupt, t.BlobSize(), d.Size)
	}
	end := int64(0)
	for i := range t.Spans() {
		s := t.At(i)
		if s.Off != end || !t.Proves(i) {
			return fmt.Errorf("%w: span %d at byte %d, expected at %d, with a digest", ErrCorrupt, i, s.Off, end)
		}
		end += s.Len
	}
	if end != size {
		return fmt.Errorf("%w: spans of %d bytes for a stream of %d", ErrCorrupt, end, size)
	}
	return nil
}

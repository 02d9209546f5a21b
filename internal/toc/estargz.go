package toc

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"strconv"

	"github.com/imgfs/imgfs/internal/span"
	"github.com/klauspost/compress/gzip"
)

const estargzName = "stargz.index.json" // of the TOC in the layer's tar

// openEstargz reads the TOC that the footer points to. How large it is nobody
// says, so that more than the footer is fetched at once.
func openEstargz(ctx context.Context, b Blob, d Descriptor) (*Index, error) {
	tail, err := readTail(ctx, b, d, tailSize(d.Size))
	if err != nil {
		return nil, err
	}
	at, footer, err := estargzFooter(tail)
	if err != nil {
		return nil, err
	}
	have, end := d.Size-int64(len(tail)), d.Size-int64(footer)
	if at <= 0 || at >= end || end-at > maxTOC {
		return nil, fmt.Errorf("%w: it is to be at byte %d of %d", ErrCorrupt, at, d.Size)
	}
	tail = tail[:len(tail)-footer]
	if at >= have {
		tail = tail[at-have:]
	} else {
		front := make([]byte, have-at, end-at)
		if err := b.ReadAt(ctx, front, at); err != nil {
			return nil, err
		}
		tail = append(front, tail...)
	}
	return readEstargz(tail, d, at)
}

// OpenExternal reads an eStargz layer whose TOC is a blob of its own: the layer
// of the image whose tag has "-esgztoc" behind it, see [ErrExternal].
func OpenExternal(d Descriptor, toc []byte) (*Index, error) {
	x, err := readEstargz(toc, d, d.Size)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", Estargz, err)
	}
	return x, nil
}

// ErrExternal says that a layer's TOC is in another image: in that whose tag
// has "-esgztoc" behind it, as the layer that the annotation
// [ExternalAnnotation] gives to this layer. [OpenExternal] takes it.
var ErrExternal = fmt.Errorf("%w: it is in another image", ErrNone)

// ExternalAnnotation is what the layers of an image of TOCs have: the digest of
// the layer that each describes.
const ExternalAnnotation = "containerd.io/snapshot/stargz/layer.digest"

// tailSize guesses how many bytes at the end of a blob hold its TOC. It is a
// 200th of Debian's base system and python's packages, more of small files. What
// is too much costs less than the round trip that too little does.
func tailSize(blob int64) int64 { return min(max(blob/192, minTail), maxTail) }

// estargzFooter returns where the footer at the end of tail says that the TOC
// is, and the footer's own size. It is an empty gzip member that says so in
// its extra field: as a subfield, without one in the first version of the
// format, or in a subfield without a place.
func estargzFooter(tail []byte) (at int64, size int, err error) {
	const magic, external = "STARGZ", "STARGZEXTERNALTOC"
	for _, extra := range [...]string{"SG\x16\x00", ""} {
		if rest, ok := emptyMember(tail, len(extra)+16+len(magic)); ok && string(rest[:len(extra)]) == extra && string(rest[len(extra)+16:]) == magic {
			at, err := strconv.ParseInt(string(rest[len(extra):len(extra)+16]), 16, 64)
			if err != nil {
				return 0, 0, fmt.Errorf("%w: footer: %w", ErrCorrupt, err)
			}
			return at, memberSize + len(rest), nil
		}
	}
	if rest, ok := emptyMember(tail, 4+len(external)); ok && string(rest) == "SG\x11\x00"+external {
		return 0, 0, ErrExternal
	}
	return 0, 0, ErrNone
}

// memberSize is the size of an empty gzip member without its extra field:
// header 10 bytes, the field's length 2, a stored block 5, checksums 8.
const memberSize = 25

// emptyMember returns the extra field of n bytes of the empty gzip member that
// tail ends with.
func emptyMember(tail []byte, n int) ([]byte, bool) {
	if len(tail) < memberSize+n {
		return nil, false
	}
	m := tail[len(tail)-memberSize-n:]
	head, extra, body := m[:12], m[12:12+n], m[12+n:]
	ok := string(head) == "\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff"+string([]byte{byte(n), 0}) &&
		string(body) == "\x01\x00\x00\xff\xff\x00\x00\x00\x00\x00\x00\x00\x00"
	return extra, ok
}

// readEstargz reads a TOC: a gzip member that holds a tar archive that holds JSON.
// The layer's payload ends at end.
func readEstargz(member []byte, d Descriptor, end int64) (*Index, error) {
	z, err := gzip.NewReader(bytes.NewReader(member))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	defer z.Close()
	z.Multistream(false)
	r := tar.NewReader(z)
	h, err := r.Next()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if h.Name != estargzName || h.Size > maxTOC {
		return nil, fmt.Errorf("%w: file %.200q of %d bytes where %s should be", ErrCorrupt, h.Name, h.Size, estargzName)
	}
	t := table{landmarks: true}
	sum, err := t.read(io.Reader(r))
	if err == nil {
		err = promised(d, noteTOCDigest, sum)
	}
	if err != nil {
		return nil, err
	}
	return t.index(Index{Kind: Estargz, Digest: sum}, span.Gzip, d.Size, end)
}

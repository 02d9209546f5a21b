package toc

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/span"
	"github.com/klauspost/compress/zstd"
)

// Footers of zstd:chunked, data of a skippable frame each: little-endian
// 64-bit numbers, then the magic. The two dialects differ in a letter's case.
const (
	footerContainers = 64
	footerStargz     = 40
	magicContainers  = "GNUlInUx"
	magicStargz      = "GnUlInUx"

	skippableMagic = "\x50\x2a\x4d\x18"
	frameHeader    = 8 // bytes of a skippable frame in front of its data
	typeTOC        = 1 // the only type of TOC there is
)

// place is where a zstd:chunked layer has its TOC.
type place struct {
	off, size int64 // of the frame's data, compressed
	raw       int64 // bytes once decompressed
}

// openChunked reads the TOC that annotations or the footer point to.
func openChunked(ctx context.Context, b Blob, d Descriptor) (*Index, error) {
	var p place
	var err error
	if prefix := position(d.Annotations); prefix != "" {
		p, err = parsePosition(d.Annotations[prefix+notePosition])
	} else {
		var tail []byte
		if tail, err = readTail(ctx, b, d, footerContainers); err != nil {
			return nil, err
		}
		p, err = chunkedFooter(tail)
	}
	if err != nil {
		return nil, err
	}
	if p.off < frameHeader || p.size <= 0 || p.off > d.Size || p.size > d.Size-p.off || p.size > maxTOC || p.raw > maxTOC {
		return nil, fmt.Errorf("%w: it is to be %d bytes at %d of %d", ErrCorrupt, p.size, p.off, d.Size)
	}
	frame := make([]byte, p.size)
	if err := b.ReadAt(ctx, frame, p.off); err != nil {
		return nil, err
	}
	return readChunked(frame, d, p)
}

// parsePosition parses offset:size:raw size:type.
func parsePosition(s string) (place, error) {
	f := strings.Split(s, ":")
	var n [4]int64
	if len(f) != len(n) {
		return place{}, fmt.Errorf("%w: position %.100q", ErrCorrupt, s)
	}
	for i := range n {
		var err error
		if n[i], err = strconv.ParseInt(f[i], 10, 64); err != nil || n[i] < 0 {
			return place{}, fmt.Errorf("%w: position %.100q", ErrCorrupt, s)
		}
	}
	if n[3] != typeTOC {
		return place{}, fmt.Errorf("%w: TOC of type %d", ErrNone, n[3])
	}
	return place{off: n[0], size: n[1], raw: n[2]}, nil
}

// chunkedFooter reads the footer that tail ends with, of whichever dialect.
func chunkedFooter(tail []byte) (place, error) {
	n := len(tail)
	switch {
	case n >= footerContainers && string(tail[n-8:]) == magicContainers:
		tail = tail[n-footerContainers:]
	case n >= footerStargz && string(tail[n-8:]) == magicStargz:
		tail = tail[n-footerStargz:]
	default:
		return place{}, ErrNone
	}
	field := func(i int) int64 { return int64(binary.LittleEndian.Uint64(tail[8*i:])) }
	if field(3) != typeTOC {
		return place{}, fmt.Errorf("%w: TOC of type %d", ErrNone, field(3))
	}
	return place{off: field(0), size: field(1), raw: field(2)}, nil
}

// readChunked reads a TOC: JSON in zstd frames. The digest of the JSON, which
// stargz-snapshotter's readers look at, tells its dialect. All there is besides
// is that of the frames.
func readChunked(frames []byte, d Descriptor, p place) (*Index, error) {
	sum := id.BlobOf(frames)
	for _, prefix := range [...]string{noteContainers, noteStargz} {
		if err := promised(d, prefix+noteChecksum, sum); err != nil {
			return nil, err
		}
	}
	z, err := zstd.NewReader(bytes.NewReader(frames), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxTOC))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	stargz := d.Annotations[noteTOCDigest] != ""
	t := table{landmarks: stargz}
	jsonSum, err := t.read(z)
	if err != nil {
		return nil, err
	}
	if stargz {
		if err := promised(d, noteTOCDigest, jsonSum); err != nil {
			return nil, err
		}
		sum = jsonSum
	}
	// Behind the payload comes the frame of the TOC, or one before it.
	return t.index(Index{Kind: ZstdChunked, Digest: sum}, span.Zstd, d.Size, p.off-frameHeader)
}

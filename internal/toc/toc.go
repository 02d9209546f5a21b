// Package toc reads and writes tables of contents: what stands beside or at
// the end of a layer and says, without the layer being downloaded, which files
// it holds and which bytes of the blob give which bytes of them.
//
// # Terms
//
// An [Index] is what any of them becomes: entries for a layer index (package
// layertar) and a span table (package span) for the layer's data file. It has
// a [Form]:
//
//   - [Stream]: the data file is the layer's uncompressed tar stream.
//   - [Packed]: the table of contents knows payloads, not where the tar has
//     them. The data file holds the payload of each regular file, each at the
//     next 512-byte border, in the order of the table of contents; there are no
//     headers, and the bytes between two payloads are zeros no span fills.
//
// The kinds are eStargz and zstd:chunked (which come in the blob), SOCI's zTOC
// and our own index (which come beside the image), and plain tar, whose headers
// are read by ranges.
//
// # Precedence
//
// One layer has one table of contents, and annotations of its descriptor say
// which ([Detect]). Nothing is guessed by reading: a range of a blob costs a
// round trip that most layers would pay for nothing.
//
// The media type decides, as the two formats that annotations announce are of
// one compression each:
//
//  1. gzip: eStargz, if the digest of a TOC is announced, or at least the size
//     of the tar that only eStargz announces.
//  2. zstd: zstd:chunked, if the position or the digest of a TOC is announced.
//     It is stargz-snapshotter's dialect if the digest is, else that of
//     containers/storage.
//  3. no compression: plain tar.
//
// Annotations of a kind that is not the one chosen are ignored, and two tables
// of contents are never mixed. Where the footer or the TOC is not what was
// announced, there is none.
//
// # Trust
//
// What a digest in the manifest covers is as good as the manifest. A table of
// contents without such a digest is believed for as long as its chunks agree
// with it, and until the layer is sealed: [Index.Digest] is part of what the
// layer is called until then, so no other image gets it. One that came from
// beside the image brings a [Proof]: that a payload stands behind the headers it
// is said to have. That does not tell of what nobody reads, as an entry left out
// or the name of a hard link, nor does the digest of a span's compressed bytes
// cover the window they are decoded with. Only sealing finds lies about these.
//
// All that is read here may lie. Sizes are compared with what is there before
// memory is spent, names and links are left to layertar, which knows hostile
// ones, and spans to package span, which refuses a table that is not in order.
package toc

import (
	"context"
	"errors"
	"io"

	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/layertar"
	"github.com/imgfs/imgfs/internal/span"
)

// Form says what a layer's data file holds.
type Form string

// The forms.
const (
	Stream Form = "stream" // the uncompressed tar stream
	Packed Form = "packed" // payloads of regular files, each at a 512-byte border
)

// The kinds of an Index.
const (
	Estargz     = "estargz"
	ZstdChunked = "zstd:chunked" // either dialect
	Soci        = "soci"
	Own         = "imgfs"
	Tar         = "tar" // no table of contents: headers were read by ranges
)

var (
	// ErrNone says that the layer has no table of contents of the kind asked for.
	ErrNone = errors.New("no table of contents")
	// ErrCorrupt says that there is one, and that it is not to be used: it is
	// malformed, contradicts itself, or is not what the manifest promised.
	ErrCorrupt = errors.New("bad table of contents")
)

// Descriptor is what a manifest says of a layer.
type Descriptor struct {
	Blob        id.Blob
	Size        int64 // bytes of the blob
	MediaType   string
	DiffID      id.DiffID // as the config claims; "" where it does not (schema 1)
	Annotations map[string]string
}

// Blob reads ranges of a layer's blob.
type Blob interface {
	// ReadAt fills p with the bytes at off, all of it, or fails. It is not
	// verified what they are.
	ReadAt(ctx context.Context, p []byte, off int64) error
}

// Range is Len bytes at Off of a data file.
type Range struct{ Off, Len int64 }

// Index is a layer's table of contents, ready to be imported.
type Index struct {
	Kind     string  // one of the kinds above
	Digest   id.Blob // of the table of contents itself, as it was read
	Form     Form
	Spans    *span.Table
	DataSize int64 // bytes of the data file

	// Fill enters all entries into x, and the size of the data.
	Fill func(x *layertar.Indexer) error

	// Proof compares what is fetched with what an index from beside the image
	// said. nil: the digests of the chunks are enough.
	Proof Proof
	// Raw is what has to be kept of the table of contents so that Proof can be
	// had again without the network. nil where Proof is.
	Raw []byte

	// Prefetch is what the image's maker wants fetched when it is mounted.
	Prefetch []Range
}

// Proof compares the layer's own stream with what an index from outside said of it.
type Proof interface {
	// Check is told that the bytes [Start(from), to) of the stream are readable
	// at r. All headers among them, and the header of the entry whose payload
	// covers from, must be what the index says.
	Check(r io.ReaderAt, from, to int64) error
	// Start returns where the metadata of the entry that holds byte off begins;
	// at most off.
	Start(off int64) int64
}

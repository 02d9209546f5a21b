package span

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"sort"
)

// Codec is how a blob is compressed.
type Codec uint8

const (
	Plain Codec = iota
	Gzip
	Zstd
)

// String returns the codec's name.
func (c Codec) String() string {
	switch c {
	case Plain:
		return "none"
	case Gzip:
		return "gzip"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("codec %d", uint8(c))
}

var (
	// ErrDigest is returned (wrapped) when bytes are not those that a span's
	// digest promises. Somebody else may have the right ones.
	ErrDigest = errors.New("span: digest does not match")
	// ErrCorrupt is returned (wrapped) when a table breaks the package's
	// invariants, or a blob does not decode as the table says.
	ErrCorrupt = errors.New("span: corrupt")
)

const (
	// MaxSpan limits a span's data, and what is decoded in front of it.
	MaxSpan = 64 << 20
	// maxBlob limits a span's blob bytes: what does not compress grows a bit,
	// and headers may come between.
	maxBlob = 2 * MaxSpan
	// maxOffset limits offsets, so that sums of two of them do not overflow.
	maxOffset = math.MaxInt64 / 4
)

// Span says that data bytes [Off, Off+Len) are decoded from blob bytes
// [From, To).
type Span struct{ Off, Len, From, To int64 }

// Entry is a span with all that it takes to decode it.
type Entry struct {
	Off, Len int64
	From, To int64
	Skip     int64 // decoded bytes in front of the span's, to be dropped
	Bits     uint8 // gzip: bits of byte From that belong to what comes before, 0 to 7
	// Header says that a gzip member's header stands at From. Otherwise a
	// deflate block begins there.
	Header bool
	// Window is the decoder's state at From; nil where it needs none. For gzip
	// the data before it, at most 32 KiB. It is not kept.
	Window []byte
	// Blob and Data are the SHA-256 of the blob bytes [From, To) and of the
	// data; nil where it is not known.
	Blob, Data *[sha256.Size]byte
}

// Table holds the spans of one blob. It is immutable and safe for concurrent
// use.
type Table struct {
	codec    Codec
	blobSize int64
	spans    []Span
	rest     []rest // by span
	sums     []byte // digests, one behind the other
	states   []byte // windows, packed, one behind the other

	gzip gzipDecoders
	zstd zstdDecoders
}

// rest is what a span has beside its place.
type rest struct {
	skip  int64
	state uint32 // index in states of the window's end; it begins where the one before ends
	sum   uint32 // number of digests before this span's
	flags uint8
}

// The flags of a span, as they are in the encoded table too.
const (
	flagBits   = 1<<3 - 1 // Entry.Bits
	flagHeader = 1 << 3
	flagSkip   = 1 << 4
	flagBlob   = 1 << 5 // a digest of the blob bytes
	flagData   = 1 << 6 // a digest of the data, behind the other
	flagState  = 1 << 7 // a window
)

// Codec returns how the blob is compressed.
func (t *Table) Codec() Codec { return t.codec }

// BlobSize returns the size of the blob.
func (t *Table) BlobSize() int64 { return t.blobSize }

// DataSize returns where the last span ends.
func (t *Table) DataSize() int64 {
	if len(t.spans) == 0 {
		return 0
	}
	s := t.spans[len(t.spans)-1]
	return s.Off + s.Len
}

// Spans returns how many spans there are.
func (t *Table) Spans() int { return len(t.spans) }

// At returns span i.
func (t *Table) At(i int) Span { return t.spans[i] }

// Find returns the span that holds data byte off, or the next one behind it;
// Spans() if there is none.
func (t *Table) Find(off int64) int {
	return sort.Search(len(t.spans), func(i int) bool { return t.spans[i].Off+t.spans[i].Len > off })
}

// Proves reports whether span i has a digest, so that Decode returns the
// promised bytes or an error.
func (t *Table) Proves(i int) bool { return t.rest[i].flags&(flagBlob|flagData) != 0 }

// Decode decodes span i into dst, which has its length, from blob, the blob
// bytes [From, To). After an error the contents of dst are undefined.
func (t *Table) Decode(i int, blob, dst []byte) error {
	s, r := t.spans[i], t.rest[i]
	if int64(len(blob)) != s.To-s.From || int64(len(dst)) != s.Len {
		return fmt.Errorf("span %d: %d bytes of blob for %d of data, want %d for %d", i, len(blob), len(dst), s.To-s.From, s.Len)
	}
	blobSum, dataSum := t.digests(i)
	if blobSum != nil {
		if got := sha256.Sum256(blob); !bytes.Equal(got[:], blobSum) {
			return fmt.Errorf("span %d: compressed bytes: %w", i, ErrDigest)
		}
	}
	var err error
	switch t.codec {
	case Plain:
		copy(dst, blob)
	case Gzip:
		err = t.gzip.decode(checkpoint{r.skip, r.flags, t.state(i)}, blob, dst)
	case Zstd:
		err = t.zstd.decode(checkpoint{r.skip, r.flags, t.state(i)}, blob, dst)
	}
	if err != nil {
		if dataSum != nil && blobSum == nil {
			// Bytes that do not even decode are not those of the digest.
			return fmt.Errorf("span %d: %w: %w", i, ErrDigest, err)
		}
		return fmt.Errorf("span %d: %w: %w", i, ErrCorrupt, err)
	}
	if dataSum != nil {
		if got := sha256.Sum256(dst); !bytes.Equal(got[:], dataSum) {
			return fmt.Errorf("span %d: %w", i, ErrDigest)
		}
	}
	return nil
}

// checkpoint is where and how a codec starts to decode a span.
type checkpoint struct {
	skip  int64
	flags uint8
	state []byte // the window, packed; empty: none
}

// digests returns the digests of span i, nil for those it has not.
func (t *Table) digests(i int) (blob, data []byte) {
	r := t.rest[i]
	sums := t.sums[int(r.sum)*sha256.Size:]
	if r.flags&flagBlob != 0 {
		blob, sums = sums[:sha256.Size], sums[sha256.Size:]
	}
	if r.flags&flagData != 0 {
		data = sums[:sha256.Size]
	}
	return blob, data
}

// state returns the packed window of span i.
func (t *Table) state(i int) []byte {
	from := uint32(0)
	if i > 0 {
		from = t.rest[i-1].state
	}
	return t.states[from:t.rest[i].state]
}

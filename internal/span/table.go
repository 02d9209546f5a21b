package span

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
)

// Codec is how a blob is compressed.
type Codec uint8

const (
	Plain Codec = iota
	Gzip
	Zstd
	// Of the following there are no tables: a blob is read from its start.
	Bzip2
	Xz
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
	case Bzip2:
		return "bzip2"
	case Xz:
		return "xz"
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
	// Window is how much data before a step has to be there to decode it: as
	// far as gzip's matches reach back.
	Window = 32 << 10
	// maxSteps limits the steps behind one checkpoint.
	maxSteps = 255
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
	// Step says that the window is the end of the data of the spans before.
	Step bool
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
	flags uint16
	step  uint8 // spans between this one and its checkpoint; 0: it has one itself
}

// The flags of a span, as they are in the encoded table too.
const (
	flagBits   = 1<<3 - 1 // Entry.Bits
	flagHeader = 1 << 3
	flagSkip   = 1 << 4
	flagBlob   = 1 << 5 // a digest of the blob bytes
	flagData   = 1 << 6 // a digest of the data, behind the other
	flagState  = 1 << 7 // a window
	flagStep   = 1 << 8
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
	// sort.Search, without a call per step: every read begins here.
	lo, hi := 0, len(t.spans)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if s := &t.spans[mid]; s.Off+s.Len > off {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return lo
}

// Proves reports whether span i has a digest, so that Decode returns the
// promised bytes or an error.
func (t *Table) Proves(i int) bool { return t.rest[i].flags&(flagBlob|flagData) != 0 }

// Needs returns the first of the spans [first, i) whose data must be there to
// decode span i: none but for a step. Each of them may need others before it.
func (t *Table) Needs(i int) (first int) {
	first = i
	if t.rest[i].step > 0 {
		for from := t.spans[i].Off - Window; t.spans[first].Off > from; first-- {
		}
	}
	return first
}

// Group returns the group of span i: n spans from first on that are parts of
// what the same blob bytes decode to, so that one pass gives them all. Most
// spans are a group of their own.
func (t *Table) Group(i int) (first, n int) {
	first, end := i, i+1
	for first > 0 && t.joined(first-1) {
		first--
	}
	for end < len(t.spans) && t.joined(end-1) {
		end++
	}
	return first, end - first
}

// joined reports whether spans i and i+1 are of one group.
func (t *Table) joined(i int) bool {
	a, b, ra, rb := &t.spans[i], &t.spans[i+1], &t.rest[i], &t.rest[i+1]
	const digests = flagBlob | flagData | flagSkip
	return a.From == b.From && a.To == b.To && (ra.flags|digests) == (rb.flags|digests) && ra.flags&flagState == 0 && rb.skip >= ra.skip+a.Len
}

// Decode decodes span i into dst, which has its length, from blob, the blob
// bytes [From, To), and before, which ends with the Window bytes of data in
// front of the span if that is a step, and is ignored if not. After an error
// the contents of dst are undefined.
func (t *Table) Decode(i int, blob, before, dst []byte) error {
	return t.DecodeGroup(i, blob, before, [][]byte{dst})
}

// DecodeGroup decodes len(dst) spans of a group from span first on, as Decode
// does each. A nil in dst is a span that is not wanted.
func (t *Table) DecodeGroup(first int, blob, before []byte, dst [][]byte) error {
	parts := make([]part, 0, len(dst))
	at := int64(0)             // in what the blob bytes decode to
	var got *[sha256.Size]byte // of blob
	for k, d := range dst {
		i := first + k
		s, r := &t.spans[i], &t.rest[i]
		if k > 0 && !t.joined(i-1) {
			return fmt.Errorf("span %d is not of the group of span %d", i, first)
		}
		if d == nil {
			continue
		}
		if int64(len(blob)) != s.To-s.From || int64(len(d)) != s.Len {
			return fmt.Errorf("span %d: %d bytes of blob for %d of data, want %d for %d", i, len(blob), len(d), s.To-s.From, s.Len)
		}
		if sum, _ := t.digests(i); sum != nil {
			if got == nil {
				b := sha256.Sum256(blob)
				got = &b
			}
			if !bytes.Equal(got[:], sum) {
				return fmt.Errorf("span %d: compressed bytes: %w", i, ErrDigest)
			}
		}
		parts = append(parts, part{r.skip - at, d})
		at = r.skip + s.Len
	}
	if len(parts) == 0 {
		return nil
	}
	if t.rest[first].step > 0 && len(before) < Window {
		return fmt.Errorf("span %d: %d bytes of data before it, want %d", first, len(before), Window)
	}
	if err := t.decode(first, blob, before, parts); err != nil {
		if blobSum, dataSum := t.digests(first); blobSum == nil && dataSum != nil {
			// Bytes that do not even decode are not those of the digest.
			return fmt.Errorf("span %d: %w: %w", first, ErrDigest, err)
		}
		return fmt.Errorf("span %d: %w: %w", first, ErrCorrupt, err)
	}
	for k, d := range dst {
		if _, sum := t.digests(first + k); d != nil && sum != nil {
			if got := sha256.Sum256(d); !bytes.Equal(got[:], sum) {
				return fmt.Errorf("span %d: %w", first+k, ErrDigest)
			}
		}
	}
	return nil
}

// decode decodes blob with the codec, from the checkpoint of span i.
func (t *Table) decode(i int, blob, before []byte, parts []part) error {
	c := checkpoint{flags: t.rest[i].flags, state: t.state(i)}
	if t.rest[i].step > 0 {
		c.before = before[len(before)-Window:]
	}
	switch t.codec {
	case Plain:
		copy(parts[0].dst, blob)
		return nil
	case Gzip:
		return t.gzip.decode(c, blob, parts)
	default:
		return t.zstd.decode(c, blob, parts)
	}
}

// checkpoint is where and how a codec starts to decode.
type checkpoint struct {
	flags  uint16
	state  []byte // the window, packed; empty: none
	before []byte // the window of a step
}

// part is what is wanted of decoded bytes: skip of them are not, then dst is
// to be filled.
type part struct {
	skip int64
	dst  []byte
}

// DataSum returns the SHA-256 of span i's data, if the table has it.
func (t *Table) DataSum(i int) (sum [sha256.Size]byte, ok bool) {
	if _, data := t.digests(i); data != nil {
		return [sha256.Size]byte(data), true
	}
	return sum, false
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

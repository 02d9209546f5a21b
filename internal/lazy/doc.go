// Package lazy keeps one data file that is filled from a blob by a span table,
// when somebody needs its bytes.
//
// Terms: blob, data, span and table are package span's. A span is *present*
// when its bytes are in the data file and trusted; *ready* when somebody has
// asked for it since it is present, which is all that the hot path looks at;
// *suspect* when it was present at an unclean stop, and its checksum must be
// compared once more; *raw* when its bytes are in the data file and are what
// the table says, but have not been compared with the index ([Proof]). A
// *request* is one range of the blob under way: a run of spans. The *contents*
// are the data file and what is known of it; eviction replaces them.
//
// Who misses a span joins the request that will bring it, if that is close, or
// starts one. A request brings the spans that were asked for, and those behind
// them that are likely to be asked for next: as many bytes as were used in a
// row right before, twice (lookahead), up to the end of the file unless several
// were read one after the other; which makes a scattered reader fetch what it
// reads, and a sequential one stream. What is only likely, prefetched
// or completed yields to what somebody waits for, in all Files of a Pool. Spans
// are decoded in parallel as they arrive, and each wakes its own waiters.
//
// On disk, in the File's directory:
//
//	data     the bytes, sparse
//	present  a header and, by span, the xxh64 of its bytes, 0: not present.
//	         Without this file all bytes are present.
//	seen     of spans that the table has no digest for: the SHA-256 they had
//	         when first read, which later ones must have too
//
// Invariants:
//   - A data file only ever gains bytes. Evict and Create make new ones; who
//     holds an old one keeps its bytes. No data file is closed explicitly.
//   - A span becomes present after its bytes are written and its digest, what
//     was seen of it before, and Proof agree. A step is decoded from nothing
//     but spans of which the first two hold.
//   - A "present" that says it was closed cleanly belongs to synced bytes, in
//     the very data file whose inode, size and time it names. It says so no
//     longer, synced, before the first byte is written. All others are believed
//     span by span, where checksum and bytes agree.
//   - A data file that somebody else wrote to, as its size and time tell, is
//     believed no more than after an unclean stop; and what a step is decoded
//     with is compared with its checksum each time.
//   - No error is remembered, but for the one that makes the data bad: the
//     next who asks tries again.
//   - Requests run on the File's context. One that nobody waits for any more,
//     as its last waiter left, is cancelled.
//   - No lock that a read takes is held over network, disk or decoding, nor
//     over a caller's function but Proof.Start.
//   - Who waits for another request holds neither a decoding slot nor a lane,
//     and waits only for spans before his own: nobody waits in a circle.
//
// Lock order: File.evicting, contents.writing, File.mu, Pool.mu.
package lazy

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/imgfs/imgfs/internal/span"
)

// Source reads ranges of the blob. It is used by several goroutines at once.
type Source interface {
	// Range returns a reader of exactly n bytes from off on, which streams them
	// as they arrive. A reader that is left alone for a while (the File has
	// more urgent things to fetch) is not stalled.
	Range(ctx context.Context, off, n int64) (io.ReadCloser, error)
	// Blame says that the n bytes at off that it gave were wrong. It reports
	// whether somebody else can be asked for them.
	Blame(off, n int64) bool
	// Link returns the time to the first byte of an answer, and the bytes per
	// second after that; zero if not known.
	Link() (rtt time.Duration, bytesPerSecond float64)
	// Whole says that ranges are not had for less than the whole blob.
	Whole() bool
}

// Proof compares the stream with what an index from outside said of it.
type Proof interface {
	// Check compares all metadata in the stream's bytes [from, to), and that of
	// the entry that holds byte from. It reads what it needs from r, which has
	// the bytes from Start(from) to to. An error says what the index lied about.
	Check(r io.ReaderAt, from, to int64) error
	// Start returns where the metadata of the entry that holds byte off begins.
	Start(off int64) int64
}

// Range is a run of bytes of the data file.
type Range struct{ Off, Len int64 }

// Options say how a File is filled.
type Options struct {
	Table *span.Table
	// Size of the data file; 0 is the table's. What no span covers is zeros.
	Size int64
	// Source is asked for when bytes are missing. What it returns is kept,
	// an error is not.
	Source func(ctx context.Context) (Source, error)
	// Elsewhere fills dst with the data of span i, which the table has a digest
	// of, if that can be had without the source. It compares the digest itself.
	// May be nil.
	Elsewhere func(ctx context.Context, i int, dst []byte) bool
	Proof     Proof // nil: the table's digests are proof enough
	// Grew is called after bytes came in. May be nil.
	Grew func(bytes int64)
	// Bad is called once if the data turns out not to be what the table or the
	// index says, whoever gives it: no byte of it is served again. May be nil.
	Bad func(err error)
	// Space is asked before n bytes are written; an error means what a full
	// disk does: they are served without being kept. May be nil.
	Space  func(n int64) error
	Logger *slog.Logger // nil: none
	Pool   *Pool        // shared by the Files of a store; nil: this File's own
}

// Package lazy keeps a data file that is filled from a blob, span by span, when
// somebody needs its bytes.
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
	// Check compares all metadata in the stream's bytes [Start(from), to), which
	// can be read from r. An error says what the index lied about.
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
	Proof  Proof // nil: the table's digests are proof enough
	// Grew is called after bytes came in, without any lock. May be nil.
	Grew func(bytes int64)
	// Bad is called once if the data turns out not to be what the table or the
	// index says, whoever gives it: no byte of it is served again. May be nil.
	Bad func(err error)
	// Space is asked before n bytes are written; an error, as a full disk,
	// makes them be served without being kept. May be nil.
	Space  func(n int64) error
	Logger *slog.Logger // nil: none
	Pool   *Pool        // shared by the Files of a store; nil: this File's own
}

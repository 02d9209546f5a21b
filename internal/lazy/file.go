package lazy

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
)

// Pool is what the Files of a store share: processors, buffers, and the
// knowledge of who is in a hurry.
type Pool struct{}

// NewPool returns a Pool that decodes n spans at a time; 0: one per processor.
func NewPool(n int) *Pool { return &Pool{} }

// Names of the files in a File's directory.
const (
	DataName    = "data"
	PresentName = "present" // absent: all bytes are present
	SeenName    = "seen"    // digests of spans for which the table has none
)

// File is a data file that may be incomplete. It is safe for concurrent use.
type File struct {
	dir string
	o   Options
	f   *os.File

	mu   sync.Mutex
	have map[int]bool
}

// Create makes the files of a File that has no bytes yet, synced. The size is
// that of the data file, 0: the table's.
func Create(dir string, o Options) error {
	f, err := os.Create(filepath.Join(dir, DataName))
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Truncate(max(o.Size, o.Table.DataSize()))
}

// Open opens the files in dir.
func Open(dir string, o Options) (*File, error) {
	f, err := os.OpenFile(filepath.Join(dir, DataName), os.O_RDWR, 0)
	return &File{dir: dir, o: o, f: f, have: map[int]bool{}}, err
}

// Fill returns the file that holds the n bytes at off, and will hold them for
// as long as it is referred to: a data file only gains bytes. It waits for
// those that are missing; if ctx ends it returns ctx's error, and with a ctx
// that ended before, it never waits. The file is never closed by the File.
func (f *File) Fill(ctx context.Context, off, n int64) (*os.File, error) {
	t := f.o.Table
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := t.Find(off); i < t.Spans() && t.At(i).Off < off+n; i++ {
		if f.have[i] {
			continue
		}
		src, err := f.o.Source(ctx)
		if err != nil {
			return nil, err
		}
		s := t.At(i)
		body, err := src.Range(ctx, s.From, s.To-s.From)
		if err != nil {
			return nil, err
		}
		blob, err := io.ReadAll(body)
		body.Close()
		if err != nil {
			return nil, err
		}
		data := make([]byte, s.Len)
		if err := t.Decode(i, blob, data); err != nil {
			return nil, err
		}
		if _, err := f.f.WriteAt(data, s.Off); err != nil {
			return nil, err
		}
		f.have[i] = true
	}
	return f.f, nil
}

// Prefetch brings in ranges, in their order as far as several can be under way
// at a time, and yields to reads. It returns when they are present.
func (f *File) Prefetch(ctx context.Context, ranges []Range) error {
	for _, r := range ranges {
		if _, err := f.Fill(ctx, r.Off, r.Len); err != nil {
			return err
		}
	}
	return nil
}

// Complete brings in all that is missing, from the first hole on in long
// requests, and yields to reads. It returns when everything is present, or
// ctx's error. Progress, which may be nil, is told bytes of data.
func (f *File) Complete(ctx context.Context, progress func(done, total int64)) error {
	return f.Prefetch(ctx, []Range{{0, f.o.Table.DataSize()}})
}

// Verify compares what is present with its checksums. With repair, spans that
// fail are dropped, to be fetched again when they are needed. It returns how
// many failed.
func (f *File) Verify(ctx context.Context, repair bool) (bad int, err error) { return 0, nil }

// Evict drops all bytes: a new, empty data file takes the place of the old one,
// which stays with those who hold it.
func (f *File) Evict() (freed int64, err error) { return 0, errors.ErrUnsupported }

// Present returns how many bytes of data are present, of how many.
func (f *File) Present() (have, total int64) { return f.PresentIn(0, f.o.Table.DataSize()), f.o.Table.DataSize() }

// PresentIn returns how many bytes of the range are present.
func (f *File) PresentIn(off, n int64) (have int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.o.Table
	for i := t.Find(off); i < t.Spans() && t.At(i).Off < off+n; i++ {
		if f.have[i] {
			s := t.At(i)
			have += min(s.Off+s.Len, off+n) - max(s.Off, off)
		}
	}
	return have
}

// Whole reports whether all bytes are present and need no checking.
func (f *File) Whole() bool {
	have, total := f.Present()
	return have == total
}

// Close stops what is under way, syncs the files and marks them as cleanly
// closed. Files that Fill returned stay open.
func (f *File) Close() error { return f.f.Sync() }

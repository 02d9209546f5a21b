package layerdb

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/lazy"
	"github.com/imgfs/imgfs/internal/span"
	"github.com/imgfs/imgfs/internal/toc"
)

// Data is the data file of one layer: a device of a chain. All chains that are
// open share it. Its file never loses a byte: an eviction puts another one in
// its place, and who holds the old one keeps it.
type Data struct {
	s     *Store
	layer *layer
	key   id.LayerKey
	size  int64 // bytes of the data file

	bad   atomic.Pointer[error]     // why no byte is served any more
	lazy  atomic.Pointer[lazy.File] // nil: all is in whole
	whole atomic.Pointer[os.File]   // nil once lazy is set
	from  blobSource
}

// Key returns the layer's key.
func (d *Data) Key() id.LayerKey { return d.key }

// Fill returns the file that holds the n bytes at off, and will for as long as
// it is referred to. It waits for those that are missing; with a ctx that ended
// before, it never waits. Who reads on reads up to end, as a rule.
func (d *Data) Fill(ctx context.Context, off, n, end int64) (*os.File, error) {
	if err := d.bad.Load(); err != nil {
		return nil, *err
	}
	for {
		if f := d.lazy.Load(); f != nil {
			return f.Fill(ctx, off, n, end)
		}
		// Between the two an eviction may have come.
		if f := d.whole.Load(); f != nil {
			return f, nil
		}
	}
}

// Prefetch brings in ranges of data, and yields to reads.
func (d *Data) Prefetch(ctx context.Context, ranges []toc.Range) error {
	f := d.lazy.Load()
	if f == nil {
		return nil
	}
	list := make([]lazy.Range, len(ranges))
	for i, r := range ranges {
		list[i] = lazy.Range(r)
	}
	return f.Prefetch(ctx, list)
}

// Complete brings in all that is missing, and yields to reads. Progress, which
// may be nil, is told bytes of data.
func (d *Data) Complete(ctx context.Context, progress func(done, total int64)) error {
	if err := d.bad.Load(); err != nil {
		return *err
	}
	f := d.lazy.Load()
	if f == nil {
		return nil
	}
	return f.Complete(ctx, progress)
}

// Whole reports whether all bytes are here.
func (d *Data) Whole() bool {
	f := d.lazy.Load()
	return f == nil || f.Whole()
}

// PresentIn returns how many of the n bytes at off are here.
func (d *Data) PresentIn(off, n int64) int64 {
	f := d.lazy.Load()
	if f == nil {
		return max(0, min(n, d.size-off))
	}
	return f.PresentIn(off, n)
}

// reader returns the data as an io.ReaderAt that fetches what is missing.
func (d *Data) reader(ctx context.Context) io.ReaderAt { return dataReader{ctx, d} }

type dataReader struct {
	ctx context.Context
	d   *Data
}

func (r dataReader) ReadAt(p []byte, off int64) (int, error) {
	f, err := r.d.Fill(r.ctx, off, int64(len(p)), r.d.size)
	if err != nil {
		return 0, err
	}
	return f.ReadAt(p, off)
}

// openData opens the data file of l.
//
// Preconditions: l.opening is held.
func (s *Store) openData(l *layer) (*Data, error) {
	s.mu.Lock()
	info, isLazy := l.info, l.lazy
	s.mu.Unlock()
	d := &Data{s: s, layer: l, key: info.Key, size: info.DataSize}
	d.from = blobSource{s: s, layer: l}
	if isLazy {
		f, err := s.openLazy(d, &info)
		d.lazy.Store(f)
		return d, err
	}
	f, err := os.Open(s.dataPath(info.Key))
	d.whole.Store(f)
	return d, err
}

// openLazy opens d's data as a file that is filled.
func (s *Store) openLazy(d *Data, info *LayerInfo) (*lazy.File, error) {
	o, err := s.lazyOptions(d, info)
	if err != nil {
		return nil, err
	}
	return lazy.Open(s.layerDir(info.Key), o)
}

func (s *Store) lazyOptions(d *Data, info *LayerInfo) (lazy.Options, error) {
	o := lazy.Options{
		Size:   info.DataSize,
		Source: d.from.open,
		Grew:   d.grew,
		Bad:    func(why error) { s.spoil(d.layer, why) },
		Space:  s.space,
		Logger: s.log,
		Pool:   s.pool,
	}
	dir := s.layerDir(info.Key)
	var err error
	if o.Table, err = readSpans(dir, info); err != nil {
		return o, err
	}
	if info.Form == toc.Packed {
		o.Elsewhere = (&borrower{s: s, key: info.Key, table: o.Table}).find
	}
	if info.Sealed || info.Table.Sum == "" {
		return o, nil
	}
	raw, err := readSummed(filepath.Join(dir, info.tableFile()), info.Table)
	if err != nil {
		return o, err
	}
	o.Proof, err = toc.Reopen(info.Kind, raw)
	return o, err
}

// readSpans reads a layer's span table.
func readSpans(dir string, info *LayerInfo) (*span.Table, error) {
	if info.Spans.Sum == "" {
		return nil, fault.New(fault.Invalid, "layer %s has no span table", info.Key.Short())
	}
	b, err := readSummed(filepath.Join(dir, spansFile), info.Spans)
	if err != nil {
		return nil, err
	}
	return span.Parse(b)
}

// readSummed reads a file that must be the one that was written.
func readSummed(path string, w written) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err == nil && id.BlobOf(b) != w.Sum {
		err = fmt.Errorf("%s was changed", filepath.Base(path))
	}
	return b, err
}

// close ends the use of the file. Nobody reads it any more.
func (d *Data) close() error {
	if f := d.lazy.Load(); f != nil {
		return f.Close()
	}
	return d.whole.Load().Close()
}

// grew counts bytes that came in, and has the layer sealed when they were the last.
func (d *Data) grew(n int64) {
	s := d.s
	f := d.lazy.Load()
	last := f != nil && f.Whole()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.growLocked(d.layer, n)
	d.layer.used = time.Now()
	if last {
		s.sealLocked(d.layer)
	}
}

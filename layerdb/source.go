package layerdb

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/lazy"
)

// blobSource is where the missing bytes of a layer come from: from whom the
// daemon knows, or from a copy of the blob, while a seal has one here.
type blobSource struct {
	s     *Store
	layer *layer

	mu     sync.Mutex  // guards the rest
	remote lazy.Source // nil: not asked for yet
	local  *os.File    // nil: the blob is not here
}

// errNoSource says that there is nobody to ask for missing bytes.
var errNoSource = errors.New("nobody is known who has the blob")

// remote returns the source of l's blob that the daemon knows.
func (s *Store) remote(ctx context.Context, l *layer) (lazy.Source, error) {
	s.mu.Lock()
	info := l.info
	s.mu.Unlock()
	if s.opts.Source == nil {
		return nil, fault.New(fault.Unavailable, "layer %s: %w", info.Key.Short(), errNoSource)
	}
	return s.opts.Source(ctx, info)
}

// open is lazy.Options.Source.
func (b *blobSource) open(ctx context.Context) (lazy.Source, error) {
	if _, err := b.now(ctx); err != nil {
		return nil, err
	}
	return b, nil
}

// now returns the source to ask at this moment.
func (b *blobSource) now(ctx context.Context) (lazy.Source, error) {
	b.mu.Lock()
	local, remote := b.local, b.remote
	b.mu.Unlock()
	switch {
	case local != nil:
		return localSource{local}, nil
	case remote != nil:
		return remote, nil
	}
	remote, err := b.s.remote(ctx, b.layer)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	b.remote = remote
	b.mu.Unlock()
	return remote, nil
}

// use has bytes come from a copy of the blob; nil: no longer.
func (b *blobSource) use(local *os.File) {
	b.mu.Lock()
	b.local = local
	b.mu.Unlock()
}

// Range implements lazy.Source.
func (b *blobSource) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	src, err := b.now(ctx)
	if err != nil {
		return nil, err
	}
	return src.Range(ctx, off, n)
}

// known returns the source without asking for one; a local file if there is none.
func (b *blobSource) known() lazy.Source {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.local != nil || b.remote == nil {
		return localSource{}
	}
	return b.remote
}

// Blame implements lazy.Source.
func (b *blobSource) Blame(off, n int64) bool { return b.known().Blame(off, n) }

// Link implements lazy.Source.
func (b *blobSource) Link() (time.Duration, float64) { return b.known().Link() }

// Whole implements lazy.Source.
func (b *blobSource) Whole() bool { return b.known().Whole() }

// localSource is a blob in a file.
type localSource struct{ f *os.File }

func (l localSource) Range(_ context.Context, off, n int64) (io.ReadCloser, error) {
	return io.NopCloser(io.NewSectionReader(l.f, off, n)), nil
}

func (l localSource) Blame(off, n int64) bool { return false }

func (l localSource) Link() (time.Duration, float64) { return 0, 0 }

func (l localSource) Whole() bool { return false }

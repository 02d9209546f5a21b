package lazy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/imgfs/imgfs/internal/span"
)

// fixture is a blob of plain spans, with the data that they make.
type fixture struct {
	table *span.Table
	blob  []byte
	data  []byte
}

// shape says how a fixture is cut.
type shape struct {
	spans    int
	size     int64 // of a span
	gap      int64 // of zeros between spans in the data, and of junk in the blob
	ragged   bool  // sizes differ
	unproven bool  // no digests
	named    bool  // digests of the data, not of the blob
}

func newFixture(t testing.TB, s shape) *fixture {
	t.Helper()
	rnd := rand.New(rand.NewPCG(1, uint64(s.spans)))
	chacha := rand.NewChaCha8([32]byte{byte(s.spans)})
	f := &fixture{}
	var entries []span.Entry
	for range s.spans {
		n := s.size
		if s.ragged {
			n = 1 + rnd.Int64N(2*s.size)
		}
		piece := make([]byte, n)
		chacha.Read(piece)
		sum := sha256.Sum256(piece)
		e := span.Entry{Off: int64(len(f.data)), Len: n, From: int64(len(f.blob)), To: int64(len(f.blob)) + n, Blob: &sum}
		if s.unproven || s.named {
			e.Blob = nil
		}
		if s.named {
			e.Data = &sum
		}
		entries = append(entries, e)
		f.data = append(append(f.data, piece...), make([]byte, s.gap)...)
		f.blob = append(append(f.blob, piece...), bytes.Repeat([]byte{'j'}, int(s.gap))...)
	}
	f.table = buildTable(t, span.Plain, int64(len(f.blob)), entries)
	f.data = f.data[:f.table.DataSize()]
	return f
}

func buildTable(t testing.TB, c span.Codec, size int64, entries []span.Entry) *span.Table {
	t.Helper()
	b := span.NewBuilder(c, size)
	for _, e := range entries {
		if err := b.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	table, err := b.Table()
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// script is a Source that does what a test says.
type script struct {
	blob  []byte
	rtt   time.Duration // before the first byte, and as Link says
	rate  float64       // bytes per second; 0: at once
	whole bool
	// open is asked before a range is opened; nil: no failure.
	open func(ctx context.Context, off, n int64) error
	// change may change the bytes read, which are those from off on.
	change func(p []byte, off int64)
	blame  func(off, n int64) bool

	mu     sync.Mutex
	ranges []Range // as opened
	read   int64   // bytes given
	busy   *link   // shared by what shares a link
}

// link is a wire that bodies share.
type link struct {
	mu   sync.Mutex
	free time.Time // when it can send the next byte
}

func (s *script) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	s.mu.Lock()
	s.ranges = append(s.ranges, Range{off, n})
	if s.busy == nil {
		s.busy = &link{}
	}
	s.mu.Unlock()
	if off < 0 || n <= 0 || off+n > int64(len(s.blob)) {
		return nil, errors.New("range outside of the blob")
	}
	if s.open != nil {
		if err := s.open(ctx, off, n); err != nil {
			return nil, err
		}
	}
	if err := pause(ctx, s.rtt); err != nil {
		return nil, err
	}
	return &body{s: s, ctx: ctx, off: off, end: off + n}, nil
}

func (s *script) Blame(off, n int64) bool { return s.blame != nil && s.blame(off, n) }
func (s *script) Whole() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.whole
}

func (s *script) Link() (time.Duration, float64) {
	return s.rtt, s.rate
}

func (s *script) opened() []Range {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Range(nil), s.ranges...)
}

func (s *script) given() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.read
}

func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

type body struct {
	s        *script
	ctx      context.Context
	off, end int64
}

func (b *body) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	if b.off == b.end {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), 32<<10)], b.s.blob[b.off:b.end])
	if b.s.rate > 0 {
		l := b.s.busy
		l.mu.Lock()
		now := time.Now()
		if l.free.Before(now) {
			l.free = now
		}
		l.free = l.free.Add(time.Duration(float64(n) / b.s.rate * 1e9))
		wait := l.free.Sub(now)
		l.mu.Unlock()
		if err := pause(b.ctx, wait); err != nil {
			return 0, err
		}
	}
	if b.s.change != nil {
		b.s.change(p[:n], b.off)
	}
	b.off += int64(n)
	b.s.mu.Lock()
	b.s.read += int64(n)
	b.s.mu.Unlock()
	return n, nil
}

func (b *body) Close() error { return nil }

// options returns Options over a script for the fixture.
func (x *fixture) options(s *script) Options {
	if s.blob == nil {
		s.blob = x.blob
	}
	return Options{
		Table:  x.table,
		Source: func(context.Context) (Source, error) { return s, nil },
	}
}

// create makes a File without bytes, closed when the test ends.
func create(t testing.TB, dir string, o Options) *File {
	t.Helper()
	if err := Create(dir, o); err != nil {
		t.Fatal(err)
	}
	return open(t, dir, o)
}

func open(t testing.TB, dir string, o Options) *File {
	t.Helper()
	f, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// check reads [off, off+n) and compares it with the fixture.
func (x *fixture) check(t testing.TB, f *File, off, n int64) {
	t.Helper()
	if err := x.compare(f, off, n); err != nil {
		t.Fatal(err)
	}
}

func (x *fixture) compare(f *File, off, n int64) error {
	file, err := f.Fill(context.Background(), off, n, math.MaxInt64)
	if err != nil {
		return err
	}
	got := make([]byte, n)
	if _, err := file.ReadAt(got, off); err != nil {
		return err
	}
	if !bytes.Equal(got, x.data[off:off+n]) {
		return errors.New("wrong bytes")
	}
	return nil
}

func damage(t testing.TB, dir, name string, off int64, p []byte) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
}

var ended = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

func sumOf(p []byte) [sha256.Size]byte { return sha256.Sum256(p) }

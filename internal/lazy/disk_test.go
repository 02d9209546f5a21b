package lazy

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// filled returns the directory of a File that holds the given spans, closed.
func filled(t testing.TB, x *fixture, spans ...int) string {
	t.Helper()
	dir := t.TempDir()
	f := create(t, dir, x.options(&script{}))
	for _, i := range spans {
		s := x.table.At(i)
		x.check(t, f, s.Off, s.Len)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestReopen(t *testing.T) {
	t.Parallel()
	x := newFixture(t, shape{spans: 200, size: 64 << 10})
	spans := []int{0, 7, 8, 100, 199}
	dirty := func(t *testing.T, dir string) { // as a kill leaves it
		damage(t, dir, PresentName, 0, header{table: hashTable(x.table)}.encode())
	}
	for _, c := range []struct {
		name    string
		change  func(t *testing.T, dir string)
		fetched int // spans that must be fetched again, of those in spans
	}{
		{"clean", func(*testing.T, string) {}, 0},
		{"killed", dirty, 0},
		{"power lost: zeros where data was", func(t *testing.T, dir string) {
			dirty(t, dir)
			damage(t, dir, DataName, 7*64<<10, make([]byte, 128<<10))
		}, 2},
		{"a byte changed", func(t *testing.T, dir string) { damage(t, dir, DataName, 100*64<<10+5, []byte{1, 2, 3}) }, 1},
		{"cut short", func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, DataName), 50*64<<10); err != nil {
				t.Fatal(err)
			}
		}, 2},
		{"data gone", func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, DataName)) }, 5},
		{"another file in its place", func(t *testing.T, dir string) {
			b := bytes.Clone(x.data)
			copy(b[199*64<<10:], "changed")
			if err := os.WriteFile(filepath.Join(dir, "x"), b, 0o600); err != nil {
				t.Fatal(err)
			}
			os.Rename(filepath.Join(dir, "x"), filepath.Join(dir, DataName))
		}, 1},
		{"present cut", func(t *testing.T, dir string) { os.Truncate(filepath.Join(dir, PresentName), 100) }, 5},
		{"present empty", func(t *testing.T, dir string) { os.Truncate(filepath.Join(dir, PresentName), 0) }, 5},
		{"present of another version", func(t *testing.T, dir string) { damage(t, dir, PresentName, 7, []byte("9")) }, 5},
		{"a checksum invented", func(t *testing.T, dir string) {
			damage(t, dir, PresentName, headerSize+50*sumSize, []byte{1})
		}, 0},
		{"a checksum changed", func(t *testing.T, dir string) {
			damage(t, dir, PresentName, headerSize+7*sumSize, []byte{1, 2, 3})
		}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := filled(t, x, spans...)
			c.change(t, dir)
			s := &script{}
			f := open(t, dir, x.options(s))
			for _, i := range spans {
				x.check(t, f, int64(i)*64<<10, 64<<10)
			}
			if n := len(s.opened()); n != c.fetched {
				t.Errorf("%d spans fetched again, want %d", n, c.fetched)
			}
			if err := f.Complete(context.Background(), nil); err != nil || !f.Whole() {
				t.Fatal(err)
			}
			x.check(t, f, 0, int64(len(x.data)))
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			f = open(t, dir, x.options(s))
			n := len(s.opened())
			if !f.Whole() {
				t.Error("not whole after it was closed cleanly")
			}
			x.check(t, f, 0, int64(len(x.data)))
			if len(s.opened()) != n {
				t.Error("fetched again what is there")
			}
		})
	}
}

// A data file without "present" is whole, and never written to.
func TestWholeFile(t *testing.T) {
	t.Parallel()
	x := newFixture(t, shape{spans: 20, size: 1000, gap: 24})
	dir := t.TempDir()
	annex := append(bytes.Clone(x.data), "annex"...)
	if err := os.WriteFile(filepath.Join(dir, DataName), annex, 0o600); err != nil {
		t.Fatal(err)
	}
	o := x.options(&script{})
	o.Size = int64(len(annex))
	f := open(t, dir, o)
	x.check(t, f, 0, int64(len(x.data)))
	if _, err := f.Fill(context.Background(), int64(len(x.data)), 5, math.MaxInt64); err != nil || !f.Whole() {
		t.Error(err)
	}
	if err := f.Complete(context.Background(), nil); err != nil {
		t.Error(err)
	}
	if n, err := f.Evict(); err != nil || n != 20*1000 {
		t.Errorf("%d, %v", n, err)
	}
	if f.Whole() {
		t.Error("whole after eviction")
	}
	x.check(t, f, 5000, 3000)
}

func TestEvict(t *testing.T) {
	t.Parallel()
	x := newFixture(t, shape{spans: 100, size: 10 << 10})
	s := &script{}
	dir := t.TempDir()
	f := create(t, dir, x.options(s))
	x.check(t, f, 0, int64(len(x.data)))
	held, err := f.Fill(context.Background(), 0, 10, math.MaxInt64)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := f.Evict(); err != nil || n != int64(len(x.data)) {
		t.Fatalf("%d, %v", n, err)
	}
	if have, _ := f.Present(); have != 0 || f.PresentIn(0, 100) != 0 {
		t.Errorf("%d bytes present", have)
	}
	got := make([]byte, len(x.data))
	if _, err := held.ReadAt(got, 0); err != nil || !bytes.Equal(got, x.data) {
		t.Error("who holds the old file lost its bytes")
	}
	if info, err := os.Stat(filepath.Join(dir, DataName)); err != nil || info.Size() != int64(len(x.data)) {
		t.Error(err, info.Size())
	}
	x.check(t, f, 500, 100)
	if f.PresentIn(0, 20<<10) == 0 || f.PresentIn(500, 100) != 100 {
		t.Error("not present")
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	n := len(s.opened())
	f = open(t, dir, x.options(s))
	x.check(t, f, 0, 10<<10)
	if len(s.opened()) != n {
		t.Error("fetched again what is there")
	}
}

// Readers never see anything but the right bytes while all is evicted again
// and again.
func TestEvictUnderReaders(t *testing.T) {
	t.Parallel()
	plain, steps := newFixture(t, shape{spans: 100, size: 10 << 10, ragged: true}), newGzip(t, 1<<20)
	for name, c := range map[string]struct {
		x     *fixture
		proof int64 // size of an entry; 0: no Proof
	}{
		"plain":            {plain, 0},
		"plain with proof": {plain, 7777},
		"steps":            {steps, 0},
		"steps with proof": {steps, 77777},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := c.x.options(&script{})
			if c.proof > 0 {
				o.Proof = &headers{index: c.x.data, size: c.proof}
			}
			f := create(t, t.TempDir(), o)
			var wg sync.WaitGroup
			var stop atomic.Bool
			for g := range 4 {
				wg.Go(func() {
					rnd := rand.New(rand.NewPCG(uint64(g), 1))
					for !stop.Load() {
						off := rnd.Int64N(int64(len(c.x.data)) - 1000)
						if err := c.x.compare(f, off, 1000); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			for range 50 {
				if _, err := f.Evict(); err != nil {
					t.Error(err)
				}
				time.Sleep(time.Millisecond)
			}
			stop.Store(true)
			wg.Wait()
			if err := f.Complete(context.Background(), nil); err != nil {
				t.Error(err)
			}
			c.x.check(t, f, 0, int64(len(c.x.data)))
		})
	}
}

func TestVerify(t *testing.T) {
	for _, repair := range []bool{false, true} {
		t.Run(fmt.Sprint("repair ", repair), func(t *testing.T) {
			t.Parallel()
			x := newFixture(t, shape{spans: 100, size: 10 << 10})
			s := &script{}
			dir := t.TempDir()
			f := create(t, dir, x.options(s))
			x.check(t, f, 0, int64(len(x.data)))
			if bad, err := f.Verify(context.Background(), repair); bad != 0 || err != nil {
				t.Fatalf("%d, %v", bad, err)
			}
			n := s.given()
			damage(t, dir, DataName, 30<<10, []byte("12345"))
			damage(t, dir, DataName, 50<<10, []byte("12345"))
			if bad, err := f.Verify(context.Background(), repair); bad != 2 || err != nil {
				t.Fatalf("%d, %v", bad, err)
			}
			if f.Whole() {
				t.Error("whole")
			}
			x.check(t, f, 0, int64(len(x.data)))
			if bad, err := f.Verify(context.Background(), repair); bad != 0 || err != nil || s.given()-n < 20<<10 {
				t.Errorf("%d, %v, %d bytes fetched", bad, err, s.given()-n)
			}
		})
	}
}

func TestGrew(t *testing.T) {
	t.Parallel()
	x := newFixture(t, shape{spans: 100, size: 10 << 10})
	o := x.options(&script{})
	var mu sync.Mutex
	var grew []int64
	o.Grew = func(n int64) {
		mu.Lock()
		defer mu.Unlock()
		grew = append(grew, n)
	}
	f := create(t, t.TempDir(), o)
	x.check(t, f, 0, 10)
	if err := f.Complete(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	f.Close()
	sum := int64(0)
	for _, n := range grew {
		sum += n
	}
	if sum != int64(len(x.data)) || slices.Min(grew) <= 0 {
		t.Errorf("%d bytes told", sum)
	}
}

func TestClosed(t *testing.T) {
	t.Parallel()
	x := newFixture(t, shape{spans: 10, size: 1000})
	block := make(chan struct{})
	s := &script{}
	f := create(t, t.TempDir(), x.options(s))
	x.check(t, f, 0, 10<<10-240)
	f = create(t, t.TempDir(), x.options(s))
	s.open = func(ctx context.Context, _, _ int64) error {
		close(block)
		<-ctx.Done()
		return ctx.Err()
	}
	got := make(chan error, 1)
	go func() { _, err := f.Fill(context.Background(), 0, 10, math.MaxInt64); got <- err }()
	<-block
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != errClosed {
		t.Error(err)
	}
	if _, err := f.Fill(context.Background(), 0, 10, math.MaxInt64); err != errClosed {
		t.Error(err)
	}
}

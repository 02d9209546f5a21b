package lazy

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/imgfs/imgfs/internal/span"
)

// newGzip returns a fixture of a gzip stream whose spans are mostly steps.
func newGzip(t testing.TB, size int) *fixture {
	t.Helper()
	rnd := rand.New(rand.NewPCG(3, 4))
	var data bytes.Buffer
	for data.Len() < size {
		fmt.Fprintf(&data, "%x word %d and %d more\n", rnd.Uint64(), rnd.IntN(1000), rnd.IntN(10))
	}
	var blob bytes.Buffer
	z := gzip.NewWriter(&blob)
	z.Write(data.Bytes()[:size])
	z.Close()
	r := span.NewReader(bytes.NewReader(blob.Bytes()), span.Options{Spacing: 512 << 10, Step: 64 << 10})
	if _, err := r.WriteTo(io.Discard); err != nil {
		t.Fatal(err)
	}
	table, err := r.Table(int64(blob.Len()))
	if err != nil {
		t.Fatal(err)
	}
	steps := 0
	for i := range table.Spans() {
		if table.Needs(i) < i {
			steps++
		}
	}
	if steps < size>>18 {
		t.Fatalf("only %d steps in %d spans", steps, table.Spans())
	}
	return &fixture{table: table, blob: blob.Bytes(), data: data.Bytes()[:size]}
}

// A step is decoded from the data before it, which is brought with it.
func TestSteps(t *testing.T) {
	t.Parallel()
	x := newGzip(t, 6<<20)
	for _, proof := range []bool{false, true} {
		t.Run(fmt.Sprint("proof ", proof), func(t *testing.T) {
			t.Parallel()
			s := &script{}
			o := x.options(s)
			if proof {
				o.Proof = &headers{index: x.data, size: 99999}
			}
			f := create(t, t.TempDir(), o)
			size := int64(len(x.data))
			x.check(t, f, 3<<20, 100)
			if got := s.given(); got > int64(len(x.blob))/6 {
				t.Errorf("%d bytes of %d fetched for one read", got, len(x.blob))
			}
			var wg sync.WaitGroup
			for g := range 6 {
				wg.Go(func() {
					rnd := rand.New(rand.NewPCG(uint64(g), 9))
					for range 100 {
						off := rnd.Int64N(size - 1000)
						if err := x.compare(f, off, 1+rnd.Int64N(min(200<<10, size-off))); err != nil {
							t.Error(err)
							return
						}
						if rnd.IntN(30) == 0 {
							if _, err := f.Evict(); err != nil {
								t.Error(err)
							}
						}
					}
				})
			}
			wg.Wait()
			if err := f.Complete(context.Background(), nil); err != nil || !f.Whole() {
				t.Fatal(err)
			}
			x.check(t, f, 0, size)
		})
	}
}

// What is wrong in one step is fetched again, and does no harm to those behind.
func TestWrongStep(t *testing.T) {
	t.Parallel()
	x := newGzip(t, 2<<20)
	for i := range x.table.Spans() {
		s := &script{}
		var bad atomic.Bool
		bad.Store(true)
		at := (x.table.At(i).From + x.table.At(i).To) / 2
		s.change = func(p []byte, off int64) {
			if bad.Load() {
				flip(at)(p, off)
			}
		}
		var blamed atomic.Int64
		s.blame = func(int64, int64) bool {
			blamed.Add(1)
			bad.Store(false)
			return true
		}
		f := create(t, t.TempDir(), x.options(s))
		x.check(t, f, 0, int64(len(x.data)))
		if blamed.Load() != 1 {
			t.Errorf("span %d: blamed %d times", i, blamed.Load())
		}
		f.Close()
		s.change = flip(at)
		s.blame = nil
		f = create(t, t.TempDir(), x.options(s))
		if err := f.Complete(context.Background(), nil); err == nil {
			t.Errorf("span %d is wrong, and complete", i)
		}
		if i > 0 {
			x.check(t, f, 0, x.table.At(i).Off)
		}
		f.Close()
	}
}

// Completion in steps does not take itself for somebody who waits.
func TestStepsYield(t *testing.T) {
	t.Parallel()
	x := newGzip(t, 2<<20)
	f := create(t, t.TempDir(), x.options(&script{}))
	if err := f.Complete(context.Background(), func(int64, int64) {
		f.pool.mu.Lock()
		defer f.pool.mu.Unlock()
		if f.pool.hot != 0 {
			t.Error("somebody waits")
		}
	}); err != nil {
		t.Fatal(err)
	}
}

// What is evicted after it was written is brought again, by another request
// than the one that needs it.
func TestStepsEvictedAtOnce(t *testing.T) {
	x := newGzip(t, 2<<20)
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := &script{}
		o := x.options(s)
		var f *File
		evicted := make(chan struct{})
		last := 0 // step of the first run
		for x.table.Needs(last+1) <= last {
			last++
		}
		second := x.table.Find(groupData) // is in another group than the first spans
		if second >= last {
			t.Fatalf("the first run has %d spans", last+1)
		}
		s.change = func(_ []byte, off int64) {
			if off >= x.table.At(second).To {
				<-evicted
			}
		}
		o.Grew = func(int64) {
			select {
			case <-evicted:
				return
			default:
			}
			if _, err := f.Evict(); err != nil {
				t.Error(err)
			}
			close(evicted)
			time.Sleep(ms(1)) // the next group goes on until it waits for this one
		}
		f = create(t, dir, o)
		x.check(t, f, x.table.At(last).Off, 100)
		if err := f.Complete(context.Background(), nil); err != nil {
			t.Fatal(err)
		}
		x.check(t, f, 0, int64(len(x.data)))
	})
}

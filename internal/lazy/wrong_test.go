package lazy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/span"
)

// flip damages the byte at blob offset at, wherever it passes.
func flip(at int64) func(p []byte, off int64) {
	return func(p []byte, off int64) {
		if i := at - off; i >= 0 && i < int64(len(p)) {
			p[i] ^= 0xff
		}
	}
}

// What one mirror sends wrong is had from the next, and the rest of its stream
// is not used.
func TestWrongBytesFromOneMirror(t *testing.T) {
	t.Parallel()
	x := newFixture(t, shape{spans: 64, size: 10 << 10})
	s := &script{}
	var bad atomic.Bool
	bad.Store(true)
	s.change = func(p []byte, off int64) {
		if bad.Load() {
			flip(33<<10)(p, off)
		}
	}
	var blamed atomic.Int64
	s.blame = func(off, n int64) bool {
		if off != 30<<10 || n != 10<<10 {
			t.Errorf("blamed for %d+%d", off, n)
		}
		blamed.Add(1)
		bad.Store(false)
		return true
	}
	f := create(t, t.TempDir(), x.options(s))
	x.check(t, f, 0, int64(len(x.data)))
	if blamed.Load() != 1 {
		t.Errorf("blamed %d times", blamed.Load())
	}
}

// Wrong everywhere is an error for those who read these bytes, for now.
func TestWrongBytesEverywhere(t *testing.T) {
	for _, unproven := range []bool{false, true} {
		t.Run(fmt.Sprint("unproven ", unproven), func(t *testing.T) {
			t.Parallel()
			x := newFixture(t, shape{spans: 64, size: 10 << 10, unproven: unproven})
			s := &script{}
			o := x.options(s)
			o.Bad = func(err error) { t.Errorf("bad: %v", err) }
			f := create(t, t.TempDir(), o)
			if unproven { // trusted on first use, and for ever
				x.check(t, f, 30<<10, 10)
				if _, err := f.Evict(); err != nil {
					t.Fatal(err)
				}
			}
			s.change = flip(33 << 10)
			if _, err := f.Fill(context.Background(), 35<<10, 10, math.MaxInt64); fault.KindOf(err) != fault.Integrity {
				t.Fatalf("%v", err)
			}
			if err := f.Complete(context.Background(), nil); fault.KindOf(err) != fault.Integrity {
				t.Fatalf("complete: %v", err)
			}
			x.check(t, f, 0, 30<<10)
			x.check(t, f, 40<<10, 24<<10)
			if f.PresentIn(30<<10, 10<<10) != 0 {
				t.Error("wrong bytes are present")
			}
			s.change = nil
			x.check(t, f, 30<<10, 10<<10)
			if err := f.Complete(context.Background(), nil); err != nil || !f.Whole() {
				t.Fatal(err)
			}
		})
	}
}

// A table that promises bytes that do not decode lies: the data is bad.
func TestTableThatLies(t *testing.T) {
	t.Parallel()
	x := newFixture(t, shape{spans: 4, size: 1000})
	var entries []span.Entry
	for i := range x.table.Spans() {
		s := x.table.At(i)
		sum := sumOf(x.blob[s.From:s.To])
		entries = append(entries, span.Entry{Off: s.Off, Len: s.Len, From: s.From, To: s.To, Blob: &sum, Header: true})
	}
	x.table = buildTable(t, span.Gzip, int64(len(x.blob)), entries)
	o := x.options(&script{})
	var why error
	o.Bad = func(err error) { why = err }
	f := create(t, t.TempDir(), o)
	if _, err := f.Fill(context.Background(), 0, 10, math.MaxInt64); fault.KindOf(err) != fault.Integrity {
		t.Fatal(err)
	}
	if why == nil {
		t.Error("nobody was told")
	}
	if _, err := f.Fill(context.Background(), 0, 10, math.MaxInt64); !errors.Is(err, why) {
		t.Error(err)
	}
	if err := f.Complete(context.Background(), nil); !errors.Is(err, why) {
		t.Error(err)
	}
}

// headers is a Proof: the data has entries of one size, each with a header of
// 16 bytes that must be the same as in the index's.
type headers struct {
	index  []byte
	size   int64
	checks atomic.Int64
}

func (h *headers) Start(off int64) int64 { return off / h.size * h.size }

func (h *headers) Check(r io.ReaderAt, from, to int64) error {
	h.checks.Add(1)
	for at := h.Start(from); at < to; at += h.size {
		n := min(16, int64(len(h.index))-at)
		if at >= from {
			n = min(n, to-at)
		}
		got := make([]byte, n)
		if _, err := r.ReadAt(got, at); err != nil {
			return err
		}
		if !bytes.Equal(got, h.index[at:at+n]) {
			return fmt.Errorf("header at %d differs", at)
		}
	}
	return nil
}

func TestProof(t *testing.T) {
	for _, size := range []int64{100, 700, 5000, 100 << 10} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			x := newFixture(t, shape{spans: 300, size: 3000, ragged: true})
			h := &headers{index: x.data, size: size}
			o := x.options(&script{})
			o.Proof = h
			f := create(t, t.TempDir(), o)
			var wg sync.WaitGroup
			for i := range int64(8) {
				wg.Go(func() {
					for k := range int64(40) {
						off := (k*7919 + i*104729) * 31 % int64(len(x.data)-100)
						if err := x.compare(f, off, 100); err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			x.check(t, f, 0, int64(len(x.data)))
			if !f.Whole() || h.checks.Load() == 0 {
				t.Error("not whole, or not proven")
			}
		})
	}
}

// Only what is read is fetched, and what proves it.
func TestProofFetchesLittle(t *testing.T) {
	t.Parallel()
	x := newFixture(t, shape{spans: 100, size: 100 << 10})
	s := &script{}
	o := x.options(s)
	o.Proof = &headers{index: x.data, size: 3<<20 + 5}
	dir := t.TempDir()
	f := create(t, dir, o)
	x.check(t, f, 9<<20, 100) // its entry begins at 6 MiB + 10
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if have, _ := f.Present(); have != 200<<10 || s.given() != 200<<10 {
		t.Errorf("%d bytes there, %d fetched", have, s.given())
	}
	f = open(t, dir, o) // raw bytes are not believed after a restart
	if have, _ := f.Present(); have != 100<<10 {
		t.Errorf("%d bytes present", have)
	}
	x.check(t, f, 6<<20, 100) // of the entry before, which begins at 3 MiB + 5
	if have, _ := f.Present(); have != 300<<10 {
		t.Errorf("%d bytes present", have)
	}
}

func TestIndexThatLies(t *testing.T) {
	t.Parallel()
	x := newFixture(t, shape{spans: 100, size: 10 << 10})
	lie := bytes.Clone(x.data)
	lie[50000] ^= 1
	var told atomic.Int64
	o := x.options(&script{})
	o.Proof = &headers{index: lie, size: 5000}
	o.Bad = func(error) { told.Add(1) }
	f := create(t, t.TempDir(), o)
	x.check(t, f, 0, 10)
	if _, err := f.Fill(context.Background(), 52000, 10, math.MaxInt64); err == nil || !strings.Contains(err.Error(), "header at 50000") {
		t.Fatal(err)
	}
	if _, err := f.Fill(context.Background(), 0, 10, math.MaxInt64); err == nil {
		t.Error("bytes of a bad layer are served")
	}
	if told.Load() != 1 {
		t.Errorf("told %d times", told.Load())
	}
}

// What cannot be fetched proves nothing, neither way.
func TestProofWithoutNetwork(t *testing.T) {
	t.Parallel()
	x := newFixture(t, shape{spans: 100, size: 100 << 10})
	s := &script{}
	down := errors.New("registry is down")
	s.open = func(_ context.Context, off, _ int64) error {
		if off < 7<<20 {
			return down
		}
		return nil
	}
	o := x.options(s)
	o.Proof = &headers{index: x.data, size: 3<<20 + 5}
	o.Bad = func(err error) { t.Error(err) }
	f := create(t, t.TempDir(), o)
	if _, err := f.Fill(context.Background(), 9<<20, 100, math.MaxInt64); !errors.Is(err, down) {
		t.Fatal(err)
	}
	s.open = nil
	x.check(t, f, 9<<20, 100)
}

// A full disk: what is read is served, and not kept.
func TestDiskFull(t *testing.T) {
	for _, proof := range []bool{false, true} {
		t.Run(fmt.Sprint("proof ", proof), func(t *testing.T) {
			t.Parallel()
			x := newFixture(t, shape{spans: 200, size: 300 << 10})
			var left atomic.Int64
			left.Store(1 << 20)
			o := x.options(&script{})
			if proof {
				o.Proof = &headers{index: x.data, size: 400001}
			}
			o.Space = func(n int64) error {
				if left.Add(-n) < 0 {
					return syscall.ENOSPC
				}
				return nil
			}
			f := create(t, t.TempDir(), o)
			for range 2 {
				for off := int64(0); off < int64(len(x.data)); off += 200 << 10 {
					x.check(t, f, off, min(200<<10, int64(len(x.data))-off))
				}
			}
			x.check(t, f, 500<<10, 2<<20)
			if have, _ := f.Present(); have > 1<<20 {
				t.Errorf("%d bytes kept", have)
			}
			if err := f.Complete(context.Background(), nil); !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("complete: %v", err)
			}
			left.Store(1 << 40)
			if err := f.Complete(context.Background(), nil); err != nil {
				t.Error(err)
			}
			x.check(t, f, 0, int64(len(x.data)))
			if !f.Whole() {
				t.Error("not whole")
			}
		})
	}
}

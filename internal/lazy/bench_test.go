package lazy

import (
	"context"
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// BenchmarkFillHot is a read of 4 KiB that is there: what each read pays.
func BenchmarkFillHot(b *testing.B) {
	for _, c := range []struct {
		name string
		s    shape
	}{
		{"1 MiB spans", shape{spans: 100, size: 1 << 20}},
		{"files", shape{spans: 50000, size: 1000, ragged: true, gap: 100}},
	} {
		x := newFixture(b, c.s)
		f := create(b, b.TempDir(), x.options(&script{}))
		ctx := context.Background()
		for off := int64(0); off < int64(len(x.data)); off += 100 {
			if _, err := f.Fill(ctx, off, 100, math.MaxInt64); err != nil {
				b.Fatal(err)
			}
		}
		rnd := rand.New(rand.NewPCG(1, 2))
		at := make([]int64, 1<<10)
		for i := range at {
			at[i] = rnd.Int64N(int64(len(x.data)) - 4096)
		}
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if _, err := f.Fill(ctx, at[i&(len(at)-1)], 4096, math.MaxInt64); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
}

// BenchmarkComplete is what bringing in bytes costs beside network and
// decoding: the spans are plain and have no digests.
func BenchmarkComplete(b *testing.B) {
	for _, c := range []struct {
		name string
		s    shape
	}{
		{"1 MiB spans", shape{spans: 200, size: 1 << 20}},
		{"files", shape{spans: 50000, size: 4000, ragged: true, gap: 100}},
	} {
		x := newFixture(b, c.s)
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(len(x.data)))
			for b.Loop() {
				f := create(b, b.TempDir(), x.options(&script{}))
				if err := f.Complete(context.Background(), nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkMiss is a read that has to wait, without its network.
func BenchmarkMiss(b *testing.B) {
	x := newFixture(b, shape{spans: 100000, size: 1000})
	f := create(b, b.TempDir(), x.options(&script{rtt: time.Nanosecond}))
	i := 0
	for b.Loop() {
		if i += 101; i >= 99000 {
			b.StopTimer()
			if _, err := f.Evict(); err != nil {
				b.Fatal(err)
			}
			i = 0
			b.StartTimer()
		}
		x.check(b, f, int64(i)*1000, 500)
	}
}

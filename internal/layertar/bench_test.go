package layertar

import (
	"bytes"
	"io"
	"testing"

	"github.com/imgfs/imgfs/internal/imgtest"
)

// BenchmarkIndexer reports the time and allocations per entry of a tree of
// small files, with the writing of the index ("finish") and without ("walk").
func BenchmarkIndexer(b *testing.B) {
	stream := imgtest.Tree(1, 20000, 1)[0]
	for _, finish := range []bool{false, true} {
		name := map[bool]string{false: "walk", true: "finish"}[finish]
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(stream)))
			b.ReportAllocs()
			entries := 0
			for b.Loop() {
				x := NewIndexer(Limits{})
				for p := stream; len(p) > 0; {
					n := min(len(p), 256<<10)
					if _, err := x.Write(p[:n]); err != nil {
						b.Fatal(err)
					}
					p = p[n:]
				}
				entries = x.sum.Headers
				if finish {
					if _, err := x.Finish(io.Discard, ""); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(entries), "ns/entry")
		})
	}
}

// TestAllocations holds an entry of ordinary form to a fraction of an allocation.
func TestAllocations(t *testing.T) {
	stream := imgtest.Tree(1, 5000, 1)[0]
	var entries int
	n := testing.AllocsPerRun(3, func() {
		x := NewIndexer(Limits{})
		if _, err := x.Write(stream); err != nil {
			t.Fatal(err)
		}
		entries = x.sum.Headers
		if _, err := x.Finish(io.Discard, ""); err != nil {
			t.Fatal(err)
		}
	})
	if per := n / float64(entries); per > 0.2 {
		t.Errorf("%.2f allocations per entry", per)
	}
}

// TestTreeIsReproducible: benchmarks compare runs over the same bytes.
func TestTreeIsReproducible(t *testing.T) {
	a, b := imgtest.Tree(3, 500, 3), imgtest.Tree(3, 500, 3)
	for i := range a {
		if !bytes.Equal(a[i], b[i]) {
			t.Fatalf("layer %d differs from run to run", i)
		}
		if _, _, err := index(a[i], Limits{}); err != nil {
			t.Fatal(err)
		}
	}
}

package toc

import (
	"archive/tar"
	"bytes"
	"fmt"
	"testing"

	"github.com/imgfs/imgfs/internal/layertar"
)

// manyFiles is a stream of n small files in directories of 20, as a package
// manager of some language leaves them.
func manyFiles(tb testing.TB, n int) []byte {
	tb.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for i := range n {
		h := tar.Header{
			Typeflag: tar.TypeReg, Name: fmt.Sprintf("app/node_modules/package-%d/lib/file%d.js", i/20, i%20),
			Size: int64(i * 7919 % 3000), Mode: 0o644, Uname: "root", Gname: "root",
		}
		if err := w.WriteHeader(&h); err != nil {
			tb.Fatal(err)
		}
		if _, err := w.Write(make([]byte, h.Size)); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

// BenchmarkSkeleton times what is done with a layer of 10,000 files.
func BenchmarkSkeleton(b *testing.B) {
	stream := manyFiles(b, 10_000)
	_, skeleton, err := indexOf(b, stream)
	if err != nil {
		b.Fatal(err)
	}
	s, err := parseSkeleton(skeleton)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("index", func(b *testing.B) {
		for b.Loop() {
			if _, err := layertar.NewIndexer(layertar.Limits{}).Write(stream); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("index+record", func(b *testing.B) {
		for b.Loop() {
			x, w := layertar.NewIndexer(layertar.Limits{}), NewSkeleton()
			x.Record(w.Record)
			if _, err := x.Write(stream); err != nil {
				b.Fatal(err)
			}
			if _, err := w.Finish(int64(len(stream))); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(len(skeleton))/10_000, "B/file")
	})
	b.Run("fill", func(b *testing.B) {
		for b.Loop() {
			if err := s.Fill(layertar.NewIndexer(layertar.Limits{})); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("prove", func(b *testing.B) {
		for b.Loop() {
			s.Proof().Start(0)
		}
	})
	b.Run("check", func(b *testing.B) {
		p := s.Proof()
		for b.Loop() {
			if err := p.Check(bytes.NewReader(stream), 0, int64(len(stream))); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkZtoc times what is done with a layer of 10,000 files.
func BenchmarkZtoc(b *testing.B) {
	stream := manyFiles(b, 10_000)
	zt, err := BuildZtoc(bytes.NewReader(stream), 4<<20, "")
	if err != nil {
		b.Fatal(err)
	}
	z, err := parseZtoc(zt)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("fill", func(b *testing.B) {
		for b.Loop() {
			if err := z.fill(layertar.NewIndexer(layertar.Limits{})); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("prove", func(b *testing.B) {
		for b.Loop() {
			z.Proof().Start(0)
		}
	})
	b.Run("check", func(b *testing.B) {
		p := z.Proof()
		for b.Loop() {
			if err := p.Check(bytes.NewReader(stream), 0, int64(len(stream))); err != nil {
				b.Fatal(err)
			}
		}
	})
}

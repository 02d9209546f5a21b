package union

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/imgtest"
	"github.com/imgfs/imgfs/internal/layertar"
	"golang.org/x/sys/unix"
)

// BenchmarkMerge shows what a merge costs by name of the result: of 100,000
// small files in one layer, in 20 layers, and of one layer on top of them.
func BenchmarkMerge(b *testing.B) {
	one := []*erofs.Image{bulkLayer(b, 1, 100, 1000)}
	var twenty []*erofs.Image
	for i := range 20 {
		twenty = append(twenty, bulkLayer(b, i+1, 5, 1000))
	}
	flat := []*erofs.Image{bulkLayer(b, 1, 1, 1_000_000)}
	b.Run("100k-files", func(b *testing.B) { benchmark(b, nil, one) })
	b.Run("100k-files-20-layers", func(b *testing.B) { benchmark(b, nil, twenty) })
	b.Run("1M-files-one-directory", func(b *testing.B) { benchmark(b, nil, flat) })
	b.Run("500-layers-over-100k", func(b *testing.B) {
		layers := one
		for i := range 500 {
			layers = append(layers, bulkLayer(b, i+2, 1, 10))
		}
		benchmark(b, nil, layers)
	})
	b.Run("extend-100k-by-one", func(b *testing.B) {
		var chain bytes.Buffer
		if _, err := Merge(&chain, twenty); err != nil {
			b.Fatal(err)
		}
		benchmark(b, openImage(b, chain.Bytes()), []*erofs.Image{bulkLayer(b, 21, 1, 1)})
	})
	b.Run("debian-big", func(b *testing.B) {
		layout := filepath.Join(imageCache, imgtest.DebianBig().Name)
		if _, err := os.Stat(layout); err != nil {
			b.Skip("no image; TestOracle makes it")
		}
		layers, _ := layoutLayers(b, layout)
		benchmark(b, nil, layers)
	})
}

func benchmark(b *testing.B, parent *erofs.Image, top []*erofs.Image) {
	var before, after runtime.MemStats
	var stats Stats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for b.Loop() {
		var err error
		if stats, err = merge(io.Discard, parent, top); err != nil {
			b.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	names := float64(stats.Names)
	n := float64(b.N) * names
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/n, "ns/name")
	b.ReportMetric(float64(after.Mallocs-before.Mallocs)/n, "allocs/name")
	b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/n/10, "MB/100k-names")
	b.ReportMetric(float64(stats.Size)/names, "index-B/name")
}

// bulkLayer returns a layer of dirs directories with files files each.
func bulkLayer(t testing.TB, layer, dirs, files int) *erofs.Image {
	t.Helper()
	dev := erofs.Device{Tag: fmt.Sprintf("%064x", layer), Blocks: 1 << 30}
	b := erofs.NewBuilder([]erofs.Device{dev}, layertar.Label)
	add := func(in erofs.Inode) erofs.Ref {
		ref, err := b.Add(&in)
		if err != nil {
			t.Fatal(err)
		}
		return ref
	}
	link := func(dir erofs.Ref, name string, ref erofs.Ref) {
		if err := b.Link(dir, name, ref); err != nil {
			t.Fatal(err)
		}
	}
	root := add(erofs.Inode{Mode: unix.S_IFDIR | 0o755})
	for d := range dirs {
		dir := add(erofs.Inode{Mode: unix.S_IFDIR | 0o755})
		link(root, fmt.Sprintf("directory-%d-%d", layer%20, d), dir)
		for f := range files {
			file := add(erofs.Inode{
				Mode: unix.S_IFREG | 0o644, Mtime: 1700000000, Size: 5000, ChunkBits: 4,
				Chunks: []erofs.Chunk{{Block: uint32(11 * (d*files + f))}},
			})
			link(dir, fmt.Sprintf("file-%d.txt", f), file)
		}
	}
	return writeImage(t, b)
}

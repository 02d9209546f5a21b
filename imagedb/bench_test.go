package imagedb

import (
	"fmt"
	"os"
	"testing"

	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/metadb"
)

// manyImages fills a store with n images, each with a tag, a digest and labels,
// as Create and Tag do but without syncing each.
func manyImages(b *testing.B, n int) *place {
	b.Helper()
	p := newPlace(b)
	changes := map[string][]byte{}
	flush := func() {
		if err := metadb.Update(p.db, changes); err != nil {
			b.Fatal(err)
		}
		clear(changes)
	}
	for i := range n {
		img := labelled(i)
		if err := img.prove(img.ID); err != nil {
			b.Fatal(err)
		}
		path := p.blobPath(img.ID.Hex())
		if err := os.WriteFile(path, img.Config, 0o600); err != nil {
			b.Fatal(err)
		}
		st, err := os.Stat(path)
		if err != nil {
			b.Fatal(err)
		}
		e := &entry{Image: img, summed: true, stamp: stamp{st.Size(), st.ModTime().UnixNano()}}
		changes[imageKey+img.ID.Hex()] = record(e)
		changes[fmt.Sprintf("%sdocker.io/team/app-%d:v%d", nameKey, i%100, i)] = []byte(img.ID.Hex())
		changes[fmt.Sprintf("%sdocker.io/team/app-%d@%s", nameKey, i%100, img.Digest)] = []byte(img.ID.Hex())
		if len(changes) > 2000 {
			flush()
		}
	}
	flush()
	p.reopen()
	return p
}

func BenchmarkOpen(b *testing.B) {
	p := manyImages(b, 10_000)
	b.ReportAllocs()
	for b.Loop() {
		s, err := Open(p.dir, p.db, Options{})
		if err != nil || s.Len() != 10_000 {
			b.Fatal(err)
		}
		s.Close()
	}
}

func BenchmarkList(b *testing.B) {
	p := manyImages(b, 10_000)
	b.ReportAllocs()
	for b.Loop() {
		if n := len(p.List()); n != 10_000 {
			b.Fatal(n)
		}
	}
}

func BenchmarkResolve(b *testing.B) {
	p := manyImages(b, 10_000)
	var some id.ImageID
	for _, i := range p.Names() {
		some = i
	}
	for _, name := range []string{"team/app-7:v7", some.Hex()[:12], "team/none"} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				_, _ = p.Resolve(name)
			}
		})
	}
}

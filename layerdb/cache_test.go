package layerdb

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
	"github.com/imgfs/imgfs/internal/toc"
)

// random returns a layer of one file "f" of n bytes that do not compress.
func random(seed byte, n int) string {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return fmt.Sprintf("file f %q\n", b)
}

// TestLimit fills a cache beyond its limit.
func TestLimit(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	p, r := newLazyPlace(t)
	var keys []id.LayerKey
	for i := range 6 {
		text := random(byte(i), 1<<20)
		r.put(tarOf(t, text))
		keys = append(keys, p.put(text))
	}
	if err := p.Pin("me", keys[1:2]); err != nil {
		t.Fatal(err)
	}
	kernel, err := p.Chain(ctx, keys[2:3])
	if err != nil {
		t.Fatal(err)
	}
	kernel.Hold()
	open, err := p.Chain(ctx, keys[3:4]) // in use: goes last
	if err != nil {
		t.Fatal(err)
	}
	whole := func() (list []int) {
		t.Helper()
		for i, k := range keys {
			l, err := p.Layer(k)
			if err != nil {
				t.Fatal(err)
			}
			if l.Data().Whole() {
				list = append(list, i)
			}
			l.Release()
		}
		return list
	}
	u, err := p.DF()
	if err != nil || u.Data < 6<<20 || u.Data > 7<<20 || u.Pinned < 1<<20 || u.Evictable < 4<<20 || u.Evictable > 5<<20 || u.Tables == 0 || u.Limit != 0 {
		t.Errorf("usage %+v, %v", u, err)
	}

	for _, tt := range []struct {
		limit int64
		want  []int
		err   bool
	}{
		{7 << 20, []int{0, 1, 2, 3, 4, 5}, false},
		{5 << 20, []int{1, 2, 3, 5}, false}, // by last use: 0, 4, then 5
		{7 << 19, []int{1, 2, 3}, false},
		{5 << 19, []int{1, 2}, false},
		{1 << 20, []int{1, 2}, true},
	} {
		p.mu.Lock()
		p.Store.opts.CacheLimit = tt.limit
		p.mu.Unlock()
		if err := p.shrink(ctx); (err != nil) != tt.err {
			t.Errorf("limit %d: %v", tt.limit, err)
		}
		if got := whole(); !slices.Equal(got, tt.want) {
			t.Errorf("limit %d: whole are %d, want %d", tt.limit, got, tt.want)
		}
	}
	kernel.Release()
	open.Release()
	for i, k := range keys {
		l, err := p.content(k, "f")
		if err != nil || len(l) != 1<<20 {
			t.Errorf("layer %d: %d bytes, %v", i, len(l), err)
		}
	}
}

// TestLimitReaders reads four layers at once through a cache that holds one.
func TestLimitReaders(t *testing.T) {
	t.Parallel()
	p, r := newLazyPlace(t)
	p.close()
	p.opts.CacheLimit = 1 << 20
	p.open()
	var keys []id.LayerKey
	for i := range 4 {
		text := random(byte(i), 1<<20)
		r.put(tarOf(t, text))
		keys = append(keys, p.put(text))
	}
	var wg sync.WaitGroup
	for i, k := range keys {
		wg.Go(func() {
			want := tarOf(t, random(byte(i), 1<<20))
			for range 10 {
				got, err := p.content(k, "f")
				if err != nil || string(got) != string(want[512:512+1<<20]) && string(got) != string(want[1536:1536+1<<20]) {
					t.Errorf("layer %d: wrong bytes, %v", i, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// TestLazyOnFullDisk reads a layer that the disk has no room for.
func TestLazyOnFullDisk(t *testing.T) {
	t.Parallel()
	p, r := newLazyPlace(t)
	spec, _ := lazyLayer(t, r, toc.Own, lazyText())
	small := filepath.Join(t.TempDir(), "disk")
	if err := os.Mkdir(small, 0o700); err != nil {
		t.Fatal(err)
	}
	imgtest.Tmpfs(t, small, "4m")
	defer func() {
		p.close()
		for openFiles(t, small) > 0 {
			runtime.GC() // data files are closed when nobody can have them any more
		}
	}()
	if err := p.Store.Close(); err != nil {
		t.Fatal(err)
	}
	var err error
	if p.Store, err = Open(small, p.db, p.opts); err != nil {
		t.Fatal(err)
	}
	p.dir = small
	key, err := p.Import(context.Background(), spec)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		p.want(key, "big0", bigFile(0))
		p.want(key, "big1", bigFile(1))
	}
	if err := p.Complete(context.Background(), key, nil); err == nil {
		t.Error("what the disk cannot hold was completed")
	}
	if _, ok := p.Proven(spec.Desc.DiffID); ok {
		t.Error("it was proven, too")
	}
}

// TestLearn passes a layer whose diffID nobody knows.
func TestLearn(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	p := newPlace(t)
	stream := tarOf(t, "file a content\n")
	blob := pipe(t, stream, "gzip")
	honest := specOf(blob, stream)
	spec, src := honest, &source{blob: blob}
	spec.DiffID, spec.Open = "", src.open
	key, existed, err := p.Ensure(ctx, spec, nil)
	if err != nil || existed || key != honest.DiffID.Key() {
		t.Fatalf("key %s, existed %v, %v; want %s", key, existed, err, honest.DiffID)
	}
	if info, err := p.Info(key); err != nil || info.DiffID != honest.DiffID || !info.Sealed {
		t.Errorf("info %+v, %v", info, err)
	}
	p.reopen()
	if again, existed, err := p.Ensure(ctx, spec, nil); again != key || !existed || err != nil {
		t.Errorf("again: %s, %v, %v", again, existed, err)
	}
	// The same stream out of another blob: its digest is learnt as well.
	other := pipe(t, stream, "zstd")
	spec = Spec{Blob: id.BlobOf(other), Size: int64(len(other)), Open: (&source{blob: other}).open}
	if k, existed, err := p.Ensure(ctx, spec, nil); k != key || existed || err != nil {
		t.Errorf("another blob: %s, %v, %v", k, existed, err)
	}
	p.reopen()
	if p.ByBlob(spec.Blob) != key || src.opens.Load() != 1 {
		t.Errorf("the other blob gives %q; the first was fetched %d times", p.ByBlob(spec.Blob), src.opens.Load())
	}
}

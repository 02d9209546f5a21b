package layerdb

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/lazy"
	"github.com/imgfs/imgfs/internal/toc"
)

// TestImport takes a layer of each kind through its life: stored without a
// download, read by ranges, found again, completed, sealed, shared, evicted.
func TestImport(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			p, r := newLazyPlace(t)
			spec, stream := lazyLayer(t, r, kind, lazyText())
			size := spec.Desc.Size
			r.fetched()

			key, err := p.Import(ctx, spec)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := p.Import(ctx, spec); again != key || err != nil || key == "" {
				t.Errorf("imported again: %s, %v; want %s", again, err, key)
			}
			if n := r.fetched(); n > 0 {
				t.Errorf("import fetched %d bytes", n)
			}
			if key == spec.Desc.DiffID.Key() || p.Has(spec.Desc.DiffID.Key()) {
				t.Error("an unproven layer is found by its diffID")
			}
			if _, ok := p.Proven(spec.Desc.DiffID); ok {
				t.Error("an unproven layer is proven")
			}
			if p.ByBlob(spec.Desc.Blob) != "" {
				t.Error("an unproven layer is found by its blob")
			}
			info, err := p.Info(key)
			if err != nil || info.Sealed || info.Kind != kind || info.Form != spec.Index.Form || info.DiffID != spec.Desc.DiffID {
				t.Errorf("info %+v, %v", info, err)
			}
			if (kind == toc.Estargz) != (len(info.Prefetch) > 0) {
				t.Errorf("to be prefetched: %v", info.Prefetch)
			}

			p.want(key, "last", "end")
			some := r.fetched()
			if some == 0 || some > size/2 {
				t.Errorf("a small file cost %d of %d bytes", some, size)
			}
			p.reopen()
			r.down.Store(true)
			p.want(key, "last", "end")
			if _, err := p.content(key, "big0"); !errors.Is(err, errDown) {
				t.Errorf("unread file without a registry: %v", err)
			}
			r.down.Store(false)

			if err := p.Seal(ctx, key, nil); err != nil {
				t.Fatal(err)
			}
			if info, _ := p.Info(key); !info.Sealed {
				t.Error("the layer is not sealed")
			}
			if k, ok := p.Proven(spec.Desc.DiffID); !ok || k != key {
				t.Errorf("proven by %q, %v; want %s", k, ok, key)
			}
			p.reopen()
			r.fetched()
			ensure := specOf(nil, stream)
			if k, existed, err := p.Ensure(ctx, ensure, nil); k != key || !existed || err != nil {
				t.Errorf("another image that needs it: %q, existed %v, %v", k, existed, err)
			}
			if p.ByBlob(spec.Desc.Blob) != key {
				t.Error("the sealed layer is not found by its blob")
			}
			p.want(key, "big1", bigFile(1))
			if _, err := p.Verify(ctx, key, false); err != nil {
				t.Error(err)
			}
			if n := r.fetched(); n > 0 {
				t.Errorf("a complete layer fetched %d bytes", n)
			}

			freed, err := p.Evict(ctx, key)
			if err != nil || freed < 5<<20 {
				t.Errorf("evicted %d bytes, %v", freed, err)
			}
			p.want(key, "big1", bigFile(1))
			if n := r.fetched(); n == 0 || n > size {
				t.Errorf("read after eviction: %d of %d bytes", n, size)
			}
			if k, ok := p.Proven(spec.Desc.DiffID); !ok || k != key {
				t.Error("an evicted layer is not proven any more")
			}
		})
	}
}

// TestEvictPassed evicts layers that came by a pass, of every compression, and
// reads them by ranges.
func TestEvictPassed(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	stream := tarOf(t, lazyText())
	big := bigFile(1)
	for _, command := range []string{"cat", "gzip", "pigz", "zstd"} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			p, r := newLazyPlace(t)
			blob := pipe(t, stream, command)
			r.put(blob)
			key, _, err := p.Ensure(ctx, specOf(blob, stream), nil)
			if err != nil {
				t.Fatal(err)
			}
			l, err := p.Layer(key) // a reader, the while
			if err != nil {
				t.Fatal(err)
			}
			before, err := l.Data().Fill(ctx, 0, 512, 512)
			if err != nil {
				t.Fatal(err)
			}
			if freed, err := p.Evict(ctx, key); err != nil || freed < 5<<20 {
				t.Fatalf("evicted %d bytes, %v", freed, err)
			}
			whole := make([]byte, len(stream))
			if _, err := before.ReadAt(whole, 0); err != nil || string(whole) != string(stream) {
				t.Errorf("who held the file lost it: %v", err)
			}
			if l.Data().Whole() || l.Data().PresentIn(0, 1<<30) != 0 {
				t.Error("bytes are here after the eviction")
			}
			p.want(key, "big1", big)
			if n := r.fetched(); n == 0 {
				t.Error("nothing was fetched")
			}
			l.Release()
			p.reopen()
			r.down.Store(true)
			p.want(key, "big1", big)
			r.down.Store(false)
			if err := p.Complete(ctx, key, nil); err != nil {
				t.Fatal(err)
			}
			if bad, err := p.Verify(ctx, key, false); bad != 0 || err != nil {
				t.Errorf("verify: %d, %v", bad, err)
			}
			if k, existed, err := p.Ensure(ctx, specOf(nil, stream), nil); k != key || !existed || err != nil {
				t.Errorf("Ensure: %s, %v, %v", k, existed, err)
			}
		})
	}
}

// TestNotEvicted lists what keeps its bytes.
func TestNotEvicted(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	stream := tarOf(t, "file a content\n")
	for _, tt := range []struct {
		name string
		prep func(t *testing.T, p *place, r *remote, s *Spec) (free func())
		kind fault.Kind
	}{
		{"nobody has the blob", func(t *testing.T, p *place, r *remote, s *Spec) func() { return nil }, fault.NotFound},
		{"a blob without a digest", func(t *testing.T, p *place, r *remote, s *Spec) func() {
			r.put(stream)
			s.Blob = ""
			return nil
		}, fault.NotFound},
		{"pinned", func(t *testing.T, p *place, r *remote, s *Spec) func() {
			r.put(stream)
			if err := p.Pin("me", []id.LayerKey{s.DiffID.Key()}); err != nil {
				t.Fatal(err)
			}
			return func() {
				if got := p.Pinned(); len(got) != 1 || got[0] != "me" {
					t.Errorf("pins %q", got)
				}
				p.Retain("image:1", []id.LayerKey{s.DiffID.Key()})
				if _, err := p.Unpin("me"); err != nil {
					t.Error(err)
				}
			}
		}, fault.Conflict},
		{"read by the kernel", func(t *testing.T, p *place, r *remote, s *Spec) func() {
			r.put(stream)
			if _, _, err := p.Ensure(ctx, *s, nil); err != nil {
				t.Fatal(err)
			}
			c, err := p.Chain(ctx, []id.LayerKey{s.DiffID.Key()})
			if err != nil {
				t.Fatal(err)
			}
			c.Hold()
			c.Hold()
			return c.Release
		}, fault.Conflict},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p, r := newLazyPlace(t)
			spec := specOf(stream, stream)
			free := tt.prep(t, p, r, &spec)
			key, _, err := p.Ensure(ctx, spec, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.Evict(ctx, key); fault.KindOf(err) != tt.kind {
				t.Errorf("error %v (%v), want %v", err, fault.KindOf(err), tt.kind)
			}
			r.down.Store(true)
			p.want(key, "a", "content")
			r.down.Store(false)
			if free != nil {
				free()
				if _, err := p.Evict(ctx, key); err != nil {
					t.Errorf("when that has ended: %v", err)
				}
			}
		})
	}

	t.Run("sparse files laid out anew", func(t *testing.T) {
		t.Parallel()
		p, r := newLazyPlace(t)
		text := "file s size=9000 sparse=1.0 map=100+50,5000+70\n"
		r.put(tarOf(t, text))
		if _, err := p.Evict(ctx, p.put(text)); fault.KindOf(err) != fault.Invalid {
			t.Errorf("error %v", err)
		}
	})
}

// TestLies imports layers whose index, config or registry lies. No wrong byte
// is served, nothing is proven, and what lied stays known as a liar.
func TestLies(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	text := lazyText()
	forged := strings.Replace(text, `127.0.0.1 localhost\n`, `127.0.0.1 local\n    `, 1)
	otherMode := strings.Replace(text, "dir etc mode=0755", "dir etc mode=0777", 1)
	other := id.DiffIDFrom([32]byte{1})
	for _, tt := range []struct {
		name string
		kind string
		lie  func(t *testing.T, r *remote, s *ImportSpec)
		read bool // that is met by a read already
		err  string
	}{
		{"config claims another diffID, stream", toc.Own, func(t *testing.T, r *remote, s *ImportSpec) { s.Desc.DiffID = other }, false, "wrong diff id"},
		{"config claims another diffID, packed", toc.Estargz, func(t *testing.T, r *remote, s *ImportSpec) { s.Desc.DiffID = other }, false, "wrong diff id"},
		{"table of contents of another tree, packed", toc.ZstdChunked, func(t *testing.T, r *remote, s *ImportSpec) {
			o, _ := lazyLayer(t, r, toc.ZstdChunked, otherMode)
			s.Index.Fill = o.Index.Fill
		}, false, "attributes"},
		{"skeleton of another tree", toc.Own, func(t *testing.T, r *remote, s *ImportSpec) {
			o, _ := lazyLayer(t, r, toc.Own, otherMode)
			s.Index.Fill, s.Index.Proof, s.Index.Raw = o.Index.Fill, o.Index.Proof, o.Index.Raw
		}, true, "header"},
		{"headers of another tree, and no proof", toc.Own, func(t *testing.T, r *remote, s *ImportSpec) {
			o, _ := lazyLayer(t, r, toc.Own, otherMode)
			s.Index.Fill, s.Index.Proof, s.Index.Raw = o.Index.Fill, nil, nil
		}, false, "lists other files"},
		{"plain tar that changed under its digest", toc.Tar, func(t *testing.T, r *remote, s *ImportSpec) {
			b := tarOf(t, forged)
			r.mu.Lock()
			r.blobs[s.Desc.Blob] = b
			r.mu.Unlock()
		}, false, "wrong diff id"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p, r := newLazyPlace(t)
			told := make(chan error, 2)
			p.close()
			p.opts.Bad = func(l LayerInfo, why error) { told <- why }
			p.open()
			spec, _ := lazyLayer(t, r, tt.kind, text)
			tt.lie(t, r, &spec)
			key, err := p.Import(ctx, spec)
			if err != nil {
				t.Fatal(err)
			}
			c, err := p.Chain(ctx, []id.LayerKey{key})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Release()
			if tt.read {
				if b, err := p.content(key, "big0"); err == nil {
					t.Errorf("a file of a lying index gave %d bytes", len(b))
				}
			}
			err = p.Seal(ctx, key, nil)
			if err == nil || !tt.read && (fault.KindOf(err) != fault.Integrity || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("seal: %v (%v), want %q", err, fault.KindOf(err), tt.err)
			}
			if why := <-told; !strings.Contains(why.Error(), tt.err) || len(told) > 0 {
				t.Errorf("told of %v, want %q, once", why, tt.err)
			}
			if _, err := c.Data()[0].Fill(ctx, 0, 512, 512); err == nil {
				t.Error("an open mount still reads it")
			}
			for range 2 {
				if p.Has(key) {
					t.Error("the layer still counts")
				}
				if _, ok := p.Proven(spec.Desc.DiffID); ok {
					t.Error("a lie is proven")
				}
				if _, err := p.Import(ctx, spec); fault.KindOf(err) != fault.Integrity {
					t.Errorf("imported again: %v", err)
				}
				c.Release()
				p.reopen()
			}
			if _, err := p.GC(ctx); err != nil {
				t.Error(err)
			}
			if n := p.names("layers"); len(n) > 0 {
				t.Errorf("left after gc: %q", n)
			}
		})
	}
}

// TestDamagedLazy damages files of a lazy layer behind the store's back.
func TestDamagedLazy(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for _, tt := range []struct {
		name   string
		damage func(t *testing.T, dir string)
		absent bool
	}{
		{"a byte of the data", func(t *testing.T, dir string) { flip(t, filepath.Join(dir, "data"), 1<<20) }, false},
		{"data cut", func(t *testing.T, dir string) { cut(t, filepath.Join(dir, "data")) }, false},
		{"present cut", func(t *testing.T, dir string) { cut(t, filepath.Join(dir, lazy.PresentName)) }, false},
		{"a byte of present", func(t *testing.T, dir string) { flip(t, filepath.Join(dir, lazy.PresentName), 66) }, false},
		{"a byte of the span table", func(t *testing.T, dir string) { flip(t, filepath.Join(dir, spansFile), 40) }, true},
		{"no span table", func(t *testing.T, dir string) { remove(t, filepath.Join(dir, spansFile)) }, true},
		{"skeleton cut", func(t *testing.T, dir string) { cut(t, filepath.Join(dir, skeletonFile)) }, true},
		{"index cut", func(t *testing.T, dir string) { cut(t, filepath.Join(dir, "index")) }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p, r := newLazyPlace(t)
			spec, _ := lazyLayer(t, r, toc.Own, lazyText())
			key, err := p.Import(ctx, spec)
			if err != nil {
				t.Fatal(err)
			}
			big := bigFile(0)
			p.want(key, "big0", big)
			p.close()
			tt.damage(t, filepath.Join(p.dir, "layers", key.Hex()))
			p.open()
			if p.Has(key) == tt.absent {
				t.Errorf("has the layer: %v", !tt.absent)
			}
			if tt.absent {
				if again, err := p.Import(ctx, spec); again != key || err != nil {
					t.Fatalf("imported anew: %v", err)
				}
			}
			p.want(key, "big0", big)
			if err := p.Seal(ctx, key, nil); err != nil {
				t.Error(err)
			}
		})
	}

	for name, damage := range map[string]func(t *testing.T, path string){
		"whole data, cut":     cut,
		"whole data, removed": remove,
		"whole data, altered": func(t *testing.T, path string) { flip(t, path, 1<<20) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, r := newLazyPlace(t)
			r.put(tarOf(t, lazyText()))
			key := p.put(lazyText())
			path := p.dataPath(key)
			p.close()
			damage(t, path)
			p.open()
			p.want(key, "big0", bigFile(0))
			if len(p.Problems()) != 1 || r.fetched() == 0 {
				t.Errorf("problems %q", p.Problems())
			}
		})
	}
	for _, name := range []string{"whole data, repaired", "whole data, found and then repaired"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, r := newLazyPlace(t)
			stream := tarOf(t, lazyText())
			r.put(stream)
			key := p.put(lazyText())
			flip(t, p.dataPath(key), 1<<20)
			if strings.Contains(name, "found") {
				if bad, err := p.Verify(ctx, key, false); bad != 1 || fault.KindOf(err) != fault.Integrity {
					t.Errorf("verify: %d, %v", bad, err)
				}
			}
			if bad, err := p.Verify(ctx, key, true); bad != 1 || err != nil {
				t.Fatalf("verify: %d, %v", bad, err)
			}
			p.want(key, "big0", bigFile(0))
			if r.fetched() == 0 {
				t.Error("nothing was fetched")
			}
		})
	}
	t.Run("spans, repaired", func(t *testing.T) {
		t.Parallel()
		p, r := newLazyPlace(t)
		spec, _ := lazyLayer(t, r, toc.Own, lazyText())
		key, err := p.Import(ctx, spec)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Seal(ctx, key, nil); err != nil {
			t.Fatal(err)
		}
		flip(t, p.dataPath(key), 1<<20)
		if bad, err := p.Verify(ctx, key, false); bad != 1 || fault.KindOf(err) != fault.Integrity {
			t.Errorf("verify: %d, %v", bad, err)
		}
		if bad, err := p.Verify(ctx, key, true); bad != 1 || err != nil {
			t.Errorf("repair: %d, %v", bad, err)
		}
		p.want(key, "big0", bigFile(0))
		if bad, err := p.Verify(ctx, key, false); bad != 0 || err != nil {
			t.Errorf("verify after it: %d, %v", bad, err)
		}
	})
}

// flip changes a bit in place: the file keeps its size and its inode.
func flip(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
}

// cut takes the last byte off a file, remove the file.
func cut(t *testing.T, path string) {
	t.Helper()
	st, err := os.Stat(path)
	if err == nil {
		err = os.Truncate(path, st.Size()-1)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

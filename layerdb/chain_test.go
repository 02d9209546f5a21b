package layerdb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// layers puts n layers, each with a file of its own and the file "top".
func (p *place) putN(n int) []id.LayerKey {
	p.t.Helper()
	var diffs []id.LayerKey
	for i := range n {
		diffs = append(diffs, p.put(fmt.Sprintf("file f%d %d\nfile top %d\n", i, i, i)))
	}
	return diffs
}

// read opens a chain and returns one of its files.
func (p *place) read(diffs []id.LayerKey, name string) string {
	p.t.Helper()
	c, err := p.Chain(context.Background(), diffs)
	if err != nil {
		p.t.Fatal(err)
	}
	defer c.Release()
	b, err := readFile(c.Image(), c.Data(), name)
	if err != nil {
		p.t.Fatal(err)
	}
	return string(b)
}

func TestChain(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	d := p.putN(4)
	ctx := context.Background()

	for _, tt := range []struct {
		name  string
		diffs []id.LayerKey
		merge string // the merge this made, "" for none
		file  string
		want  string
	}{
		{"two layers", d[:2], "0+2", "top", "1"},
		{"again", d[:2], "", "top", "1"},
		{"four, on the two", d, "2+2", "top", "3"},
		{"three, on the two", d[:3], "2+1", "f0", "0"},
		{"another order", []id.LayerKey{d[1], d[0]}, "0+2", "top", "0"},
		{"a layer twice", []id.LayerKey{d[0], d[1], d[0]}, "2+1", "top", "0"},
		{"one layer, its chain ID the diffID", d[:1], "0+1", "top", "0"},
	} {
		p.merges = nil
		if got := p.read(tt.diffs, tt.file); got != tt.want {
			t.Errorf("%s: %s = %q, want %q", tt.name, tt.file, got, tt.want)
		}
		if got := strings.Join(p.merges, " "); got != tt.merge {
			t.Errorf("%s: merges %q, want %q", tt.name, got, tt.merge)
		}
	}

	c, err := p.Chain(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Release()
	if c.ID() != id.Stack(d) || !slices.Equal(c.Layers(), d) {
		t.Errorf("chain is %s of %q", c.ID(), c.Layers())
	}
	for i, path := range append(c.DataPaths(), c.IndexPath()) {
		if st, err := os.Stat(path); err != nil || !st.Mode().IsRegular() {
			t.Errorf("path %d: %s: %v", i, path, err)
		}
	}
	if _, err := c.Data()[0].Fill(ctx, 0, 512, 512); err != nil {
		t.Error(err)
	}
}

func TestChainEmpty(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	for range 2 {
		c, err := p.Chain(context.Background(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.ID() != "" || len(c.Data()) != 0 || len(c.DataPaths()) != 0 || !exists(c.IndexPath()) {
			t.Errorf("empty chain %q has %d devices, index %s", c.ID(), len(c.Data()), c.IndexPath())
		}
		if n := c.Image().Inodes(); n != 1 {
			t.Errorf("%d inodes, want the root", n)
		}
		c.Release()
	}
	if len(p.merges) != 1 {
		t.Errorf("merges %q, want one", p.merges)
	}
}

// TestChainShared has many open one chain at once: one build, one descriptor
// for each layer, all given back at the end.
func TestChainShared(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	d := p.putN(3)
	other := []id.LayerKey{d[2], d[0], d[2]}
	var wg sync.WaitGroup
	chains := make([]*Chain, 20)
	for i := range chains {
		wg.Go(func() {
			var err error
			if chains[i], err = p.Chain(context.Background(), d); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	c, err := p.Chain(context.Background(), other)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.merges) != 2 {
		t.Errorf("merges %q, want one for each chain", p.merges)
	}
	if n := openFiles(t, p.dir); n != 3 {
		t.Errorf("%d data files are open, want one for each layer", n)
	}
	for _, c := range chains {
		c.Release()
		c.Release() // does nothing
	}
	if b, err := readFile(c.Image(), c.Data(), "top"); string(b) != "2" {
		t.Errorf("the other chain after it: %q (%v)", b, err)
	}
	c.Release()
	if n := openFiles(t, p.dir); n != 0 {
		t.Errorf("%d data files are open after the last release", n)
	}
	if n := len(p.chains); n != 0 {
		t.Errorf("%d chains are open after the last release", n)
	}
}

func TestChainErrors(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	d := p.putN(2)
	absent := id.LayerKey("sha256:" + strings.Repeat("0", 64))
	if _, err := p.Chain(context.Background(), []id.LayerKey{d[0], absent}); fault.KindOf(err) != fault.NotFound || !strings.Contains(err.Error(), "layer does not exist: "+string(absent)) {
		t.Errorf("absent layer: %v", err)
	}
	if _, err := p.Chain(context.Background(), []id.LayerKey{"../x"}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("no digest: %v", err)
	}

	// A merge that fails leaves nothing, and is not remembered.
	broken := errors.New("does not fit")
	good := p.Store.opts.Merge
	p.Store.opts.Merge = func(w io.Writer, parent *erofs.Image, top []*erofs.Image) error {
		w.Write([]byte("half"))
		return broken
	}
	if _, err := p.Chain(context.Background(), d); !errors.Is(err, broken) {
		t.Errorf("failing merge: %v", err)
	}
	if len(p.names("chains")) > 0 || len(p.names("tmp")) > 0 {
		t.Errorf("left behind: %q %q", p.names("chains"), p.names("tmp"))
	}
	p.Store.opts.Merge = good
	if got := p.read(d, "top"); got != "1" {
		t.Errorf("top = %q", got)
	}
	if n := openFiles(t, p.dir); n != 0 {
		t.Errorf("%d data files are open", n)
	}

	// Who leaves does not spoil the build.
	entered, goOn := make(chan struct{}), make(chan struct{})
	p.Store.opts.Merge = func(w io.Writer, parent *erofs.Image, top []*erofs.Image) error {
		close(entered)
		<-goOn
		return good(w, parent, top)
	}
	ctx, cancel := context.WithCancel(context.Background())
	left := make(chan error, 1)
	swapped := []id.LayerKey{d[1], d[0]}
	go func() { _, err := p.Chain(ctx, swapped); left <- err }()
	<-entered
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("who left: %v", err)
	}
	close(goOn)
	if got := p.read(swapped, "top"); got != "0" { // would close entered twice if it built again
		t.Errorf("top = %q", got)
	}
}

// TestDamagedFiles has the store meet files that are not what it wrote. It
// reports them, counts the layer as absent, and takes it again.
func TestDamagedFiles(t *testing.T) {
	t.Parallel()
	write := func(t *testing.T, path string, b []byte) {
		t.Helper()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name    string
		damage  func(t *testing.T, p *place, dir string)
		absent  bool
		fetches int32 // of its blob: none if only the index must be made anew
	}{
		{"index with a bad magic", func(t *testing.T, p *place, dir string) {
			b, err := os.ReadFile(filepath.Join(dir, "index"))
			if err != nil {
				t.Fatal(err)
			}
			b[1024] ^= 0xff
			write(t, filepath.Join(dir, "index"), b)
		}, true, 0},
		{"index of no bytes", func(t *testing.T, p *place, dir string) { write(t, filepath.Join(dir, "index"), nil) }, true, 0},
		{"index of another layer", func(t *testing.T, p *place, dir string) {
			b, err := os.ReadFile(filepath.Join(p.layerDir(p.put("file aa x\n")), "index"))
			if err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(dir, "index"), b)
		}, true, 0},
		{"a bit of the index changed", func(t *testing.T, p *place, dir string) { flip(t, filepath.Join(dir, "index"), 1600) }, true, 0},
		{"a bit of the data changed", func(t *testing.T, p *place, dir string) { flip(t, filepath.Join(dir, "data"), 600) }, true, 1},
		{"index lost", func(t *testing.T, p *place, dir string) { os.Remove(filepath.Join(dir, "index")) }, true, 0},
		{"data lost", func(t *testing.T, p *place, dir string) { os.Remove(filepath.Join(dir, "data")) }, true, 1},
		{"data cut", func(t *testing.T, p *place, dir string) { os.Truncate(filepath.Join(dir, "data"), 512) }, true, 1},
		{"layer lost", func(t *testing.T, p *place, dir string) { os.RemoveAll(dir) }, true, 1},
		{"database record lost", func(t *testing.T, p *place, dir string) {
			p.update(map[string][]byte{layerKey + filepath.Base(dir): nil})
		}, false, 0},
		{"database record damaged", func(t *testing.T, p *place, dir string) {
			p.update(map[string][]byte{layerKey + filepath.Base(dir): []byte{copyVersion, 1}})
		}, false, 0},
		{"both records damaged", func(t *testing.T, p *place, dir string) {
			p.update(map[string][]byte{layerKey + filepath.Base(dir): []byte{copyVersion, 1}})
			write(t, filepath.Join(dir, "record"), []byte{copyVersion, 1})
		}, true, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			whole := p.put("file a whole\n")
			d := p.put("file a damaged\n")
			if err := p.Retain("image:1", []id.LayerKey{whole, d}); err != nil {
				t.Fatal(err)
			}
			tt.damage(t, p, p.layerDir(d))
			p.reopen()
			if p.Has(d) == tt.absent {
				t.Errorf("Has = %v", p.Has(d))
			}
			if !p.Has(whole) {
				t.Error("the other layer is absent too")
			}
			if _, err := p.Layers(); err != nil {
				t.Error(err)
			}
			if n := len(p.Problems()); n == 0 && tt.name != "database record lost" && tt.name != "layer lost" {
				t.Error("no problem is reported")
			}
			if tt.absent {
				if _, err := p.Chain(context.Background(), []id.LayerKey{whole, d}); fault.KindOf(err) != fault.NotFound {
					t.Errorf("chain: %v", err)
				}
			}
			spec, src := counted(tarOf(t, "file a damaged\n"))
			if _, existed, err := p.Ensure(context.Background(), spec, nil); err != nil || existed == tt.absent {
				t.Fatalf("existed %v, error %v", existed, err)
			}
			if got := src.opens.Load(); got != tt.fetches {
				t.Errorf("the blob was fetched %d times, want %d", got, tt.fetches)
			}
			for range 2 {
				if got := p.read([]id.LayerKey{whole, d}, "a"); got != "damaged" {
					t.Errorf("content %q", got)
				}
				p.reopen()
			}
			if len(p.Problems()) > 0 {
				t.Errorf("problems after the repair: %q", p.Problems())
			}
		})
	}

	t.Run("chain index", func(t *testing.T) {
		t.Parallel()
		p := newPlace(t)
		d := p.putN(2)
		p.read(d, "top")
		write(t, p.chainIndex(id.Stack(d)), []byte(strings.Repeat("x", 4096)))
		if got := p.read(d, "top"); got != "1" || len(p.merges) != 2 || len(p.Problems()) != 1 {
			t.Errorf("top = %q after merges %q, problems %q", got, p.merges, p.Problems())
		}
	})

	t.Run("a bit of a chain index changed", func(t *testing.T) {
		t.Parallel()
		p := newPlace(t)
		d := p.putN(2)
		p.read(d, "top")
		flip(t, p.chainIndex(id.Stack(d)), 1600)
		if got := p.read(d, "top"); got != "1" || len(p.merges) != 2 || len(p.Problems()) != 1 {
			t.Errorf("top = %q after merges %q, problems %q", got, p.merges, p.Problems())
		}
	})

	// A store that was copied without its times is read through once.
	t.Run("only times changed", func(t *testing.T) {
		t.Parallel()
		p := newPlace(t)
		d := p.putN(2)
		p.read(d, "top")
		files := []string{p.dataPath(d[0]), filepath.Join(p.layerDir(d[0]), "index"), p.chainIndex(id.Stack(d))}
		var before []time.Time
		for _, name := range files {
			st, err := os.Stat(name)
			if err != nil {
				t.Fatal(err)
			}
			before = append(before, st.ModTime())
			if err := os.Chtimes(name, time.Time{}, time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
		}
		p.reopen()
		if got := p.read(d, "top"); got != "1" || len(p.Problems()) != 0 || len(p.merges) != 1 {
			t.Errorf("top = %q, problems %q, merges %q", got, p.Problems(), p.merges)
		}
		for i, name := range files {
			if st, err := os.Stat(name); err != nil || !st.ModTime().Equal(before[i]) {
				t.Errorf("%s: time %v, %v; want %v", name, st.ModTime(), err, before[i])
			}
		}
	})

	t.Run("data changed", func(t *testing.T) {
		t.Parallel()
		p := newPlace(t)
		d := p.put("file a content\n")
		b, err := os.ReadFile(filepath.Join(p.layerDir(d), "data"))
		if err != nil {
			t.Fatal(err)
		}
		b[600] ^= 1
		write(t, filepath.Join(p.layerDir(d), "data"), b)
		if _, err := p.Verify(context.Background(), d, false); fault.KindOf(err) != fault.Integrity {
			t.Errorf("Verify: %v", err)
		}
		if p.Has(d) {
			t.Error("the layer still counts")
		}
	})
}

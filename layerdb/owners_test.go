package layerdb

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/metadb"
	"github.com/imgfs/imgfs/internal/toc"
)

// TestOwners walks through docker's semantics: a layer goes with its last
// owner.
func TestOwners(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	d := p.putN(4)
	name := func(list []id.LayerKey) string {
		var s []string
		for _, l := range list {
			s = append(s, fmt.Sprint(slices.Index(d, l)))
		}
		slices.Sort(s)
		return strings.Join(s, " ")
	}
	check := func(step, layers, chains string) {
		t.Helper()
		var have []id.LayerKey
		for _, l := range d {
			if p.Has(l) != exists(p.layerDir(l)) {
				t.Errorf("%s: Has and disk disagree", step)
			}
			if p.Has(l) {
				have = append(have, l)
			}
		}
		if got := name(have); got != layers {
			t.Errorf("%s: layers %q, want %q", step, got, layers)
		}
		var stacks []string
		for n := 1; n <= len(d); n++ {
			if exists(p.chainIndex(id.Stack(d[:n]))) {
				stacks = append(stacks, fmt.Sprint(n))
			}
		}
		if got := strings.Join(stacks, " "); got != chains {
			t.Errorf("%s: chains of %q layers, want %q", step, got, chains)
		}
		if n := p.names("tmp"); len(n) > 0 {
			t.Errorf("%s: left in tmp/: %q", step, n)
		}
	}
	retain := func(owner string, diffs ...id.LayerKey) {
		t.Helper()
		if err := p.Retain(owner, diffs); err != nil {
			t.Fatal(err)
		}
	}
	release := func(owner, freed string) {
		t.Helper()
		got, err := p.Release(owner)
		if err != nil || name(got) != freed {
			t.Errorf("release of %s freed %q (%v), want %q", owner, name(got), err, freed)
		}
	}

	retain("image:a", d[:3]...)
	retain("image:a", d[:3]...) // idempotent
	retain("image:b", d[:2]...)
	p.read(d[:3], "top")
	p.read(d[:2], "top")
	p.read(d[:1], "top") // a view of the lowest layer, nobody's
	check("start", "0 1 2 3", "1 2 3")
	list, err := p.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range list {
		if want := []int{2, 2, 1, 0}[slices.Index(d, l.Key)]; l.Owners != want || l.Disk == 0 {
			t.Errorf("layer %s: %d owners, want %d; %d bytes on disk", name([]id.LayerKey{l.Key}), l.Owners, want, l.Disk)
		}
	}

	p.reopen()
	retain("mount:x", d[:3]...)
	release("image:a", "")
	check("mounted image removed", "0 1 2 3", "2 3")
	if got := strings.Join(p.Owners("image:"), " "); got != "image:b" {
		t.Errorf("owners %q", got)
	}

	c, err := p.Chain(context.Background(), d[:3])
	if err != nil {
		t.Fatal(err)
	}
	release("mount:x", "")
	check("open chain without an owner", "0 1 2 3", "2 3")
	r, err := p.GC(context.Background())
	if err != nil || name(r.Layers) != "3" || r.Reclaimed <= 0 {
		t.Errorf("GC beside an open chain: %+v (%v)", r, err)
	}
	check("GC beside an open chain", "0 1 2", "2 3")
	if b, err := readFile(c.Image(), c.Data(), "top"); string(b) != "2" {
		t.Errorf("open chain reads %q (%v)", b, err)
	}
	c.Release()

	r, err = p.GC(context.Background())
	if err != nil || name(r.Layers) != "2" || len(r.Chains) != 1 || r.Chains[0] != id.Stack(d[:3]) {
		t.Errorf("GC after it: %+v (%v)", r, err)
	}
	check("GC after it", "0 1", "2")

	retain("image:b", d[1]) // holds less from now on
	release("image:c", "")  // unknown
	r, err = p.GC(context.Background())
	if err != nil || name(r.Layers) != "0" {
		t.Errorf("GC after retaining less: %+v (%v)", r, err)
	}
	release("image:b", "1")
	check("end", "", "")
	p.reopen()
	check("end, after a restart", "", "")
	p.nothing()
	if len(p.Problems()) > 0 {
		t.Errorf("problems %q", p.Problems())
	}
}

// TestRetainFirst has a pull hold its layers before they are there.
func TestRetainFirst(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	stream := tarOf(t, sample)
	spec := specOf(stream, stream)
	if err := p.Retain("pull:1", []id.LayerKey{spec.DiffID.Key()}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.Ensure(context.Background(), spec, nil); err != nil {
		t.Fatal(err)
	}
	if r, err := p.GC(context.Background()); err != nil || len(r.Layers) > 0 {
		t.Errorf("GC took %q (%v)", r.Layers, err)
	}
	if size, err := p.Size(spec.DiffID.Key()); err != nil || size != 20+700001+5 {
		t.Errorf("size %d (%v), want the bytes of the files", size, err)
	}
}

// TestLeftovers has Open and GC find what killed processes left.
func TestLeftovers(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	litter := func() {
		dir := filepath.Join(p.dir, "tmp", "pass-123")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "data"), make([]byte, 8192), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	litter()
	p.reopen()
	p.nothing()
	litter()
	if r, err := p.GC(context.Background()); err != nil || r.Reclaimed < 8192 {
		t.Errorf("GC: %+v (%v)", r, err)
	}
	p.nothing()

	// A pass under way is none.
	stream := tarOf(t, sample)
	spec, h := holding(specOf(stream, stream))
	done := make(chan error, 1)
	go func() { _, _, err := p.Ensure(context.Background(), spec, nil); done <- err }()
	<-h.opened
	if _, err := p.GC(context.Background()); err != nil {
		t.Error(err)
	}
	close(h.goOn)
	if err := <-done; err != nil {
		t.Errorf("pass under a GC: %v", err)
	}
}

// TestManyRecords changes more records than one transaction takes.
func TestManyRecords(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	const n = 10_000
	changes := map[string][]byte{}
	for i := range n {
		changes[fmt.Sprintf("%s%064x", blobKey, i)] = []byte(strings.Repeat("0", 64))
	}
	count := func() (records int) {
		if err := metadb.Scan(p.db, blobKey, func(string, []byte) error { records++; return nil }); err != nil {
			t.Fatal(err)
		}
		return records
	}
	if err := p.update(changes); err != nil {
		t.Fatal(err)
	}
	if got := count(); got != n {
		t.Errorf("%d records, want %d", got, n)
	}
	p.reopen() // none is of a layer that is here
	if got := count(); got != 0 {
		t.Errorf("%d records after Open, want none", got)
	}
}

// TestDistinct compares short lists with long ones.
func TestDistinct(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, shortList, shortList + 1, 1000} {
		var list, want []id.LayerKey
		for i := range n {
			k := id.LayerKey(id.BlobOf([]byte{byte(i % 50)}))
			if !slices.Contains(want, k) {
				want = append(want, k)
			}
			list = append(list, k)
		}
		if got := slices.Collect(distinct(list)); !slices.Equal(got, want) {
			t.Errorf("of %d: %d, want %d", n, len(got), len(want))
		}
		for range distinct(list) {
			break
		}
	}
}

// FuzzCopies reads copies of records of any bytes, and writes what it made of
// them.
func FuzzCopies(f *testing.F) {
	k := id.LayerKey("sha256:" + strings.Repeat("ab", 32))
	f.Add(copyOf(&LayerInfo{Key: k, DiffID: id.DiffID(k), Form: toc.Stream, Sealed: true, Blob: id.Blob(k), Compression: "gzip",
		DataSize: 7, Index: written{1, 2, id.Blob(k)}, Prefetch: []toc.Range{{Off: 1, Len: 2}}, Created: time.Unix(3, 0)}))
	f.Add(ownedCopy([]id.LayerKey{k, k}))
	f.Add([]byte(`["` + k + `"]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var i, again LayerInfo
		if metadb.Decode(b, &metadb.Shared{}, i.fields) == nil {
			if err := metadb.Decode(copyOf(&i), &metadb.Shared{}, again.fields); err != nil || fmt.Sprint(i) != fmt.Sprint(again) {
				t.Fatalf("%+v\n%+v (%v)", i, again, err)
			}
		}
		list, err := readOwned(b, &metadb.Shared{})
		if err != nil {
			return
		}
		if l, err := readOwned(ownedCopy(list), &metadb.Shared{}); err != nil || !slices.Equal(l, list) {
			t.Fatalf("%v\n%v (%v)", list, l, err)
		}
	})
}

package imagedb

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/metadb"
)

// labelled is image with a summary to be had from its config.
func labelled(n int) Image {
	img := image(n, 2)
	img.Config = fmt.Appendf(nil, `{"created":"2024-05-06T07:08:09.%03dZ","os":"linux","architecture":"arm64","variant":"v8",
		"config":{"Labels":{"n":"%d","empty":""}},"rootfs":{"diff_ids":[%q,%q]}}`, n, n, img.Layers[0].DiffID, img.Layers[1].DiffID)
	img.ID = id.ImageIDOf(img.Config)
	img.Platform = "linux/arm64/v8"
	img.Manifest = fmt.Appendf(nil, `{"config":{"digest":%q},"layers":[{"digest":%q,"size":10},{"digest":%q,"size":10}]}`,
		img.ID, img.Layers[0].Blob, img.Layers[1].Blob)
	img.ManifestDigest = id.BlobOf(img.Manifest)
	img.Digest = img.ManifestDigest
	return img
}

// records writes to the database behind the store's back, which is then opened
// anew; a nil value deletes.
func (p *place) records(changes map[string][]byte) {
	p.t.Helper()
	if err := metadb.Update(p.db, changes); err != nil {
		p.t.Fatal(err)
	}
	p.reopen()
}

func (p *place) broken() map[id.ImageID]string {
	m := map[id.ImageID]string{}
	for _, img := range p.List() {
		if img.Broken != "" {
			m[img.ID] = img.Broken
		}
	}
	return m
}

// TestBroken has configs and a manifest damaged: the rest works, the damage is
// told, noticed while the store is open and after, and mended by a Create.
func TestBroken(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	good, cut, lost, other := image(1, 1), image(2, 1), image(3, 1), image(4, 1)
	for n, img := range []Image{good, cut, lost, other} {
		p.tag(fmt.Sprintf("x:%d", n), p.put(img))
	}
	if b := p.broken(); len(b) > 0 {
		t.Errorf("broken before: %v", b)
	}
	write := func(img Image, b []byte) {
		t.Helper()
		if err := os.WriteFile(p.blobPath(img.ID.Hex()), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(cut, cut.Config[:9])
	flipped := slices.Clone(other.Config)
	flipped[3] ^= 1
	write(other, flipped)
	if err := os.Remove(p.blobPath(lost.ID.Hex())); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(p.blobPath(good.ManifestDigest.Hex())); err != nil { // only a push would miss it
		t.Fatal(err)
	}
	for _, when := range []string{"while it is open", "after a restart"} {
		want := map[id.ImageID]string{
			cut.ID:   "failed to verify: " + string(cut.ID),
			other.ID: "failed to verify: " + string(other.ID),
			lost.ID:  "its config is not there",
		}
		got := p.broken()
		for i, text := range want {
			if !strings.HasPrefix(got[i], text) {
				t.Errorf("%s: image %s: broken %q, want %q", when, i.Short(), got[i], text)
			}
			_, err := p.Get(i)
			wantError(t, when, err, fault.Integrity, "image "+i.Short()+" is broken: "+text)
		}
		if len(got) != len(want) {
			t.Errorf("%s: broken %v", when, got)
		}
		if got := p.Problems(); len(got) != 3 {
			t.Errorf("%s: problems %q", when, got)
		}
		if got := p.Check(); len(got) != 3 || !slices.IsSortedFunc(got, func(a, b Damage) int { return strings.Compare(string(a.Image), string(b.Image)) }) {
			t.Errorf("%s: check %v", when, got)
		}
		if _, err := p.Get(good.ID); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		p.reopen()
	}
	write(other, other.Config) // somebody puts it right
	if b := p.broken(); len(b) != 2 {
		t.Errorf("broken after one was mended: %v", b)
	}
	for _, img := range []Image{cut, lost} {
		if _, err := p.Get(p.put(img)); err != nil {
			t.Errorf("after another put: %v", err)
		}
	}
	if b := p.broken(); len(b) > 0 {
		t.Errorf("broken in the end: %v", b)
	}
	if i, err := p.Resolve("x:1"); err != nil || i != cut.ID {
		t.Errorf("its name: %s (%v)", i, err)
	}
}

// TestTouched has configs of other times than recorded, as in a copy of the
// store: they are read once, and believed then.
func TestTouched(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	img := image(1, 1)
	i := p.put(img)
	if got := p.touched(); len(got) != 0 {
		t.Errorf("touched at first: %v", got)
	}
	old := time.Unix(1, 0)
	if err := os.Chtimes(p.blobPath(i.Hex()), old, old); err != nil {
		t.Fatal(err)
	}
	if got := p.touched(); !slices.Equal(got, []id.ImageID{i}) {
		t.Errorf("touched: %v", got)
	}
	if got := p.List(); len(got) != 1 || got[0].Broken != "" {
		t.Errorf("list: %+v", got)
	}
	p.reopen()
	if got := p.touched(); len(got) != 0 {
		t.Errorf("touched at last: %v", got)
	}
}

// TestRecover has records damaged or lost: they are made again from the files.
// Where these are damaged too, the image is there under its names, broken.
func TestRecover(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	whole, nameless, gone := labelled(1), labelled(2), labelled(3)
	for n, img := range []Image{whole, nameless, gone} {
		i := p.put(img)
		p.tag(fmt.Sprintf("x:%d", n), i)
		p.tag("x@"+string(img.Digest), i)
	}
	if err := os.Remove(p.blobPath(gone.ID.Hex())); err != nil {
		t.Fatal(err)
	}
	before := p.Map()
	p.records(map[string][]byte{
		imageKey + whole.ID.Hex():           {recordVersion, 1, 2},
		imageKey + gone.ID.Hex():            []byte("{"),
		imageKey + nameless.ID.Hex():        nil,
		nameKey + "docker.io/library/x:bad": []byte("not hexadecimal"),
	})
	if got := p.Problems(); len(got) != 4 { // three records and a name
		t.Errorf("problems %q", got)
	}
	for _, when := range []string{"at once", "after a restart"} {
		after := p.Map()
		for _, img := range []Image{whole, nameless} {
			got, want := after[img.ID], before[img.ID]
			if got.Broken != "" || got.Digest != want.Digest || got.ManifestDigest != want.ManifestDigest || got.Platform != want.Platform ||
				!got.Created.Equal(want.Created) || !maps.Equal(got.Labels, want.Labels) || !slices.Equal(got.Layers, want.Layers) {
				t.Errorf("%s:\n%+v\nwant\n%+v", when, got, want)
			}
		}
		_, err := p.Get(gone.ID)
		wantError(t, when, err, fault.Integrity, "its config is not there")
		for n, img := range []Image{whole, nameless, gone} {
			if i, err := p.Resolve(fmt.Sprintf("x:%d", n)); err != nil || i != img.ID || len(p.References(i)) != 2 {
				t.Errorf("%s: name %d: %s (%v)", when, n, i, err)
			}
		}
		p.reopen()
	}
	if n, err := p.Sweep(); n != 0 || err != nil {
		t.Errorf("swept %d bytes although a record is lost (%v)", n, err)
	}
	if got := p.Check(); len(got) != 2 || got[0].Image != gone.ID || got[1].Name != "docker.io/library/x:bad" {
		t.Errorf("check: %+v", got)
	}
	if _, err := p.Untag("x:bad"); err != nil {
		t.Error(err)
	}
	p.put(gone)
	p.reopen()
	if got := p.Check(); len(got) != 0 {
		t.Errorf("check in the end: %+v", got)
	}
	if _, err := p.Resolve("x:2"); err != nil {
		t.Error(err)
	}
}

// TestFirstRecords opens a store whose records are of the version that held
// JSON, without a summary.
func TestFirstRecords(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	img := labelled(7)
	i := p.put(img)
	p.tag("x:1", i)
	want := p.List()[0]
	old := fmt.Appendf(nil, `{"id":%q,"manifestDigest":%q,"digest":%q,"platform":%q,"layers":[{"diffID":%q,"blob":%q,"size":10},{"diffID":%q,"blob":%q,"size":10}],"put":%q,"tagged":%q}`,
		img.ID, img.ManifestDigest, img.Digest, img.Platform, img.Layers[0].DiffID, img.Layers[0].Blob, img.Layers[1].DiffID, img.Layers[1].Blob,
		want.Put.Format(time.RFC3339Nano), want.Tagged.Format(time.RFC3339Nano))
	p.records(map[string][]byte{imageKey + i.Hex(): old})
	for range 2 {
		got := p.List()[0]
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%+v\nwant\n%+v", got, want)
		}
		p.reopen()
	}
	if p.images[i].stamp == (stamp{}) {
		t.Error("the record was not written anew")
	}
}

// TestLongLabels has labels that no record holds.
func TestLongLabels(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	img := image(1, 0)
	img.Config = fmt.Appendf(nil, `{"config":{"Labels":{"long":%q}},"rootfs":{}}`, strings.Repeat("x", 1<<20))
	img.ID, img.Layers = "", nil
	p.put(img)
	p.reopen()
	if got := p.List()[0]; len(got.Labels["long"]) != 1<<20 || got.Broken != "" {
		t.Errorf("labels of %d bytes, broken %q", len(got.Labels["long"]), got.Broken)
	}
}

// FuzzRecord reads records of any bytes, and writes what it made of them.
func FuzzRecord(f *testing.F) {
	img := labelled(1)
	img.prove(img.ID)
	e := &entry{Image: img, summed: true, stamp: stamp{1, 2}}
	e.Image.Put, e.Parent = time.Unix(3, 4), img.ID
	f.Add(record(e))
	e.summed, e.Layers = false, nil
	f.Add(record(e))
	f.Add([]byte(`{"id":"` + string(img.ID) + `"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := (&reader{}).entry(img.ID.Hex(), b)
		if err != nil || b[0] == '{' {
			return
		}
		again, err := (&reader{}).entry(img.ID.Hex(), record(e))
		if err != nil || fmt.Sprintf("%+v", again.Image) != fmt.Sprintf("%+v", e.Image) {
			if e.summed && !again.summed {
				return // labels that are too long
			}
			t.Fatalf("%+v\n%+v (%v)", e, again, err)
		}
	})
}

// TestLeftovers has the store refuse files that are not its own.
func TestLeftovers(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	img := image(1, 1)
	i := p.put(img)
	path := p.blobPath(i.Hex())
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Base(path)+".away", path); err != nil {
		t.Fatal(err)
	}
	if len(p.broken()) != 1 {
		t.Error("a link was followed")
	}
}

package daemon

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/fs"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// TestFsck damages a store in many ways, while no daemon runs. The next one
// starts, serves what is not damaged, tells what is, and mends it: then there
// is nothing to tell any more, and all is as it was.
func TestFsck(t *testing.T) {
	t.Parallel()
	garbage := []byte("\xffgarbage")
	first := newWard(t)
	if _, err := first.client.Pin(t.Context(), first.small); err != nil {
		t.Fatal(err)
	}
	first.end(t)
	for _, tt := range []struct {
		name   string
		damage func(w *ward)
		kinds  string // of the problems found; "": nothing is left to find once the daemon has started
		spares string // what is served all the same: other, unless it says -
	}{
		{"an index has another byte", func(w *ward) { w.flip(w.upper, "index") }, "layer", ""},
		{"an index is gone", func(w *ward) { w.remove(w.upper, "index") }, "layer", ""},
		{"an index is cut", func(w *ward) { w.cut(w.upper, "index") }, "layer", ""},
		{"an index is a directory", func(w *ward) {
			w.remove(w.upper, "index")
			if err := os.Mkdir(filepath.Join(w.upper, "index"), 0o700); err != nil {
				w.t.Fatal(err)
			}
		}, "layer", ""},
		{"data has another byte", func(w *ward) { w.flip(w.upper, "data") }, "layer", ""},
		{"data is gone", func(w *ward) { w.remove(w.upper, "data") }, "layer", ""},
		{"data is cut", func(w *ward) { w.cut(w.upper, "data") }, "layer", ""},
		{"a record is gone", func(w *ward) { w.remove(w.upper, "record") }, "layer", ""},
		{"a record is garbage", func(w *ward) { w.write("garbage", w.upper, "record") }, "layer", ""},
		{"both records are gone", func(w *ward) {
			w.remove(w.upper, "record")
			w.records("layerdb/layer/", filepath.Base(w.upper), nil)
		}, "layer", ""},
		{"both records are garbage", func(w *ward) {
			w.write("{}", w.upper, "record")
			w.records("layerdb/layer/", filepath.Base(w.upper), garbage)
		}, "layer", ""},
		{"the database's record of a layer is garbage", func(w *ward) {
			w.records("layerdb/layer/", filepath.Base(w.upper), garbage)
		}, "", ""},
		{"a span table has another byte", func(w *ward) { w.flip(w.upper, "spans") }, "layer", ""},
		{"a skeleton is gone", func(w *ward) { w.remove(w.upper, "skeleton") }, "layer", ""},
		{"a layer is gone", func(w *ward) { w.remove(w.upper) }, "layer", ""},
		{"a layer that two images share is gone", func(w *ward) { w.remove(w.lower) }, "layer", "-"},
		{"a layer is a file", func(w *ward) { w.write("x", w.upper) }, "layer", ""},
		{"a layer is empty", func(w *ward) {
			w.remove(w.upper)
			if err := os.Mkdir(w.upper, 0o700); err != nil {
				w.t.Fatal(err)
			}
		}, "layer", ""},
		{"all layers are gone", func(w *ward) { w.remove(w.Root, "layers") }, "layer layer layer", "-"},
		{"an imported index has another byte", func(w *ward) { w.flip(w.toc, "index") }, "layer", ""},
		{"an imported layer's spans are cut", func(w *ward) { w.cut(w.toc, "spans") }, "layer", ""},
		{"an imported layer's data is gone", func(w *ward) { w.remove(w.toc, "data") }, "layer", ""},
		{"an imported layer's data is cut", func(w *ward) { w.cut(w.toc, "data") }, "layer", ""},
		{"what is present of an imported layer is garbage", func(w *ward) { w.write("garbage", w.toc, "present") }, "?", ""},
		{"an imported layer is gone", func(w *ward) { w.remove(w.toc) }, "layer", ""},
		{"a config is gone", func(w *ward) { w.remove(w.configs[w.small]) }, "image", ""},
		{"a config has another byte", func(w *ward) { w.flip(w.configs[w.small]) }, "image", ""},
		{"a config is empty", func(w *ward) { w.write("", w.configs[w.small]) }, "image", ""},
		{"configs and manifests are gone", func(w *ward) { w.remove(w.Root, "blobs") }, "image image image", "-"},
		{"a manifest is gone", func(w *ward) { w.remove(w.manifests[w.small]) }, "image", ""},
		{"a manifest has another byte", func(w *ward) { w.flip(w.manifests[w.small]) }, "image", ""},
		{"an image's record is garbage", func(w *ward) { w.records("imagedb/image/", filepath.Base(w.configs[w.small]), garbage) }, "", ""},
		{"an image's record is gone", func(w *ward) { w.records("imagedb/image/", filepath.Base(w.configs[w.small]), nil) }, "", ""},
		{"an image's record and config are garbage", func(w *ward) {
			w.records("imagedb/image/", filepath.Base(w.configs[w.small]), garbage)
			w.write("{}", w.configs[w.small])
		}, "image", ""},
		{"a tag is garbage", func(w *ward) { w.records("imagedb/name/", "/small:1", garbage) }, "name", ""},
		{"a digest is garbage", func(w *ward) { w.records("imagedb/name/", "/small@", garbage) }, "name", ""},
		{"who holds layers is garbage", func(w *ward) { w.records("layerdb/owner/", "image:", garbage) }, "", ""},
		{"who holds layers is gone", func(w *ward) { w.records("layerdb/owner/", "image:", nil) }, "", ""},
		{"a pin is garbage", func(w *ward) { w.records("layerdb/owner/", "pin:", garbage) }, "record", ""},
		{"which blob a layer has is garbage", func(w *ward) { w.records("layerdb/blob/", "", garbage) }, "", ""},
		{"where blobs are to be had is garbage", func(w *ward) { w.records("daemon/origin/", "", garbage) }, "record record record", ""},
		{"a chain's index has another byte", func(w *ward) { w.flip(w.chains[w.small], "index") }, "chain", ""},
		{"a chain's record is gone", func(w *ward) { w.remove(w.chains[w.small], "record") }, "chain", ""},
		{"a chain is empty", func(w *ward) {
			w.remove(w.chains[w.small], "record")
			w.remove(w.chains[w.small], "index")
		}, "chain", ""},
		{"a chain is a file", func(w *ward) { w.write("x", w.chains[w.small]) }, "chain", ""},
		{"a chain is another one", func(w *ward) {
			for _, f := range []string{"index", "record"} {
				b, err := os.ReadFile(filepath.Join(w.chains[w.other], f))
				if err != nil {
					w.t.Fatal(err)
				}
				w.write(string(b), w.chains[w.small], f)
			}
		}, "chain", ""},
		{"all chains are gone", func(w *ward) { w.remove(w.Root, "chains") }, "", ""},
		{"chains is a file", func(w *ward) { w.write("x", w.Root, "chains") }, "", ""},
		{"layers is a file", func(w *ward) { w.write("x", w.Root, "layers") }, "layer layer layer", "-"},
		{"blobs is a file", func(w *ward) { w.write("x", w.Root, "blobs") }, "image image image", "-"},
		{"tmp is a file", func(w *ward) { w.write("x", w.Root, "tmp") }, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := first.copy(t)
			w.stopped(func() { tt.damage(w) })
			if tt.spares == "" && w.tree(w.other) != w.trees[w.other] {
				t.Errorf("the other image is not what it was")
			}
			found := w.fsck(false)
			var kinds []string
			for _, p := range found.Problems {
				kinds = append(kinds, p.Kind)
				if p.Repaired {
					t.Errorf("repaired without being asked to:%s", problemsText(found.Problems))
				}
			}
			if got := strings.Join(kinds, " "); got != tt.kinds && tt.kinds != "?" {
				t.Errorf("found %q, want %q:%s", got, tt.kinds, problemsText(found.Problems))
			}
			mended := w.fsck(true)
			for _, p := range mended.Problems {
				if !p.Repaired {
					t.Errorf("not repaired:%s", problemsText(mended.Problems))
					break
				}
			}
			if again := w.fsck(false); len(again.Problems) > 0 {
				t.Errorf("after the repair:%s", problemsText(again.Problems))
			}
			w.whole()
			w.stopped(func() {})
			w.whole()
			if st, err := w.client.Status(t.Context()); err != nil || len(st.Problems) > 0 {
				t.Errorf("problems at the next start: %q, %v", st.Problems, err)
			}
		})
	}
}

// TestFsckServed damages a store whose daemon serves a mount of it. What is
// mounted is served on; what is damaged is noticed although it was looked at
// before, and mended.
func TestFsckServed(t *testing.T) {
	needFUSE(t)
	w := newWard(t)
	ctx := testContext(t)
	dir := mountDir(t)
	if _, err := mountAs(ctx, w.client, w.small, dir); err != nil {
		t.Fatal(err)
	}
	w.flip(w.upper, "index")
	w.remove(w.upper, "record")
	w.remove(w.lower, "data")
	w.flip(w.chains[w.small], "index")
	w.remove(w.configs[w.other])
	var kinds []string
	for _, p := range w.fsck(true).Problems {
		kinds = append(kinds, p.Kind)
		if !p.Repaired {
			t.Errorf("not repaired:%s", problemsText([]engineapi.FsckProblem{p}))
		}
	}
	if got := strings.Join(kinds, " "); got != "image layer layer chain" {
		t.Errorf("found %q", got)
	}
	wantFile(t, filepath.Join(dir, "a"), "one")
	if again := w.fsck(false); len(again.Problems) > 0 {
		t.Errorf("after the repair:%s", problemsText(again.Problems))
	}
	if err := fs.Unmount(dir, false); err != nil {
		t.Fatal(err)
	}
	w.whole()
}

// TestFsckAlone damages what nobody else has: its own data mends a layer's
// index; what is lost is told, keeps nobody from anything else, and can be
// removed.
func TestFsckAlone(t *testing.T) {
	t.Parallel()
	w := newWard(t)
	ctx := t.Context()
	stream, err := imgtest.Tar("file mine alone")
	if err != nil {
		t.Fatal(err)
	}
	diff := id.DiffIDFrom(sha256.Sum256(stream))
	config := fmt.Appendf(nil, `{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[%q]}}`, diff)
	l, err := w.client.ImportLayer(ctx, engineapi.LayerImport{Config: config, Reference: "mine:1"}, bytes.NewReader(stream), nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := w.layer(diff.Key())
	before := w.tree("mine:1")
	w.stopped(func() { w.remove(dir, "index"); w.remove(dir, "record") })
	if res := w.fsck(true); len(res.Problems) != 1 || !res.Problems[0].Repaired {
		t.Errorf("a lost index:%s", problemsText(res.Problems))
	}
	if w.tree("mine:1") != before {
		t.Error("mine is not what it was")
	}

	w.stopped(func() { w.flip(dir, "data") })
	for range 2 {
		res := w.fsck(true)
		if len(res.Problems) != 1 || res.Problems[0].Repaired || !strings.Contains(res.Problems[0].Hint, "imgfs rmi mine:1") {
			t.Errorf("lost data:%s", problemsText(res.Problems))
		}
	}
	w.names += "\nmine:1 " + string(l.Image)
	w.whole()
	if _, err := w.client.Remove(ctx, string(l.Image), engineapi.RemoveOptions{Force: true}); err != nil {
		t.Error(err)
	}
	if res := w.fsck(true); len(res.Problems) > 0 {
		t.Errorf("after its removal:%s", problemsText(res.Problems))
	}

	// A config alone cannot be made of anything.
	if _, err := w.client.ImportLayer(ctx, engineapi.LayerImport{Config: config, Reference: "mine:1"}, bytes.NewReader(stream), nil); err != nil {
		t.Fatal(err)
	}
	w.remove(w.Root, "blobs", "sha256", l.Image.Hex())
	res := w.fsck(true)
	if len(res.Problems) != 1 || res.Problems[0].Repaired || res.Problems[0].Kind != imageProblem {
		t.Errorf("a lost config:%s", problemsText(res.Problems))
	}
	list, err := w.client.Images(ctx, nil, engineapi.ListOptions{})
	if err != nil || !slices.ContainsFunc(list, func(i engineapi.ImageSummary) bool { return i.ID == l.Image && i.Broken != "" }) {
		t.Errorf("the broken image is not listed: %+v, %v", list, err)
	}
}

// TestLostDatabase starts on stores whose database is damaged, or gone. What
// files tell is known again: layers, and images by their IDs; a pull gives these
// their names back, and fetches no layer.
func TestLostDatabase(t *testing.T) {
	t.Parallel()
	first := newWard(t)
	first.end(t)
	for _, tt := range []struct {
		name   string
		damage func(w *ward)
		named  bool // names were saved
	}{
		{"gone", func(w *ward) { w.remove(w.Root, "db") }, false},
		{"a file", func(w *ward) { w.write("x", w.Root, "db") }, false},
		{"its manifest is garbage", func(w *ward) { w.write("garbage", w.Root, "db", "MANIFEST") }, true},
		{"its manifest is gone", func(w *ward) { w.remove(w.Root, "db", "MANIFEST") }, true},
		{"its registry is gone", func(w *ward) { w.write("", w.Root, "db", "KEYREGISTRY") }, true},
		{"its tables are gone", func(w *ward) {
			tables, err := filepath.Glob(filepath.Join(w.Root, "db", "*.sst"))
			if err != nil || len(tables) == 0 {
				w.t.Fatal(tables, err)
			}
			for _, f := range tables {
				w.remove(f)
			}
		}, false},
		{"its tables are garbage", func(w *ward) {
			tables, err := filepath.Glob(filepath.Join(w.Root, "db", "*.sst"))
			if err != nil || len(tables) == 0 {
				w.t.Fatal(tables, err)
			}
			for _, f := range tables {
				w.write(strings.Repeat("garbage!", 1000), f)
			}
		}, false},
		{"its recovery was cut off", func(w *ward) { w.must(os.Mkdir(filepath.Join(w.Root, "db.recover"), 0o700)) }, true},
		{"it was made of nothing, and that not to the end", func(w *ward) {
			db := filepath.Join(w.Root, "db")
			w.must(errors.Join(os.Rename(db, db+".recover"), os.Mkdir(db, 0o700)))
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := first.copy(t)
			w.stopped(func() { tt.damage(w) })
			st, err := w.client.Status(t.Context())
			if err != nil || st.Images != 3 || st.Layers != 3 || len(st.Problems) == 0 {
				t.Errorf("%+v, %v", st, err)
			}
			if _, err := w.client.GC(t.Context()); err != nil { // takes nothing of them
				t.Fatal(err)
			}
			if !tt.named {
				for ref, want := range w.trees {
					if got := w.tree(filepath.Base(w.configs[ref])); got != want {
						t.Errorf("%s is not what it was", ref)
					}
				}
				w.reg.Forget()
				for ref := range w.trees {
					w.pull(ref)
				}
				if n := len(w.reg.Requests(imgtest.KindBlob)); n > len(w.trees) { // their configs
					t.Errorf("%d blobs were fetched", n)
				}
				w.pull(w.lazy)
			}
			if res := w.fsck(true); slices.ContainsFunc(res.Problems, func(p engineapi.FsckProblem) bool { return !p.Repaired }) {
				t.Errorf("not repaired:%s", problemsText(res.Problems))
			}
			if res := w.fsck(false); len(res.Problems) > 0 {
				t.Errorf("after the repair:%s", problemsText(res.Problems))
			}
			w.whole()
		})
	}
}

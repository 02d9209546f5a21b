package daemon

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgfs/imgfs/fs"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
	"github.com/imgfs/imgfs/internal/metadb"
)

// ward is a store with images to be damaged: small, of two layers, whose lower
// one is other's too, both streamed; and lazy, a large layer that was imported
// by its table of contents, and of which little is here.
type ward struct {
	*running
	t                  *testing.T
	reg                *imgtest.Registry
	small, other, lazy string // references
	lower, upper       string // small's layers, their directories
	toc                string // lazy's
	names              string // all there are
	trees              map[string][sha256.Size]byte
	configs            map[string]string // paths, by reference, as the following are
	manifests          map[string]string
	chains             map[string]string
}

func newWard(t *testing.T) *ward {
	t.Helper()
	w := &ward{t: t, reg: imgtest.NewRegistry(t, imgtest.RegistryOptions{}), trees: map[string][sha256.Size]byte{}}
	img := pushTo(t, "small", "1", []string{"file a one\nlink b a", "file c size=70000"}, w.reg)
	pushTo(t, "other", "1", []string{"file a one\nlink b a"}, w.reg)
	noise := make([]byte, 5<<18) // of less a table of contents is not worth while
	rnd := rand.New(rand.NewPCG(5, 5))
	for i := range noise {
		noise[i] = byte(rnd.Uint32())
	}
	w.lazy = pushImage(t, w.reg, "lazy", "1", estargz(t, tarOf(t, content{"bin/x": string(noise), "etc/y": "y"}))).ref
	w.small, w.other = w.reg.Host+"/small:1", w.reg.Host+"/other:1"
	w.running = runDaemon(t, Options{Foreground: true})
	for _, ref := range []string{w.small, w.other} {
		w.pull(ref)
	}
	if _, err := w.client.Warm(t.Context(), engineapi.WarmRequest{Image: w.lazy, Paths: []string{"etc/y"}}, nil); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{w.small, w.other} {
		w.trees[ref] = w.tree(ref)
	}
	w.names = w.allNames()
	w.lower, w.upper = w.layer(id.LayerKey(img.DiffIDs[0])), w.layer(id.LayerKey(img.DiffIDs[1]))
	w.configs, w.manifests, w.chains = map[string]string{}, map[string]string{}, map[string]string{}
	for _, ref := range []string{w.small, w.other, w.lazy} {
		i, err := w.client.Inspect(t.Context(), ref, engineapi.InspectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		_, digest, _ := strings.Cut(i.RepoDigests[0], "@sha256:")
		w.configs[ref] = filepath.Join(w.Root, "blobs", "sha256", i.ID.Hex())
		w.manifests[ref] = filepath.Join(w.Root, "blobs", "sha256", digest)
		w.chains[ref] = filepath.Join(w.Root, "chains", id.Stack(id.Keys(i.RootFS.Layers)).Hex())
	}
	u, err := w.client.DiskUsage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range u.Layers {
		if l.Kind != "" {
			w.toc = w.layer(l.Layer)
		}
	}
	if w.toc == "" {
		t.Fatalf("no layer was imported: %+v", u.Layers)
	}
	return w
}

// copy returns a ward whose store is a copy of that of w, whose daemon is
// stopped.
func (w *ward) copy(t *testing.T) *ward {
	t.Helper()
	c := *w
	c.t, c.running = t, &running{Paths: newStore(t)}
	if out, err := exec.Command("cp", "-a", w.Root, c.Root).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	here := func(path string) string { return c.Root + strings.TrimPrefix(path, w.Root) }
	c.lower, c.upper, c.toc = here(w.lower), here(w.upper), here(w.toc)
	for _, m := range []*map[string]string{&c.configs, &c.manifests, &c.chains} {
		moved := map[string]string{}
		for ref, path := range *m {
			moved[ref] = here(path)
		}
		*m = moved
	}
	return &c
}

func (w *ward) pull(ref string) {
	w.t.Helper()
	if _, err := w.client.Pull(w.t.Context(), engineapi.PullRequest{Reference: ref}, nil); err != nil {
		w.t.Fatal(err)
	}
}

func (w *ward) layer(k id.LayerKey) string { return filepath.Join(w.Root, "layers", k.Hex()) }

// tree is the digest of an image's tar.
func (w *ward) tree(ref string) [sha256.Size]byte {
	w.t.Helper()
	var out bytes.Buffer
	if err := w.client.Export(w.t.Context(), engineapi.Source{Image: ref}, false, &out); err != nil {
		w.t.Errorf("%s: %v", ref, err)
	}
	return sha256.Sum256(out.Bytes())
}

// allNames lists the names of all images, and what they point to.
func (w *ward) allNames() string {
	w.t.Helper()
	list, err := w.client.Images(w.t.Context(), nil, engineapi.ListOptions{All: true})
	if err != nil {
		w.t.Fatal(err)
	}
	var names []string
	for _, i := range list {
		for _, n := range slices.Concat(i.RepoTags, i.RepoDigests) {
			names = append(names, n+" "+string(i.ID))
		}
	}
	slices.Sort(names)
	return strings.Join(names, "\n")
}

// stopped stops the daemon, has its store damaged, and starts another.
func (w *ward) stopped(damage func()) {
	w.t.Helper()
	w.end(w.t)
	damage()
	w.running = runDaemon(w.t, Options{Paths: w.Paths, Foreground: true})
}

func (w *ward) fsck(repair bool) engineapi.FsckReport {
	w.t.Helper()
	res, err := w.client.Fsck(w.t.Context(), engineapi.FsckRequest{Repair: repair}, nil)
	if err != nil {
		w.t.Fatalf("fsck: %v", err)
	}
	return res
}

// problemsText lists problems for a test's message.
func problemsText(list []engineapi.FsckProblem) string {
	var b strings.Builder
	for _, p := range list {
		fmt.Fprintf(&b, "\n  %s %s: %s (repaired: %v; %s)", p.Kind, p.ID, p.What, p.Repaired, p.Hint)
	}
	return b.String()
}

// flip changes a byte in the middle of a file, whose time stays.
func (w *ward) flip(path ...string) {
	w.t.Helper()
	file := filepath.Join(path...)
	st, err := os.Stat(file)
	if err != nil {
		w.t.Fatal(err)
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	at := min(st.Size()/2, 600)
	if _, err := f.ReadAt(b, at); err != nil {
		w.t.Fatal(err)
	}
	b[0] ^= 0x20
	if _, err := f.WriteAt(b, at); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Chtimes(file, time.Time{}, st.ModTime()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *ward) remove(path ...string) {
	w.t.Helper()
	if _, err := os.Lstat(filepath.Join(path...)); err != nil {
		w.t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(path...)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *ward) write(text string, path ...string) {
	w.t.Helper()
	file := filepath.Join(path...)
	if err := os.RemoveAll(file); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *ward) cut(path ...string) {
	w.t.Helper()
	file := filepath.Join(path...)
	st, err := os.Stat(file)
	if err == nil {
		err = os.Truncate(file, st.Size()/2)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// records changes all records of the database whose keys begin with prefix and
// hold part.
func (w *ward) records(prefix, part string, value []byte) {
	w.t.Helper()
	db, err := metadb.Open(filepath.Join(w.Root, "db"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer metadb.Close(db)
	changes := map[string][]byte{}
	err = metadb.Scan(db, prefix, func(rest string, _ []byte) error {
		if strings.Contains(rest, part) {
			changes[prefix+rest] = value
		}
		return nil
	})
	if err == nil {
		err = metadb.Update(db, changes)
	}
	if err != nil || len(changes) == 0 {
		w.t.Fatalf("%d records of %s…%s: %v", len(changes), prefix, part, err)
	}
}

// whole fails the test unless all is as it was.
func (w *ward) whole() {
	w.t.Helper()
	for ref, want := range w.trees {
		if w.tree(ref) != want {
			w.t.Errorf("%s is not what it was", ref)
		}
	}
	w.tree(w.lazy)
	if got := w.allNames(); got != w.names {
		w.t.Errorf("names:\n%s\nwant:\n%s", got, w.names)
	}
}

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
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
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

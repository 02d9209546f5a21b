package daemon

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

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
	copyTree(t, c.Root, w.Root)
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

// copyTree copies directories and files, with their times. A program that did it
// would for a moment hold the locks of daemons that other tests run.
func copyTree(t testing.TB, to, from string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		target := to + strings.TrimPrefix(path, from)
		if d.IsDir() {
			return os.MkdirAll(target, 0o700)
		}
		b, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(target, b, 0o600)
		}
		st, serr := d.Info()
		if err != nil || serr != nil {
			return errors.Join(err, serr)
		}
		return os.Chtimes(target, time.Time{}, st.ModTime())
	})
	if err != nil {
		t.Fatal(err)
	}
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

func (w *ward) must(err error) {
	w.t.Helper()
	if err != nil {
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

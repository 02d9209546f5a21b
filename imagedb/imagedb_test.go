package imagedb

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dgraph-io/badger/v4"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/metadb"
)

type place struct {
	*Store
	t   testing.TB
	dir string
	db  *badger.DB
}

func newPlace(t testing.TB) *place {
	p := &place{t: t, dir: t.TempDir()}
	p.open()
	t.Cleanup(func() { p.Close(); metadb.Close(p.db) })
	return p
}

func (p *place) open() {
	p.t.Helper()
	var err error
	if p.db, err = metadb.Open(filepath.Join(p.dir, "meta")); err != nil {
		p.t.Fatal(err)
	}
	if p.Store, err = Open(p.dir, p.db, Options{}); err != nil {
		p.t.Fatal(err)
	}
}

func (p *place) reopen() {
	p.t.Helper()
	p.Close()
	if err := metadb.Close(p.db); err != nil {
		p.t.Fatal(err)
	}
	p.open()
}

// image makes an image of the layers n, n+1, ….
func image(n, layers int) Image {
	img := Image{Platform: "linux/amd64", Layers: []Layer{}}
	var diffs []string
	for i := range layers {
		d := id.DiffID(fmt.Sprintf("sha256:%064x", n+i))
		diffs = append(diffs, string(d))
		img.Layers = append(img.Layers, Layer{DiffID: d, Blob: id.Blob(d), Size: 10})
	}
	list, _ := json.Marshal(append([]string{}, diffs...))
	img.Config = fmt.Appendf(nil, "{ \"n\": %d,\n\"rootfs\":{\"type\":\"layers\",\"diff_ids\":%s}} ", n, list)
	img.ID = id.ImageIDOf(img.Config)
	img.Manifest = fmt.Appendf(nil, "{\"config\":%q}", img.ID)
	img.ManifestDigest = id.BlobOf(img.Manifest)
	img.Digest = img.ManifestDigest
	return img
}

func (p *place) put(img Image) id.ImageID {
	p.t.Helper()
	i, err := p.Create(img)
	if err != nil {
		p.t.Fatal(err)
	}
	return i
}

func (p *place) tag(name string, i id.ImageID) {
	p.t.Helper()
	if err := p.Tag(name, i); err != nil {
		p.t.Fatal(err)
	}
}

// wantError fails the test unless err has the kind and, in it, the text.
func wantError(t *testing.T, what string, err error, kind fault.Kind, text string) {
	t.Helper()
	if err == nil || fault.KindOf(err) != kind || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: error %v (%v), want %q (%v)", what, err, fault.KindOf(err), text, kind)
	}
}

func TestPutGet(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	img := image(1, 3)
	if got := p.put(img); got != img.ID {
		t.Fatal(got)
	}
	for _, when := range []string{"at once", "after a restart"} {
		got, err := p.Get(img.ID)
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		if string(got.Config) != string(img.Config) || string(got.Manifest) != string(img.Manifest) {
			t.Errorf("%s: config %q, manifest %q: not byte for byte", when, got.Config, got.Manifest)
		}
		if got.Digest != img.Digest || got.Platform != img.Platform || !slices.Equal(got.Layers, img.Layers) || got.Put.IsZero() {
			t.Errorf("%s: %+v", when, got)
		}
		p.reopen()
	}
	first, _ := p.Get(img.ID)
	again := img
	again.ID, again.Manifest = "", []byte(`{"other":"manifest"}`)
	again.ManifestDigest = id.BlobOf(again.Manifest)
	if got := p.put(again); got != img.ID {
		t.Errorf("put again: %s", got)
	}
	second, err := p.Get(img.ID)
	if err != nil || second.ManifestDigest != again.ManifestDigest || !second.Put.Equal(first.Put) {
		t.Errorf("put again: %+v (%v)", second, err)
	}
	if names := p.files(); len(names) != 2 {
		t.Errorf("files %q: the old manifest should be gone", names)
	}
	_, err = p.Get(id.ImageIDOf([]byte("x")))
	wantError(t, "absent", err, fault.NotFound, "No such image: sha256:")
}

func (p *place) files() []string {
	p.t.Helper()
	list, err := os.ReadDir(filepath.Join(p.dir, "blobs", "sha256"))
	if err != nil {
		p.t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

func TestPutRefuses(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	for _, tt := range []struct {
		name  string
		wrong func(i *Image)
		kind  fault.Kind
		text  string
	}{
		{"no config", func(i *Image) { i.Config = nil }, fault.Invalid, "Invalid empty data"},
		{"config of another digest", func(i *Image) { i.Config = append(i.Config, ' ') }, fault.Integrity, "image config verification failed for digest sha256:"},
		{"manifest of another digest", func(i *Image) { i.Manifest = []byte("{}") }, fault.Integrity, "manifest verification failed for digest sha256:"},
		{"no JSON", func(i *Image) { i.ID, i.Config = "", []byte("{") }, fault.Integrity, "config: "},
		{"no rootfs", func(i *Image) { i.ID, i.Config = "", []byte("{}") }, fault.Integrity, "invalid rootfs in image configuration"},
		{"fewer layers than the config", func(i *Image) { i.Layers = i.Layers[:2] }, fault.Integrity, "layers from manifest don't match image configuration"},
		{"other layers than the config", func(i *Image) { i.Layers = image(7, 3).Layers }, fault.Integrity, "layers from manifest don't match image configuration"},
		{"diffID that is a path", func(i *Image) { i.ID, i.Config = "", []byte(`{"rootfs":{"diff_ids":["../x"]}}`) }, fault.Integrity, "digest"},
		{"more history than layers", func(i *Image) {
			i.ID, i.Layers = "", nil
			i.Config = []byte(`{"rootfs":{"diff_ids":[]},"history":[{"empty_layer":true},{}]}`)
		}, fault.Integrity, "too many non-empty layers in History section"},
	} {
		img := image(1, 3)
		tt.wrong(&img)
		_, err := p.Create(img)
		wantError(t, tt.name, err, tt.kind, tt.text)
	}
	if n := p.files(); len(n) > 0 || len(p.List()) > 0 {
		t.Errorf("left behind: %q", n)
	}
	// What may be missing.
	img := image(1, 0)
	img.Manifest, img.ManifestDigest, img.Digest = nil, "", ""
	got, err := p.Get(p.put(img))
	if err != nil || got.Manifest != nil {
		t.Errorf("image without layers and manifest: %+v (%v)", got, err)
	}
}

func TestTags(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	a, b := p.put(image(1, 1)), p.put(image(2, 1))
	const digest = "docker.io/library/ubuntu@sha256:1111111111111111111111111111111111111111111111111111111111111111"
	p.tag("docker.io/library/ubuntu:14.04", a)
	p.tag("docker.io/library/ubuntu:14.04", a)
	p.tag("localhost:5000/x/y:1", a)
	p.tag(digest, a)
	p.tag(digest, a)
	refs := func(i id.ImageID, want ...string) {
		t.Helper()
		if got := p.References(i); !slices.Equal(got, want) {
			t.Errorf("references %q, want %q", got, want)
		}
	}
	refs(a, "docker.io/library/ubuntu:14.04", digest, "localhost:5000/x/y:1")

	wantError(t, "digest of another", p.Tag(digest, b), fault.Conflict, "Cannot overwrite digest sha256:1111")
	wantError(t, "tag not to move", p.TagNew("ubuntu:14.04", b), fault.Conflict,
		"Conflict: Tag ubuntu:14.04 is already set to image "+string(a)+", if you want to replace it, please use -f option")
	p.tag("ubuntu:14.04", b) // the same tag, pulled for another platform: it moves
	p.reopen()
	refs(a, digest, "localhost:5000/x/y:1")
	refs(b, "docker.io/library/ubuntu:14.04")
	if got := p.ReferencesByName("docker.io/library/ubuntu"); !slices.Equal(got, []string{"docker.io/library/ubuntu:14.04", digest}) {
		t.Errorf("references by name %q", got)
	}
	if i, err := p.Lookup("docker.io/library/ubuntu:14.04"); err != nil || i != b {
		t.Errorf("lookup: %s (%v)", i, err)
	}
	if img, err := p.Get(b); err != nil || img.Tagged.IsZero() {
		t.Errorf("tagged at %v (%v)", img.Tagged, err)
	}

	for _, tt := range []struct {
		name, ref string
		i         id.ImageID
		kind      fault.Kind
		text      string
	}{
		{"tag and digest", "ubuntu:x" + digest[len("docker.io/library/ubuntu"):], a, fault.Invalid, "refusing to create a tag with a digest reference"},
		{"neither", "ubuntu", a, fault.Invalid, "neither tag nor digest"},
		{"repository sha256", "sha256:latest", a, fault.Invalid, "refusing to create an ambiguous tag using digest algorithm as name"},
		{"no reference", "UPPER:x", a, fault.Invalid, "Error parsing reference"},
		{"no image", "ubuntu:x", id.ImageIDOf([]byte("x")), fault.NotFound, "No such image: sha256:"},
	} {
		wantError(t, tt.name, p.Tag(tt.ref, tt.i), tt.kind, tt.text)
	}
	_, err := p.Lookup("docker.io/library/none:latest")
	wantError(t, "lookup", err, fault.NotFound, "No such image: docker.io/library/none:latest")
	_, err = p.Untag("ubuntu:none")
	wantError(t, "untag", err, fault.NotFound, "reference does not exist")
}

// TestUntag has a repository's digest references go with its last tag.
func TestUntag(t *testing.T) {
	t.Parallel()
	d := func(repo string, n int) string { return fmt.Sprintf("%s@sha256:%064d", repo, n) }
	const u, v = "docker.io/library/ubuntu", "docker.io/library/ubuntu2"
	for _, tt := range []struct {
		name    string
		refs    []string
		other   []string // of another image
		untag   string
		removed []string
	}{
		{"the only name", []string{u + ":1"}, nil, "ubuntu:1", []string{u + ":1"}},
		{"the last tag", []string{u + ":1", d(u, 1), d(u, 2)}, nil, u + ":1", []string{u + ":1", d(u, 1), d(u, 2)}},
		{"not the last tag", []string{u + ":1", u + ":2", d(u, 1)}, nil, u + ":1", []string{u + ":1"}},
		{"a tag of another repository stays", []string{u + ":1", v + ":1", d(u, 1), d(v, 1)}, nil, u + ":1", []string{u + ":1", d(u, 1)}},
		{"a tag on another image does not count", []string{u + ":1", d(u, 1)}, []string{u + ":2", d(u, 2)}, u + ":1", []string{u + ":1", d(u, 1)}},
		{"a digest", []string{u + ":1", d(u, 1)}, nil, d(u, 1), []string{d(u, 1)}},
		{"host with a port", []string{"localhost:5000/x:1", d("localhost:5000/x", 1)}, nil, "localhost:5000/x:1", []string{"localhost:5000/x:1", d("localhost:5000/x", 1)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			a, b := p.put(image(1, 1)), p.put(image(2, 1))
			for _, r := range tt.refs {
				p.tag(r, a)
			}
			for _, r := range tt.other {
				p.tag(r, b)
			}
			got, err := p.Untag(tt.untag)
			if err != nil || !slices.Equal(got, tt.removed) {
				t.Errorf("removed %q (%v), want %q", got, err, tt.removed)
			}
			p.reopen()
			want := slices.DeleteFunc(slices.Clone(tt.refs), func(s string) bool { return slices.Contains(tt.removed, s) })
			slices.Sort(want)
			if got := p.References(a); !slices.Equal(got, want) {
				t.Errorf("left %q, want %q", got, want)
			}
			if got := p.References(b); len(got) != len(tt.other) {
				t.Errorf("the other image has %q left", got)
			}
		})
	}
}

func TestResolve(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	// Images until two share their first digit, a third has none of its own.
	byDigit := map[byte][]id.ImageID{}
	var twin byte
	for n := 0; twin == 0; n++ {
		i := p.put(image(n, 1))
		c := i.Hex()[0]
		if byDigit[c] = append(byDigit[c], i); len(byDigit[c]) == 2 {
			twin = c
		}
	}
	a, b := byDigit[twin][0], byDigit[twin][1]
	p.tag("docker.io/library/ubuntu:14.04", a)
	p.tag("docker.io/library/ubuntu:latest", b)
	dg := "sha256:" + strings.Repeat("5", 64)
	p.tag("docker.io/library/ubuntu@"+dg, a)
	p.tag("localhost:5000/x:latest", b)
	hexName := a.Hex()[:7]
	p.tag(hexName+":latest", b) // a name that is the start of an ID goes first

	absent := strings.Repeat("0", 63) + "f"
	for _, tt := range []struct {
		name string
		want id.ImageID
	}{
		{"ubuntu:14.04", a},
		{"docker.io/library/ubuntu:14.04", a},
		{"index.docker.io/library/ubuntu:14.04", a},
		{"ubuntu", b},
		{"localhost:5000/x", b},
		{"ubuntu@" + dg, a},
		{"ubuntu:anything@" + dg, a},
		{string(a), a},
		{a.Hex(), a},
		{a.Hex()[:12], a},
		{"sha256:" + a.Hex()[:12], a},
		{"ubuntu:" + a.Hex()[:12], a},
		{"ubuntu:" + b.Hex()[:9], b},
		{"localhost:5000/x:" + b.Hex()[:9], b},
		{"localhost:5000/x:" + a.Hex()[:9], ""}, // not of that repository
		{hexName, b},
		{"ubuntu:16.04", ""},
		{"none", ""},
		{absent, ""},
		{"sha256:" + absent, ""},
		{"", ""},
		{"sha256:", ""},
		{"Not A Name", ""},
	} {
		got, err := p.Resolve(tt.name)
		if got != tt.want {
			t.Errorf("%q: %s (%v), want %s", tt.name, got, err, tt.want)
		}
		if tt.want == "" {
			wantError(t, tt.name, err, fault.NotFound, "No such image: "+tt.name)
		}
	}
	for _, prefix := range []string{string(twin), "sha256:" + string(twin)} {
		_, err := p.Search(prefix)
		wantError(t, prefix, err, fault.Conflict, fmt.Sprintf("ambiguous id prefix %q: matches ", prefix))
		lo, hi := min(a, b), max(a, b)
		wantError(t, prefix, err, fault.Conflict, fmt.Sprintf("%s…, %s… (2)", lo.Short(), hi.Short()))
	}
}

func TestDelete(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	img, other := image(1, 2), image(2, 2)
	i, o := p.put(img), p.put(other)
	p.tag("ubuntu:1", i)
	p.tag("ubuntu:2", i)
	p.tag("ubuntu:3", o)
	names, err := p.Delete(i)
	if err != nil || !slices.Equal(names, []string{"docker.io/library/ubuntu:1", "docker.io/library/ubuntu:2"}) {
		t.Errorf("untagged %q (%v)", names, err)
	}
	_, err = p.Delete(i)
	wantError(t, "again", err, fault.NotFound, "unrecognized image ID "+string(i))
	p.reopen()
	if n := p.files(); len(n) != 2 {
		t.Errorf("files %q, want the other image's", n)
	}
	if l := p.List(); len(l) != 1 || l[0].ID != o || len(p.Names()) != 1 {
		t.Errorf("left %v, %v", l, p.Names())
	}
	// Leftovers of a kill between blob and record, or within a write.
	for _, f := range []string{"tmp-1", strings.Repeat("a", 64)} {
		if err := os.WriteFile(filepath.Join(p.dir, "blobs", "sha256", f), []byte("xxx"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := p.Sweep(); err != nil || n != 6 || len(p.files()) != 2 {
		t.Errorf("swept %d bytes (%v), left %q", n, err, p.files())
	}
	if _, err := p.Get(o); err != nil {
		t.Error(err)
	}
}

// A kept blob stays while an image has the layer.
func TestKeep(t *testing.T) {
	p := newPlace(t)
	img := image(1, 2)
	if _, err := p.Create(img); err != nil {
		t.Fatal(err)
	}
	kept := img.Layers[1].Blob
	for _, b := range []id.Blob{kept, id.BlobOf([]byte("nobody's"))} {
		path := filepath.Join(t.TempDir(), "blob")
		if err := os.WriteFile(path, []byte("layer"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := p.Keep(path, b); err != nil {
			t.Fatal(err)
		}
	}
	at := filepath.Join(p.dir, "blobs", "sha256", kept.Hex())
	if n, err := p.Sweep(); n != 5 || err != nil {
		t.Errorf("Sweep: %d, %v", n, err)
	}
	p.reopen()
	if _, err := os.Stat(at); err != nil {
		t.Error(err)
	}
	if _, err := p.Delete(id.ImageIDOf(img.Config)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(at); !os.IsNotExist(err) {
		t.Errorf("after Delete: %v", err)
	}
}

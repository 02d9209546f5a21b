package daemon

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// parts are the files of an archive by name.
type parts map[string][]byte

// bytes returns the archive, its files in the order of their names, or, of
// those given, in that.
func (p parts) bytes(t testing.TB, first ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	rest := maps.Clone(p)
	for _, name := range append(first, slices.Sorted(maps.Keys(p))...) {
		b, ok := rest[name]
		if !ok {
			continue
		}
		delete(rest, name)
		err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(b))})
		if err == nil {
			_, err = w.Write(b)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// unpacked returns the files of an archive.
func unpacked(t testing.TB, raw []byte) parts {
	t.Helper()
	p := parts{}
	r := tar.NewReader(bytes.NewReader(raw))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return p
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			p[h.Name] = b
		}
	}
}

func mustTar(t testing.TB, text string) []byte {
	t.Helper()
	b, err := imgtest.Tar(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// largeTar returns a tar that does not compress and is too large to be spooled.
func largeTar(t testing.TB, seed string) []byte {
	return mustTar(t, fmt.Sprintf("file %s noise=%d", seed, 2*smallLayer))
}

// testConfig returns the config of an image of these layers.
func testConfig(t testing.TB, note string, layers ...[]byte) []byte {
	t.Helper()
	diffs := []id.DiffID{}
	for _, l := range layers {
		diffs = append(diffs, id.DiffIDFrom(sha256.Sum256(l)))
	}
	return marshal(t, map[string]any{
		"architecture": "amd64", "os": "linux", "created": "2014-04-17T00:00:00Z", "author": note,
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
	})
}

// savedAs returns an archive as docker before 25 wrote it: nothing says what a
// layer is but the config.
func savedAs(t testing.TB, config []byte, layers [][]byte, tags ...string) parts {
	t.Helper()
	p := parts{id.BlobOf(config).Hex() + ".json": config}
	item := savedImage{Config: id.BlobOf(config).Hex() + ".json", RepoTags: tags}
	for n, l := range layers {
		name := fmt.Sprintf("%064d/layer.tar", n)
		p[name] = l
		item.Layers = append(item.Layers, name)
	}
	p["manifest.json"] = marshal(t, []savedImage{item})
	return p
}

func (r *running) load(t testing.TB, raw []byte) ([]engineapi.LoadedImage, error) {
	t.Helper()
	return r.client.Load(testContext(t), engineapi.LoadRequest{}, bytes.NewReader(raw), func(engineapi.Progress) {})
}

func (r *running) mustLoad(t testing.TB, raw []byte, want ...string) {
	t.Helper()
	list, err := r.load(t, raw)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, img := range list {
		got = append(got, strings.TrimSpace(img.Reference+" "+string(img.ID)))
	}
	if !slices.Equal(got, want) {
		t.Fatalf("loaded\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func (r *running) save(t testing.TB, names ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := r.client.Save(testContext(t), engineapi.SaveRequest{Names: names}, &out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// empty checks that a daemon, which it ends, has left nothing in its store.
func (r *running) empty(t testing.TB) {
	t.Helper()
	r.end(t)
	for _, dir := range []string{"layers", "blobs/sha256", "tmp"} {
		entries, err := os.ReadDir(filepath.Join(r.Root, dir))
		if err != nil || len(entries) > 0 {
			t.Errorf("%s: %v %v", dir, entries, err)
		}
	}
	if spools, err := filepath.Glob(filepath.Join(r.Root, "tmp-*")); err != nil || len(spools) > 0 {
		t.Errorf("%v %v", spools, err)
	}
}

// TestSave saves images whose layers came in every way there is, and loads them
// into another store.
func TestSave(t *testing.T) {
	t.Parallel()
	files := func(n int) content {
		return content{fmt.Sprintf("d%d/f", n): strings.Repeat(string(rune('a'+n)), 3*smallLayer)}
	}
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	pushImage(t, reg, "x", "1", gzipped(t, tarOf(t, files(1))), estargz(t, tarOf(t, files(2))), chunked(t, tarOf(t, files(3))), plain(tarOf(t, files(4))))
	d := runDaemon(t, Options{})
	res, err := d.client.Pull(testContext(t), engineapi.PullRequest{Reference: reg.Host + "/x:1"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	raw := d.save(t, reg.Host+"/x:1")
	if again := d.save(t, reg.Host+"/x"); !bytes.Equal(raw, again) {
		t.Error("the same image gave another archive")
	}
	before, err := d.client.Inspect(testContext(t), reg.Host+"/x:1", engineapi.InspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// What the registry said of it stays.
	d.mustLoad(t, raw, reg.Host+"/x:1 "+string(res.ImageID))
	after, err := d.client.Inspect(testContext(t), reg.Host+"/x:1", engineapi.InspectOptions{})
	if err != nil || !slices.Equal(before.RepoDigests, after.RepoDigests) || len(after.RepoDigests) == 0 {
		t.Errorf("digests %v, were %v, %v", after.RepoDigests, before.RepoDigests, err)
	}
	p := unpacked(t, raw)
	for name, b := range p {
		if hex, ok := strings.CutPrefix(name, blobsDir); ok && id.BlobOf(b).Hex() != hex {
			t.Errorf("%s is %s", name, id.BlobOf(b))
		}
	}
	if want := fmt.Sprintf(`{"%s/x":{"1":"`, reg.Host); !strings.HasPrefix(string(p["repositories"]), want) {
		t.Errorf("repositories: %s", p["repositories"])
	}
	other := runDaemon(t, Options{})
	other.mustLoad(t, raw, reg.Host+"/x:1 "+string(res.ImageID))
	other.mustLoad(t, raw, reg.Host+"/x:1 "+string(res.ImageID))
	if again := other.save(t, reg.Host+"/x:1"); !bytes.Equal(raw, again) {
		t.Error("saved from what was loaded it is another archive")
	}
	// By its ID it has no name.
	anonymous := unpacked(t, other.save(t, res.ImageID.Short()))
	if string(anonymous["repositories"]) != "{}" || strings.Contains(string(anonymous["index.json"]), "annotations") {
		t.Errorf("%s %s", anonymous["repositories"], anonymous["index.json"])
	}
	for name, want := range map[string]fault.Kind{"nosuch": fault.NotFound, "nosuch:1": fault.NotFound, "oci:/x": fault.NotFound, "a b": fault.NotFound} {
		var out bytes.Buffer
		err := other.client.Save(testContext(t), engineapi.SaveRequest{Names: []string{reg.Host + "/x:1", name}}, &out)
		if fault.KindOf(err) != want || !strings.Contains(err.Error(), "No such image: ") || out.Len() > 0 {
			t.Errorf("%q: %v, %d bytes", name, err, out.Len())
		}
	}
	err = other.client.Save(testContext(t), engineapi.SaveRequest{Names: []string{reg.Host + "/x:1"}, Platform: "linux/s390x"}, io.Discard)
	if fault.KindOf(err) != fault.NotFound || !strings.Contains(err.Error(), "was found but does not provide the specified platform (linux/s390x)") {
		t.Error(err)
	}
}

// TestLoad loads archives of all forms, with layers that are spooled and that
// are not, compressed by the programs that people have.
func TestLoad(t *testing.T) {
	t.Parallel()
	layers := [][]byte{largeTar(t, "a"), mustTar(t, "file b small"), largeTar(t, "c"), mustTar(t, "file b small")}
	config := testConfig(t, "", layers...)
	imageID := id.ImageIDOf(config)
	p := savedAs(t, config, layers, "me/app:v1", "app:latest")
	d := runDaemon(t, Options{})
	names := []string{"app:latest " + string(imageID), "me/app:v1 " + string(imageID)}
	for _, how := range []struct {
		name string
		raw  func() []byte
	}{
		{"as docker writes it", func() []byte { return p.bytes(t) }},
		{"its list first", func() []byte { return p.bytes(t, "manifest.json") }},
		{"gzip", func() []byte { return filtered(t, p.bytes(t), "gzip", "-1") }},
		{"bzip2", func() []byte { return filtered(t, p.bytes(t), "bzip2") }},
		{"xz", func() []byte { return filtered(t, p.bytes(t), "xz", "-0") }},
		{"zstd", func() []byte { return filtered(t, p.bytes(t), "zstd", "-q") }},
	} {
		d.mustLoad(t, how.raw(), names...)
		if _, err := d.client.Remove(testContext(t), string(imageID), engineapi.RemoveOptions{Force: true}); err != nil {
			t.Fatalf("%s: %v", how.name, err)
		}
	}
	// Layers compressed, as nobody's docker save writes them but some tools do.
	z := maps.Clone(p)
	for name, b := range z {
		if strings.HasSuffix(name, "/layer.tar") {
			z[name] = filtered(t, b, "gzip", "-1")
		}
	}
	d.mustLoad(t, z.bytes(t), names...)
	// A name that another image has moves.
	next := testConfig(t, "next", layers[:2]...)
	d.mustLoad(t, savedAs(t, next, layers[:2], "app:latest").bytes(t), "app:latest "+string(id.ImageIDOf(next)))
	img, err := d.client.Inspect(testContext(t), string(imageID), engineapi.InspectOptions{})
	if err != nil || !slices.Equal(img.RepoTags, []string{"me/app:v1"}) {
		t.Errorf("%v %v", img.RepoTags, err)
	}
	// Without a name, and without a layer.
	none := testConfig(t, "none")
	d.mustLoad(t, savedAs(t, none, nil).bytes(t), string(id.ImageIDOf(none)))
	if _, err := d.client.Remove(testContext(t), string(id.ImageIDOf(none)), engineapi.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, i := range []id.ImageID{imageID, id.ImageIDOf(next)} {
		if _, err := d.client.Remove(testContext(t), string(i), engineapi.RemoveOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
	}
	d.empty(t)
}

// filtered returns what a program makes of b.
func filtered(t testing.TB, b []byte, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(imgtest.Program(t, name), append(args, "-c")...)
	cmd.Stdin = bytes.NewReader(b)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestLoadVersion1 loads an archive as docker wrote it before 1.10, in which
// each layer is an image.
func TestLoadVersion1(t *testing.T) {
	t.Parallel()
	p := parts{}
	add := func(name, parent string, layer []byte) string {
		long := strings.Repeat(name, 64)
		c := map[string]any{"id": long, "created": "2014-04-17T00:00:00Z", "os": "linux", "architecture": "amd64",
			"container_config": map[string]any{"Cmd": []string{"make", name}}}
		if parent != "" {
			c["parent"] = parent
		}
		p[long+"/VERSION"], p[long+"/json"], p[long+"/layer.tar"] = []byte("1.0"), marshal(t, c), layer
		return long
	}
	top := add("1", add("2", add("3", "", largeTar(t, "a")), mustTar(t, "file b two")), mustTar(t, "file c three"))
	p["repositories"] = marshal(t, map[string]map[string]string{"ubuntu": {"14.04": top, "old": strings.Repeat("3", 64)}})
	d := runDaemon(t, Options{})
	list, err := d.load(t, p.bytes(t))
	if err != nil || len(list) != 2 {
		t.Fatalf("%v %v", list, err)
	}
	img, err := d.client.Inspect(testContext(t), "ubuntu:14.04", engineapi.InspectOptions{})
	if err != nil || len(img.RootFS.Layers) != 3 || img.Parent == "" {
		t.Fatalf("%v %v", img, err)
	}
	middle, err := d.client.Inspect(testContext(t), img.Parent, engineapi.InspectOptions{})
	if err != nil || len(middle.RootFS.Layers) != 2 || len(middle.RepoTags) != 0 {
		t.Fatalf("%v %v", middle, err)
	}
	bottom, err := d.client.Inspect(testContext(t), middle.Parent, engineapi.InspectOptions{})
	if err != nil || !slices.Equal(bottom.RepoTags, []string{"ubuntu:old"}) || bottom.Parent != "" {
		t.Fatalf("%v %v", bottom, err)
	}
	history, err := d.client.History(testContext(t), "ubuntu:14.04", "")
	if err != nil || len(history) != 3 || history[0].CreatedBy != "make 1" {
		t.Errorf("%v %v", history, err)
	}
	// Saved as docker saves today, parents stay parents.
	raw := d.save(t, "ubuntu", middle.ID.Short())
	other := runDaemon(t, Options{})
	if _, err := other.load(t, raw); err != nil {
		t.Fatal(err)
	}
	again, err := other.client.Inspect(testContext(t), "ubuntu:14.04", engineapi.InspectOptions{})
	if err != nil || again.Parent != img.Parent || again.ID != img.ID {
		t.Errorf("%v %v", again, err)
	}
}

// TestLoadWrong loads archives that lie; nothing of them stays.
func TestLoadWrong(t *testing.T) {
	t.Parallel()
	a, b := largeTar(t, "a"), mustTar(t, "file b small")
	layers := [][]byte{a, b}
	config := testConfig(t, "", layers...)
	good := func() parts { return savedAs(t, config, layers, "x:1") }
	layer := func(n int) string { return fmt.Sprintf("%064d/layer.tar", n) }
	with := func(edit func(parts)) []byte {
		p := good()
		edit(p)
		return p.bytes(t)
	}
	bad := slices.Clone(a)
	bad[len(bad)-5000] ^= 1
	hex := id.BlobOf(a).Hex()
	for _, tt := range []struct {
		name string
		raw  []byte
		kind fault.Kind
		text string
	}{
		{"large layer with another content", with(func(p parts) { p[layer(0)] = bad }), fault.Integrity, "invalid diffID for layer 0: expected"},
		{"small layer with another content", with(func(p parts) { p[layer(1)] = mustTar(t, "file b other") }), fault.Integrity, "wrong diff id calculated on extraction"},
		{"layer that is no tar", with(func(p parts) { p[layer(1)] = bytes.Repeat([]byte("x"), 5000) }), fault.Integrity, "layer "},
		{"large layer that is no tar", with(func(p parts) { p[layer(0)] = bytes.Repeat([]byte("x"), len(a)) }), fault.Integrity, "layer "},
		{"layer with a lying name", with(func(p parts) {
			delete(p, layer(0))
			p[blobsDir+hex] = bad
			var list []savedImage
			if err := json.Unmarshal(p["manifest.json"], &list); err != nil {
				t.Fatal(err)
			}
			list[0].Layers[0] = blobsDir + hex
			p["manifest.json"] = marshal(t, list)
		}), fault.Integrity, "invalid diffID for layer 0: expected"},
		{"damaged gzip layer", with(func(p parts) {
			z := filtered(t, a, "gzip", "-1")
			z[len(z)/2] ^= 1
			p[layer(0)] = z
		}), fault.Integrity, "layer "},
		{"cut within a large layer", with(func(parts) {})[:2*smallLayer/3], fault.Integrity, "cut short"},
		{"cut between layers", with(func(parts) {})[:1<<10], fault.Integrity, ""},
		{"cut gzip", func() []byte { z := filtered(t, good().bytes(t), "gzip", "-1"); return z[:len(z)/2] }(), fault.Integrity, ""},
		{"damaged xz", func() []byte { z := filtered(t, good().bytes(t), "xz", "-0"); z[len(z)/2] ^= 1; return z }(), fault.Integrity, ""},
		{"a large layer that nothing names", with(func(p parts) { delete(p, "manifest.json") }), fault.Invalid, "not an archive of images"},
		{"a layer is missing", with(func(p parts) { delete(p, layer(1)) }), fault.Integrity, "is not in the archive"},
		{"config with too long a history", func() []byte {
			c := marshal(t, map[string]any{"os": "linux", "architecture": "amd64", "history": []struct{}{{}, {}, {}},
				"rootfs": map[string]any{"type": "layers", "diff_ids": []id.Blob{id.BlobOf(a), id.BlobOf(b)}}})
			return savedAs(t, c, layers, "x:1").bytes(t)
		}(), fault.Integrity, "too many non-empty layers in History section"},
		{"the second image is wrong", func() []byte {
			p := good()
			c := marshal(t, map[string]any{"os": "linux", "history": []struct{}{{}, {}}, "rootfs": map[string]any{"type": "layers", "diff_ids": []id.Blob{id.BlobOf(b)}}})
			p["c"] = c
			var list []savedImage
			if err := json.Unmarshal(p["manifest.json"], &list); err != nil {
				t.Fatal(err)
			}
			p["manifest.json"] = marshal(t, append(list, savedImage{Config: "c", RepoTags: []string{"y:1"}, Layers: []string{layer(1)}}))
			return p.bytes(t)
		}(), fault.Integrity, "too many non-empty layers in History section"},
		{"a page of the web", []byte("<html>" + strings.Repeat("x", 1000)), fault.Invalid, "not a tar file"},
		{"nothing", nil, fault.Invalid, "not an archive of images"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := runDaemon(t, Options{})
			list, err := d.load(t, tt.raw)
			if fault.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("%v, kind %v, loaded %v", err, fault.KindOf(err), list)
			}
			if all, err := d.client.Images(testContext(t), nil, engineapi.ListOptions{All: true}); err != nil || len(all) > 0 {
				t.Errorf("%v %v", all, err)
			}
			d.empty(t)
		})
	}
}

// endless is a body that stops coming.
type endless struct {
	io.Reader
	stop  func()
	ended <-chan struct{}
}

func (e *endless) Read(p []byte) (int, error) {
	n, err := e.Reader.Read(p)
	if err == io.EOF {
		e.stop()
		<-e.ended
		return 0, errors.New("unplugged")
	}
	return n, err
}

// TestLoadLeft has a client leave in the middle of a layer.
func TestLoadLeft(t *testing.T) {
	t.Parallel()
	l := largeTar(t, "a")
	raw := savedAs(t, testConfig(t, "", l), [][]byte{l}, "x:1").bytes(t)
	d := runDaemon(t, Options{})
	ctx, cancel := context.WithCancel(testContext(t))
	_, err := d.client.Load(ctx, engineapi.LoadRequest{}, &endless{bytes.NewReader(raw[:smallLayer+smallLayer/2]), cancel, ctx.Done()}, nil)
	if err == nil {
		t.Error("loaded half an archive")
	}
	d.empty(t)
}

// TestImport imports tars in every compression, from a client and from the web.
func TestImport(t *testing.T) {
	t.Parallel()
	raw := mustTar(t, "dir bin\nfile bin/sh text")
	d := runDaemon(t, Options{})
	var last id.ImageID
	for n, z := range [][]byte{raw, filtered(t, raw, "gzip"), filtered(t, raw, "bzip2"), filtered(t, raw, "xz"), filtered(t, raw, "zstd", "-q")} {
		imageID, err := d.client.Import(testContext(t), engineapi.ImportRequest{
			Reference: "me/base", Changes: []string{`CMD ["/bin/sh"]`, "ENV A=" + fmt.Sprint(n)}, Platform: "linux/arm64/v8",
		}, bytes.NewReader(z), nil)
		if err != nil {
			t.Fatal(err)
		}
		img, err := d.client.Inspect(testContext(t), "me/base:latest", engineapi.InspectOptions{})
		if err != nil || img.ID != imageID || img.Comment != "Imported from -" || img.Architecture != "arm64" ||
			!slices.Equal(img.RootFS.Layers, []id.DiffID{id.DiffIDFrom(sha256.Sum256(raw))}) || !strings.Contains(string(img.Config), `"/bin/sh"`) {
			t.Errorf("%+v %v", img, err)
		}
		last = imageID
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/root.tar", func(w http.ResponseWriter, _ *http.Request) { w.Write(raw) })
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/root.tar", http.StatusFound) })
	mux.HandleFunc("/circle", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/circle", http.StatusFound) })
	mux.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
	})
	mux.HandleFunc("/short", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(raw)))
		w.Write(raw[:600])
	})
	web := httptest.NewServer(mux)
	t.Cleanup(web.Close)
	for _, url := range []string{web.URL + "/root.tar", web.URL + "/moved"} {
		var steps []string
		imageID, err := d.client.Import(testContext(t), engineapi.ImportRequest{URL: url, Message: "from the web"}, nil, func(p engineapi.Progress) { steps = append(steps, p.Status) })
		if err != nil || imageID == last || !slices.Contains(steps, "Downloading from "+url) {
			t.Fatal(imageID, err, steps)
		}
		img, err := d.client.Inspect(testContext(t), string(imageID), engineapi.InspectOptions{})
		if err != nil || img.Comment != "from the web" || len(img.RepoTags) > 0 {
			t.Errorf("%+v %v", img, err)
		}
	}
	for _, tt := range []struct {
		name string
		req  engineapi.ImportRequest
		body string
		kind fault.Kind
		text string
	}{
		{"nowhere", engineapi.ImportRequest{URL: web.URL + "/nosuch"}, "", fault.Network, "404"},
		{"circle", engineapi.ImportRequest{URL: web.URL + "/circle"}, "", fault.Network, "more than 10 redirects"},
		{"redirect to a file", engineapi.ImportRequest{URL: web.URL + "/file"}, "", fault.Network, "file"},
		{"half", engineapi.ImportRequest{URL: web.URL + "/short"}, "", fault.Integrity, ""},
		{"file", engineapi.ImportRequest{URL: "file:///etc/passwd"}, "", fault.Invalid, "is no http or https URL"},
		{"path", engineapi.ImportRequest{URL: "/etc/passwd"}, "", fault.Invalid, "is no http or https URL"},
		{"no tar", engineapi.ImportRequest{}, strings.Repeat("x", 5000), fault.Integrity, ""},
		{"change", engineapi.ImportRequest{Changes: []string{"RUN x"}}, string(raw), fault.Invalid, "RUN"},
		{"name", engineapi.ImportRequest{Reference: "A b"}, string(raw), fault.Invalid, "invalid reference format"},
		{"digest", engineapi.ImportRequest{Reference: "a@" + string(id.BlobOf(raw))}, string(raw), fault.Invalid, "digest reference"},
		{"source", engineapi.ImportRequest{Reference: "oci:/x"}, string(raw), fault.Invalid, ""},
		{"platform", engineapi.ImportRequest{Platform: "a/b/c/d"}, string(raw), fault.Invalid, "platform"},
	} {
		imageID, err := d.client.Import(testContext(t), tt.req, strings.NewReader(tt.body), nil)
		if fault.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v %v, kind %v", tt.name, imageID, err, fault.KindOf(err))
		}
	}
}

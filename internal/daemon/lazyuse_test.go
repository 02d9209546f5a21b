package daemon

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
	"github.com/imgfs/imgfs/internal/toc"
)

// TestLazyWritable changes a lazy tree, and takes its changes and its content
// out: what is copied up, exported and committed is fetched as it is needed.
func TestLazyWritable(t *testing.T) {
	needFUSE(t)
	files := bigTree(12)
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	img := pushImage(t, reg, "x", "1", estargz(t, tarOf(t, files)))
	d := runDaemon(t, Options{})
	ctx, dir := testContext(t), mountDir(t)
	m, err := mountAs(ctx, d.client, img.ref, dir, writable)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(filepath.Join(dir, "lib/middle"), unix.O_WRONLY|unix.O_APPEND|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = unix.Write(fd, []byte("more"))
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		t.Fatal(err)
	}
	files["lib/middle"] += "more"
	wantTree(t, dir, content{"lib/middle": files["lib/middle"]})

	res, err := d.client.Commit(ctx, engineapi.CommitRequest{Source: engineapi.Source{Mount: m.ID}, Reference: "made:1"})
	if err != nil {
		t.Fatal(err)
	}
	changes, err := d.client.Changes(ctx, engineapi.Source{Image: "made:1"}, "")
	if err != nil || len(changes) != 2 || changes[1] != (engineapi.Change{Kind: "C", Path: "/lib/middle"}) {
		t.Errorf("changes of the image made: %v, %v", changes, err)
	}
	unmounted(t, d.client, m)
	if m, err = mountAs(ctx, d.client, "made:1", dir); err != nil || m.ImageID != res.ID {
		t.Fatal(m.ImageID, err)
	}
	wantTree(t, dir, files)
	unmounted(t, d.client, m)

	var out bytes.Buffer
	if err := d.client.Export(ctx, engineapi.Source{Image: img.ref}, false, &out); err != nil {
		t.Fatal(err)
	}
	found := 0
	for r := tar.NewReader(&out); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if want, ok := files[h.Name]; ok && h.Name != "lib/middle" {
			b, err := io.ReadAll(r)
			if err != nil || string(b) != want {
				t.Errorf("%s exported as %d bytes, %v; want %d", h.Name, len(b), err, len(want))
			}
			found++
		}
	}
	if found != len(files)-1 {
		t.Errorf("%d of %d files exported", found, len(files)-1)
	}
}

// TestLazyErofs has the kernel read layers that came lazily first.
func TestLazyErofs(t *testing.T) {
	needFUSE(t)
	files := bigTree(13)
	stream := tarOf(t, files)
	for _, layer := range []testLayer{estargz(t, stream), plain(stream)} {
		reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
		img := pushImage(t, reg, "x", "1", layer)
		d := runDaemon(t, Options{})
		dir := mountDir(t)
		m, err := mountAs(testContext(t), d.client, img.ref, dir)
		if err != nil {
			t.Fatal(err)
		}
		wantTree(t, dir, content{"share/007": files["share/007"]})
		unmounted(t, d.client, m)
		if m, err = mountErofs(t, d.client, img.ref, dir); err != nil {
			t.Fatal(err)
		}
		reg.Forget()
		wantTree(t, dir, files)
		asked(t, reg, "driver erofs", 0, 0)
		unmounted(t, d.client, m)
	}
}

// TestLazyKilled kills a daemon with lazy mounts: the next one serves them
// again, and reads on, with the credentials it finds on disk; what the client
// alone had said is gone, and never was on disk.
func TestLazyKilled(t *testing.T) {
	needFUSE(t)
	files := bigTree(14)
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{Auth: "basic", Username: "user", Password: "hunter2-secret"})
	img := pushImage(t, reg, "x", "1", estargz(t, tarOf(t, files)))
	auth := filepath.Join(t.TempDir(), "auth.json")
	text := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, reg.Host, "dXNlcjpodW50ZXIyLXNlY3JldA==")
	if err := os.WriteFile(auth, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := newStore(t)
	c := spawned(t, p)
	withFile, withFlag := mountDir(t), mountDir(t)
	ways := map[string]engineapi.RegistryOptions{
		withFlag: {Username: "user", Password: "hunter2-secret", AuthFile: "/nonexistent"},
		withFile: {AuthFile: auth},
	}
	for _, dir := range []string{withFlag, withFile} {
		_, err := mountAs(testContext(t), c, img.ref, dir, func(req *engineapi.MountRequest) { req.Registry, req.OnError = ways[dir], "eio" })
		if err != nil {
			t.Fatal(err)
		}
		wantTree(t, dir, content{"share/007": files["share/007"]})
	}
	killDaemon(t, p)
	filepath.WalkDir(p.Root, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil
		}
		if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte("hunter2")) {
			t.Errorf("%s holds a password", path)
		}
		return nil
	})
	if list, err := c.Mounts(testContext(t)); err != nil || len(list) != 2 {
		t.Fatalf("mounts after the kill: %+v, %v", list, err)
	}
	for _, dir := range []string{withFile, withFlag} {
		wantTree(t, dir, content{"share/007": files["share/007"]})
	}
	wantTree(t, withFile, content{"bin/0": files["bin/0"]})
}

// TestLyingIndex gives indexes beside an image that lie of its layer: nothing
// of that is ever read.
func TestLyingIndex(t *testing.T) {
	needFUSE(t)
	files := bigTree(15)
	stream := tarOf(t, files)
	honest := gzipped(t, stream)
	told := maps.Clone(files)
	told["share/0070"] = told["share/007"] // at the same place in the tar
	delete(told, "share/007")
	lie := plain(tarOf(t, told))

	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	img := pushImage(t, reg, "x", "1", honest)
	pushIndexes(t, reg, img, nil, func(l testLayer) []byte { return indexOf(t, lie, l) })
	d := runDaemon(t, Options{})
	dir := mountDir(t)
	if _, err := mountAs(testContext(t), d.client, img.ref, dir, func(r *engineapi.MountRequest) { r.OnError = "eio" }); err != nil {
		t.Fatal(err)
	}
	if got, err := readFile(filepath.Join(dir, "share/0070")); !errors.Is(err, unix.EIO) {
		t.Errorf("a name that the layer does not have: %d bytes, %v", len(got), err)
	}
	st, err := d.client.Status(testContext(t))
	if err != nil || len(st.Faults) == 0 {
		t.Errorf("status: %+v, %v", st, err)
	}
	// The image itself is good: pulled whole it is right.
	if _, err := d.client.Pull(testContext(t), engineapi.PullRequest{Reference: img.ref}, nil); err != nil {
		t.Fatal(err)
	}
	other := mountDir(t)
	if _, err := mountAs(testContext(t), d.client, img.ref, other); err != nil {
		t.Fatal(err)
	}
	wantTree(t, other, files)
}

// TestBadIndex gives what is no index, or of another image: the layer is then
// fetched whole.
func TestBadIndex(t *testing.T) {
	needFUSE(t)
	files := bigTree(16)
	layer := gzipped(t, tarOf(t, files))
	for name, spoil := range map[string]func(*imgtest.Registry, *pushed){
		"no index": func(reg *imgtest.Registry, img *pushed) {},
		"garbage": func(reg *imgtest.Registry, img *pushed) {
			pushIndexes(t, reg, img, nil, func(testLayer) []byte { return []byte("imgfs layer 1\n\x05garbage") })
		},
		"larger than it is worth": func(reg *imgtest.Registry, img *pushed) {
			pushIndexes(t, reg, img, nil, func(l testLayer) []byte { return make([]byte, len(l.blob)) })
			reg.Inject(imgtest.Fault{On: imgtest.KindBlob, Match: string(id.BlobOf(make([]byte, len(layer.blob)))), Stall: true, Empty: true})
		},
		"lost": func(reg *imgtest.Registry, img *pushed) {
			pushIndex(t, reg, img, nil)
			b := ownIndex(t, layer)
			reg.Inject(imgtest.Fault{On: imgtest.KindBlob, Match: string(id.BlobOf(b)), Status: http.StatusNotFound})
		},
		"a registry without the API that fails": func(reg *imgtest.Registry, img *pushed) {
			reg.Inject(imgtest.Fault{On: imgtest.KindRefs, Status: http.StatusForbidden})
		},
	} {
		t.Run(name, func(t *testing.T) {
			reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
			img := pushImage(t, reg, "x", "1", layer)
			spoil(reg, img)
			d := runDaemon(t, Options{})
			dir := mountDir(t)
			m, err := mountAs(testContext(t), d.client, img.ref, dir)
			if err != nil {
				t.Fatal(err)
			}
			reg.Forget()
			wantTree(t, dir, files)
			asked(t, reg, "a layer that was streamed", 0, 0)
			unmounted(t, d.client, m)
		})
	}
}

// TestTraceBeside fetches at the mount what a trace beside the image names, in
// long requests, and the reads that it foresaw cost nothing.
func TestTraceBeside(t *testing.T) {
	needFUSE(t)
	files := bigTree(17)
	layer := gzipped(t, tarOf(t, files))
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	img := pushImage(t, reg, "x", "1", layer)
	blob := id.BlobOf(layer.blob)
	pushIndex(t, reg, img, []toc.Touch{
		{Layer: blob, Off: int64(bytes.Index(layer.stream, []byte(files["lib/middle"]))), Len: 700 << 10},
		{Layer: blob, Off: 1 << 40, Len: 100},                         // beyond its end
		{Layer: "sha256:" + id.Blob(strings.Repeat("0", 64)), Len: 1}, // of no layer
	})
	d := runDaemon(t, Options{})
	dir := mountDir(t)
	m, err := mountAs(testContext(t), d.client, img.ref, dir)
	if err != nil {
		t.Fatal(err)
	}
	wantTree(t, dir, content{"lib/middle": files["lib/middle"]})
	asked(t, reg, "mount and a file foreseen", 10, 4<<20)
	unmounted(t, d.client, m)
	if _, err := d.client.Remove(testContext(t), img.ref, engineapi.RemoveOptions{}); err != nil {
		t.Error(err)
	}
}

// TestSchema1 mounts an image of Docker's first schema, which states no diffIDs:
// regression 25.
func TestSchema1(t *testing.T) {
	needFUSE(t)
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	below, above := gzipped(t, tarOf(t, content{"a/one": "1", "a/two": "2"})), gzipped(t, tarOf(t, content{"a/two": "changed"}))
	empty := gzipped(t, make([]byte, 1024))
	var blobs, past []map[string]string
	for i, l := range []testLayer{above, empty, below} { // the uppermost first
		blobs = append(blobs, map[string]string{"blobSum": string(reg.PutBlob(t, l.blob))})
		c := map[string]string{"id": strings.Repeat(fmt.Sprint(3-i), 64), "os": "linux", "architecture": runtime.GOARCH, "created": "2014-01-02T03:04:05Z"}
		if i < 2 {
			c["parent"] = strings.Repeat(fmt.Sprint(2-i), 64)
		}
		past = append(past, map[string]string{"v1Compatibility": string(marshal(t, c))})
	}
	reg.PutManifest(t, "x", "1", "application/vnd.docker.distribution.manifest.v1+json", marshal(t, map[string]any{
		"schemaVersion": 1, "name": "x", "tag": "1", "architecture": runtime.GOARCH, "fsLayers": blobs, "history": past,
	}))
	d := runDaemon(t, Options{})
	dir := mountDir(t)
	m, err := mountAs(testContext(t), d.client, reg.Host+"/x:1", dir)
	if err != nil {
		t.Fatal(err)
	}
	wantTree(t, dir, content{"a/one": "1", "a/two": "changed"})
	unmounted(t, d.client, m)
	reg.Forget()
	if m, err = mountAs(testContext(t), d.client, reg.Host+"/x:1", dir); err != nil {
		t.Fatal(err)
	}
	asked(t, reg, "what is known", 0, 0)
	unmounted(t, d.client, m)
	img, err := d.client.Inspect(testContext(t), reg.Host+"/x:1", engineapi.InspectOptions{})
	if err != nil || len(img.RootFS.Layers) != 3 || img.RootFS.Layers[0] != below.diff || img.RootFS.Layers[2] != above.diff {
		t.Errorf("inspect: %+v, %v", img, err)
	}
}

// TestCacheLimit keeps a store within its limit: what was read longest ago is
// dropped, of layers that were streamed, too, and comes again by ranges.
func TestCacheLimit(t *testing.T) {
	needFUSE(t)
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	var images []*pushed
	var trees []content
	for i := range 3 {
		trees = append(trees, bigTree(uint64(20+i)))
		images = append(images, pushImage(t, reg, "x", fmt.Sprint(i), gzipped(t, tarOf(t, trees[i]))))
	}
	d := runDaemon(t, Options{CacheLimit: 30 << 20}) // a tree has 18 MiB
	dir := mountDir(t)
	for range 2 {
		reg.Forget()
		for i, img := range images {
			m, err := mountAs(testContext(t), d.client, img.ref, dir)
			if err != nil {
				t.Fatal(err)
			}
			wantTree(t, dir, trees[i])
			unmounted(t, d.client, m)
		}
	}
	// All of a layer is one range without a header, if all of it is read.
	if len(reg.Requests(imgtest.KindBlob)) == 0 {
		t.Error("three layers stayed where one has room")
	}
	wantEvictions(t, d)
}

// TestLazyTools mounts what the tools of others put into Debian's registry:
// zstd:chunked by skopeo. Little of it is fetched by the mount, and all is right.
func TestLazyTools(t *testing.T) {
	needFUSE(t)
	files := bigTree(18)
	img, err := imgtest.NewImage(imgtest.ImageSpec{Compression: "none", Layers: [][]byte{tarOf(t, files)}})
	if err != nil {
		t.Fatal(err)
	}
	layout := filepath.Join(t.TempDir(), "image")
	if err := img.WriteLayout(layout, "latest"); err != nil {
		t.Fatal(err)
	}
	ref := imgtest.Distribution(t, "", "") + "/x:1"
	skopeo := exec.CommandContext(t.Context(), imgtest.Program(t, "skopeo"), "copy", "-q", "--insecure-policy", "--dest-tls-verify=false",
		"--dest-compress-format=zstd:chunked", "oci:"+layout+":latest", "docker://"+ref)
	if out, err := skopeo.CombinedOutput(); err != nil {
		t.Fatalf("skopeo: %v\n%s", err, out)
	}
	d := runDaemon(t, Options{})
	dir := mountDir(t)
	m, err := mountAs(testContext(t), d.client, ref, dir)
	if err != nil {
		t.Fatal(err)
	}
	st, err := d.client.Status(testContext(t))
	if err != nil || st.DiskBytes > 1<<20 {
		t.Errorf("%d bytes after the mount, %v", st.DiskBytes, err)
	}
	wantTree(t, dir, files)
	unmounted(t, d.client, m)
}

package daemon

import (
	"io"
	"math/rand/v2"
	"net/http"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// steps collects what a push or a pull reports: the last status of each topic,
// and those without one in their order.
type steps struct {
	mu   sync.Mutex
	last map[string]string
	all  []string
	said []string
}

func (s *steps) report(p engineapi.Progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil {
		s.last = map[string]string{}
	}
	if p.ID == "" {
		s.said = append(s.said, p.Status)
		return
	}
	s.last[p.ID] = p.Status
	if !slices.Contains(s.all, p.Status) {
		s.all = append(s.all, p.Status)
	}
}

// statuses returns the last status of each topic, sorted, each once.
func (s *steps) statuses() string {
	var list []string
	for _, v := range s.last {
		list = append(list, v)
	}
	slices.Sort(list)
	return strings.Join(slices.Compact(list), ", ")
}

// manifestAt returns the bytes of a manifest in a registry.
func manifestAt(t testing.TB, host, repository, tag string) []byte {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+host+"/v2/"+repository+"/manifests/"+tag, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", manifestType+", application/vnd.docker.distribution.manifest.v2+json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s/%s:%s: %s, %v: %s", host, repository, tag, resp.Status, err, b)
	}
	return b
}

// skopeoTree has skopeo and umoci unpack an image, both foreign to us, and
// returns a listing.
func skopeoTree(t testing.TB, ref string) string {
	t.Helper()
	skopeo, umoci := imgtest.Program(t, "skopeo"), imgtest.Program(t, "umoci")
	dir := t.TempDir()
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
	}
	run(skopeo, "copy", "-q", "--insecure-policy", "--src-tls-verify=false", "docker://"+ref, "oci:"+dir+"/l:x")
	run(umoci, "unpack", "--rootless", "--image", dir+"/l:x", dir+"/b")
	return listDir(t, filepath.Join(dir, "b/rootfs"))
}

// TestPush pushes an image, that was pulled with all bytes or none, to the
// registry it came from and to another: byte for byte, nothing sent that is
// there, and nothing stored that was not.
func TestPush(t *testing.T) {
	t.Parallel()
	from, to := imgtest.Distribution(t, "", ""), imgtest.Distribution(t, "", "")
	layers := append(imgtest.Tree(1, 40, 2), imgtest.Tree(2, 1, 1)...)
	for _, docker := range []bool{false, true} {
		name := map[bool]string{false: "lib/oci", true: "lib/docker"}[docker]
		img, err := imgtest.NewImage(imgtest.ImageSpec{Layers: layers, Docker: docker})
		if err != nil {
			t.Fatal(err)
		}
		if err := img.Push(t.Context(), from, name, "1"); err != nil {
			t.Fatal(err)
		}
		d := runDaemon(t, Options{})
		ctx := testContext(t)
		if _, err := d.client.Pull(ctx, engineapi.PullRequest{Reference: from + "/" + name + ":1"}, nil); err != nil {
			t.Fatal(err)
		}
		push := func(target, statuses string) {
			t.Helper()
			if err := d.client.Tag(ctx, from+"/"+name+":1", target, false); err != nil {
				t.Fatal(err)
			}
			var s steps
			tags, err := d.client.Push(ctx, engineapi.PushRequest{Reference: target}, s.report)
			if err != nil {
				t.Fatal(err)
			}
			repo, tag, _ := strings.Cut(target[strings.Index(target, "/")+1:], ":")
			want := engineapi.PushedTag{Tag: tag, Digest: id.Blob(img.Manifest.Digest), Size: int64(len(img.Manifest.Data))}
			if len(tags) != 1 || tags[0] != want {
				t.Errorf("%s: %+v, want %+v", target, tags, want)
			}
			if got := s.statuses(); got != statuses {
				t.Errorf("%s: %q, want %q", target, got, statuses)
			}
			if b := manifestAt(t, target[:strings.Index(target, "/")], repo, tag); string(b) != string(img.Manifest.Data) {
				t.Errorf("%s: another manifest:\n%s", target, b)
			}
			if len(s.said) != 2 || s.said[0] != "The push refers to repository ["+target[:strings.LastIndex(target, ":")]+"]" ||
				!strings.HasPrefix(s.said[1], tag+": digest: "+img.Manifest.Digest+" size: ") {
				t.Errorf("%s: said %q", target, s.said)
			}
		}
		push(from+"/"+name+":2", "Layer already exists")
		push(from+"/other/"+path.Base(name)+":1", "Mounted from "+name)
		push(to+"/"+name+":1", "Pushed")
		push(to+"/"+name+":1", "Layer already exists")
		push(to+"/third/"+path.Base(name)+":1", "Mounted from "+name)
		if got, want := skopeoTree(t, to+"/third/"+path.Base(name)+":1"), skopeoTree(t, from+"/"+name+":1"); got != want {
			t.Errorf("another tree:\n%s\nwant\n%s", got, want)
		}
		in, err := d.client.Inspect(ctx, to+"/"+name+":1", engineapi.InspectOptions{})
		if err != nil || !slices.Contains(in.RepoDigests, to+"/"+name+"@"+img.Manifest.Digest) {
			t.Errorf("digests %v, %v", in.RepoDigests, err)
		}
	}
}

// TestPushLazily pushes an image of which only an index is here: its layers go
// from registry to registry, and not one byte of them to the disk.
func TestPushLazily(t *testing.T) {
	t.Parallel()
	needFUSE(t)
	from, to := imgtest.NewRegistry(t, imgtest.RegistryOptions{}), imgtest.Distribution(t, "", "")
	l := estargz(t, tarOf(t, content{"a": "one", "big": randomText(3 << 20)}))
	img := pushImage(t, from, "x", "1", l)
	d := runDaemon(t, Options{})
	ctx := testContext(t)
	if _, err := mountAs(ctx, d.client, from.Host+"/x:1", mountDir(t), func(r *engineapi.MountRequest) { r.Prefetch = "none" }); err != nil {
		t.Fatal(err)
	}
	if err := d.client.Tag(ctx, from.Host+"/x:1", to+"/x:1", false); err != nil {
		t.Fatal(err)
	}
	here := func() (n int64) {
		df, err := d.client.DiskUsage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range df.Layers {
			n += l.Present
		}
		return n
	}
	before := here()
	tags, err := d.client.Push(ctx, engineapi.PushRequest{Reference: to + "/x:1"}, nil)
	if err != nil || len(tags) != 1 || tags[0].Digest != img.digest {
		t.Fatalf("%+v, %v", tags, err)
	}
	if after := here(); after != before || before > 1<<20 {
		t.Errorf("%d bytes are here, before it were %d", after, before)
	}
}

// TestPushMade pushes what no registry has: an image committed here, on one that
// was pulled, and one of an archive, whose layers are packed, once.
func TestPushMade(t *testing.T) {
	t.Parallel()
	needFUSE(t)
	from, to := imgtest.NewRegistry(t, imgtest.RegistryOptions{}), imgtest.Distribution(t, "", "")
	base := pushTo(t, "x", "1", []string{"file a one", "file b two"}, from)
	d := runDaemon(t, Options{})
	ctx, dir := testContext(t), mountDir(t)
	m, err := mountAs(ctx, d.client, from.Host+"/x:1", dir, writable)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "c"), "three")
	unmounted(t, d.client, m)
	res, err := d.client.Commit(ctx, engineapi.CommitRequest{Source: engineapi.Source{Upper: m.Upper}, Reference: to + "/made:1"})
	if err != nil {
		t.Fatal(err)
	}
	tags, err := d.client.Push(ctx, engineapi.PushRequest{Reference: to + "/made:1"}, nil)
	if err != nil || len(tags) != 1 || tags[0].Digest != res.Digest {
		t.Fatalf("%+v, %v; want %s", tags, err, res.Digest)
	}
	tree := skopeoTree(t, to+"/made:1")
	for _, want := range []string{"a", "b", "c"} {
		if !strings.Contains(tree, want) {
			t.Errorf("no %s in\n%s", want, tree)
		}
	}

	file := filepath.Join(t.TempDir(), "x.tar")
	if err := base.WriteDockerArchive(file, "saved:1"); err != nil {
		t.Fatal(err)
	}
	other := runDaemon(t, Options{})
	got, err := other.client.Pull(ctx, engineapi.PullRequest{Reference: "docker-archive:" + file}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for n, want := range []string{"Pushed", "Layer already exists", "Mounted from saved"} {
		target := to + []string{"/saved:1", "/saved:2", "/elsewhere:1"}[n]
		if err := other.client.Tag(ctx, string(got.ImageID), target, false); err != nil {
			t.Fatal(err)
		}
		var s steps
		again, err := other.client.Push(ctx, engineapi.PushRequest{Reference: target, Compression: "zstd"}, s.report)
		if err != nil || s.statuses() != want {
			t.Fatalf("%s: %+v, %v: %q, want %q", target, again, err, s.statuses(), want)
		}
		if n > 0 && again[0].Digest != tags[0].Digest {
			t.Errorf("%s: another digest, %s", target, again[0].Digest)
		}
		tags = again
	}
	if body := manifestAt(t, to, "elsewhere", "1"); !strings.Contains(string(body), "tar+zstd") {
		t.Errorf("its layers are not in zstd: %s", body)
	}
	d = runDaemon(t, Options{})
	if pulled, err := d.client.Pull(ctx, engineapi.PullRequest{Reference: to + "/elsewhere:1"}, nil); err != nil || pulled.ImageID != got.ImageID {
		t.Errorf("pulled %+v, %v", pulled, err)
	}
}

// TestPushOriginGone has the registry that an image came from gone: its layers
// are packed anew, if they are here; it says what is missing if they are not.
func TestPushOriginGone(t *testing.T) {
	t.Parallel()
	needFUSE(t)
	to := imgtest.Distribution(t, "", "")
	for _, whole := range []bool{true, false} {
		from := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
		img := pushImage(t, from, "x", "1", estargz(t, tarOf(t, content{"a": "one", "big": randomText(3 << 20)})))
		d := runDaemon(t, Options{})
		ctx := testContext(t)
		var err error
		if whole {
			_, err = d.client.Pull(ctx, engineapi.PullRequest{Reference: from.Host + "/x:1"}, nil)
		} else {
			_, err = mountAs(ctx, d.client, from.Host+"/x:1", mountDir(t), func(r *engineapi.MountRequest) { r.Prefetch = "none" })
		}
		if err != nil {
			t.Fatal(err)
		}
		target := to + map[bool]string{true: "/whole:1", false: "/lazy:1"}[whole]
		if err := d.client.Tag(ctx, from.Host+"/x:1", target, false); err != nil {
			t.Fatal(err)
		}
		from.Inject(imgtest.Fault{On: imgtest.KindBlob, Status: http.StatusNotFound})
		tags, err := d.client.Push(ctx, engineapi.PushRequest{Reference: target}, nil)
		switch {
		case whole && (err != nil || tags[0].Digest == img.digest):
			t.Errorf("%+v, %v", tags, err)
		case whole:
			if tree := skopeoTree(t, target); !strings.Contains(tree, "big") {
				t.Errorf("its tree:\n%s", tree)
			}
		case err == nil || !strings.Contains(err.Error(), "blob unknown"):
			t.Errorf("pushed %+v, %v", tags, err)
		}
	}
}

// TestPushFormats pushes an image with its layers written anew.
func TestPushFormats(t *testing.T) {
	t.Parallel()
	to := imgtest.Distribution(t, "", "")
	from := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	pushImage(t, from, "x", "1", gzipped(t, tarOf(t, content{"a": "one", "big": randomText(1 << 20)})))
	d := runDaemon(t, Options{})
	ctx := testContext(t)
	if _, err := d.client.Pull(ctx, engineapi.PullRequest{Reference: from.Host + "/x:1"}, nil); err != nil {
		t.Fatal(err)
	}
	for format, note := range map[string]string{engineapi.ToEstargz: "stargz/toc.digest", engineapi.ToZstdChunked: "zstd-chunked.manifest"} {
		target := to + "/x:" + format
		if err := d.client.Tag(ctx, from.Host+"/x:1", target, false); err != nil {
			t.Fatal(err)
		}
		tags, err := d.client.Push(ctx, engineapi.PushRequest{Reference: target, Format: format}, nil)
		if err != nil {
			t.Fatal(err)
		}
		body := manifestAt(t, to, "x", format)
		if tags[0].Digest != id.BlobOf(body) || tags[0].Size != int64(len(body)) || !strings.Contains(string(body), note) {
			t.Errorf("%s: %+v\n%s", format, tags, body)
		}
	}
}

// TestPushNames has docker's texts for what cannot be pushed, and all tags of a
// repository.
func TestPushNames(t *testing.T) {
	t.Parallel()
	to := imgtest.Distribution(t, "", "")
	from := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	img := pushTo(t, "x", "1", []string{"file a one"}, from)
	d := runDaemon(t, Options{})
	ctx := testContext(t)
	if _, err := d.client.Pull(ctx, engineapi.PullRequest{Reference: from.Host + "/x:1"}, nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{to + "/all:b", to + "/all:a", to + "/all:c"} {
		if err := d.client.Tag(ctx, from.Host+"/x:1", name, false); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		req  engineapi.PushRequest
		want string
	}{
		{engineapi.PushRequest{Reference: to + "/none:1"}, "An image does not exist locally with the tag: " + to + "/none"},
		{engineapi.PushRequest{Reference: to + "/none", AllTags: true}, "An image does not exist locally with the tag: " + to + "/none"},
		{engineapi.PushRequest{Reference: to + "/all:d"}, "tag does not exist: " + to + "/all:d"},
		{engineapi.PushRequest{Reference: to + "/all:a", Platform: "plan9/mips"}, "image with reference " + to + "/all:a was found but does not provide the specified platform (plan9/mips)"},
		{engineapi.PushRequest{Reference: to + "/all@" + img.Manifest.Digest}, "cannot push a digest reference"},
		{engineapi.PushRequest{Reference: to + "/all:a", AllTags: true}, "tag can't be used with --all-tags/-a"},
		{engineapi.PushRequest{Reference: to + "/all:a", Format: "squashfs"}, `format "squashfs"`},
		{engineapi.PushRequest{Reference: to + "/all:a", Compression: "lzma"}, `compression "lzma"`},
		{engineapi.PushRequest{Reference: "127.0.0.1:1/x:1"}, "An image does not exist locally with the tag: 127.0.0.1:1/x"},
		{engineapi.PushRequest{Reference: "UPPER"}, "must be lowercase"},
	} {
		if tags, err := d.client.Push(ctx, tt.req, nil); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %+v, %v", tt.req, tags, err)
		}
	}
	var s steps
	tags, err := d.client.Push(ctx, engineapi.PushRequest{Reference: to + "/all", AllTags: true}, s.report)
	if err != nil || len(tags) != 3 || tags[0].Tag != "a" || tags[2].Tag != "c" || len(s.said) != 4 {
		t.Errorf("%+v, %v, %q", tags, err, s.said)
	}
	d = runDaemon(t, Options{})
	s = steps{}
	res, err := d.client.Pull(ctx, engineapi.PullRequest{Reference: to + "/all", AllTags: true}, s.report)
	if err != nil || res.Reference != to+"/all" || res.UpToDate {
		t.Errorf("%+v, %v", res, err)
	}
	in, err := d.client.Inspect(ctx, to+"/all:b", engineapi.InspectOptions{})
	if err != nil || len(in.RepoTags) != 3 {
		t.Errorf("tags %v, %v", in.RepoTags, err)
	}
	if res, err = d.client.Pull(ctx, engineapi.PullRequest{Reference: to + "/all", AllTags: true}, nil); err != nil || !res.UpToDate {
		t.Errorf("again: %+v, %v", res, err)
	}
	if _, err := d.client.Pull(ctx, engineapi.PullRequest{Reference: to + "/all:a", AllTags: true}, nil); err == nil || err.Error() != "tag can't be used with --all-tags/-a" {
		t.Errorf("with a tag: %v", err)
	}
}

// randomText returns n bytes that do not compress, the same each time.
func randomText(n int) string {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n)}).Read(b)
	return string(b)
}

// TestPushTwice has the same content twice in an image, in two blobs: both are
// pushed, and the manifest stays.
func TestPushTwice(t *testing.T) {
	t.Parallel()
	from, to := imgtest.NewRegistry(t, imgtest.RegistryOptions{}), imgtest.Distribution(t, "", "")
	stream := tarOf(t, content{"a": "one", "b": "two"})
	img := pushImage(t, from, "x", "1", gzipped(t, stream), plain(stream), gzipped(t, stream))
	d := runDaemon(t, Options{})
	ctx := testContext(t)
	if _, err := d.client.Pull(ctx, engineapi.PullRequest{Reference: from.Host + "/x:1"}, nil); err != nil {
		t.Fatal(err)
	}
	if err := d.client.Tag(ctx, from.Host+"/x:1", to+"/x:1", false); err != nil {
		t.Fatal(err)
	}
	tags, err := d.client.Push(ctx, engineapi.PushRequest{Reference: to + "/x:1"}, nil)
	if err != nil || tags[0].Digest != img.digest {
		t.Errorf("%+v, %v; want %s", tags, err, img.digest)
	}
}

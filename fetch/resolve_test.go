package fetch

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
)

func TestResolveByTagAndDigest(t *testing.T) {
	t.Parallel()
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	m := makeImage(t, reg, "lib/x", "1", "", noise(1000), noise(0), noise(70000))
	c := New(options(t))

	img := mustResolve(t, c, reg.Host+"/lib/x:1")
	wantCounts(t, reg, map[imgtest.Kind]int{imgtest.KindHead: 0, imgtest.KindManifest: 1, imgtest.KindBlob: 1, imgtest.KindOther: 0})
	if img.Digest != m.digest || img.ManifestDigest != m.digest || string(img.Manifest) != string(m.manifest) || img.MediaType != typeManifest ||
		string(img.Config) != string(m.config) || img.ID != id.ImageIDOf(m.config) || img.Platform.String() != "linux/amd64" || len(img.Layers) != 3 {
		t.Errorf("got %+v", img)
	}
	for i, l := range m.layers {
		if img.Layers[i].Blob != id.BlobOf(l) || img.Layers[i].Size != int64(len(l)) || string(img.Layers[i].DiffID) != string(id.BlobOf(l)) {
			t.Errorf("layer %d: %+v", i, img.Layers[i])
		}
		wantLayer(t, img, i, l)
	}
	if _, err := img.Open(t.Context(), 3); err == nil {
		t.Error("layer 3 of 3 opened")
	}

	reg.Forget()
	mustResolve(t, c, reg.Host+"/lib/x@"+string(m.digest))
	wantCounts(t, reg, map[imgtest.Kind]int{imgtest.KindHead: 0, imgtest.KindManifest: 1, imgtest.KindBlob: 1})

	reg.Forget()
	if d, err := c.Head(t.Context(), mustParse(t, reg.Host+"/lib/x:1")); err != nil || d != m.digest {
		t.Errorf("head: %s, %v", d, err)
	}
	if d, err := c.Head(t.Context(), mustParse(t, reg.Host+"/lib/x@"+string(m.digest))); err != nil || d != m.digest {
		t.Errorf("head by digest: %s, %v", d, err)
	}
	wantCounts(t, reg, map[imgtest.Kind]int{imgtest.KindHead: 1, imgtest.KindManifest: 0})
	for _, q := range reg.Requests() {
		if ua := q.Header.Get("User-Agent"); ua != "imgfs" {
			t.Errorf("User-Agent %q", ua)
		}
	}
}

func TestHeadRefused(t *testing.T) {
	t.Parallel()
	for _, status := range []int{400, 403, 405, 501} {
		reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
		m := makeImage(t, reg, "x", "1", "")
		reg.Inject(imgtest.Fault{On: imgtest.KindHead, Status: status})
		d, err := New(options(t)).Head(t.Context(), mustParse(t, reg.Host+"/x:1"))
		if err != nil || d != m.digest {
			t.Errorf("%d: got %s, %v", status, d, err)
		}
		wantCounts(t, reg, map[imgtest.Kind]int{imgtest.KindHead: 1, imgtest.KindManifest: 1})
	}
	// An answer without digest is of no use either.
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	m := makeImage(t, reg, "x", "1", "")
	reg.Inject(imgtest.Fault{On: imgtest.KindHead, Status: 200})
	if d, err := New(options(t)).Head(t.Context(), mustParse(t, reg.Host+"/x:1")); err != nil || d != m.digest {
		t.Errorf("head without digest: %s, %v", d, err)
	}
}

func TestPlatforms(t *testing.T) {
	t.Parallel()
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	amd := makeImage(t, reg, "x", "", "linux/amd64", noise(10))
	v6 := makeImage(t, reg, "x", "", "linux/arm/v6", noise(11))
	x := makeIndex(t, reg, "x", "1", map[string]made{"linux/amd64": amd, "linux/arm/v6": v6})
	single := makeImage(t, reg, "x", "arm", "linux/arm64", noise(12))
	c := New(options(t))
	get := func(tag, platform string) (*Image, error) {
		p, err := ParsePlatform(platform)
		if err != nil {
			t.Fatal(err)
		}
		return c.Resolve(t.Context(), mustParse(t, reg.Host+"/x:"+tag), p)
	}
	for platform, want := range map[string]made{"linux/amd64": amd, "linux/arm/v7": v6, "linux/arm/v6": v6} {
		img, err := get("1", platform)
		if err != nil || img.Digest != x || img.ManifestDigest != want.digest || string(img.Manifest) != string(want.manifest) {
			t.Errorf("%s: %v", platform, err)
		}
	}
	_, err := get("1", "linux/arm64")
	wantFault(t, err, fault.NotFound, "no matching manifest for linux/arm64 in the manifest list entries", "linux/amd64")
	wantFault(t, err, fault.NotFound, "", "linux/arm/v6")

	// A single image: whoever asks for no platform gets it, as with docker.
	if img, err := get("arm", ""); err != nil || img.Digest != single.digest {
		t.Errorf("no platform: %v", err)
	}
	_, err = get("arm", "linux/amd64")
	wantFault(t, err, fault.NotFound, "was found but does not provide the specified platform (linux/amd64)", "linux/arm64")
}

func TestNestedIndexes(t *testing.T) {
	t.Parallel()
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	m := makeImage(t, reg, "x", "", "", noise(10))
	inner, size := m.digest, len(m.manifest)
	for depth := 1; depth <= maxDepth+1; depth++ {
		body := mustJSON(t, v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex,
			Manifests: []v1.Descriptor{{MediaType: types.OCIImageIndex, Size: int64(size), Digest: hashOf(inner)}}})
		inner, size = reg.PutManifest(t, "x", "", typeIndex, body), len(body)
		_, err := New(options(t)).Resolve(t.Context(), mustParse(t, reg.Host+"/x@"+string(inner)), Platform{})
		if depth <= maxDepth && err != nil {
			t.Errorf("depth %d: %v", depth, err)
		}
		if depth > maxDepth {
			wantFault(t, err, fault.Integrity, "nested more than", "")
		}
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	makeImage(t, reg, "x", "1", "", noise(10))
	for _, c := range []struct {
		name  string
		fault imgtest.Fault
		ref   string
		kind  fault.Kind
		text  string
		hint  string
	}{
		{"unknown tag", imgtest.Fault{}, "/x:2", fault.NotFound, "manifest for HOST/x:2 not found: manifest unknown", "tag"},
		{"unknown digest", imgtest.Fault{}, "/x@" + someDigest, fault.NotFound, "manifest for HOST/x@" + someDigest + " not found: manifest unknown", ""},
		{"unknown repository", imgtest.Fault{}, "/y@" + someDigest, fault.NotFound, "repository HOST/y not found", "spelling"},
		{"401", imgtest.Fault{On: imgtest.KindManifest, Status: 401}, "/x:1", fault.Denied, "pull access denied for HOST/x, repository does not exist or may require 'docker login'", "imgfs login HOST"},
		{"403", imgtest.Fault{On: imgtest.KindManifest, Status: 403}, "/x:1", fault.Denied, "pull access denied for HOST/x", "--authfile"},
		{"500 for ever", imgtest.Fault{On: imgtest.KindManifest, Status: 500}, "/x:1", fault.Network, "registry HOST: GET", ""},
		{"429 for ever", imgtest.Fault{On: imgtest.KindManifest, Status: 429}, "/x:1", fault.Network, "toomanyrequests", "imgfs login"},
		{"wrong bytes", imgtest.Fault{On: imgtest.KindManifest, Flip: true}, "/x:1", fault.Integrity, "manifest verification failed for digest sha256:", ""},
		{"wrong config", imgtest.Fault{On: imgtest.KindBlob, Flip: true}, "/x:1", fault.Integrity, "image config verification failed for digest sha256:", ""},
		{"no config", imgtest.Fault{On: imgtest.KindBlob, Status: 404}, "/x:1", fault.NotFound, "", ""},
	} {
		reg.Heal()
		if c.fault.On != "" {
			reg.Inject(c.fault)
		}
		_, err := New(options(t)).Resolve(t.Context(), mustParse(t, reg.Host+c.ref), Platform{})
		t.Run(c.name, func(t *testing.T) {
			wantFault(t, err, c.kind, strings.ReplaceAll(c.text, "HOST", reg.Host), strings.ReplaceAll(c.hint, "HOST", reg.Host))
		})
	}
}

func TestRegistryDown(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := l.Addr().String()
	l.Close()
	_, err = New(options(t)).Resolve(t.Context(), mustParse(t, host+"/x:1"), Platform{})
	wantFault(t, err, fault.Network, "registry "+host+": dial tcp "+host+": connect: connection refused", "certs.d/"+host)
	for _, s := range []string{"http://", "https://", "Head "} {
		if strings.Contains(err.Error(), s) {
			t.Errorf("%q in %v", s, err)
		}
	}
}

func TestTransientFailures(t *testing.T) {
	t.Parallel()
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	m := makeImage(t, reg, "x", "1", "", noise(10))
	for _, kind := range []imgtest.Kind{imgtest.KindManifest, imgtest.KindBlob} {
		for _, status := range []int{408, 429, 500, 502, 503, 504} {
			reg.Inject(imgtest.Fault{On: kind, Status: status, Times: 2})
			if img := mustResolve(t, New(options(t)), reg.Host+"/x:1"); img.Digest != m.digest {
				t.Errorf("%s %d: got %s", kind, status, img.Digest)
			}
		}
	}
	o := options(t)
	o.Stall, o.Timeout, o.MaxRetry = 300*time.Millisecond, 300*time.Millisecond, 10
	for _, kind := range []imgtest.Kind{imgtest.KindManifest, imgtest.KindBlob} {
		for _, f := range []imgtest.Fault{{Empty: true}, {Short: 5}, {Short: 5, Reset: true}, {Short: 5, Stall: true}, {Delay: time.Hour}} {
			f.On, f.Times = kind, 2
			if f.Delay > 0 {
				f.Times = 1 // see TestSilentRegistry
			}
			reg.Inject(f)
			mustResolve(t, New(o), reg.Host+"/x:1")
		}
	}
	o = options(t)
	o.MaxRetry = -1
	reg.Forget()
	reg.Inject(imgtest.Fault{On: imgtest.KindManifest, Status: 500, Times: 1})
	if _, err := New(o).Resolve(t.Context(), mustParse(t, reg.Host+"/x:1"), Platform{}); err == nil {
		t.Error("retried though told not to")
	}
	wantCounts(t, reg, map[imgtest.Kind]int{imgtest.KindManifest: 1})
}

// A registry that takes the question and says nothing is asked twice, not for
// minutes.
func TestSilentRegistry(t *testing.T) {
	t.Parallel()
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	makeImage(t, reg, "x", "1", "", noise(10))
	reg.Forget()
	reg.Inject(imgtest.Fault{On: imgtest.KindManifest, Delay: time.Hour, Times: 100})
	o := options(t)
	o.Timeout, o.MaxRetry = 100*time.Millisecond, 10
	_, err := New(o).Resolve(t.Context(), mustParse(t, reg.Host+"/x:1"), Platform{})
	wantFault(t, err, fault.Network, "timeout awaiting response headers", reg.Host)
	wantCounts(t, reg, map[imgtest.Kind]int{imgtest.KindHead: 0, imgtest.KindManifest: 2})
}

// The text of an error is not waited for.
func TestSilentError(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}))
	defer srv.Close()
	o := options(t)
	o.Stall = 100 * time.Millisecond
	_, err := New(o).Resolve(t.Context(), mustParse(t, srv.Listener.Addr().String()+"/x@"+someDigest), Platform{})
	wantFault(t, err, fault.NotFound, "manifest unknown", "")
}

// A body that is too large is not read to its end, whether it says so or not.
func TestTooLarge(t *testing.T) {
	t.Parallel()
	for _, chunked := range []bool{false, true} {
		var sent int64
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead {
				w.WriteHeader(http.StatusMethodNotAllowed)
				return
			}
			if chunked {
				w.(http.Flusher).Flush()
			} else {
				w.Header().Set("Content-Length", strconv.Itoa(1<<40))
			}
			sent, _ = io.Copy(w, io.LimitReader(zeros{}, 1<<40))
		}))
		_, err := New(options(t)).Resolve(t.Context(), mustParse(t, srv.Listener.Addr().String()+"/x:1"), Platform{})
		wantFault(t, err, fault.Integrity, "more than 4194304", "")
		srv.CloseClientConnections()
		srv.Close()
		if sent > 64<<20 {
			t.Errorf("%d bytes were sent", sent)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// CVE-2021-41190: one body, two meanings.
func TestAmbiguousManifests(t *testing.T) {
	t.Parallel()
	h := someDigest
	conf := `{"mediaType":"` + string(types.OCIConfigJSON) + `","digest":"` + h + `","size":0}`
	image := `"schemaVersion":2,"config":` + conf + `,"layers":[]`
	for _, c := range []struct {
		body, contentType string
		kind              fault.Kind
		text              string
	}{
		{`{` + image + `}`, "", 0, ""},
		{`{` + image + `}`, "application/json; charset=utf-8", 0, ""},
		{`{` + image + `}`, typeManifest + "; charset=utf-8", 0, ""},
		{`{` + image + `,"mediaType":"` + typeManifest + `"}`, "text/plain", 0, ""},
		{`{"schemaVersion":2,"manifests":[]}`, typeIndex, 0, ""},
		{`{` + image + `,"manifests":[]}`, "", fault.Integrity, "both manifests and layers"},
		{`{"schemaVersion":2,"config":` + conf + `,"manifests":[]}`, "", fault.Integrity, "both manifests and"},
		{`{` + image + `}`, typeIndex, fault.Integrity, "calls itself"},
		{`{` + image + `,"mediaType":"` + typeIndex + `"}`, "", fault.Integrity, "calls itself"},
		{`{"schemaVersion":2,"manifests":[],"mediaType":"` + typeManifest + `"}`, "", fault.Integrity, "calls itself"},
		{`{` + image + `,"mediaType":"` + typeManifest + `"}`, typeSchema2, fault.Integrity, "contradicts"},
		{`{` + image + `,"layers":[]}`, "", fault.Integrity, "occurs twice"},
		{`{` + image + `,"Layers":[]}`, "", fault.Integrity, "occurs twice"},
		{`{` + image + `,"layer\u017f":[]}`, "", fault.Integrity, "occurs twice"}, // encoding/json takes the long s for an s
		{`{` + image + `} {}`, "", fault.Integrity, "behind"},
		{`{"schemaVersion":3}`, "", fault.Integrity, "schemaVersion is 3"},
		{`{"schemaVersion":1,"fsLayers":[]}`, typeSchema1Signed, fault.Integrity, "no FSLayers in manifest"},
		{`{"schemaVersion":2}`, "", fault.Integrity, "neither config nor manifests"},
		{`[]`, "", fault.Integrity, "not a JSON object"},
		{`<html>`, "", fault.Integrity, "not a JSON object"},
		{strings.Repeat(" ", maxManifest+1), "", fault.Integrity, "more than"},
		{`{` + image + `,"mediaType":"application/x"}`, "", fault.Invalid, "not supported"},
	} {
		_, err := parseManifest([]byte(c.body), c.contentType)
		if c.text == "" {
			if err != nil {
				t.Errorf("%s (%s): %v", c.body, c.contentType, err)
			}
			continue
		}
		wantFault(t, err, c.kind, c.text, "")
	}
}

func TestNoImage(t *testing.T) {
	t.Parallel()
	h := hashOf(id.Blob(someDigest))
	conf := v1.Descriptor{MediaType: types.OCIConfigJSON, Digest: h}
	layer := func(mediaType string, size int64, annotation string) v1.Manifest {
		d := v1.Descriptor{MediaType: types.MediaType(mediaType), Size: size, Digest: h}
		if annotation != "" {
			d.Annotations = map[string]string{annotation: "x"}
		}
		return v1.Manifest{Config: conf, Layers: []v1.Descriptor{d}}
	}
	artifact := func(config, artifact string) v1.Manifest {
		return v1.Manifest{ArtifactType: artifact, Config: v1.Descriptor{MediaType: types.MediaType(config), Digest: h}}
	}
	tar := string(types.OCILayer)
	for _, c := range []struct {
		name string
		m    v1.Manifest
		kind fault.Kind
		text string
	}{
		{"helm", artifact("application/vnd.cncf.helm.config.v1+json", ""), fault.Invalid, `artifact of type "application/vnd.cncf.helm.config.v1+json"`},
		{"artifact", artifact("application/vnd.oci.empty.v1+json", "a/b"), fault.Invalid, `artifact of type "a/b"`},
		{"plugin", artifact("application/vnd.docker.plugin.v1+json", ""), fault.Invalid, "target is plugin"},
		{"encrypted", layer(tar+"+encrypted", 1, ""), fault.Invalid, "encrypted"},
		{"nydus type", layer("application/vnd.oci.image.layer.nydus.blob.v1", 1, ""), fault.Invalid, "nydus"},
		{"nydus", layer(tar, 1, "containerd.io/snapshot/nydus-bootstrap"), fault.Invalid, "nydus"},
		{"overlaybd", layer(tar, 1, "containerd.io/snapshot/overlaybd/blob-digest"), fault.Invalid, "overlaybd"},
		{"erofs", layer("application/vnd.erofs.layer.v1", 1, ""), fault.Invalid, "EROFS"},
		{"attestation", layer("application/vnd.in-toto+json", 1, ""), fault.Invalid, "holds no file system"},
		{"negative", layer(tar, -1, ""), fault.Integrity, "absurd size"},
		{"absurd", layer(tar, maxBlob+1, ""), fault.Integrity, "absurd size"},
		{"no digest", v1.Manifest{Config: conf, Layers: []v1.Descriptor{{MediaType: types.OCILayer}}}, fault.Integrity, "no digest"},
		{"layers", v1.Manifest{Config: conf, Layers: make([]v1.Descriptor, maxLayers+1)}, fault.Integrity, "4097 layers"},
		{"config", v1.Manifest{Config: v1.Descriptor{Size: maxConfig + 1, Digest: h}}, fault.Integrity, "image config"},
	} {
		t.Run(c.name, func(t *testing.T) {
			wantFault(t, checkManifest(&c.m), c.kind, c.text, "")
		})
	}
	estargz := layer(tar, 1, "containerd.io/snapshot/stargz/toc.digest")
	if err := checkManifest(&estargz); err != nil {
		t.Errorf("eStargz: %v", err)
	}
}

func TestConfigAgainstManifest(t *testing.T) {
	t.Parallel()
	a, b := string(id.BlobOf([]byte("a"))), string(id.BlobOf([]byte("b")))
	for _, c := range []struct {
		name, rootfs string
		layers       []string // digests
		text         string
	}{
		{"right", `{"type":"layers","diff_ids":["` + a + `"]}`, []string{b}, ""},
		{"no layers", `{"type":"layers"}`, nil, ""},
		{"no rootfs", `null`, nil, "invalid rootfs in image configuration"},
		{"other rootfs", `{"type":"layers+base"}`, nil, "invalid rootfs in image configuration"},
		{"too few", `{"type":"layers","diff_ids":[]}`, []string{b}, "layers from manifest don't match image configuration"},
		{"too many", `{"type":"layers","diff_ids":["` + a + `","` + b + `"]}`, []string{b}, "layers from manifest don't match image configuration"},
		{"no digest", `{"type":"layers","diff_ids":["abc"]}`, []string{b}, "image config"},
		{"empty digest", `{"type":"layers","diff_ids":[""]}`, []string{b}, "diffID is empty"},
		{"same twice", `{"type":"layers","diff_ids":["` + a + `","` + a + `"]}`, []string{b, b}, ""},
		{"one blob, two diffIDs", `{"type":"layers","diff_ids":["` + a + `","` + b + `"]}`, []string{b, b}, "layers 1 and 2 are the same blob"},
	} {
		m := &v1.Manifest{}
		for _, l := range c.layers {
			m.Layers = append(m.Layers, v1.Descriptor{Digest: hashOf(id.Blob(l))})
		}
		err := describe(&Image{}, m, []byte(`{"os":"linux","rootfs":`+c.rootfs+`}`))
		if c.text == "" {
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		t.Run(c.name, func(t *testing.T) { wantFault(t, err, fault.Integrity, c.text, "") })
	}
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":"`+someDigest+`","size":2},"layers":[{"mediaType":"a+tar","digest":"`+someDigest+`","size":1}]}`), typeManifest)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"`+someDigest+`","size":1,"platform":{"os":"linux","architecture":"arm","variant":"v7"}}]}`), "")
	f.Fuzz(func(t *testing.T, body []byte, contentType string) {
		d, err := parseManifest(body, contentType)
		if err != nil {
			if k := fault.KindOf(err); k != fault.Integrity && k != fault.Invalid {
				t.Fatalf("kind %v: %v", k, err)
			}
			return
		}
		if (d.image == nil) == (d.index == nil) {
			t.Fatal("neither or both")
		}
		if d.index != nil {
			choose(d.index, Platform{})
			return
		}
		var img Image
		conf, _ := json.Marshal(map[string]any{"rootfs": map[string]any{"type": "layers", "diff_ids": make([]string, len(d.image.Layers))}})
		if describe(&img, d.image, conf) == nil && len(img.Layers) != 0 {
			t.Fatal("empty diffIDs taken")
		}
		for _, l := range img.Layers {
			if l.Size < 0 {
				t.Fatal("negative size")
			}
		}
	})
}

func TestErrorsHideSecrets(t *testing.T) {
	t.Parallel()
	cdn := httptest.NewServer(http.NotFoundHandler())
	defer cdn.Close()
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	makeImage(t, reg, "x", "1", "", noise(10))
	u, _ := url.Parse(cdn.URL)
	u.User, u.RawQuery, u.Path = url.UserPassword("user", "topsecret"), "X-Amz-Signature=topsecret", "/blob"
	for _, status := range []int{404, 500} {
		reg.Heal()
		if status == 500 {
			cdn.Close() // now dialling it fails
		}
		reg.Inject(imgtest.Fault{On: imgtest.KindManifest, Location: u.String()})
		_, err := New(options(t)).Resolve(t.Context(), mustParse(t, reg.Host+"/x:1"), Platform{})
		if err == nil || strings.Contains(err.Error()+fault.HintOf(err), "secret") {
			t.Errorf("got %v", err)
		}
	}
}

// What is not there at first contact is asked once for a manifest named by
// digest and for a config as well: only a body that breaks is worth more.
func TestRefusedOnce(t *testing.T) {
	t.Parallel()
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	layer := noise(10)
	m := makeImage(t, reg, "x", "1", "", layer)
	var refused atomic.Int32
	o := options(t)
	o.CertsDirs = []string{hostsFile(t, reg.Host, "[host.\"http://down.test\"]\ncapabilities = [\"pull\"]\n")}
	o.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if addr != reg.Host {
			refused.Add(1)
			return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
		}
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
	mustResolve(t, New(o), reg.Host+"/x@"+string(m.digest))
	if n := refused.Load(); n != 2 {
		t.Errorf("the mirror that is down was dialled %d times for a manifest and a config", n)
	}
}

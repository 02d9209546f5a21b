package fetch

import (
	"testing"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// The manifest alone is one round trip, and with it ranges of the layers can
// be read; the config is another, and may be asked for beside.
func TestResolveInTwoSteps(t *testing.T) {
	t.Parallel()
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	layer := noise(1000)
	made := makeImage(t, reg, "x", "1", "", layer)
	m, err := New(options(t)).ResolveManifest(t.Context(), mustParse(t, reg.Host+"/x:1"), Platform{})
	if err != nil {
		t.Fatal(err)
	}
	wantCounts(t, reg, map[imgtest.Kind]int{imgtest.KindManifest: 1, imgtest.KindBlob: 0, imgtest.KindHead: 0})
	if m.ID != id.ImageIDOf(made.config) || m.Digest != made.digest || string(m.Raw) != string(made.manifest) ||
		len(m.Layers) != 1 || m.Layers[0].DiffID != "" || m.Layers[0].Blob != id.BlobOf(layer) {
		t.Errorf("got %+v", m)
	}
	wantRange(t, m.Blob(0), 5, layer[5:10])
	img, err := m.Image(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if img.ID != m.ID || img.Blob(0) != m.Blob(0) || m.Layers[0].DiffID != "" || img.Layers[0].DiffID == "" {
		t.Errorf("got %+v", img)
	}
	if n := reg.Trips(0); n != 3 {
		t.Errorf("%d serial round trips, want 3", n)
	}
	if n := reg.Trips(time.Minute); n != 1 {
		t.Errorf("%d serial round trips on a slow link, want 1", n)
	}
}

// Annotations of the manifest and of its layers come along: they say which
// table of contents there is.
func TestAnnotations(t *testing.T) {
	t.Parallel()
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	conf := reg.PutBlob(t, []byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["`+someDigest+`"]}}`))
	reg.PutManifest(t, "x", "1", typeManifest, []byte(`{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"`+string(conf)+`","size":148},`+
		`"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"`+someDigest+`","size":9,"annotations":{"a":"b"}}],"annotations":{"c":"d"}}`))
	m, err := New(options(t)).ResolveManifest(t.Context(), mustParse(t, reg.Host+"/x:1"), Platform{})
	if err != nil {
		t.Fatal(err)
	}
	if m.Annotations["c"] != "d" || m.Layers[0].Annotations["a"] != "b" {
		t.Errorf("got %+v", m)
	}
	img, err := m.Image(t.Context())
	if err != nil || img.Layers[0].Annotations["a"] != "b" {
		t.Errorf("got %+v, %v", img, err)
	}
	// Another platform than the one asked for comes out with the config.
	m, err = New(options(t)).ResolveManifest(t.Context(), mustParse(t, reg.Host+"/x:1"), Platform{OS: "linux", Architecture: "s390x"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = m.Image(t.Context())
	wantFault(t, err, fault.NotFound, "does not provide the specified platform", "linux/amd64")
}

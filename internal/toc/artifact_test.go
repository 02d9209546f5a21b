package toc

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/id"
)

func testArtifact(typ string) *Artifact {
	a := &Artifact{
		Kind:    Soci,
		Type:    typ,
		Subject: Subject{"application/vnd.oci.image.manifest.v1+json", id.BlobOf([]byte("image")), 123},
		Layers: []Part{
			{Digest: id.BlobOf([]byte("a")), Size: 1, Layer: id.BlobOf([]byte("layer a")), LayerType: "application/vnd.oci.image.layer.v1.tar+gzip", SpanSize: 4 << 20},
			{Digest: id.BlobOf([]byte("b")), Size: 2, Layer: id.BlobOf([]byte("layer b")), LayerType: "application/vnd.oci.image.layer.v1.tar", SpanSize: 4 << 20},
		},
	}
	switch typ {
	case OwnArtifact:
		a.Kind = Own
		for i := range a.Layers {
			a.Layers[i].LayerType, a.Layers[i].SpanSize, a.Layers[i].DataSize = "", 0, 4096
		}
		a.Trace = &Part{Digest: id.BlobOf([]byte("trace")), Size: 3}
	case SociArtifactV2:
		a.Subject = Subject{}
	}
	return a
}

func TestManifest(t *testing.T) {
	for _, typ := range []string{OwnArtifact, SociArtifact, SociArtifactV2} {
		want := testArtifact(typ)
		b, err := want.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseManifest(b)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v, want %+v", typ, got, err, want)
		}
	}
}

// TestSociManifest has the bytes that SOCI's own writer makes of the same.
func TestSociManifest(t *testing.T) {
	a := testArtifact(SociArtifact)
	a.Layers = a.Layers[:1]
	b, err := a.Encode()
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",` +
		`"config":{"mediaType":"application/vnd.amazon.soci.index.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},` +
		`"layers":[{"mediaType":"application/octet-stream","digest":"sha256:ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb","size":1,` +
		`"annotations":{"com.amazon.soci.image-layer-digest":"LAYER","com.amazon.soci.image-layer-mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","com.amazon.soci.span-size":"4194304"}}],` +
		`"subject":{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"SUBJECT","size":123}}`
	text := strings.NewReplacer(string(a.Layers[0].Layer), "LAYER", string(a.Subject.Digest), "SUBJECT").Replace(string(b))
	if text != want {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
}

func TestManifestRefused(t *testing.T) {
	const digest = `"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"`
	own := func(layers string) string {
		return `{"artifactType":"` + OwnArtifact + `","layers":[` + layers + `]}`
	}
	for name, c := range map[string]struct {
		body string
		want error
	}{
		"not JSON":           {`{`, ErrCorrupt},
		"another's":          {`{"artifactType":"application/vnd.example"}`, ErrNone},
		"an image":           {`{"config":{"mediaType":"application/vnd.oci.image.config.v1+json"}}`, ErrNone},
		"no digest":          {own(`{"mediaType":"` + ownTraceType + `","size":1}`), ErrCorrupt},
		"bad digest":         {own(`{"mediaType":"` + ownTraceType + `","digest":"sha256:x","size":1}`), ErrCorrupt},
		"negative size":      {own(`{"mediaType":"` + ownTraceType + `","digest":` + digest + `,"size":-1}`), ErrCorrupt},
		"of no layer":        {own(`{"mediaType":"` + ownLayerType + `","digest":` + digest + `,"size":1}`), ErrCorrupt},
		"of an odd layer":    {own(`{"mediaType":"` + ownLayerType + `","digest":` + digest + `,"size":1,"annotations":{"io.imgfs.layer.digest":"md5:0"}}`), ErrCorrupt},
		"something else too": {own(`{"mediaType":"text/plain","digest":` + digest + `,"size":1}`), nil},
		"too many":           {own(strings.Repeat(`{},`, maxParts) + `{}`), ErrCorrupt},
		"too large":          {own("") + strings.Repeat(" ", maxManifest), ErrCorrupt},
	} {
		if _, err := ParseManifest([]byte(c.body)); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func FuzzManifest(f *testing.F) {
	for _, typ := range []string{OwnArtifact, SociArtifact, SociArtifactV2} {
		b, err := testArtifact(typ).Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := ParseManifest(b)
		if err != nil {
			return
		}
		again, err := a.Encode()
		if err != nil || !json.Valid(again) {
			t.Fatalf("%+v: %v", a, err)
		}
		if _, err := ParseManifest(again); err != nil {
			t.Fatalf("%s: %v", again, err)
		}
	})
}

func TestTrace(t *testing.T) {
	a, b := id.BlobOf([]byte("a")), id.BlobOf([]byte("b"))
	want := []Touch{{a, 0, 4096}, {b, 8192, 1}, {a, 4096, 100}, {a, 512, 512}, {b, 1 << 40, 1 << 20}}
	got, err := DecodeTrace(EncodeTrace(want))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := DecodeTrace(EncodeTrace(nil)); err != nil || len(got) > 0 {
		t.Errorf("none: %v, %v", got, err)
	}
	var long []Touch
	for i := range int64(1 << 20) {
		long = append(long, Touch{a, i * 5000 % (1 << 30), 4096})
	}
	encoded := EncodeTrace(long)
	if got, err = DecodeTrace(encoded); err != nil || len(encoded) > maxTrace || len(got) < 100_000 || !reflect.DeepEqual(got, long[:len(got)]) {
		t.Errorf("long: %d of %d in %d bytes, %v", len(got), len(long), len(encoded), err)
	}
}

func FuzzTrace(f *testing.F) {
	a, b := id.BlobOf([]byte("a")), id.BlobOf([]byte("b"))
	f.Add(EncodeTrace([]Touch{{a, 0, 4096}, {b, 8192, 1}, {a, 4096, 100}}))
	f.Add([]byte(traceMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		trace, err := DecodeTrace(b)
		if err != nil {
			return
		}
		for _, x := range trace {
			if x.Off < 0 || x.Len < 0 || x.Layer == "" {
				t.Fatalf("%+v", x)
			}
		}
		again, err := DecodeTrace(EncodeTrace(trace))
		if err != nil || len(again) != len(trace) || len(trace) > 0 && !reflect.DeepEqual(again, trace) {
			t.Fatalf("%v becomes %v, %v", trace, again, err)
		}
	})
}

package fetch

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// layer1 is a layer of a manifest in schema 1.
type layer1 struct {
	id, parent string // one letter each, repeated
	blob       string
	more       string // further members of its config
}

// manifest1 writes a manifest in schema 1; layers are top first, as there.
func manifest1(layers ...layer1) []byte {
	var blobs, history []string
	name := func(s string) string { return strings.Repeat(s, 64/max(1, len(s))) }
	for _, l := range layers {
		blobs = append(blobs, fmt.Sprintf(`{"blobSum": %q}`, l.blob))
		c := fmt.Sprintf(`{"id":%q,"created":"2014-01-02T03:04:05Z"`, name(l.id))
		if l.parent != "" {
			c += fmt.Sprintf(`,"parent":%q`, name(l.parent))
		}
		quoted, _ := json.Marshal(c + l.more + "}")
		history = append(history, fmt.Sprintf(`{"v1Compatibility": %s}`, quoted))
	}
	return fmt.Appendf(nil, "{\n   \"schemaVersion\": 1,\n   \"name\": \"x\",\n   \"tag\": \"1\",\n   \"architecture\": \"amd64\",\n   \"fsLayers\": [%s],\n   \"history\": [%s]\n}",
		strings.Join(blobs, ", "), strings.Join(history, ", "))
}

// sign adds a signature in the way of libtrust, which splits the closing brace
// off.
func sign(payload []byte, protected ...string) []byte {
	head := payload[:len(payload)-2]
	if protected == nil {
		p := fmt.Sprintf(`{"formatLength":%d,"formatTail":%q,"time":"2014-01-02T03:04:05Z"}`, len(head), base64.RawURLEncoding.EncodeToString([]byte("\n}")))
		protected = []string{base64.RawURLEncoding.EncodeToString([]byte(p))}
	}
	var s []string
	for _, p := range protected {
		s = append(s, fmt.Sprintf(`{"header":{"alg":"ES256"},"signature":"AAAA","protected":%q}`, p))
	}
	return fmt.Appendf(nil, "%s,\n   \"signatures\": [%s]\n}", head, strings.Join(s, ","))
}

// Regression 25: layers that are thrown away, the same ID twice in a row, and
// the empty layer; signed and not.
func TestSchema1(t *testing.T) {
	t.Parallel()
	for _, signed := range []bool{false, true} {
		reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
		a, b := noise(1000), noise(2000)
		da, db := string(reg.PutBlob(t, a)), string(reg.PutBlob(t, b))
		payload := manifest1(
			layer1{"e", "d", emptyBlob, `,"throwaway":true,"architecture":"amd64","os":"linux","config":{"Cmd":["sh"]},"Size":5,"container_config":{"Cmd":["/bin/sh","-c","#(nop) CMD"]}`},
			layer1{"d", "c", db, ``},
			layer1{"c", "b", da, ``},
			layer1{"c", "b", da, ``},
			layer1{"b", "a", emptyBlob, ``},
			layer1{"a", "", da, `,"author":"me","comment":"first"`})
		body, mediaType := payload, typeSchema1
		if signed {
			body, mediaType = sign(payload), typeSchema1Signed
		}
		reg.PutManifest(t, "x", "1", mediaType, body)
		// A registry names it by what was signed.
		digest := id.BlobOf(payload)
		reg.PutManifest(t, "x", string(digest), mediaType, body)
		c := New(options(t))
		img := mustResolve(t, c, reg.Host+"/x@"+string(digest))
		if !img.Schema1 || img.ID != "" || img.Config != nil || img.Platform.String() != "linux/amd64" || img.Digest != digest ||
			img.ManifestDigest != digest || !bytes.Equal(img.Manifest, payload) || img.MediaType != typeSchema1 {
			t.Errorf("got %+v", img)
		}
		want := []Layer{{Blob: id.Blob(da), Size: 1000}, {Blob: emptyBlob, Size: 32, DiffID: emptyDiff}, {Blob: id.Blob(da), Size: 1000}, {Blob: id.Blob(db), Size: 2000}}
		for i, l := range img.Layers {
			if l.Blob != want[i].Blob || l.Size != want[i].Size || l.DiffID != want[i].DiffID {
				t.Errorf("layer %d: %+v", i, l)
			}
		}
		if len(img.Layers) != 4 {
			t.Fatalf("%d layers", len(img.Layers))
		}
		wantLayer(t, img, 0, a)
		wantRange(t, img.Blob(3), 5, b[5:])
		diffs := []id.DiffID{someDigest, emptyDiff, someDigest, someDigest}
		conf, err := img.ConfigOf(diffs)
		if err != nil {
			t.Fatal(err)
		}
		empty := `{"created":"2014-01-02T03:04:05Z"}`
		const wantConf = `{"architecture":"amd64","config":{"Cmd":["sh"]},"container_config":{"Cmd":["/bin/sh","-c","#(nop) CMD"]},"created":"2014-01-02T03:04:05Z",` +
			`"history":[{"created":"2014-01-02T03:04:05Z","author":"me","comment":"first"},%[1]s,%[1]s,%[1]s,` +
			`{"created":"2014-01-02T03:04:05Z","created_by":"/bin/sh -c #(nop) CMD","empty_layer":true}],` +
			`"os":"linux","rootfs":{"diff_ids":["%[2]s","%[3]s","%[2]s","%[2]s"],"type":"layers"}}`
		if want := fmt.Sprintf(wantConf, empty, someDigest, emptyDiff); string(conf) != want {
			t.Errorf("config\n%s\nwant\n%s", conf, want)
		}
		if _, err := img.ConfigOf(diffs[1:]); err == nil {
			t.Error("config for another number of layers")
		}
	}
}

func TestSchema1Refused(t *testing.T) {
	t.Parallel()
	ok := layer1{"a", "", emptyBlob, ""}
	good := manifest1(ok)
	b64 := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	for _, c := range []struct {
		name, body, text string
	}{
		{"no layers", `{"schemaVersion":1,"fsLayers":[],"history":[]}`, "no FSLayers"},
		{"uneven", `{"schemaVersion":1,"fsLayers":[{"blobSum":"x"}],"history":[]}`, "length of history not equal"},
		{"bad ID", string(manifest1(layer1{"Z", "", emptyBlob, ""})), "is invalid"},
		{"bad blob", string(manifest1(layer1{"a", "", "md5:1", ""})), "layer 1"},
		{"base with parent", string(manifest1(layer1{"a", "b", emptyBlob, ""})), "invalid parent ID in the base layer"},
		{"broken chain", string(manifest1(layer1{"b", "c", emptyBlob, ""}, ok)), "invalid parent ID. Expected aaaa"},
		{"no parent", string(manifest1(layer1{"b", "", emptyBlob, ""}, ok)), "invalid parent ID. Expected aaaa"},
		{"ID twice", string(manifest1(layer1{"a", "b", emptyBlob, ""}, layer1{"b", "a", emptyBlob, ""}, ok)), "appears multiple times"},
		{"history is no object", `{"schemaVersion":1,"fsLayers":[{"blobSum":"x"}],"history":[{"v1Compatibility":"[]"}]}`, "history 1"},
		{"two kinds", `{"schemaVersion":1,"fsLayers":[{"blobSum":"x"}],"history":[],"layers":[]}`, "ambiguous"},
		{"signature malformed", string(sign(good, "!")), "signature 1 is malformed"},
		{"signature too long", string(sign(good, b64(`{"formatLength":99999999,"formatTail":"fQ"}`))), "signature 1 is malformed"},
		{"signature negative", string(sign(good, b64(`{"formatLength":-1,"formatTail":"fQ"}`))), "signature 1 is malformed"},
		{"two signatures differ", string(sign(good, b64(`{"formatLength":5,"formatTail":"fQ"}`), b64(`{"formatLength":6,"formatTail":"fQ"}`))), "of different manifests"},
	} {
		body, err := signedPart([]byte(c.body))
		if err == nil {
			_, err = parseManifest(body, "")
		}
		t.Run(c.name, func(t *testing.T) { wantFault(t, err, fault.Integrity, c.text, "") })
	}
	_, err := parseManifest(good, typeManifest)
	wantFault(t, err, fault.Integrity, "ambiguous", "")
	// A server that does not say how large a layer is.
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	layer := reg.PutBlob(t, noise(10))
	reg.PutManifest(t, "x", "1", typeSchema1, manifest1(layer1{"a", "", string(layer), ""}))
	reg.Inject(imgtest.Fault{On: imgtest.KindBlob, ContentRange: "bytes 0-0/*"})
	_, err = New(options(t)).Resolve(t.Context(), mustParse(t, reg.Host+"/x:1"), Platform{})
	wantFault(t, err, fault.Integrity, "does not state the size", "")
}

func FuzzSchema1(f *testing.F) {
	good := manifest1(layer1{"b", "a", emptyBlob, `,"throwaway":true`}, layer1{"a", "", emptyBlob, ""})
	f.Add(good)
	f.Add(sign(good))
	f.Fuzz(func(t *testing.T, b []byte) {
		body, err := signedPart(b)
		if err != nil {
			return
		}
		doc, err := parseManifest(body, "")
		if err != nil || doc.schema1 == nil {
			return
		}
		if _, err := doc.schema1.config(make([]id.DiffID, len(doc.schema1.layers))); err != nil {
			var top map[string]any
			if json.Unmarshal(doc.schema1.top, &top) == nil {
				t.Fatal(err)
			}
		}
	})
}

// What skopeo writes and docker-registry signs.
func TestDistributionSchema1(t *testing.T) {
	t.Parallel()
	host := imgtest.Distribution(t, "", "compatibility:\n  schema1:\n    enabled: true\n")
	dir, layer := layout(t)
	target := "docker://" + host + "/lib/x:1"
	if out, err := exec.Command(imgtest.Program(t, "skopeo"), "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false", "--format=v2s1", "oci:"+dir, target).CombinedOutput(); err != nil {
		t.Fatalf("skopeo: %v\n%s", err, out)
	}
	img := mustResolve(t, New(options(t)), host+"/lib/x:1")
	if !img.Schema1 || len(img.Layers) != 1 || img.Layers[0].Size == 0 || len(layer) == 0 {
		t.Fatalf("got %+v", img)
	}
	if _, err := readLayer(t.Context(), img, 0); err != nil {
		t.Error(err)
	}
	byDigest := mustResolve(t, New(options(t)), host+"/lib/x@"+string(img.Digest))
	if !bytes.Equal(byDigest.Manifest, img.Manifest) {
		t.Error("another manifest by digest")
	}
	out, err := exec.Command(imgtest.Program(t, "skopeo"), "inspect", "--tls-verify=false", "--format={{.Digest}}", target).Output()
	if err != nil || strings.TrimSpace(string(out)) != string(img.Digest) {
		t.Errorf("skopeo says %s, we %s: %v", out, img.Digest, err)
	}
}

package fetch

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"strings"
	"unicode"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

const (
	maxManifest = 4 << 20 // bytes of a manifest or index, as docker limits them
	maxConfig   = 8 << 20 // bytes of a config
	maxLayers   = 4096    // of one image
	maxDepth    = 4       // indexes within indexes
	maxBlob     = 1 << 50 // bytes of a layer: what is larger is a lie
)

const (
	typeSchema1       = string(types.DockerManifestSchema1)
	typeSchema1Signed = string(types.DockerManifestSchema1Signed)
	typeSchema2       = string(types.DockerManifestSchema2)
	typeList          = string(types.DockerManifestList)
	typeManifest      = string(types.OCIManifestSchema1)
	typeIndex         = string(types.OCIImageIndex)
)

var acceptManifests = strings.Join([]string{typeManifest, typeIndex, typeSchema2, typeList, typeSchema1Signed, typeSchema1}, ", ")

// document is a parsed manifest or index: exactly one of the three is set.
type document struct {
	mediaType string
	image     *v1.Manifest
	index     *v1.IndexManifest
	schema1   *schema1
}

// parseManifest reads the body of a manifest or index. contentType is what
// the server called it: only a hint, but one that must not contradict the
// body (CVE-2021-41190).
func parseManifest(body []byte, contentType string) (document, error) {
	if len(body) > maxManifest {
		return document{}, fault.New(fault.Integrity, "manifest: %d bytes, more than %d", len(body), maxManifest)
	}
	if err := uniqueKeys(body); err != nil {
		return document{}, fault.New(fault.Integrity, "manifest: %w", err)
	}
	var probe struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     string          `json:"mediaType"`
		Config        json.RawMessage `json:"config"`
		Layers        json.RawMessage `json:"layers"`
		Manifests     json.RawMessage `json:"manifests"`
		FSLayers      json.RawMessage `json:"fsLayers"`
	}
	if err := json.Unmarshal(body, &probe); err != nil {
		return document{}, fault.New(fault.Integrity, "manifest: %w", err)
	}
	hint := stripType(contentType)
	known := func(t string) bool {
		return t == typeManifest || t == typeSchema2 || t == typeIndex || t == typeList
	}
	if probe.SchemaVersion == 1 {
		if probe.Layers != nil || probe.Config != nil || probe.Manifests != nil || known(hint) || known(probe.MediaType) {
			return document{}, fault.New(fault.Integrity, "manifest: is of Docker schema 1 and of another kind: ambiguous")
		}
		one, err := parseSchema1(body)
		return document{mediaType: typeSchema1, schema1: one}, err
	}
	if probe.SchemaVersion != 2 {
		return document{}, fault.New(fault.Integrity, "manifest: schemaVersion is %d, not 2", probe.SchemaVersion)
	}
	if probe.Manifests != nil && (probe.Layers != nil || probe.Config != nil) {
		return document{}, fault.New(fault.Integrity, "manifest: holds both manifests and layers or config: ambiguous")
	}
	isIndex := probe.Manifests != nil
	for _, t := range []string{probe.MediaType, hint} {
		if known(t) && types.MediaType(t).IsIndex() != isIndex {
			return document{}, fault.New(fault.Integrity, "manifest: calls itself %s, but has other content", t)
		}
	}
	if known(hint) && probe.MediaType != "" && probe.MediaType != hint {
		return document{}, fault.New(fault.Integrity, "manifest: mediaType %q contradicts Content-Type %q", probe.MediaType, hint)
	}
	if probe.MediaType != "" && !known(probe.MediaType) {
		return document{}, fault.New(fault.Invalid, "manifest: media type %q is not supported", probe.MediaType)
	}
	d := document{mediaType: probe.MediaType}
	if d.mediaType == "" {
		d.mediaType = typeManifest
		if isIndex {
			d.mediaType = typeIndex
		}
	}
	if isIndex {
		d.index = &v1.IndexManifest{}
		if err := json.Unmarshal(body, d.index); err != nil {
			return document{}, fault.New(fault.Integrity, "index: %w", err)
		}
		return d, nil
	}
	if probe.Config == nil {
		return document{}, fault.New(fault.Integrity, "manifest: has neither config nor manifests")
	}
	d.image = &v1.Manifest{}
	if err := json.Unmarshal(body, d.image); err != nil {
		return document{}, fault.New(fault.Integrity, "manifest: %w", err)
	}
	return d, checkManifest(d.image)
}

// stripType drops the parameters of a Content-Type.
func stripType(s string) string {
	if t, _, err := mime.ParseMediaType(s); err == nil {
		return t
	}
	t, _, _ := strings.Cut(s, ";")
	return strings.ToLower(strings.TrimSpace(t))
}

// uniqueKeys refuses a JSON object that says a thing twice at its top level:
// parsers differ in which one they believe, and encoding/json compares keys
// without case.
func uniqueKeys(body []byte) error {
	dec := json.NewDecoder(bytes.NewReader(body))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return fmt.Errorf("not a JSON object")
	}
	seen := map[string]bool{}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return err
		}
		k, _ := t.(string)
		folded := strings.Map(foldRune, k)
		if seen[folded] {
			return fmt.Errorf("key %q occurs twice", k)
		}
		seen[folded] = true
		var skip json.RawMessage
		if err := dec.Decode(&skip); err != nil {
			return err
		}
	}
	if _, err := dec.Token(); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return fmt.Errorf("data behind the JSON object")
	}
	return nil
}

// foldRune returns the least of the runes that encoding/json takes for r in a
// key: more than lower case, as it takes U+017F for an s.
func foldRune(r rune) rune {
	for {
		next := unicode.SimpleFold(r)
		if next <= r {
			return next
		}
		r = next
	}
}

// checkManifest refuses what cannot be mounted, saying what it is instead.
func checkManifest(m *v1.Manifest) error {
	switch t := string(m.Config.MediaType); t {
	case "", string(types.DockerConfigJSON), string(types.OCIConfigJSON), "application/octet-stream", "application/json", "text/plain":
	case "application/vnd.docker.plugin.v1+json":
		return fault.WithHint(fault.New(fault.Invalid, "manifest: target is plugin"), "a docker plugin is no image and cannot be mounted")
	default:
		if m.ArtifactType != "" && t == "application/vnd.oci.empty.v1+json" {
			t = m.ArtifactType
		}
		return fault.WithHint(fault.New(fault.Invalid, "manifest: no container image but an artifact of type %q", t),
			"artifacts have no file system; fetch them with oras or skopeo")
	}
	if len(m.Layers) > maxLayers {
		return fault.New(fault.Integrity, "manifest: %d layers, more than %d", len(m.Layers), maxLayers)
	}
	if m.Config.Size < 0 || m.Config.Size > maxConfig {
		return fault.New(fault.Integrity, "image config: %d bytes, more than %d", m.Config.Size, maxConfig)
	}
	if m.Config.Digest.Hex == "" {
		return fault.New(fault.Integrity, "manifest: config without digest")
	}
	for i, l := range m.Layers {
		if err := checkLayer(l); err != nil {
			return fmt.Errorf("layer %d: %w", i+1, err)
		}
	}
	return nil
}

func checkLayer(l v1.Descriptor) error {
	t := string(l.MediaType)
	has := func(prefix string) bool {
		for k := range l.Annotations {
			if strings.HasPrefix(k, prefix) {
				return true
			}
		}
		return false
	}
	switch {
	case l.Digest.Hex == "":
		return fault.New(fault.Integrity, "no digest")
	case l.Size < 0 || l.Size > maxBlob:
		return fault.New(fault.Integrity, "absurd size %d", l.Size)
	case strings.HasSuffix(t, "+encrypted"):
		return fault.WithHint(fault.New(fault.Invalid, "encrypted (%s): not supported", t),
			"decrypt the image first: skopeo copy --decryption-key KEY docker://IMAGE oci:DIR")
	case strings.Contains(t, "nydus") || has("containerd.io/snapshot/nydus-"):
		return fault.WithHint(fault.New(fault.Invalid, "nydus format: not supported"), "use the image's OCI variant")
	case has("containerd.io/snapshot/overlaybd/"):
		return fault.WithHint(fault.New(fault.Invalid, "overlaybd format: not supported"), "use the image's OCI variant")
	case strings.Contains(t, "erofs"):
		return fault.WithHint(fault.New(fault.Invalid, "EROFS layer format: not supported"), "use the image's OCI variant")
	case t != "" && t != "application/octet-stream" && !strings.Contains(t, "tar"):
		return fault.New(fault.Invalid, "media type %q holds no file system", t)
	}
	return nil
}

// config is what fetch reads of an image's config.
type config struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant"`
	RootFS       *struct {
		Type    string      `json:"type"`
		DiffIDs []id.DiffID `json:"diff_ids"`
	} `json:"rootfs"`
}

// describe fills an Image from a manifest and its config, whose digest the
// caller has verified.
func describe(img *Image, m *v1.Manifest, raw []byte) error {
	var c config
	if err := json.Unmarshal(raw, &c); err != nil {
		return fault.New(fault.Integrity, "image config: %w", err)
	}
	if c.RootFS == nil || c.RootFS.Type != "layers" {
		return fault.New(fault.Integrity, "invalid rootfs in image configuration")
	}
	if len(c.RootFS.DiffIDs) != len(m.Layers) {
		return fault.New(fault.Integrity, "layers from manifest don't match image configuration (%d, %d)", len(m.Layers), len(c.RootFS.DiffIDs))
	}
	img.Config = raw
	img.ID = id.ImageIDOf(raw)
	img.Platform = Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant}
	layers, err := layersOf(m)
	if err != nil {
		return err
	}
	img.Layers = layers
	first := map[id.Blob]int{}
	for i, l := range layers {
		b, d := l.Blob, c.RootFS.DiffIDs[i]
		if d == "" {
			return fault.New(fault.Integrity, "layer %d: diffID is empty", i+1)
		}
		if j, ok := first[b]; ok && (img.Layers[j].DiffID != d || img.Layers[j].Size != l.Size) {
			return fault.New(fault.Integrity, "layers %d and %d are the same blob, but differ in size or diffID", j+1, i+1)
		} else if !ok {
			first[b] = i
		}
		img.Layers[i].DiffID = d
	}
	return nil
}

// layersOf returns what a manifest says of its layers.
func layersOf(m *v1.Manifest) ([]Layer, error) {
	layers := make([]Layer, len(m.Layers))
	for i, l := range m.Layers {
		b, err := id.ParseBlob(l.Digest.String())
		if err != nil {
			return nil, fault.New(fault.Integrity, "layer %d: %w", i+1, err)
		}
		layers[i] = Layer{Blob: b, Size: l.Size, MediaType: string(l.MediaType), URLs: l.URLs, Annotations: l.Annotations}
	}
	return layers, nil
}

// checkPlatform refuses an image of another platform than the one asked for
// by name. Asked for none, docker takes what is there, and so do we.
func checkPlatform(img *Image, want Platform) error {
	if want == (Platform{}) || img.Platform.OS == "" || want.rank(img.Platform) > 0 {
		return nil
	}
	return fault.WithHint(
		fault.New(fault.NotFound, "image with reference %s was found but does not provide the specified platform (%s)", img.Reference.Familiar(), want),
		"it provides %s", img.Platform)
}

// choose returns the descriptor of an index that fits want.
func choose(x *v1.IndexManifest, want Platform) (v1.Descriptor, error) {
	if want == (Platform{}) {
		want = HostPlatform()
	}
	i := selectPlatform(x.Manifests, want)
	if i < 0 {
		err := fault.New(fault.NotFound, "no matching manifest for %s in the manifest list entries", want)
		if have := available(x.Manifests); have != "" {
			err = fault.WithHint(err, "choose one with --platform; there are: %s", have)
		}
		return v1.Descriptor{}, err
	}
	d := x.Manifests[i]
	if d.Digest.Hex == "" || d.Size < 0 || d.Size > maxManifest {
		return v1.Descriptor{}, fault.New(fault.Integrity, "index: entry %d has no digest or an absurd size", i+1)
	}
	return d, nil
}

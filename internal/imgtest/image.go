package imgtest

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// ImageSpec describes an image to be made from layers.
type ImageSpec struct {
	Layers [][]byte // tar streams, lowest first
	// Compression of the layers: "gzip" (also ""), "none", "zstd", or the forms
	// only some tools write: "gzip-members" (several, as pigz), "zstd-frames"
	// (several, with skippable ones between).
	Compression string
	Docker      bool              // docker's schema 2 in place of OCI's types
	OS          string            // "" is linux
	Arch        string            // "" is this machine's, as Go calls it
	Variant     string            // of the architecture
	Env, Cmd    []string          // of the config
	Labels      map[string]string // of the config
	// DiffIDs, unless nil, is what the config claims in place of the truth.
	DiffIDs []string
}

// Blob is a blob with its descriptor. Digests are "sha256:" and 64 digits.
type Blob struct {
	MediaType string
	Digest    string
	Data      []byte
}

// Image is an image ready to be pushed or written.
type Image struct {
	Manifest Blob
	Config   Blob // its digest is the image ID
	Layers   []Blob
	DiffIDs  []string
}

// NewImage makes an image. The same spec gives the same bytes.
func NewImage(spec ImageSpec) (*Image, error) {
	kind := map[bool][4]string{
		false: {"application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar", "+"},
		true:  {"application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.container.image.v1+json", "application/vnd.docker.image.rootfs.diff.tar", "."},
	}[spec.Docker]
	m := &Image{}
	for _, layer := range spec.Layers {
		data, suffix, err := compress(layer, spec.Compression)
		if err != nil {
			return nil, err
		}
		mediaType := kind[2]
		if suffix != "" {
			mediaType += kind[3] + suffix
		}
		m.Layers = append(m.Layers, blobOf(mediaType, data))
		m.DiffIDs = append(m.DiffIDs, digestOf(layer))
	}
	claimed := m.DiffIDs
	if spec.DiffIDs != nil {
		claimed = spec.DiffIDs
	}
	config := map[string]any{
		"created": "2024-01-01T00:00:00Z",
		"os":      or(spec.OS, "linux"), "architecture": or(spec.Arch, runtime.GOARCH),
		"config": map[string]any{"Env": spec.Env, "Cmd": spec.Cmd, "Labels": spec.Labels},
		"rootfs": map[string]any{"type": "layers", "diff_ids": append([]string{}, claimed...)},
	}
	if spec.Variant != "" {
		config["variant"] = spec.Variant
	}
	b, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	m.Config = blobOf(kind[1], b)
	layers := []blobDescriptor{}
	for _, l := range m.Layers {
		layers = append(layers, l.descriptor())
	}
	b, err = json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": kind[0], "config": m.Config.descriptor(), "layers": layers,
	})
	m.Manifest = blobOf(kind[0], b)
	return m, err
}

// blobDescriptor is a descriptor as manifests hold it.
type blobDescriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int    `json:"size"`
}

func (b *Blob) descriptor() blobDescriptor { return blobDescriptor{b.MediaType, b.Digest, len(b.Data)} }

func blobOf(mediaType string, data []byte) Blob { return Blob{mediaType, digestOf(data), data} }

func digestOf(b []byte) string {
	s := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(s[:])
}

func or(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// compress returns the blob of a layer and its media type's suffix.
func compress(layer []byte, how string) ([]byte, string, error) {
	var out bytes.Buffer
	pieces := [][]byte{layer}
	if how == "gzip-members" || how == "zstd-frames" {
		// Not at the border of a record, and the first one empty.
		cut := len(layer)/3 + 1
		pieces = [][]byte{nil, layer[:min(cut, len(layer))], layer[min(cut, len(layer)):]}
	}
	switch how {
	case "none":
		return layer, "", nil
	case "", "gzip", "gzip-members":
		for i, p := range pieces {
			w, err := gzip.NewWriterLevel(&out, gzip.BestSpeed)
			if err != nil {
				return nil, "", err
			}
			if len(pieces) > 1 {
				w.Name, w.Extra = fmt.Sprintf("member %d", i), []byte("extra field")
			}
			if _, err := w.Write(p); err != nil {
				return nil, "", err
			}
			if err := w.Close(); err != nil {
				return nil, "", err
			}
		}
		return out.Bytes(), "gzip", nil
	case "zstd", "zstd-frames":
		w, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
		if err != nil {
			return nil, "", err
		}
		defer w.Close()
		for _, p := range pieces {
			if len(pieces) > 1 {
				out.WriteString("\x50\x2a\x4d\x18\x05\x00\x00\x00skip!")
			}
			out.Write(w.EncodeAll(p, nil))
		}
		return out.Bytes(), "zstd", nil
	}
	return nil, "", fmt.Errorf("compression %q: unknown", how)
}

// Push puts the image into the registry at host (address:port, plain HTTP)
// under name and tag.
func (m *Image) Push(ctx context.Context, host, name, tag string) error {
	for _, b := range append([]Blob{m.Config}, m.Layers...) {
		if err := pushBlob(ctx, host, name, &b); err != nil {
			return fmt.Errorf("push %s: %w", b.Digest, err)
		}
	}
	_, err := put(ctx, http.MethodPut, fmt.Sprintf("http://%s/v2/%s/manifests/%s", host, name, tag), m.Manifest.MediaType, m.Manifest.Data, http.StatusCreated)
	return err
}

func pushBlob(ctx context.Context, host, name string, b *Blob) error {
	start := fmt.Sprintf("http://%s/v2/%s/blobs/uploads/", host, name)
	location, err := put(ctx, http.MethodPost, start, "", nil, http.StatusAccepted)
	if err != nil {
		return err
	}
	base, err := url.Parse(start)
	if err != nil {
		return err
	}
	u, err := base.Parse(location)
	if err != nil {
		return err
	}
	q := u.Query()
	q.Set("digest", b.Digest)
	u.RawQuery = q.Encode()
	_, err = put(ctx, http.MethodPut, u.String(), "application/octet-stream", b.Data, http.StatusCreated)
	return err
}

// put sends body and returns the answer's Location.
func put(ctx context.Context, method, url, mediaType string, body []byte, want int) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	if mediaType != "" {
		req.Header.Set("Content-Type", mediaType)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != want {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return "", fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, text)
	}
	return resp.Header.Get("Location"), nil
}

// WriteLayout writes the image as an OCI layout directory, which it makes.
func (m *Image) WriteLayout(dir, tag string) error {
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	for _, b := range append([]Blob{m.Manifest, m.Config}, m.Layers...) {
		if err := os.WriteFile(filepath.Join(blobs, strings.TrimPrefix(b.Digest, "sha256:")), b.Data, 0o644); err != nil {
			return err
		}
	}
	type named struct {
		blobDescriptor
		Annotations map[string]string `json:"annotations"`
	}
	index, err := json.Marshal(map[string]any{
		"schemaVersion": 2,
		"manifests":     []named{{m.Manifest.descriptor(), map[string]string{"org.opencontainers.image.ref.name": tag}}},
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "index.json"), index, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644)
}

// WriteDockerArchive writes the image as docker save does, under the names ref,
// to file. Layers are as in the image: docker itself writes them uncompressed.
func (m *Image) WriteDockerArchive(file string, refs ...string) error {
	type entry struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	e := entry{Config: strings.TrimPrefix(m.Config.Digest, "sha256:") + ".json", RepoTags: refs}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	add := func(name string, data []byte) error {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data))}); err != nil {
			return err
		}
		_, err := w.Write(data)
		return err
	}
	seen := map[string]bool{}
	for _, l := range m.Layers {
		name := strings.TrimPrefix(l.Digest, "sha256:") + "/layer.tar"
		e.Layers = append(e.Layers, name)
		if !seen[name] {
			if err := add(name, l.Data); err != nil {
				return err
			}
		}
		seen[name] = true
	}
	if err := add(e.Config, m.Config.Data); err != nil {
		return err
	}
	manifest, err := json.Marshal([]entry{e})
	if err != nil {
		return err
	}
	if err := add("manifest.json", manifest); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return os.WriteFile(file, out.Bytes(), 0o644)
}

package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/imgfs/imgfs/imagedb"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/layerdb"
)

// Commit implements engineapi.Contents. Nothing of the image is visible before
// all of it is there. An upper without changes adds an entry to the history
// and no layer, as with docker.
func (e *engine) Commit(ctx context.Context, req engineapi.CommitRequest) (engineapi.CommitResult, error) {
	var res engineapi.CommitResult
	name, err := newName(req.Reference)
	if err != nil {
		return res, err
	}
	if err := e.beginWork(); err != nil {
		return res, err
	}
	defer e.endWork()
	s, err := e.source(ctx, req.Source)
	if err != nil {
		return res, err
	}
	defer s.close()
	if s.upper == nil {
		return res, fault.New(fault.Invalid, "%s has no upper: there is nothing to commit", s.image.name)
	}
	base, err := e.images.Get(s.image.id)
	if err != nil {
		return res, fault.WithHint(err, "its config is needed; imgfs pull %s", fault.Word(s.image.name))
	}
	if err := e.checkBase(&base, s.image.layers); err != nil {
		return res, err
	}
	made := commitment{base: base, req: req, created: time.Now().UTC()}
	if req.Created != nil {
		made.created = time.Unix(*req.Created, 0).UTC()
	}
	if err := made.setConfig(); err != nil { // before the work
		return res, err
	}
	p, err := e.layers.Pack(ctx, cmp.Or(req.Compression, "gzip"), func(w io.Writer) error { return s.upper.WriteLayer(ctx, w, s.low) })
	if err != nil {
		return res, adviseDamage(err, s.upper)
	}
	defer p.Close()
	if p.DiffID != emptyLayer {
		made.layer = p
		res.Layer = p.DiffID
	}
	img, err := made.image(e)
	if err != nil {
		return res, err
	}
	keys := made.keys(s.image.layers)
	free, err := e.holdLayers("commit", keys)
	if err != nil {
		return res, err
	}
	defer free()
	if made.layer != nil {
		if _, _, err := e.layers.Ensure(ctx, p.Spec(), nil); err != nil {
			return res, err
		}
	}
	res.Digest = img.ManifestDigest
	if res.ID, err = e.putMade(img, keys, made.layer, name); err != nil {
		return res, err
	}
	if img, err := e.images.Peek(res.ID); err == nil { // else it is gone already
		e.imageEvent("commit", &img)
	}
	return res, nil
}

// checkBase refuses an upper that lies on other layers than those of img. They
// may be stored under other keys than img is now: since the upper was made, the
// image may have come anew, read with another index.
func (e *engine) checkBase(img *imagedb.Image, layers []id.LayerKey) error {
	diffs := make([]id.DiffID, len(layers))
	for i, k := range layers {
		h, err := e.layers.Layer(k)
		if err != nil {
			return err
		}
		diffs[i] = h.Info().DiffID
		h.Release()
	}
	if !slices.Equal(diffs, img.DiffIDs()) {
		return fault.New(fault.Conflict, "image %s is not the one that the upper lies on", img.ID.Short())
	}
	return nil
}

// emptyLayer is the tar of nothing: 1024 zeros.
const emptyLayer id.DiffID = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"

// newName returns the full name that an image gets that is made here, "" for
// none.
func newName(name string) (string, error) {
	if name == "" {
		return "", nil
	}
	ref, err := parseTag(name)
	return ref.String(), err
}

// putMade records an image that was made here, whose layers are all there, and
// keeps the blob of its layer, nil if it has none of its own.
func (e *engine) putMade(img imagedb.Image, keys []id.LayerKey, p *layerdb.Packed, name string) (id.ImageID, error) {
	e.names.Lock()
	defer e.names.Unlock()
	if p != nil {
		if err := e.images.Keep(p.Path(), p.Blob); err != nil {
			return "", err
		}
	}
	if !e.images.Has(img.Parent) {
		img.Parent = "" // it was removed meanwhile
	}
	imageID, err := e.create(img, keys)
	if err != nil {
		return "", err
	}
	if img, err = e.images.Peek(imageID); err != nil {
		return "", err
	}
	if name != "" {
		if err := e.images.Tag(name, imageID); err != nil {
			return "", err
		}
		e.imageEvent("tag", &img, "name", imagedb.Familiar(name))
	}
	e.log.Info("made", "reference", name, "image", imageID, "digest", img.ManifestDigest)
	return imageID, nil
}

// commitment is an image being made out of a base and a layer.
type commitment struct {
	base    imagedb.Image
	req     engineapi.CommitRequest
	created time.Time
	layer   *layerdb.Packed            // nil: nothing was changed
	config  map[string]json.RawMessage // of the new image, but for history and rootfs
}

// keys returns the stored layers of the new image, base being those below.
func (m *commitment) keys(base []id.LayerKey) []id.LayerKey {
	if m.layer == nil {
		return base
	}
	return append(slices.Clone(base), m.layer.DiffID.Key())
}

// setConfig sets the config but for history and rootfs. All that is not known
// here stays as the base has it.
func (m *commitment) setConfig() error {
	if err := json.Unmarshal(m.base.Config, &m.config); err != nil {
		return fault.New(fault.Integrity, "image %s: config: %w", m.base.ID.Short(), err)
	}
	for _, of := range []string{"container", "container_config", "docker_version", "author", "comment", "id", "parent", "Size"} {
		delete(m.config, of)
	}
	run := runConfig{}
	if raw := m.config["config"]; len(raw) > 0 {
		if err := json.Unmarshal(raw, &run); err != nil {
			return fault.New(fault.Integrity, "image %s: config: %w", m.base.ID.Short(), err)
		}
	}
	if run == nil { // null
		run = runConfig{}
	}
	if err := run.apply(m.req.Changes); err != nil {
		return err
	}
	set := map[string]any{"created": m.created, "config": run}
	if m.req.Author != "" {
		set["author"] = m.req.Author
	}
	if m.req.Message != "" {
		set["comment"] = m.req.Message
	}
	return setFields(m.config, set)
}

func setFields(m map[string]json.RawMessage, fields map[string]any) error {
	for k, v := range fields {
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		m[k] = b
	}
	return nil
}

// history is the entry of a commit in an image's history.
type history struct {
	Created   time.Time `json:"created"`
	CreatedBy string    `json:"created_by"`
	Author    string    `json:"author,omitempty"`
	Comment   string    `json:"comment,omitempty"`
	Empty     bool      `json:"empty_layer,omitempty"`
}

// rootFS lists an image's layers in its config.
type rootFS struct {
	Type    string      `json:"type"`
	DiffIDs []id.DiffID `json:"diff_ids"`
}

// descriptor refers to a blob in a manifest.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      id.Blob           `json:"digest"`
	Size        int64             `json:"size"`
	URLs        []string          `json:"urls,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

const (
	ociManifest = "application/vnd.oci.image.manifest.v1+json"
	ociConfig   = "application/vnd.oci.image.config.v1+json"
	ociLayer    = "application/vnd.oci.image.layer.v1.tar"
	ociForeign  = "application/vnd.oci.image.layer.nondistributable.v1.tar"
)

// image returns the record of the new image, its config and manifest made.
func (m *commitment) image(e *engine) (imagedb.Image, error) {
	img := imagedb.Image{Platform: m.base.Platform, Parent: m.base.ID, Layers: slices.Clone(m.base.Layers)}
	layers, err := e.ociLayers(&m.base)
	if err != nil {
		return img, err
	}
	if m.layer != nil {
		img.Layers = append(img.Layers, imagedb.Layer{DiffID: m.layer.DiffID, Blob: m.layer.Blob, Size: m.layer.Size})
		layers = append(layers, descriptor{MediaType: ociLayer + "+" + cmp.Or(m.req.Compression, "gzip"), Digest: m.layer.Blob, Size: m.layer.Size})
	}
	var past []json.RawMessage
	if raw := m.config["history"]; len(raw) > 0 {
		if err := json.Unmarshal(raw, &past); err != nil {
			return img, fault.New(fault.Integrity, "image %s: history: %w", m.base.ID.Short(), err)
		}
	}
	now, err := json.Marshal(history{m.created, "imgfs commit", m.req.Author, m.req.Message, m.layer == nil})
	if err != nil {
		return img, err
	}
	err = setFields(m.config, map[string]any{"history": append(past, now), "rootfs": rootFS{"layers", img.DiffIDs()}})
	if err != nil {
		return img, err
	}
	if img.Config, err = json.Marshal(m.config); err != nil {
		return img, err
	}
	img.ID = id.ImageIDOf(img.Config)
	img.Manifest, err = ociManifestOf(img.Config, layers)
	img.ManifestDigest = id.BlobOf(img.Manifest)
	img.Digest = img.ManifestDigest
	return img, err
}

// ociManifestOf returns the manifest of an image.
func ociManifestOf(config []byte, layers []descriptor) ([]byte, error) {
	return json.Marshal(struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        descriptor   `json:"config"`
		Layers        []descriptor `json:"layers"`
	}{2, ociManifest, descriptor{MediaType: ociConfig, Digest: id.BlobOf(config), Size: int64(len(config))}, layers})
}

// ociLayers returns the descriptors of an image's layers, with OCI's media
// types. A layer that came without a blob of its own, as from docker save, is
// its uncompressed tar.
func (e *engine) ociLayers(img *imagedb.Image) ([]descriptor, error) {
	var old struct {
		Layers []descriptor `json:"layers"`
	}
	if img.Manifest != nil {
		_ = json.Unmarshal(img.Manifest, &old) // one of another form says nothing here
	}
	keys := e.keysOf(img)
	list := make([]descriptor, 0, len(img.Layers)+1)
	for i, l := range img.Layers {
		if i < len(old.Layers) && l.Blob != "" && old.Layers[i].Digest == l.Blob {
			d := old.Layers[i]
			d.MediaType = ociMediaType(d.MediaType)
			list = append(list, d)
			continue
		}
		info, err := e.layers.Info(keys[i])
		if err != nil {
			return nil, err
		}
		d := descriptor{MediaType: ociLayer, Digest: l.Blob, Size: l.Size}
		switch {
		case l.Blob == "" || l.Size == 0:
			d.Digest, d.Size = id.Blob(l.DiffID), info.StreamSize
		case info.Blob != l.Blob:
			d.MediaType += "+gzip" // by far the likeliest, and readers look at the bytes
		case info.Compression != "none":
			d.MediaType += "+" + info.Compression
		}
		list = append(list, d)
	}
	return list, nil
}

// ociMediaType returns a layer's media type as OCI has it.
func ociMediaType(t string) string {
	const docker = "application/vnd.docker.image.rootfs."
	rest, ok := strings.CutPrefix(t, docker)
	if !ok {
		return t
	}
	kind := ociLayer
	if r, foreign := strings.CutPrefix(rest, "foreign."); foreign {
		kind, rest = ociForeign, r
	}
	switch rest {
	case "diff.tar.gzip":
		return kind + "+gzip"
	case "diff.tar.zstd":
		return kind + "+zstd"
	case "diff.tar":
		return kind
	}
	return t
}

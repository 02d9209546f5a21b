package toc

import (
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/imgfs/imgfs/internal/id"
)

// An artifact is what stands beside an image in its repository: an OCI manifest
// that lists blobs, each an index of one of the image's layers. Ours and SOCI's
// first version name the image as their subject and are found as its referrers;
// SOCI's second version is named by an annotation of the image's manifest,
// [SociAnnotation].

// Types of artifacts, as referrers are asked for.
const (
	OwnArtifact    = "application/vnd.imgfs.index.v1"
	SociArtifact   = "application/vnd.amazon.soci.index.v1+json" // found as a referrer
	SociArtifactV2 = "application/vnd.amazon.soci.index.v2+json" // found by an annotation

	// SociAnnotation of an image's manifest is the digest of its SOCI index.
	SociAnnotation = "com.amazon.soci.index-digest"
)

// Types of the blobs of artifacts.
const (
	ownLayerType = "application/vnd.imgfs.layer.v1"
	ownTraceType = "application/vnd.imgfs.trace.v1"

	sociLayerType = "application/octet-stream"
	manifestType  = "application/vnd.oci.image.manifest.v1+json"
	emptyType     = "application/vnd.oci.empty.v1+json"
)

// EmptyConfig is the config blob of every artifact; it has to be pushed too.
const EmptyConfig = "{}"

// Annotations of an artifact's blobs.
const (
	ownLayer      = "io.imgfs.layer.digest" // of the layer it is the index of
	ownSize       = "io.imgfs.layer.size"   // bytes of its data
	sociLayer     = "com.amazon.soci.image-layer-digest"
	sociMediaType = "com.amazon.soci.image-layer-mediaType"
	sociSpanSize  = "com.amazon.soci.span-size"
)

const (
	maxParts    = 10_000 // of an artifact
	maxManifest = 4 << 20
)

// Artifact is an index of an image.
type Artifact struct {
	Kind    string  // Own or Soci
	Type    string  // one of the artifact types
	Subject Subject // the image's manifest; SOCI's second version has none
	Layers  []Part  // for each layer that has one, in the image's order
	Trace   *Part   // ours only, and optional
}

// Subject is the manifest an artifact belongs to.
type Subject struct {
	MediaType string  `json:"mediaType"`
	Digest    id.Blob `json:"digest"`
	Size      int64   `json:"size"`
}

// Part is a blob of an artifact.
type Part struct {
	Digest id.Blob
	Size   int64 // bytes of the blob

	Layer     id.Blob // the layer it is the index of; "" for a trace
	LayerType string  // SOCI: the layer's media type
	DataSize  int64   // ours: bytes of the layer's data
	SpanSize  int64   // SOCI: bytes between checkpoints
}

// descriptor and manifest are those of the OCI image specification, with the
// fields in its order: SOCI writes them so.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      id.Blob           `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	ArtifactType  string       `json:"artifactType,omitempty"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
	Subject       *Subject     `json:"subject,omitempty"`
}

// Encode returns the artifact's manifest, an OCI image manifest. Kind is not asked.
func (a *Artifact) Encode() ([]byte, error) {
	m := manifest{
		SchemaVersion: 2,
		MediaType:     manifestType,
		Config:        descriptor{MediaType: a.Type, Digest: id.BlobOf([]byte(EmptyConfig)), Size: int64(len(EmptyConfig))},
		Layers:        []descriptor{},
	}
	if a.Type == OwnArtifact {
		m.ArtifactType, m.Config.MediaType = a.Type, emptyType
	}
	if a.Type != SociArtifactV2 {
		m.Subject = &a.Subject
	}
	for _, p := range a.Layers {
		d := descriptor{Digest: p.Digest, Size: p.Size}
		if a.Type == OwnArtifact {
			d.MediaType = ownLayerType
			d.Annotations = map[string]string{ownLayer: string(p.Layer), ownSize: strconv.FormatInt(p.DataSize, 10)}
		} else {
			d.MediaType = sociLayerType
			d.Annotations = map[string]string{
				sociLayer: string(p.Layer), sociMediaType: p.LayerType, sociSpanSize: strconv.FormatInt(p.SpanSize, 10),
			}
		}
		m.Layers = append(m.Layers, d)
	}
	if a.Trace != nil {
		m.Layers = append(m.Layers, descriptor{MediaType: ownTraceType, Digest: a.Trace.Digest, Size: a.Trace.Size})
	}
	return json.Marshal(&m)
}

// ParseManifest reads the manifest of an artifact, ours or SOCI's. ErrNone says
// that it is another's. What its blobs are is only found when they are read.
func ParseManifest(b []byte) (*Artifact, error) {
	if len(b) > maxManifest {
		return nil, fmt.Errorf("%w: a manifest of %d bytes (limit %d)", ErrCorrupt, len(b), maxManifest)
	}
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("%w: manifest: %w", ErrCorrupt, err)
	}
	a := &Artifact{Kind: Own, Type: m.ArtifactType}
	if a.Type != OwnArtifact {
		a.Kind, a.Type = Soci, m.Config.MediaType // SOCI's, as its own reader has it
	}
	switch a.Type {
	case OwnArtifact, SociArtifact, SociArtifactV2:
	default:
		return nil, fmt.Errorf("%w: artifact of type %.100q", ErrNone, a.Type)
	}
	if m.Subject != nil {
		a.Subject = *m.Subject
	}
	if len(m.Layers) > maxParts {
		return nil, fmt.Errorf("%w: %d blobs (limit %d)", ErrCorrupt, len(m.Layers), maxParts)
	}
	for _, d := range m.Layers {
		p, err := a.part(&d)
		if err != nil {
			return nil, err
		}
		switch {
		case p == nil: // of another kind
		case p.Layer == "":
			a.Trace = p
		default:
			a.Layers = append(a.Layers, *p)
		}
	}
	return a, nil
}

// part reads the descriptor of a blob, nil for one that is nothing to us.
func (a *Artifact) part(d *descriptor) (*Part, error) {
	p := &Part{Digest: d.Digest, Size: d.Size}
	layer, sized := d.Annotations[sociLayer], d.Annotations[sociSpanSize]
	switch {
	case a.Type == OwnArtifact && d.MediaType == ownTraceType:
		layer = ""
	case a.Type == OwnArtifact && d.MediaType == ownLayerType:
		layer, sized = d.Annotations[ownLayer], d.Annotations[ownSize]
	case a.Type == OwnArtifact || d.MediaType != sociLayerType:
		return nil, nil
	}
	if p.Digest == "" || p.Size < 0 {
		return nil, fmt.Errorf("%w: a blob %.80q of %d bytes", ErrCorrupt, p.Digest, p.Size)
	}
	if d.MediaType == ownTraceType {
		return p, nil
	}
	var err error
	if p.Layer, err = id.ParseBlob(layer); err != nil {
		return nil, fmt.Errorf("%w: the index of layer %.80q", ErrCorrupt, layer)
	}
	n, _ := strconv.ParseInt(sized, 10, 64) // tells people, decides nothing
	if a.Type == OwnArtifact {
		p.DataSize = n
	} else {
		p.SpanSize, p.LayerType = n, d.Annotations[sociMediaType]
	}
	return p, nil
}

// Decode reads a part of an artifact of a kind, the index of layer d. Its Digest
// is the part's.
func Decode(kind string, part []byte, d Descriptor) (*Index, error) {
	if kind == Own {
		return decodeLayer(part, d)
	}
	z, err := parseZtoc(part)
	if err != nil {
		return nil, err
	}
	return z.Index(d)
}

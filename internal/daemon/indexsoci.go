package daemon

import (
	"context"
	"encoding/json"

	"github.com/imgfs/imgfs/fetch"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/toc"
)

// pushAnnotated pushes the image anew, with SOCI's index of the second version
// beside it: the image's manifest names the index in an annotation, and both
// stand in one OCI index under the name to, as SOCI's own conversion has it.
// No layer is copied, so to must be in the image's repository.
func (p *publication) pushAnnotated(ctx context.Context, to string) (engineapi.IndexResult, error) {
	if to == "" {
		return engineapi.IndexResult{}, fault.WithHint(fault.New(fault.Invalid, "SOCI's second version makes an image of another digest, which needs a name"),
			"give it one, a tag in the same repository: --tag soci")
	}
	at, err := inRegistry(to)
	if err != nil {
		return engineapi.IndexResult{}, err
	}
	if at.Name() != p.ref.Name() || at.Tag() == "" {
		return engineapi.IndexResult{}, fault.New(fault.Invalid, "%s: it has to be a tag of %s", to, p.ref.FamiliarName())
	}
	a, res, err := p.parts(ctx, toc.SociArtifactV2)
	if err != nil {
		return res, err
	}
	index, err := a.Encode()
	if err != nil {
		return res, err
	}
	res.Digest = id.BlobOf(index)
	image, err := annotated(p.img.Manifest, res.Digest)
	if err != nil {
		return res, err
	}
	both, err := p.ociIndex(image, index)
	if err != nil {
		return res, err
	}
	for _, m := range []struct {
		ref       string
		mediaType string
		body      []byte
	}{
		{p.ref.Name() + "@" + string(res.Digest), ociManifest, index},
		{p.ref.Name() + "@" + string(id.BlobOf(image)), ociManifest, image},
		{at.String(), ociIndexType, both},
	} {
		ref, err := fetch.ParseReference(m.ref)
		if err != nil {
			return res, err
		}
		if _, err := p.client.PushManifest(ctx, ref, m.mediaType, m.body); err != nil {
			return res, err
		}
	}
	res.Reference = at.Familiar()
	return res, nil
}

// annotated returns a manifest in OCI's terms that names a SOCI index.
func annotated(manifest []byte, index id.Blob) ([]byte, error) {
	var m struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     string            `json:"mediaType"`
		Config        descriptor        `json:"config"`
		Layers        []descriptor      `json:"layers"`
		Annotations   map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(manifest, &m); err != nil {
		return nil, fault.New(fault.Invalid, "manifest: %w", err)
	}
	m.SchemaVersion, m.MediaType, m.Config.MediaType = 2, ociManifest, ociConfig
	for i := range m.Layers {
		m.Layers[i].MediaType = ociMediaType(m.Layers[i].MediaType)
	}
	if m.Annotations == nil {
		m.Annotations = map[string]string{}
	}
	m.Annotations[toc.SociAnnotation] = string(index)
	return json.Marshal(&m)
}

// ociIndex returns the OCI index of an image and its SOCI index.
func (p *publication) ociIndex(image, soci []byte) ([]byte, error) {
	want, err := fetch.ParsePlatform(p.img.Platform)
	if err != nil {
		return nil, err
	}
	type entry struct {
		MediaType    string            `json:"mediaType"`
		ArtifactType string            `json:"artifactType,omitempty"`
		Digest       id.Blob           `json:"digest"`
		Size         int               `json:"size"`
		Platform     *fetch.Platform   `json:"platform,omitempty"`
		Annotations  map[string]string `json:"annotations,omitempty"`
	}
	return json.Marshal(struct {
		SchemaVersion int     `json:"schemaVersion"`
		MediaType     string  `json:"mediaType"`
		Manifests     []entry `json:"manifests"`
	}{2, ociIndexType, []entry{
		{MediaType: ociManifest, Digest: id.BlobOf(image), Size: len(image), Platform: &want,
			Annotations: map[string]string{toc.SociAnnotation: string(id.BlobOf(soci))}},
		{MediaType: ociManifest, ArtifactType: toc.SociArtifactV2, Digest: id.BlobOf(soci), Size: len(soci), Platform: &want,
			Annotations: map[string]string{"com.amazon.soci.image-manifest-digest": string(id.BlobOf(image))}},
	}})
}

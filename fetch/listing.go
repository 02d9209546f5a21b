package fetch

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// artifact is what a manifest says of itself as a referrer.
type artifact struct {
	ArtifactType string            `json:"artifactType"`
	Annotations  map[string]string `json:"annotations"`
	Subject      *v1.Descriptor    `json:"subject"`
	Config       struct {
		MediaType string `json:"mediaType"`
	} `json:"config"`
}

// subject returns the digest of the manifest that a refers to, "" for none.
func (a artifact) subject() id.Blob {
	if a.Subject == nil {
		return ""
	}
	d, err := id.ParseBlob(a.Subject.Digest.String())
	if err != nil {
		return ""
	}
	return d
}

// list enters a manifest that was pushed into the index of its subject's
// referrers, which stands in for the API that the registry lacks. As the
// specification admits, of two who do so at the same time one may be lost.
func (e *endpoint) list(ctx context.Context, ref Reference, mediaType string, body []byte) error {
	var a artifact
	if json.Unmarshal(body, &a) != nil || a.subject() == "" {
		return nil
	}
	digest := hashOf(id.BlobOf(body))
	x, err := e.referrersTag(ctx, ref, a.subject())
	if statusOf(err) == http.StatusNotFound {
		x, err = &v1.IndexManifest{}, nil
	}
	if err != nil {
		return err
	}
	if slices.ContainsFunc(x.Manifests, func(d v1.Descriptor) bool { return d.Digest == digest }) {
		return nil
	}
	x.Manifests = append(x.Manifests, v1.Descriptor{MediaType: types.MediaType(mediaType), Digest: digest, Size: int64(len(body)),
		ArtifactType: firstOf(a.ArtifactType, a.Config.MediaType), Annotations: a.Annotations})
	return e.putReferrers(ctx, ref, a.subject(), x)
}

// unlist takes a manifest out of that index, and reports whether it was in it.
func (e *endpoint) unlist(ctx context.Context, ref Reference, digest id.Blob) (bool, error) {
	got, err := e.manifest(ctx, ref.path, string(digest), digest)
	if err != nil {
		return false, err
	}
	var a artifact
	if json.Unmarshal(got.body, &a) != nil || a.subject() == "" {
		return false, nil
	}
	x, err := e.referrersTag(ctx, ref, a.subject())
	if statusOf(err) == http.StatusNotFound {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	n := len(x.Manifests)
	x.Manifests = slices.DeleteFunc(x.Manifests, func(d v1.Descriptor) bool { return d.Digest == hashOf(digest) })
	if len(x.Manifests) == n {
		return false, nil
	}
	return true, e.putReferrers(ctx, ref, a.subject(), x)
}

func (e *endpoint) putReferrers(ctx context.Context, ref Reference, subject id.Blob, x *v1.IndexManifest) error {
	x.SchemaVersion, x.MediaType = 2, types.OCIImageIndex
	if x.Manifests == nil {
		x.Manifests = []v1.Descriptor{}
	}
	body, err := json.Marshal(x)
	if err != nil {
		return err
	}
	if len(body) > maxManifest {
		return fault.New(fault.Invalid, "%s has more referrers than an index can hold", subject)
	}
	_, err = e.putManifest(ctx, ref, referrersTagOf(subject), typeIndex, body)
	return err
}

package fetch

import (
	"context"
	"errors"
	"io"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// Manifest is an image as far as its manifest says: which blobs its layers
// are. [Manifest.Image] gets the rest, its config.
type Manifest struct {
	Reference      Reference
	Digest         id.Blob // of what the reference names: an index or a manifest
	ManifestDigest id.Blob // of Raw
	Raw            []byte
	MediaType      string            // of Raw
	Annotations    map[string]string // of Raw
	ID             id.ImageID        // digest of the config; "" for Docker schema 1
	Layers         []Layer           // lowest first; their DiffID is ""

	image func(context.Context) (*Image, error)
	blobs *blobs
}

// Image is what a reference names, on one platform.
type Image struct {
	Reference      Reference
	Digest         id.Blob // of what the reference names: an index or a manifest
	ManifestDigest id.Blob // of Manifest
	Manifest       []byte
	MediaType      string // of Manifest
	Config         []byte
	ID             id.ImageID // digest of Config
	Platform       Platform   // what the config says
	Layers         []Layer    // lowest first

	// Schema1 says that the image is in Docker's schema 1, which does not
	// state diffIDs: Config and ID are empty, and so is the DiffID of every
	// layer but an empty one. Who has seen the layers asks [Image.ConfigOf].
	Schema1 bool

	schema1 *schema1 // nil = another schema
	blobs   *blobs
}

// Layer is one layer of an image.
type Layer struct {
	Blob        id.Blob // digest of the blob's bytes
	Size        int64   // of those bytes
	DiffID      id.DiffID
	MediaType   string            // a hint only
	URLs        []string          // further sources of a foreign layer
	Annotations map[string]string // of its descriptor in the manifest
}

// blobs are the layers of one image as blobs, made when first asked for.
type blobs struct {
	layers []Layer
	make   func(Layer) *Blob

	mu   sync.Mutex
	list []*Blob
}

func newBlobs(layers []Layer, make func(Layer) *Blob) *blobs {
	return &blobs{layers: layers, make: make}
}

func (b *blobs) at(i int) *Blob {
	if b == nil || i < 0 || i >= len(b.layers) {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.list == nil {
		b.list = make([]*Blob, len(b.layers))
	}
	if b.list[i] == nil {
		b.list[i] = b.make(b.layers[i])
	}
	return b.list[i]
}

func (b *blobs) open(ctx context.Context, i int) (io.ReadCloser, error) {
	if blob := b.at(i); blob != nil {
		return blob.Open(ctx)
	}
	return nil, errors.New("layer: out of range")
}

// Blob returns layer i as a blob to read ranges of, always the same one; nil
// if there is no such layer.
func (m *Manifest) Blob(i int) *Blob { return m.blobs.at(i) }

// Blob returns layer i as a blob to read ranges of, always the same one, and
// the one that the image's Manifest gives; nil if there is no such layer.
func (img *Image) Blob(i int) *Blob { return img.blobs.at(i) }

// Open returns the raw bytes of layer i from the start, as [Blob.Open] does.
func (img *Image) Open(ctx context.Context, i int) (io.ReadCloser, error) {
	return img.blobs.open(ctx, i)
}

// Image gets the config and returns the whole image. What was said of
// [Client.Resolve]'s errors holds here.
func (m *Manifest) Image(ctx context.Context) (*Image, error) { return m.image(ctx) }

// Resolve finds the image that ref names for platform p.
//
// Errors: NotFound if the tag, the repository or the platform is not there;
// Denied if the registry wants other credentials; Network if it cannot be
// reached; Integrity if what it sends is not what it should be; Invalid if
// what it sends is no container image.
func (c *Client) Resolve(ctx context.Context, ref Reference, p Platform) (*Image, error) {
	m, err := c.ResolveManifest(ctx, ref, p)
	if err != nil {
		return nil, err
	}
	return m.Image(ctx)
}

// ResolveManifest is the first step of [Client.Resolve]: it takes one round
// trip, or two where the reference names an index. The second step,
// [Manifest.Image], may go on beside what the caller does with the layers.
// That the image is for another platform than p may come out in either step.
func (c *Client) ResolveManifest(ctx context.Context, ref Reference, p Platform) (*Manifest, error) {
	switch {
	case ref.Local():
		if err := c.mayRead(ref); err != nil {
			return nil, err
		}
		img, err := resolveLocal(ctx, ref, p)
		if err != nil {
			return nil, err
		}
		return img.manifest(nil, func(context.Context) (*Image, error) { return img, nil }), nil
	case ref.source == "":
		return nil, fault.New(fault.Invalid, "invalid reference format")
	}
	return c.resolve(ctx, ref, p)
}

// manifest returns the first step of img; image makes the second.
func (img *Image) manifest(m *v1.Manifest, image func(context.Context) (*Image, error)) *Manifest {
	out := &Manifest{Reference: img.Reference, Digest: img.Digest, ManifestDigest: img.ManifestDigest, Raw: img.Manifest,
		MediaType: img.MediaType, ID: img.ID, image: image, blobs: img.blobs}
	if m != nil {
		out.Annotations = m.Annotations
		out.ID = id.ImageID(m.Config.Digest.String())
	}
	for _, l := range img.Layers {
		l.DiffID = ""
		out.Layers = append(out.Layers, l)
	}
	return out
}

package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/imgfs/imgfs/fetch"
	"github.com/imgfs/imgfs/imagedb"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/toc"
	"github.com/imgfs/imgfs/layerdb"
)

const (
	ociIndexType = "application/vnd.oci.image.index.v1+json"

	// sociSpan is SOCI's own default. What names the builder is part of a
	// zTOC's bytes, so it is not a version.
	sociSpan = 4 << 20
	sociTool = "imgfs"
)

// publication is an image beside which an index is pushed.
type publication struct {
	e      *engine
	client *fetch.Client
	ref    fetch.Reference // of the image, with a name in a registry
	img    imagedb.Image
	layers []fetch.Layer // as the manifest describes them
	report func(engineapi.Progress)
	end    func() // ends what publication began

	mu  sync.Mutex
	src *fetch.Image // the image in its registry; nil until it is needed
}

// PushIndex implements engineapi.Indexes.
func (e *engine) PushIndex(ctx context.Context, req engineapi.IndexRequest, report func(engineapi.Progress)) (engineapi.IndexResult, error) {
	p, err := e.publication(ctx, req, report)
	if err != nil {
		return engineapi.IndexResult{}, advise(err)
	}
	defer p.end()
	var res engineapi.IndexResult
	switch cmp.Or(req.Format, engineapi.IndexOwn) {
	case engineapi.IndexOwn:
		res, err = p.push(ctx, toc.OwnArtifact)
	case engineapi.IndexSoci:
		res, err = p.push(ctx, toc.SociArtifact)
	case engineapi.IndexSociV2:
		res, err = p.pushAnnotated(ctx, req.To)
	default:
		err = fault.New(fault.Invalid, "index format %q: it is %s, %s or %s", req.Format, engineapi.IndexOwn, engineapi.IndexSoci, engineapi.IndexSociV2)
	}
	if err != nil {
		e.origins.drop(p.client)
	}
	return res, advise(err)
}

// publication returns what req names, pulled if it is not here. The caller
// ends it.
func (e *engine) publication(ctx context.Context, req engineapi.IndexRequest, report func(engineapi.Progress)) (*publication, error) {
	ref, err := e.named(req.Image)
	if err != nil {
		return nil, err
	}
	if _, _, err := e.lookup(req.Image); fault.KindOf(err) == fault.NotFound {
		if _, err := e.pull(ctx, ref, engineapi.PullRequest{Platform: req.Platform, Registry: req.Registry}, true, report); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	img, _, err := e.lookup(req.Image)
	if err != nil {
		return nil, err
	}
	if img.ManifestDigest == "" || len(img.Manifest) == 0 {
		return nil, fault.New(fault.Invalid, "image %s has no manifest in a registry", req.Image)
	}
	p := &publication{e: e, client: e.origins.client(req.Registry), ref: ref, img: img, report: report}
	if p.layers, err = describedLayers(img); err != nil {
		return nil, err
	}
	p.end, err = e.holdLayers("index", e.keysOf(&img))
	return p, err
}

// named is inRegistry for an argument that may be the ID of a stored image,
// which says nothing of where the image is.
func (e *engine) named(name string) (fetch.Reference, error) {
	if _, ref, err := e.lookup(name); err == nil && ref == (fetch.Reference{}) {
		return ref, fault.WithHint(fault.New(fault.Invalid, "%s is the ID of an image, not its name in a registry", name), "give a name, from imgfs images")
	}
	return inRegistry(name)
}

// describedLayers returns an image's layers as its manifest has them.
func describedLayers(img imagedb.Image) ([]fetch.Layer, error) {
	var m struct {
		Layers []struct {
			MediaType   string            `json:"mediaType"`
			Annotations map[string]string `json:"annotations"`
		} `json:"layers"`
	}
	if err := json.Unmarshal(img.Manifest, &m); err != nil || len(m.Layers) != len(img.Layers) {
		return nil, fault.New(fault.Invalid, "manifest %s is of a form that no index can belong to", img.ManifestDigest.Short())
	}
	layers := make([]fetch.Layer, len(img.Layers))
	for i, l := range img.Layers {
		layers[i] = fetch.Layer{Blob: l.Blob, Size: l.Size, DiffID: l.DiffID, MediaType: m.Layers[i].MediaType, Annotations: m.Layers[i].Annotations}
	}
	return layers, nil
}

// source returns the image in its registry.
func (p *publication) source(ctx context.Context) (*fetch.Image, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.src != nil {
		return p.src, nil
	}
	at, err := fetch.ParseReference(p.ref.Name() + "@" + string(p.img.ManifestDigest))
	if err != nil {
		return nil, err
	}
	want, err := fetch.ParsePlatform(p.img.Platform)
	if err != nil {
		return nil, err
	}
	m, err := p.client.ResolveManifest(ctx, at, want)
	if err != nil {
		return nil, err
	}
	p.src, err = m.Image(ctx)
	return p.src, err
}

func (p *publication) show(i int, status string, current, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.report(engineapi.Progress{ID: p.layers[i].Blob.Short(), Status: status, Current: current, Total: total})
}

// push pushes an index of a kind that is found by its subject.
func (p *publication) push(ctx context.Context, artifact string) (engineapi.IndexResult, error) {
	old, err := p.e.beside(ctx, p.client, p.ref, p.img.ManifestDigest)
	if err != nil {
		return engineapi.IndexResult{}, err
	}
	a, res, err := p.parts(ctx, artifact)
	if err != nil {
		return res, err
	}
	body, err := a.Encode()
	if err != nil {
		return res, err
	}
	res.Digest, res.Reference = id.BlobOf(body), p.ref.Familiar()
	at, err := fetch.ParseReference(p.ref.Name() + "@" + string(res.Digest))
	if err != nil {
		return res, err
	}
	if _, err := p.client.PushManifest(ctx, at, ociManifest, body); err != nil {
		return res, err
	}
	// The one before says less, and only one is looked at.
	for _, o := range old {
		if o.artifact.Type != artifact || o.digest == res.Digest {
			continue
		}
		if err := p.client.DeleteManifest(ctx, p.ref, o.digest); err != nil {
			p.e.log.Warn("older index stays beside the image", "image", p.ref, "index", o.digest, "err", err)
		}
	}
	p.e.log.Info("index pushed", "image", p.ref, "index", res.Digest, "layers", res.Layers, "bytes", res.Size)
	return res, nil
}

// parts makes and pushes the blobs of an artifact. A layer that needs no index,
// or cannot have one, is left out.
func (p *publication) parts(ctx context.Context, artifact string) (*toc.Artifact, engineapi.IndexResult, error) {
	a := &toc.Artifact{Type: artifact, Subject: toc.Subject{
		MediaType: mediaTypeOf(p.img.Manifest), Digest: p.img.ManifestDigest, Size: int64(len(p.img.Manifest)),
	}}
	var res engineapi.IndexResult
	made := make([]*toc.Part, len(p.layers))
	first := map[id.Blob]bool{}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for i, l := range p.layers {
		if l.Size < smallLayer || first[l.Blob] || hasOwn(l) {
			continue
		}
		first[l.Blob] = true
		g.Go(func() error {
			part, body, err := p.part(gctx, i, artifact)
			if errors.Is(err, toc.ErrNone) {
				p.e.log.Info("layer has no index", "layer", l.Blob, "err", err)
				return nil
			}
			if err != nil {
				return err
			}
			p.show(i, "Pushing", 0, part.Size)
			made[i] = part
			err = pushBytes(gctx, p.client, p.ref, body)
			p.show(i, "Pushed", part.Size, part.Size)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, res, err
	}
	for _, part := range made {
		if part != nil {
			a.Layers = append(a.Layers, *part)
			res.Layers++
			res.Size += part.Size
		}
	}
	if artifact == toc.OwnArtifact {
		if err := p.trace(ctx, a, &res); err != nil {
			return nil, res, err
		}
	}
	if len(a.Layers) == 0 && a.Trace == nil {
		return nil, res, fault.New(fault.Invalid, "no layer of %s needs an index, or can have one", p.ref.Familiar())
	}
	return a, res, pushBytes(ctx, p.client, p.ref, []byte(toc.EmptyConfig))
}

// part makes the index of layer i.
func (p *publication) part(ctx context.Context, i int, artifact string) (*toc.Part, []byte, error) {
	l := p.layers[i]
	part := &toc.Part{Layer: l.Blob}
	var body []byte
	if artifact == toc.OwnArtifact {
		h, err := p.proven(ctx, i)
		if err != nil {
			return nil, nil, err
		}
		defer h.Release()
		skeleton, err := h.Skeleton()
		if err != nil {
			return nil, nil, none(err)
		}
		spans, err := h.Spans()
		if err != nil {
			return nil, nil, none(err)
		}
		part.DataSize = h.Info().DataSize
		body = toc.EncodeLayer(skeleton, spans)
	} else {
		src, err := p.source(ctx)
		if err != nil {
			return nil, nil, err
		}
		blob, err := src.Open(ctx, i)
		if err != nil {
			return nil, nil, err
		}
		defer blob.Close()
		p.show(i, "Indexing", 0, l.Size)
		if body, err = toc.BuildZtoc(blob, sociSpan, sociTool); err != nil {
			return nil, nil, err
		}
		part.LayerType, part.SpanSize = l.MediaType, sociSpan
	}
	part.Digest, part.Size = id.BlobOf(body), int64(len(body))
	return part, body, nil
}

// none makes an error of a layer that cannot have an index ErrNone.
func none(err error) error {
	if fault.KindOf(err) == fault.Invalid {
		return fmt.Errorf("%w: %w", toc.ErrNone, err)
	}
	return err
}

// proven opens layer i, proven, and fetches it if it is not here as such:
// nothing unproven is told to others. toc.ErrNone says that what is here is no
// stream of this very blob.
func (p *publication) proven(ctx context.Context, i int) (*layerdb.Layer, error) {
	l := p.layers[i]
	key, ok := p.e.layers.Proven(l.DiffID)
	if !ok {
		src, err := p.source(ctx)
		if err != nil {
			return nil, err
		}
		key, _, err = p.e.layers.Ensure(ctx, layerdb.Spec{
			Blob: l.Blob, Size: l.Size, DiffID: l.DiffID,
			Open: func(ctx context.Context) (io.ReadCloser, error) { return src.Open(ctx, i) },
		}, func(s layerdb.Step) { p.show(i, s.Status, s.Current, s.Total) })
		if err != nil {
			return nil, err
		}
	}
	h, err := p.e.layers.Layer(key)
	if err != nil {
		return nil, err
	}
	if info := h.Info(); info.Form != toc.Stream || info.Blob != l.Blob {
		h.Release()
		return nil, fmt.Errorf("%w: layer %s is stored as %s of blob %s", toc.ErrNone, l.Blob.Short(), info.Form, info.Blob.Short())
	}
	return h, nil
}

// hasOwn reports whether a layer brings its table of contents along.
func hasOwn(l fetch.Layer) bool {
	kind := toc.Detect(toc.Descriptor{MediaType: l.MediaType, Annotations: l.Annotations})
	return kind == toc.Estargz || kind == toc.ZstdChunked
}

// trace adds what is known of what is read first.
func (p *publication) trace(ctx context.Context, a *toc.Artifact, res *engineapi.IndexResult) error {
	keys := p.e.keysOf(&p.img)
	known, err := loadTrace(p.e.db, id.Stack(keys))
	if err != nil || len(known) == 0 {
		return err
	}
	var touches []toc.Touch
	for _, t := range known {
		if t.Index < 0 || t.Index >= len(keys) {
			continue
		}
		if info, err := p.e.layers.Info(keys[t.Index]); err == nil && info.Form == toc.Stream && t.Off < info.DataSize {
			touches = append(touches, toc.Touch{Layer: p.layers[t.Index].Blob, Off: t.Off, Len: min(t.Len, info.DataSize-t.Off)})
		}
	}
	if len(touches) == 0 {
		return nil
	}
	body := toc.EncodeTrace(touches)
	a.Trace = &toc.Part{Digest: id.BlobOf(body), Size: int64(len(body))}
	res.Trace = true
	res.Size += a.Trace.Size
	return pushBytes(ctx, p.client, p.ref, body)
}

// mediaTypeOf returns the media type that a manifest states.
func mediaTypeOf(manifest []byte) string {
	var m struct {
		MediaType string `json:"mediaType"`
	}
	_ = json.Unmarshal(manifest, &m) // it was parsed when it came in
	return cmp.Or(m.MediaType, ociManifest)
}

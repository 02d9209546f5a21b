package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/imgfs/imgfs/fetch"
	"github.com/imgfs/imgfs/imagedb"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/pool"
)

// How a layer gets to a registry, for each blob that has its content, that of
// the image's manifest first; the first that applies:
//
//	the repository has the blob                    nothing is sent
//	the registry has it in another repository      it is mounted from there
//	it was made here, and is kept                  sent
//	it is the bare tar, all of which is here       sent
//	somebody else has it                           copied, from there to here
//
// and else its tar is packed anew. If all blobs are those of the image's
// manifest, that is pushed byte for byte; else one that names what was pushed.
// So a layer whose bytes are not here costs this host nothing but the way, if
// that.

// uploads is how many layers of an image are pushed at once, as docker does.
const uploads = 5

// The words of a push, docker's.
const (
	statusPreparing = "Preparing"
	statusWaiting   = "Waiting"
	statusPushing   = "Pushing"
	statusPushed    = "Pushed"
	statusThere     = "Layer already exists"
	statusMounted   = "Mounted from "
	statusForeign   = "Skipped foreign layer"
)

// Push implements engineapi.Registries.
func (e *engine) Push(ctx context.Context, req engineapi.PushRequest, report func(engineapi.Progress)) ([]engineapi.PushedTag, error) {
	pushed, err := e.push(ctx, req, report)
	return pushed, advise(err)
}

func (e *engine) push(ctx context.Context, req engineapi.PushRequest, report func(engineapi.Progress)) ([]engineapi.PushedTag, error) {
	ref, err := fetch.ParseReference(req.Reference)
	switch {
	case err != nil:
		return nil, err
	case ref.Local():
		return nil, fault.New(fault.Invalid, "%s is not in a registry: only there an image can be pushed to", req.Reference)
	case ref.Digest() != "":
		return nil, fault.New(fault.Invalid, "cannot push a digest reference")
	case req.AllTags && tagged(req.Reference):
		return nil, errAllTags
	}
	if req.Format != "" && formatOf[req.Format] == "" {
		return nil, fault.New(fault.Invalid, "format %q: it is %s or %s", req.Format, engineapi.ToEstargz, engineapi.ToZstdChunked)
	}
	if req.Compression != "" && req.Compression != "gzip" && req.Compression != "zstd" {
		return nil, fault.New(fault.Invalid, "compression %q: it is gzip or zstd", req.Compression)
	}
	report(engineapi.Progress{Status: fmt.Sprintf("The push refers to repository [%s]", ref.Name())})
	tags, err := e.tagsToPush(ref, req.AllTags)
	if err != nil {
		return nil, err
	}
	var list []engineapi.PushedTag
	for _, at := range tags {
		req.Reference, req.AllTags = at.String(), false
		call := pool.Call{Kind: pool.Push, Name: at.Familiar(), Variant: req}
		p, err := pool.Do(ctx, e.transfers, call, func(ctx context.Context, report func(engineapi.Progress)) (engineapi.PushedTag, error) {
			return e.pushTag(ctx, at, req, report)
		}, report, nil)
		if err != nil {
			return list, err
		}
		report(engineapi.Progress{Status: fmt.Sprintf("%s: digest: %s size: %d", p.Tag, p.Digest, p.Size)})
		list = append(list, p)
	}
	return list, nil
}

// errAllTags has the text of docker's CLI.
var errAllTags = fault.New(fault.Invalid, "tag can't be used with --all-tags/-a")

// tagged reports whether a name was typed with a tag or a digest: before the
// last slash a colon begins a port.
func tagged(name string) bool {
	return strings.ContainsAny(name[strings.LastIndexByte(name, '/')+1:], ":@")
}

// tagsToPush returns ref, if an image has that name, or all tags of its
// repository that images have here, sorted. Errors have docker's texts.
func (e *engine) tagsToPush(ref fetch.Reference, all bool) ([]fetch.Reference, error) {
	if !all {
		if _, err := e.images.Lookup(ref.String()); fault.KindOf(err) != fault.NotFound {
			return []fetch.Reference{ref}, err
		}
	}
	known, tags := false, []fetch.Reference{}
	for n := range e.images.Names() {
		rest, ok := strings.CutPrefix(n, ref.Name())
		known = known || ok && (strings.HasPrefix(rest, ":") || strings.HasPrefix(rest, "@"))
		if ok && all && strings.HasPrefix(rest, ":") {
			tag, err := fetch.ParseReference(n)
			if err != nil {
				return nil, err
			}
			tags = append(tags, tag)
		}
	}
	hint := "give an image the name first: imgfs tag IMAGE %s; see imgfs images for what there is"
	switch {
	case !known:
		return nil, fault.WithHint(fault.New(fault.NotFound, "An image does not exist locally with the tag: %s", ref.FamiliarName()), hint, ref.Familiar())
	case !all:
		return nil, fault.WithHint(fault.New(fault.NotFound, "tag does not exist: %s", ref.Familiar()), hint, ref.Familiar())
	case len(tags) == 0:
		return nil, fault.New(fault.NotFound, "no tags to push for %s", ref.FamiliarName())
	}
	slices.SortFunc(tags, func(a, b fetch.Reference) int { return strings.Compare(a.Tag(), b.Tag()) })
	return tags, nil
}

// pushTag pushes the image called at.
func (e *engine) pushTag(ctx context.Context, at fetch.Reference, req engineapi.PushRequest, report func(engineapi.Progress)) (res engineapi.PushedTag, err error) {
	if err := e.beginWork(); err != nil {
		return res, err
	}
	defer e.endWork()
	want, err := fetch.ParsePlatform(req.Platform)
	if err != nil {
		return res, err
	}
	imageID, err := e.images.Lookup(at.String())
	if err != nil {
		return res, err
	}
	img, err := e.images.Get(imageID)
	if err != nil {
		return res, err
	}
	if img, err = e.forPlatform(img, at, want); err != nil {
		return res, err
	}
	free, err := e.holdLayers("push", e.keysOf(&img))
	if err != nil {
		return res, err
	}
	defer free()
	client := e.origins.client(req.Registry)
	defer func() {
		if err != nil {
			e.origins.drop(client)
		}
	}()
	if req.Format != "" {
		return e.pushConverted(ctx, &conversion{e: e, client: client, to: req.Format, at: at, img: img, report: report})
	}
	p := &pushing{e: e, client: client, at: at, req: req, img: img, keys: e.keysOf(&img), report: report}
	if err := p.run(ctx); err != nil {
		return res, err
	}
	if err := e.notePushed(p); err != nil {
		return res, err
	}
	e.event(imageEvents, "push", at.Familiar(), "name", at.FamiliarName())
	e.log.Info("pushed", "reference", at.String(), "image", img.ID, "digest", id.BlobOf(p.manifest))
	return engineapi.PushedTag{Tag: at.Tag(), Digest: id.BlobOf(p.manifest), Size: int64(len(p.manifest))}, nil
}

// pushConverted pushes an image with its layers in another format.
//
// Preconditions: its layers stay.
func (e *engine) pushConverted(ctx context.Context, c *conversion) (engineapi.PushedTag, error) {
	if _, err := e.finishAll(ctx, e.keysOf(&c.img), c.report); err != nil {
		return engineapi.PushedTag{}, err
	}
	if err := c.prepare(ctx); err != nil {
		return engineapi.PushedTag{}, err
	}
	if err := c.run(ctx); err != nil {
		return engineapi.PushedTag{}, err
	}
	e.event(imageEvents, "push", c.at.Familiar(), "name", c.at.FamiliarName())
	return engineapi.PushedTag{Tag: c.at.Tag(), Digest: c.res.Digest, Size: c.size}, nil
}

// notePushed remembers what a push has taught: the image's digest in that
// repository, and that its layers are to be had there.
func (e *engine) notePushed(p *pushing) error {
	var layers []fetch.Layer
	packed := map[id.DiffID]id.Blob{}
	for i, l := range p.layers {
		if l.skipped {
			continue
		}
		layers = append(layers, fetch.Layer{Blob: l.Digest, Size: l.Size, MediaType: l.MediaType})
		if l.packed {
			packed[p.img.Layers[i].DiffID] = l.Digest
		}
	}
	if err := e.origins.noteLast(p.at, layers, p.req.Registry); err != nil {
		return err
	}
	if err := notePacked(e.db, packed); err != nil {
		return err
	}
	e.names.Lock()
	defer e.names.Unlock()
	err := e.images.Tag(p.at.At(id.BlobOf(p.manifest)).String(), p.img.ID)
	if k := fault.KindOf(err); k == fault.NotFound || k == fault.Conflict {
		return nil // it was removed meanwhile; or another image has the name, for good
	}
	return err
}

// pushing is an image on its way to a registry.
type pushing struct {
	e      *engine
	client *fetch.Client
	at     fetch.Reference // where it goes
	req    engineapi.PushRequest
	img    imagedb.Image
	keys   []id.LayerKey
	report func(engineapi.Progress)

	old      []descriptor // of the layers, as the image's manifest has them; nil if there is none
	layers   []sent       // as they were pushed
	manifest []byte       // as it was pushed
}

// sent is a layer that is in the repository.
type sent struct {
	descriptor
	packed  bool // anew: it is no blob that was known
	skipped bool // it is not: others have it
}

func (p *pushing) run(ctx context.Context) error {
	p.old = oldLayers(&p.img)
	p.layers = make([]sent, len(p.img.Layers))
	first := map[wanted]int{}
	for i := range p.keys {
		if _, ok := first[p.wanted(i)]; !ok {
			first[p.wanted(i)] = i
			p.show(i, statusPreparing, 0, 0)
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	slots := make(chan struct{}, uploads)
	for _, i := range first {
		g.Go(func() (err error) {
			select {
			case slots <- struct{}{}:
			default:
				p.show(i, statusWaiting, 0, 0)
				select {
				case slots <- struct{}{}:
				case <-gctx.Done():
					return context.Cause(gctx)
				}
			}
			defer func() { <-slots }()
			p.layers[i], err = p.layer(gctx, i)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i := range p.keys {
		p.layers[i] = p.layers[first[p.wanted(i)]] // the same layer twice is pushed once
	}
	if err := pushBytes(ctx, p.client, p.at, p.img.Config); err != nil {
		return err
	}
	mediaType := ociManifest
	if p.asItWas() {
		p.manifest, mediaType = p.img.Manifest, mediaTypeOf(p.img.Manifest)
	} else {
		var list []descriptor
		for _, l := range p.layers {
			d := l.descriptor
			d.MediaType = ociMediaType(d.MediaType)
			list = append(list, d)
		}
		var err error
		if p.manifest, err = ociManifestOf(p.img.Config, list); err != nil {
			return err
		}
	}
	_, err := p.client.PushManifest(ctx, p.at, mediaType, p.manifest)
	return err
}

// wanted is what is to be pushed of a layer: the same content may be in several
// blobs.
type wanted struct {
	key  id.LayerKey
	blob id.Blob // "": any
}

func (p *pushing) wanted(i int) wanted {
	w := wanted{key: p.keys[i]}
	if p.old != nil {
		w.blob = p.old[i].Digest
	}
	return w
}

// oldLayers returns the layers of an image as its manifest describes them; nil
// if it has none, or one that says nothing here, as Docker's schema 1.
func oldLayers(img *imagedb.Image) []descriptor {
	var m struct {
		Config descriptor   `json:"config"`
		Layers []descriptor `json:"layers"`
	}
	if img.Manifest == nil || json.Unmarshal(img.Manifest, &m) != nil ||
		len(m.Layers) != len(img.Layers) || m.Config.Digest != id.BlobOf(img.Config) {
		return nil
	}
	return m.Layers
}

// asItWas reports whether the image's own manifest names what was pushed.
func (p *pushing) asItWas() bool {
	if p.old == nil {
		return false
	}
	for i, l := range p.layers {
		if l.Digest != p.old[i].Digest {
			return false
		}
	}
	return true
}

func (p *pushing) show(i int, status string, current, total int64) {
	l := p.img.Layers[i]
	name := l.Blob.Short()
	if l.Blob == "" {
		name = l.DiffID.Short()
	}
	p.report(engineapi.Progress{ID: name, Status: status, Current: current, Total: total})
}

// layer brings layer i into the repository.
func (p *pushing) layer(ctx context.Context, i int) (sent, error) {
	if p.old != nil && foreign(p.old[i]) {
		p.show(i, statusForeign, 0, 0)
		return sent{descriptor: p.old[i], skipped: true}, nil
	}
	all, err := p.candidates(i)
	if err != nil {
		return sent{}, err
	}
	var why error
	for _, d := range all {
		ok, err := p.place(ctx, i, d)
		if ok || err != nil && !errors.As(err, new(sourceError)) {
			return sent{descriptor: d}, err
		}
		if err != nil {
			p.e.log.Info("blob is not to be had", "blob", d.Digest, "err", err)
			if why == nil {
				why = err
			}
		}
	}
	s, err := p.pack(ctx, i)
	if err != nil && why != nil && ctx.Err() == nil {
		err = why // the blob as it was is what is wanted
	}
	return s, err
}

// foreign reports whether a layer is one that registries are not sent.
func foreign(d descriptor) bool {
	return len(d.URLs) > 0 && (strings.Contains(d.MediaType, ".foreign.") || strings.Contains(d.MediaType, ".nondistributable."))
}

// candidates returns the blobs that are layer i, that of the manifest first.
func (p *pushing) candidates(i int) ([]descriptor, error) {
	var list []descriptor
	if p.old != nil {
		list = append(list, p.old[i])
	}
	packed, err := packedOf(p.e.db, p.img.Layers[i].DiffID)
	if err != nil {
		return nil, err
	}
	blobs := append(p.e.layers.BlobsOf(p.img.Layers[i].DiffID), packed...)
	if l := p.img.Layers[i]; p.old == nil && l.Blob != "" {
		blobs = append([]id.Blob{l.Blob}, blobs...)
	}
	for _, b := range blobs {
		if slices.ContainsFunc(list, func(d descriptor) bool { return d.Digest == b }) {
			continue
		}
		d, err := p.describe(b)
		if err != nil {
			return nil, err
		}
		if d.Size > 0 {
			list = append(list, d)
		}
	}
	return list, nil
}

// describe returns what is known of a blob; without a size, if that is not.
func (p *pushing) describe(b id.Blob) (descriptor, error) {
	d := descriptor{MediaType: ociLayer + "+gzip", Digest: b}
	places, err := p.e.origins.of(b)
	if err != nil {
		return d, err
	}
	if len(places) > 0 {
		d.Size, d.MediaType = places[0].Size, cmp.Or(ociMediaType(places[0].MediaType), d.MediaType)
	}
	if info, err := p.e.layers.Info(p.e.layers.ByBlob(b)); err == nil && info.Blob == b {
		d.Size = info.BlobSize
		switch info.Compression {
		case "none":
			d.MediaType = ociLayer
		case "gzip", "zstd":
			d.MediaType = ociLayer + "+" + info.Compression
		default: // a form that no manifest names
			d.Size = 0
		}
	}
	return d, nil
}

// pack makes a new blob of layer i's tar.
func (p *pushing) pack(ctx context.Context, i int) (sent, error) {
	how := cmp.Or(p.req.Compression, "gzip")
	info, err := p.e.layers.Info(p.keys[i])
	if err != nil {
		return sent{}, fault.WithHint(err, "imgfs pull its image again")
	}
	done := progressOf(info.StreamSize, func(n int64) { p.show(i, statusPreparing, n, info.StreamSize) })
	packed, err := p.e.layers.Pack(ctx, how, func(w io.Writer) error {
		return p.e.layers.WriteStream(ctx, p.keys[i], io.MultiWriter(w, done))
	})
	if err != nil {
		return sent{}, err
	}
	defer packed.Close()
	if want := p.img.Layers[i].DiffID; packed.DiffID != want {
		return sent{}, fault.New(fault.Integrity, "layer %s: its stream is %s, not %s", p.keys[i].Short(), packed.DiffID.Short(), want.Short())
	}
	d := descriptor{MediaType: ociLayer + "+" + how, Digest: packed.Blob, Size: packed.Size}
	err = p.send(ctx, i, d, func() (io.ReadCloser, error) { return os.Open(packed.Path()) }, "")
	return sent{descriptor: d, packed: true}, err
}

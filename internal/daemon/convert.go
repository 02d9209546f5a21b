package daemon

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"hash"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/imgfs/imgfs/fetch"
	"github.com/imgfs/imgfs/imagedb"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/span"
	"github.com/imgfs/imgfs/internal/toc"
)

// conversions is how many layers are converted at once: each one compresses on
// several processors, and lies on disk twice for the time.
const conversions = 2

// formatOf has the kinds of tables of contents that layers are given.
var formatOf = map[string]string{engineapi.ToEstargz: toc.Estargz, engineapi.ToZstdChunked: toc.ZstdChunked}

// conversion is an image being pushed in another format.
type conversion struct {
	e      *engine
	client *fetch.Client
	to     string // format
	at     fetch.Reference
	img    imagedb.Image
	keys   []id.LayerKey
	old    []descriptor     // of the layers
	first  map[int][]string // by layer: the files that a mount reads first
	report func(engineapi.Progress)

	res  engineapi.ConvertImageResult
	size int64 // bytes of the manifest

	mu sync.Mutex // serialises report
}

// converted is a layer as it was pushed.
type converted struct {
	descriptor
	diffID id.DiffID
	kept   bool // it is as it was
}

// Convert implements engineapi.Converter. Nothing is recorded here: what was
// pushed is an image like any other.
func (e *engine) Convert(ctx context.Context, req engineapi.ConvertImageRequest, report func(engineapi.Progress)) (engineapi.ConvertImageResult, error) {
	c, end, err := e.conversion(ctx, req, report)
	if err != nil {
		return engineapi.ConvertImageResult{}, advise(err)
	}
	defer end()
	if err = c.run(ctx); err != nil {
		e.origins.drop(c.client)
	}
	return c.res, advise(err)
}

// conversion prepares to convert what req names, which is pulled if it is not
// here. The caller calls end.
func (e *engine) conversion(ctx context.Context, req engineapi.ConvertImageRequest, report func(engineapi.Progress)) (_ *conversion, end func(), err error) {
	if formatOf[req.To] == "" {
		return nil, nil, fault.New(fault.Invalid, "format %q: it is %s or %s", req.To, engineapi.ToEstargz, engineapi.ToZstdChunked)
	}
	at, err := pushTarget(req.Target)
	if err != nil {
		return nil, nil, err
	}
	img, err := e.wholeImage(ctx, req.Image, req.Platform, req.Registry, report)
	if err != nil {
		return nil, nil, err
	}
	if end, err = e.holdLayers("convert", e.keysOf(&img)); err != nil {
		return nil, nil, err
	}
	c := &conversion{e: e, client: e.origins.client(req.Registry), to: req.To, at: at, img: img, report: report}
	if err := c.prepare(ctx); err != nil {
		end()
		return nil, nil, err
	}
	return c, end, nil
}

// prepare finds out what there is to be converted.
//
// Preconditions: all bytes of the image's layers are here, and stay.
func (c *conversion) prepare(ctx context.Context) (err error) {
	c.keys = c.e.keysOf(&c.img)
	c.res = engineapi.ConvertImageResult{Reference: c.at.Familiar(), Layers: len(c.keys)}
	if c.old, err = c.e.ociLayers(&c.img); err == nil {
		c.first, err = c.e.firstFiles(ctx, c.keys)
	}
	return err
}

// pushTarget parses the name that an image is to be pushed as.
func pushTarget(name string) (fetch.Reference, error) {
	ref, err := fetch.ParseReference(name)
	switch {
	case err != nil:
	case ref.Local():
		err = fault.New(fault.Invalid, "%s is not in a registry: only there an image can be pushed to", name)
	case ref.Digest() != "":
		err = fault.New(fault.Invalid, "%s: an image is pushed under a tag, and gets the digest it gets", name)
	}
	return ref, err
}

// wholeImage returns the image called name, pulled if it is not here, with all
// bytes of its layers here and proven.
func (e *engine) wholeImage(ctx context.Context, name, platform string, r engineapi.RegistryOptions, report func(engineapi.Progress)) (imagedb.Image, error) {
	want, err := fetch.ParsePlatform(platform)
	if err != nil {
		return imagedb.Image{}, err
	}
	img, _, err := e.lookup(name)
	if err == nil && (platform == "" || satisfies(img.Platform, want)) && e.hasAll(e.keysOf(&img)) {
		_, err := e.finishAll(ctx, e.keysOf(&img), report)
		return img, err
	}
	if err != nil && (fault.KindOf(err) != fault.NotFound || strings.HasPrefix(name, "sha256:")) {
		return img, err
	}
	ref, err := fetch.ParseReference(name)
	if err != nil {
		return img, err
	}
	res, err := e.pull(ctx, ref, engineapi.PullRequest{Platform: platform, Registry: r}, true, report)
	if err != nil {
		return img, err
	}
	return e.images.Get(res.ImageID)
}

func (c *conversion) run(ctx context.Context) error {
	layers := make([]converted, len(c.keys))
	first := map[id.LayerKey]int{}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(conversions)
	for i, k := range c.keys {
		if _, ok := first[k]; ok {
			continue // the same layer twice is converted once
		}
		first[k] = i
		g.Go(func() (err error) {
			layers[i], err = c.layer(gctx, i)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i, k := range c.keys {
		layers[i] = layers[first[k]]
		c.res.Size += layers[i].Size
		if layers[i].kept {
			c.res.Kept++
		}
	}
	return c.manifest(ctx, layers)
}

// manifest pushes config and manifest.
func (c *conversion) manifest(ctx context.Context, layers []converted) error {
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(c.img.Config, &fields); err != nil {
		return fault.New(fault.Integrity, "image %s: config: %w", c.img.ID.Short(), err)
	}
	root := rootFS{Type: "layers"}
	var list []descriptor
	for _, l := range layers {
		root.DiffIDs = append(root.DiffIDs, l.diffID)
		list = append(list, l.descriptor)
	}
	if err := setFields(fields, map[string]any{"rootfs": root}); err != nil {
		return err
	}
	config, err := json.Marshal(fields)
	if err != nil {
		return err
	}
	if err := pushBytes(ctx, c.client, c.at, config); err != nil {
		return err
	}
	body, err := ociManifestOf(config, list)
	if err != nil {
		return err
	}
	c.res.Digest, c.size = id.BlobOf(body), int64(len(body))
	if _, err := c.client.PushManifest(ctx, c.at, ociManifest, body); err != nil {
		return err
	}
	c.e.log.Info("converted", "image", c.img.ID, "to", c.to, "reference", c.at, "digest", c.res.Digest)
	return nil
}

func (c *conversion) show(i int, status string, current, total int64) {
	l := c.img.Layers[i]
	name := l.Blob.Short()
	if l.Blob == "" {
		name = l.DiffID.Short()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.report(engineapi.Progress{ID: name, Status: status, Current: current, Total: total})
}

// layer converts and pushes layer i. One that has the format, or that the
// format cannot express, is pushed as it is, if it is in a registry.
func (c *conversion) layer(ctx context.Context, i int) (converted, error) {
	d := c.old[i]
	places, err := c.e.origins.of(c.img.Layers[i].Blob)
	if err != nil {
		return converted{}, err
	}
	kind := toc.Detect(toc.Descriptor{MediaType: d.MediaType, Annotations: d.Annotations})
	if len(places) > 0 && kind == formatOf[c.to] {
		return c.keep(ctx, i, places)
	}
	stream, end, err := c.e.streamOf(ctx, c.keys[i])
	if err != nil {
		return converted{}, err
	}
	defer end()
	c.show(i, "Converting", 0, stream.Size())
	blob, err := tempFile(c.e.paths.Root)
	if err != nil {
		return converted{}, err
	}
	defer blob.Close()
	var w *toc.Written
	counted := io.NewSectionReader(&watched{stream, func(n int64) { c.show(i, "Converting", n, stream.Size()) }}, 0, stream.Size())
	if c.to == engineapi.ToEstargz {
		w, err = toc.WriteEstargz(ctx, blob, counted, c.first[i])
	} else {
		w, err = toc.WriteZstdChunked(ctx, blob, counted)
	}
	if errors.Is(err, toc.ErrUnfit) {
		c.e.log.Info("layer stays as it is", "layer", d.Digest, "err", err)
		if len(places) > 0 {
			return c.keep(ctx, i, places)
		}
		return c.pack(ctx, i, stream)
	}
	if err != nil {
		return converted{}, err
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(io.NewSectionReader(blob, 0, w.Size)), nil }
	l := converted{descriptor{MediaType: w.MediaType, Digest: w.Blob, Size: w.Size, Annotations: w.Annotations}, w.DiffID, false}
	return l, c.push(ctx, i, l.descriptor, open, "")
}

// push pushes the blob of layer i.
func (c *conversion) push(ctx context.Context, i int, d descriptor, open func() (io.ReadCloser, error), from string) error {
	c.show(i, "Pushing", 0, d.Size)
	if _, err := c.client.PushBlob(ctx, c.at, d.Digest, d.Size, open, from); err != nil {
		return err
	}
	c.show(i, "Pushed", d.Size, d.Size)
	return nil
}

// keep pushes layer i as it is, from one of the places that have it.
func (c *conversion) keep(ctx context.Context, i int, places []origin) (converted, error) {
	from := ""
	for _, o := range places {
		if ref, err := fetch.ParseReference(o.Name); err == nil && ref.Domain() == c.at.Domain() {
			from = ref.Path() // the registry need not be sent what it has
			break
		}
	}
	open := func() (io.ReadCloser, error) { return c.e.blob(ctx, c.keys[i]) }
	return converted{c.old[i], c.img.Layers[i].DiffID, true}, c.push(ctx, i, c.old[i], open, from)
}

// pack pushes layer i, which came from files and whose blob was not kept, in
// gzip.
func (c *conversion) pack(ctx context.Context, i int, stream *io.SectionReader) (converted, error) {
	p, err := c.e.layers.Pack(ctx, "gzip", func(w io.Writer) error {
		_, err := io.Copy(w, io.NewSectionReader(stream, 0, stream.Size()))
		return err
	})
	if err != nil {
		return converted{}, err
	}
	defer p.Close()
	l := converted{descriptor{MediaType: ociLayer + "+gzip", Digest: p.Blob, Size: p.Size}, p.DiffID, true}
	return l, c.push(ctx, i, l.descriptor, func() (io.ReadCloser, error) { return os.Open(p.Path()) }, "")
}

// streamOf returns a layer's uncompressed tar stream, all of which is here, or,
// of one that is not kept as such, in its registry. The caller calls end.
func (e *engine) streamOf(ctx context.Context, k id.LayerKey) (_ *io.SectionReader, end func(), err error) {
	h, err := e.layers.Layer(k)
	if err != nil {
		return nil, nil, err
	}
	info := h.Info()
	if info.Form == toc.Stream {
		f, err := h.Data().Fill(ctx, 0, info.StreamSize, info.StreamSize)
		if err != nil {
			h.Release()
			return nil, nil, err
		}
		return io.NewSectionReader(f, 0, info.StreamSize), h.Release, nil
	}
	h.Release()
	blob, err := e.blob(ctx, k)
	if err != nil {
		return nil, nil, err
	}
	defer blob.Close()
	f, err := tempFile(e.paths.Root)
	if err != nil {
		return nil, nil, err
	}
	sum := sha256.New()
	n, err := span.NewReader(blob, span.Options{}).WriteTo(io.MultiWriter(f, sum))
	if err == nil && diffOf(sum) != info.DiffID {
		err = fault.New(fault.Integrity, "layer %s: its stream is %s, not %s", info.Blob.Short(), diffOf(sum).Short(), info.DiffID.Short())
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return io.NewSectionReader(f, 0, n), func() { f.Close() }, nil
}

func diffOf(h hash.Hash) id.DiffID { return id.DiffIDFrom([sha256.Size]byte(h.Sum(nil))) }

// blob opens a layer's blob where it came from.
func (e *engine) blob(ctx context.Context, k id.LayerKey) (io.ReadCloser, error) {
	info, err := e.layers.Info(k)
	if err != nil {
		return nil, err
	}
	src, err := e.origins.supply(ctx, info)
	if err != nil {
		return nil, err
	}
	return src.Range(ctx, 0, info.BlobSize)
}

// tempFile returns a file in dir that has no name and is gone when it is closed.
func tempFile(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "tmp-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// watched tells how far reads have come, for each 16 MiB.
type watched struct {
	io.ReaderAt
	tell func(n int64)
}

func (w *watched) ReadAt(p []byte, off int64) (int, error) {
	const step = 16 << 20
	n, err := w.ReaderAt.ReadAt(p, off)
	if end := off + int64(n); off/step != end/step {
		w.tell(end)
	}
	return n, err
}

// pushBytes pushes a blob that is in memory.
func pushBytes(ctx context.Context, c *fetch.Client, at fetch.Reference, body []byte) error {
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	_, err := c.PushBlob(ctx, at, id.BlobOf(body), int64(len(body)), open, "")
	return err
}

var _ engineapi.Converter = (*engine)(nil)

package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imgfs/imgfs/fetch"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/toc"
	"github.com/imgfs/imgfs/layerdb"
)

// How a layer of an image in a registry comes in; the first that applies:
//
//	its diffID is proven here                 nothing is fetched
//	it is here by the table of contents       nothing is fetched
//	that its descriptor announces
//	it is small, or all of it is wanted       streamed: fetched whole, proven
//	a table of contents is announced          that is read, the layer is imported
//	an index lies beside the image            that is read, the layer is imported
//	it is a plain tar                         its headers are read, it is imported
//	none of these, or what there is is bad    streamed
//
// A layer that is imported is not proven, and is called by its blob and its
// index, so that nobody else gets it by claiming a diffID. Of a plain tar the
// index proves nothing at all: the name of the repository, whose word is taken
// for its bytes until it is sealed, is part of what it is called.

const (
	smallLayer = 1 << 20 // bytes of a blob: a table of contents is hardly less
	smallTar   = 4 << 20 // the same of a plain tar, which has none
)

// statusIndexed is the Progress of a layer whose bytes come when they are read.
const statusIndexed = "Indexed"

// arrival is one image on its way into the store.
type arrival struct {
	e      *engine
	client *fetch.Client
	m      *fetch.Manifest
	whole  bool // all bytes are wanted
	report func(engineapi.Progress)

	announced []*promise[*toc.Index]          // by layer; nil: not asked for
	tocs      func() (*fetch.Manifest, error) // the image of TOCs, asked for once
	beside    *promise[*besides]              // nil: not asked for
	img       *fetch.Image

	mu sync.Mutex // serialises report
}

// promise is a value on its way.
type promise[T any] struct {
	done chan struct{}
	v    T
	err  error
}

func begin[T any](f func() (T, error)) *promise[T] {
	p := &promise[T]{done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.v, p.err = f()
	}()
	return p
}

func (p *promise[T]) wait() (T, error) {
	<-p.done
	return p.v, p.err
}

// resolve gets the image's config, and beside that all that the manifest alone
// says will be wanted.
func (a *arrival) resolve(ctx context.Context) error {
	a.announced = make([]*promise[*toc.Index], len(a.m.Layers))
	a.tocs = sync.OnceValues(func() (*fetch.Manifest, error) { return a.tocImage(ctx) })
	if !a.whole && !a.m.Reference.Local() {
		ask := false
		seen := map[id.Blob]bool{}
		for i, l := range a.m.Layers {
			d := a.descriptor(l)
			if seen[l.Blob] || l.Size < smallLayer || a.e.layers.ByBlob(l.Blob) != "" || a.imported(d) != "" {
				continue
			}
			seen[l.Blob] = true
			switch toc.Detect(d) {
			case "":
				ask = true
			case toc.Tar:
				ask = ask || l.Size >= smallTar
			default:
				a.announced[i] = begin(func() (*toc.Index, error) { return a.open(ctx, i, d) })
			}
		}
		if ask {
			a.beside = begin(func() (*besides, error) { return a.lookBeside(ctx) })
		}
	}
	var err error
	a.img, err = a.m.Image(ctx)
	return err
}

func (a *arrival) descriptor(l fetch.Layer) toc.Descriptor {
	return toc.Descriptor{Blob: l.Blob, Size: l.Size, MediaType: l.MediaType, DiffID: l.DiffID, Annotations: l.Annotations}
}

// imported returns the key of a layer that is here by the table of contents it
// announces, "" if it is not.
func (a *arrival) imported(d toc.Descriptor) id.LayerKey {
	form, digest := toc.Announced(d)
	if digest == "" {
		return ""
	}
	return a.here(form, d.Blob, digest)
}

// here returns the key of an imported layer, "" if there is none.
func (a *arrival) here(form toc.Form, blob, index id.Blob) id.LayerKey {
	k := id.Unproven(string(form), blob, index)
	if !a.e.layers.Has(k) {
		return ""
	}
	return k
}

// layers brings in all layers, in parallel, and returns their keys. They are
// retained for owner when it returns.
func (a *arrival) layers(ctx context.Context, owner string) ([]id.LayerKey, error) {
	for {
		keys, err := a.bringIn(ctx)
		if err != nil {
			return nil, err
		}
		// What an import is called is known when it is here; a collection may
		// have been faster. Once retained it stays.
		if err := a.e.layers.Retain(owner, keys); err != nil {
			return nil, err
		}
		if a.e.hasAll(keys) {
			return keys, nil
		}
	}
}

func (a *arrival) bringIn(ctx context.Context) ([]id.LayerKey, error) {
	g, ctx := errgroup.WithContext(ctx)
	keys := make([]id.LayerKey, len(a.img.Layers))
	first := map[string]int{}
	for i, l := range a.img.Layers {
		if _, ok := first[nameOf(l)]; ok {
			continue // the same layer twice is brought in once
		}
		first[nameOf(l)] = i
		g.Go(func() (err error) {
			keys[i], err = a.layer(ctx, i)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i, l := range a.img.Layers {
		if keys[i] == "" {
			keys[i] = keys[first[nameOf(l)]]
		}
	}
	return keys, nil
}

// nameOf returns what an image calls a layer.
func nameOf(l fetch.Layer) string {
	if l.DiffID != "" {
		return string(l.DiffID)
	}
	return string(l.Blob)
}

// show reports a step of layer i.
func (a *arrival) show(i int, status string, current, total int64) {
	l := a.img.Layers[i]
	name := l.Blob.Short()
	if l.Blob == "" {
		name = l.DiffID.Short()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.report(engineapi.Progress{ID: name, Status: status, Current: current, Total: total})
}

// layer brings in layer i.
func (a *arrival) layer(ctx context.Context, i int) (id.LayerKey, error) {
	l := a.img.Layers[i]
	d := a.descriptor(l)
	key, err := a.found(d)
	if err != nil {
		return "", err
	}
	if key != "" {
		err := a.complete(ctx, i, key)
		if err == nil || fault.KindOf(err) != fault.Integrity {
			return key, err
		}
		a.e.log.Warn("layer is fetched anew", "layer", l.Blob, "err", err)
	}
	if a.whole || l.Size < smallLayer || l.DiffID == "" || a.m.Reference.Local() {
		return a.stream(ctx, i)
	}
	key, err = a.lazily(ctx, i, d)
	if err == nil {
		err = a.agree(key, d)
	}
	switch {
	case err == nil:
		a.show(i, statusIndexed, l.Size, l.Size)
		return key, nil
	case ctx.Err() != nil:
		return "", ctx.Err()
	case !errors.Is(err, toc.ErrNone):
		a.e.log.Warn("layer is fetched whole", "layer", l.Blob, "err", err)
	}
	return a.stream(ctx, i)
}

// found returns the key of a layer that is here, "" if it is not.
func (a *arrival) found(d toc.Descriptor) (id.LayerKey, error) {
	if d.DiffID == "" {
		return "", nil
	}
	if key, ok := a.e.layers.Proven(d.DiffID); ok {
		return key, nil
	}
	key := a.imported(d)
	if key == "" {
		return "", nil
	}
	err := a.agree(key, d)
	if errors.Is(err, errClaims) {
		return "", nil
	}
	return key, err
}

// errClaims says that two images claim different diffIDs for one layer. One of
// them lies, and who will be known when the layer is streamed.
var errClaims = errors.New("another image claims another diffID for it")

// agree returns nil if an imported layer is what d claims, as far as is known.
func (a *arrival) agree(key id.LayerKey, d toc.Descriptor) error {
	l, err := a.e.layers.Info(key)
	switch {
	case err != nil:
		return err
	case l.DiffID == d.DiffID:
		return nil
	case l.Sealed:
		return fault.New(fault.Integrity, "layer %s: the image config says %s, the content is %s", d.Blob.Short(), d.DiffID, l.DiffID)
	}
	return errClaims
}

// complete brings in what is missing of a layer that is here, if all of it is
// wanted.
func (a *arrival) complete(ctx context.Context, i int, key id.LayerKey) error {
	if a.whole {
		if err := a.e.finish(ctx, key, func(done, total int64) { a.show(i, layerdb.StatusDownloading, done, total) }); err != nil {
			return err
		}
	}
	a.show(i, layerdb.StatusExists, 0, 0)
	return nil
}

// stream fetches layer i whole.
func (a *arrival) stream(ctx context.Context, i int) (id.LayerKey, error) {
	l := a.img.Layers[i]
	a.show(i, "Pulling fs layer", 0, 0)
	spec := layerdb.Spec{
		Blob: l.Blob, Size: l.Size, DiffID: l.DiffID,
		// The bytes may serve others, who came later and stay longer.
		Open: func(ctx context.Context) (io.ReadCloser, error) { return a.img.Open(retrying(ctx), i) },
	}
	key, _, err := a.e.layers.Ensure(ctx, spec, func(s layerdb.Step) { a.show(i, s.Status, s.Current, s.Total) })
	return key, err
}

// retrying has those who wait for a layer told when its transfer broke, and
// goes on after a while.
func retrying(ctx context.Context) context.Context {
	return fetch.Waiting(ctx, func(d time.Duration) {
		n, s := int(math.Ceil(d.Seconds())), "s"
		if n == 1 {
			s = ""
		}
		layerdb.Tell(ctx, fmt.Sprintf("Retrying in %d second%s", n, s))
	})
}

// lazily imports layer i. toc.ErrNone says that there is nothing to import it by.
func (a *arrival) lazily(ctx context.Context, i int, d toc.Descriptor) (id.LayerKey, error) {
	var x *toc.Index
	var err error
	scope := ""
	switch kind := toc.Detect(d); {
	case a.announced[i] != nil:
		x, err = a.announced[i].wait()
	case a.beside != nil:
		var b *besides
		if b, err = a.beside.wait(); err == nil {
			if key := b.imported(a, d); key != "" {
				return key, nil
			}
			x, err = b.index(ctx, d)
		}
		if errors.Is(err, toc.ErrNone) && kind == toc.Tar && d.Size >= smallTar {
			scope = a.m.Reference.Name()
			x, err = toc.OpenTar(ctx, blobReader{a.m.Blob(i)}, d)
		}
	default:
		err = toc.ErrNone
	}
	if err != nil {
		return "", err
	}
	return a.e.layers.Import(ctx, layerdb.ImportSpec{Desc: d, Index: x, Scope: scope})
}

// describe completes an image whose manifest states no diffIDs, and no config,
// by those of its layers.
func (a *arrival) describe(keys []id.LayerKey) error {
	if !a.img.Schema1 {
		return nil
	}
	diffs := make([]id.DiffID, len(keys))
	for i, k := range keys {
		l, err := a.e.layers.Info(k)
		if err != nil {
			return err
		}
		diffs[i], a.img.Layers[i].DiffID = l.DiffID, l.DiffID
	}
	config, err := a.img.ConfigOf(diffs)
	a.img.Config, a.img.ID = config, id.ImageIDOf(config)
	return err
}

// blobReader is a blob as package toc reads it.
type blobReader struct{ b *fetch.Blob }

// ReadAt implements toc.Blob.
func (r blobReader) ReadAt(ctx context.Context, p []byte, off int64) error {
	body, err := r.b.Range(ctx, off, int64(len(p)))
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = io.ReadFull(body, p)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = fault.New(fault.Network, "layer: range of %d bytes at %d ends early: %w", len(p), off, err)
	}
	return err
}

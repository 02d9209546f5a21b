package daemon

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/fetch"
	"github.com/imgfs/imgfs/imagedb"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/toc"
	"github.com/imgfs/imgfs/layerdb"
)

// warmStep is how many bytes are fetched between two steps of a warm-up.
const warmStep = 8 << 20

// Warm implements engineapi.Layers.
func (e *engine) Warm(ctx context.Context, req engineapi.WarmRequest, report func(engineapi.Progress)) (res engineapi.WarmResult, err error) {
	defer func() { err = advise(err) }()
	if err := e.beginWork(); err != nil {
		return res, err
	}
	defer e.endWork()
	if len(req.Paths) == 0 {
		return e.warmAll(ctx, req, report)
	}
	s := &source{}
	defer s.close()
	if s.image, err = e.imageFor(ctx, engineapi.MountRequest{Image: req.Image, Platform: req.Platform, Registry: req.Registry}, report); err != nil {
		return res, err
	}
	if err := e.openChain(ctx, s); err != nil {
		return res, err
	}
	return e.warmPaths(ctx, s, req.Paths, report)
}

// warmAll fetches all of an image.
func (e *engine) warmAll(ctx context.Context, req engineapi.WarmRequest, report func(engineapi.Progress)) (res engineapi.WarmResult, err error) {
	var before engineapi.Pin
	if img, _, err := e.lookup(req.Image); err == nil {
		if before, err = e.stock(e.keysOf(&img)); err != nil {
			return res, err
		}
	}
	img, err := e.wholeImage(ctx, req.Image, req.Platform, req.Registry, report)
	if err != nil {
		return res, err
	}
	now, err := e.stock(e.keysOf(&img))
	return engineapi.WarmResult{Bytes: now.Size, Fetched: max(0, now.Present-before.Present)}, err
}

// warmPaths fetches what the files at paths take, and those below them.
func (e *engine) warmPaths(ctx context.Context, s *source, paths []string, report func(engineapi.Progress)) (engineapi.WarmResult, error) {
	var res engineapi.WarmResult
	img := s.chain.Image()
	wanted := map[int][]toc.Range{}
	seen := map[erofs.NID]bool{}
	add := func(_ string, n erofs.NID) error {
		if seen[n] {
			return nil
		}
		seen[n] = true
		size, err := rangesOf(img, n, wanted)
		res.Files++
		res.Bytes += size
		return err
	}
	for _, path := range paths {
		n, at, err := resolveIn(img, path, true)
		if errors.Is(err, erofs.ErrNotExist) {
			return res, fault.New(fault.NotFound, "%s: no such path in image %s", path, s.image.name)
		}
		if err != nil {
			return res, err
		}
		var a erofs.Attr
		if err := img.Stat(n, &a); err != nil {
			return res, err
		}
		switch a.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			err = walk(ctx, img, n, at, add)
		case unix.S_IFREG:
			err = add(at, n)
		}
		if err != nil {
			return res, err
		}
	}
	var err error
	res.Fetched, err = e.fetchRanges(ctx, s.chain.Data(), wanted, report)
	return res, err
}

// fetchRanges brings in ranges of a chain's data, by device, and returns how
// many bytes of them were not here.
func (e *engine) fetchRanges(ctx context.Context, data []*layerdb.Data, wanted map[int][]toc.Range, report func(engineapi.Progress)) (int64, error) {
	var fetched atomic.Int64
	var mu sync.Mutex // serialises report
	g, ctx := errgroup.WithContext(ctx)
	for _, i := range slices.Sorted(maps.Keys(wanted)) {
		g.Go(func() error {
			d := data[i]
			l, err := e.layers.Info(d.Key())
			if err != nil {
				return err
			}
			var missing []toc.Range
			var done, total int64
			for _, r := range wanted[i] {
				if n := r.Len - d.PresentIn(r.Off, r.Len); n > 0 {
					missing = append(missing, r)
					fetched.Add(n)
					total += r.Len
				}
			}
			show := func(status string) {
				mu.Lock()
				defer mu.Unlock()
				report(engineapi.Progress{ID: l.Blob.Short(), Status: status, Current: done, Total: total})
			}
			for len(missing) > 0 {
				show(layerdb.StatusDownloading)
				n, size := 0, int64(0)
				for ; n < len(missing) && size < warmStep; n++ {
					size += missing[n].Len
				}
				if err := d.Prefetch(ctx, missing[:n]); err != nil {
					return err
				}
				missing = missing[n:]
				done += size
			}
			if total > 0 {
				show("Download complete")
			}
			return nil
		})
	}
	err := g.Wait()
	return fetched.Load(), err
}

// Pin implements engineapi.Layers. What is pinned stays, whatever becomes of
// the image's name.
func (e *engine) Pin(_ context.Context, name string) (engineapi.Pin, error) {
	img, ref, err := e.lookup(name)
	if err != nil && fault.HintOf(err) != "" {
		return engineapi.Pin{}, err
	}
	if err != nil {
		return engineapi.Pin{}, fault.WithHint(err, "bring it in first: imgfs pull %s", fault.Word(name))
	}
	keys := e.keysOf(&img)
	if !e.hasAll(keys) {
		return engineapi.Pin{}, fault.WithHint(fault.New(fault.NotFound, "image %s: layers are missing from the store", name), "imgfs pull it again")
	}
	called := pinName(&img, ref)
	if err := e.layers.Pin(called, keys); err != nil {
		return engineapi.Pin{}, err
	}
	return e.pin(called)
}

// pinName returns what a pin of an image is called: the name that it was asked
// for by, or its ID.
func pinName(img *imagedb.Image, ref fetch.Reference) string {
	if ref == (fetch.Reference{}) {
		return string(img.ID)
	}
	return ref.String()
}

// pin returns what is told of a pin.
func (e *engine) pin(name string) (engineapi.Pin, error) {
	p, err := e.stock(e.layers.Held(pinOwner + name))
	p.Image = name
	if ref, err := fetch.ParseReference(name); err == nil && !strings.HasPrefix(name, "sha256:") {
		p.Image = ref.Familiar()
	}
	return p, err
}

// stock counts what is here of layers.
func (e *engine) stock(keys []id.LayerKey) (engineapi.Pin, error) {
	var p engineapi.Pin
	for _, k := range keys {
		h, err := e.layers.Layer(k)
		if fault.KindOf(err) == fault.NotFound {
			continue // gone, or damaged
		}
		if err != nil {
			return p, err
		}
		size := h.Info().DataSize
		p.Layers++
		p.Size += size
		p.Present += h.Data().PresentIn(0, size)
		h.Release()
	}
	return p, nil
}

// pinOwner begins the owners that package layerdb keeps for pins.
const pinOwner = "pin:"

// Pins implements engineapi.Layers.
func (e *engine) Pins(context.Context) ([]engineapi.Pin, error) {
	list := []engineapi.Pin{}
	for _, name := range e.layers.Pinned() {
		p, err := e.pin(name)
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	return list, nil
}

// Unpin implements engineapi.Layers. The image need not be here any more.
func (e *engine) Unpin(_ context.Context, name string) error {
	called := name
	if img, ref, err := e.lookup(name); err == nil {
		called = pinName(&img, ref)
	} else if ref, err := fetch.ParseReference(name); err == nil && !strings.HasPrefix(name, "sha256:") {
		called = ref.String()
	}
	if !slices.Contains(e.layers.Pinned(), called) {
		return fault.WithHint(fault.New(fault.NotFound, "image %s is not pinned", name), "see imgfs pins")
	}
	_, err := e.layers.Unpin(called)
	return err
}

package daemon

import (
	"context"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/layerdb"
)

// DiskUsage implements engineapi.Layers.
func (e *engine) DiskUsage(ctx context.Context) (engineapi.DiskUsage, error) {
	u, err := e.layers.DF()
	if err != nil {
		return engineapi.DiskUsage{}, err
	}
	res := engineapi.DiskUsage{
		Layers: []engineapi.LayerUsage{},
		Data:   u.Data, Evictable: u.Evictable, Pinned: u.Pinned, Limit: u.Limit,
		Tables: u.Tables, Chains: u.Chains, Temporary: u.Temporary,
	}
	users := map[id.LayerKey][]string{}
	for _, img := range e.images.List() {
		names := e.shownAs(&img)
		for _, k := range e.keysOf(&img) {
			users[k] = append(users[k], names...)
		}
	}
	layers, err := e.layers.Layers()
	if err != nil {
		return res, err
	}
	for _, l := range layers {
		names := users[l.Key]
		slices.Sort(names)
		u := usageOf(&l)
		u.Images = slices.Compact(names)
		res.Layers = append(res.Layers, u)
	}
	uppers, err := e.Uppers(ctx)
	if err != nil {
		return res, err
	}
	for _, u := range uppers {
		res.UpperN++
		res.Uppers += u.Size
	}
	return res, nil
}

func problemOf(l *layerdb.LayerInfo) string {
	if l.Bad != "" {
		return l.Bad
	}
	return l.Damage
}

// Verify implements engineapi.Layers.
func (e *engine) Verify(ctx context.Context, req engineapi.VerifyRequest, report func(engineapi.Progress)) ([]engineapi.Verdict, error) {
	if err := e.beginWork(); err != nil {
		return nil, err
	}
	defer e.endWork()
	layers, err := e.layers.Layers()
	if err != nil {
		return nil, err
	}
	if len(req.Images) > 0 {
		wanted := map[id.LayerKey]bool{}
		for _, name := range req.Images {
			img, _, err := e.lookup(name)
			if err != nil {
				return nil, err
			}
			for _, k := range e.keysOf(&img) {
				wanted[k] = true
			}
		}
		layers = slices.DeleteFunc(layers, func(l layerdb.LayerInfo) bool { return !wanted[l.Key] })
	}
	verdicts := make([]engineapi.Verdict, len(layers))
	var mu sync.Mutex // serialises report
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(2) // a disk and a processor at a time
	for i, l := range layers {
		g.Go(func() error {
			show := func(status string) {
				mu.Lock()
				defer mu.Unlock()
				report(engineapi.Progress{ID: l.Key.Short(), Status: status})
			}
			show(layerdb.StatusVerifying)
			verdicts[i] = e.verdict(gctx, &l, req.Repair)
			if v := &verdicts[i]; v.Problem != "" || v.Repaired {
				show("Damaged")
			} else {
				show("Verified")
			}
			return gctx.Err()
		})
	}
	return verdicts, g.Wait()
}

// verdict verifies one layer.
func (e *engine) verdict(ctx context.Context, l *layerdb.LayerInfo, repair bool) engineapi.Verdict {
	v := engineapi.Verdict{Layer: l.Key, Blob: l.Blob, Present: l.Present, Size: l.DataSize, Sealed: l.Sealed, Problem: problemOf(l)}
	if v.Problem != "" {
		v.Bad = 1
		if !repair || l.Bad != "" {
			return v
		}
	}
	bad, err := e.layers.Verify(ctx, l.Key, repair)
	switch {
	case err == nil:
		v.Bad, v.Problem, v.Repaired = bad, "", bad > 0
	case fault.KindOf(err) != fault.NotFound: // removed meanwhile, or damaged in more than its data
		v.Bad, v.Problem = bad, err.Error()
	}
	if now, err := e.layers.Info(l.Key); err == nil {
		v.Sealed = now.Sealed
	}
	return v
}

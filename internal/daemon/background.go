package daemon

import (
	"context"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/lower"
	"github.com/imgfs/imgfs/internal/toc"
	"github.com/imgfs/imgfs/layerdb"
)

const (
	// traceTime is how long after a mount its first accesses are noted.
	traceTime = 15 * time.Second
	// A background completion that fails is tried again after retryFirst,
	// doubled up to retryLast.
	retryFirst = 5 * time.Second
	retryLast  = 5 * time.Minute
)

// openReads returns the data of a mount's chain, and begins what goes on beside
// its reads: what it is likely to want is fetched before it asks, what it asks
// for first is noted for the next time, and with --prefetch all the rest is
// fetched as well. stop ends that; reads go on.
func (e *engine) openReads(rec *record, chain *layerdb.Chain) (data []lower.Data, r *reads, stop func()) {
	who := engineapi.ReadFault{Mount: rec.ID, Target: rec.Target}
	r = newReads(rec.patience(), func(l id.LayerKey, err error) { e.readFailed(who, l, err) })
	r.met.Store(rec.met)
	if rec.Prefetch == engineapi.PrefetchNone {
		return e.devices(chain, r), r, func() {}
	}
	r.trace = newRecorder()
	ctx, cancel := context.WithCancel(e.ctx)
	r.ahead = newForesight(chain, e.log)
	var wg sync.WaitGroup
	wg.Go(func() { e.recordTrace(ctx, r.trace, chain.ID()) })
	wg.Go(func() {
		e.prefetch(ctx, chain)
		if rec.Prefetch == engineapi.PrefetchAll {
			e.completeAll(ctx, chain)
		}
	})
	return e.devices(chain, r), r, func() {
		cancel()
		wg.Wait()
		r.ahead.end()
	}
}

// patience returns how long a record's mount waits for a registry.
func (r *record) patience() time.Duration {
	d, err := engineapi.ParseOnError(r.OnError)
	if err != nil {
		return engineapi.DefaultPatience // of another version
	}
	return d
}

// recordTrace remembers what is read until ctx ends, or for traceTime.
func (e *engine) recordTrace(ctx context.Context, r *recorder, c id.ChainKey) {
	timer := time.NewTimer(traceTime)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	t := r.end()
	if len(t) == 0 {
		return
	}
	known, err := loadTrace(e.db, c)
	if err == nil {
		err = saveTrace(e.db, c, t.then(known), known)
	}
	if err != nil {
		e.log.Warn("first accesses are not remembered", "chain", c, "err", err)
	}
}

// prefetch fetches what the makers of a chain's layers want fetched, and what
// was read first the last times. Its failure is nobody's: a read that needs
// what is missing will say so.
func (e *engine) prefetch(ctx context.Context, chain *layerdb.Chain) {
	data := chain.Data()
	wanted := make([][]toc.Range, len(data))
	sizes := make([]int64, len(data))
	for i, d := range data {
		l, err := e.layers.Info(d.Key())
		if err == nil && !d.Whole() {
			wanted[i], sizes[i] = slices.Clone(l.Prefetch), l.DataSize
		}
	}
	known, err := loadTrace(e.db, chain.ID())
	if err != nil {
		e.log.Warn("first accesses are not known", "chain", chain.ID(), "err", err)
	}
	for _, p := range known {
		if p.Index >= 0 && p.Index < len(data) && p.Off >= 0 && p.Off < sizes[p.Index] {
			wanted[p.Index] = append(wanted[p.Index], toc.Range{Off: p.Off, Len: min(p.Len, sizes[p.Index]-p.Off)})
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	for i, d := range data {
		if len(wanted[i]) == 0 {
			continue
		}
		g.Go(func() error { return d.Prefetch(ctx, wanted[i]) })
	}
	if err := g.Wait(); err != nil && ctx.Err() == nil {
		e.log.Info("prefetch", "chain", chain.ID(), "err", err)
	}
}

// completeAll fetches all that is missing of a chain, until ctx ends.
func (e *engine) completeAll(ctx context.Context, chain *layerdb.Chain) {
	for _, k := range chain.Layers() {
		for pause := retryFirst; ; pause = min(2*pause, retryLast) {
			err := e.finish(ctx, k, nil)
			if err == nil || fault.KindOf(err) == fault.Integrity {
				break // what is bad is known as such now
			}
			if ctx.Err() != nil {
				return
			}
			e.log.Info("background completion", "layer", k, "err", err)
			timer := time.NewTimer(pause)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return
			}
		}
	}
}

// readFailed notes why reads of a mount fail.
func (e *engine) readFailed(who engineapi.ReadFault, l id.LayerKey, err error) {
	who.Layer, who.Reason, who.Count, who.Last = l, err.Error(), 1, time.Now()
	if e.addFault(who) {
		e.log.Error("read failed", "mount", who.Mount, "target", who.Target, "layer", l, "err", err)
	}
}

// addFault counts a fault; fresh says that it is not one that was seen before.
func (e *engine) addFault(who engineapi.ReadFault) (fresh bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range e.faults {
		f := &e.faults[i]
		if f.Mount == who.Mount && f.Layer == who.Layer && f.Reason == who.Reason {
			f.Count++
			f.Last = who.Last
			return false
		}
	}
	if len(e.faults) >= maxProblems {
		e.faults = slices.Delete(e.faults, 0, 1)
	}
	e.faults = append(e.faults, who)
	return true
}

// forgetFaultsLocked drops what was noted of a mount.
//
// Preconditions: e.mu is held.
func (e *engine) forgetFaultsLocked(mountID string) {
	e.faults = slices.DeleteFunc(e.faults, func(f engineapi.ReadFault) bool { return f.Mount == mountID })
}

package layerdb

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/toc"
)

// pinOwner begins the names of owners whose layers are never evicted.
const pinOwner = "pin:"

// Pin keeps layers, and their bytes: they are neither removed nor evicted until
// Unpin. name is whose wish it is; a second Pin of that name replaces the first.
func (s *Store) Pin(name string, layers []id.LayerKey) error { return s.Retain(pinOwner+name, layers) }

// Unpin ends what Pin of that name asked for. It returns the layers removed,
// those that nobody else holds.
func (s *Store) Unpin(name string) ([]id.LayerKey, error) { return s.Release(pinOwner + name) }

// Pinned returns the names of all pins, sorted.
func (s *Store) Pinned() []string {
	list := s.Owners(pinOwner)
	for i := range list {
		list[i] = strings.TrimPrefix(list[i], pinOwner)
	}
	return list
}

// pinnedLocked returns the layers that are pinned.
//
// Preconditions: g.mu is held.
func (g *ledger) pinnedLocked() map[id.LayerKey]bool {
	pins := map[id.LayerKey]bool{}
	for owner, list := range g.held {
		if strings.HasPrefix(owner, pinOwner) {
			for _, k := range list {
				pins[k] = true
			}
		}
	}
	return pins
}

// Hold keeps the bytes of the chain's layers until Release: the kernel reads
// the files, and to evict them would free nothing. What is missing is the
// caller's to complete, after Hold.
func (c *Chain) Hold() {
	c.hold.Do(func() {
		c.held = true
		for _, h := range c.c.layers {
			// An eviction under way ends first.
			h.layer.opening.Lock()
			c.s.mu.Lock()
			h.layer.holds++
			c.s.mu.Unlock()
			h.layer.opening.Unlock()
		}
	})
}

// unhold ends what Hold began, for ever.
func (c *Chain) unhold() {
	c.hold.Do(func() {})
	if !c.held {
		return
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	for _, h := range c.c.layers {
		h.layer.holds--
	}
}

// errKept is returned (wrapped) when a layer's bytes have to stay.
var errKept = errors.New("its data cannot be evicted")

// keptLocked says why the bytes of l stay, nil if nothing keeps them.
//
// Preconditions: s.mu is held.
func (l *layer) keptLocked() error {
	switch i := &l.info; {
	case i.Spans.Sum == "":
		return fault.New(fault.Invalid, "layer %s: %w: it could only be fetched again as a whole", i.Key.Short(), errKept)
	case i.Form == toc.Stream && i.DataSize > roundUp(i.StreamSize):
		return fault.New(fault.Invalid, "layer %s: %w: it has sparse files that were laid out anew", i.Key.Short(), errKept)
	case l.holds > 0:
		return fault.New(fault.Conflict, "layer %s: %w: the kernel reads it", i.Key.Short(), errKept)
	}
	return nil
}

// Evict drops the bytes of a layer that can be fetched again, and returns how
// many bytes on disk that gave back. Who reads goes on undisturbed: what he
// holds stays his, what he needs next is fetched.
//
// fault.Conflict if the layer is pinned or held, fault.Invalid or
// fault.Unavailable if it could not be fetched again.
func (s *Store) Evict(ctx context.Context, k id.LayerKey) (freed int64, err error) {
	h, err := s.openLayer(k, false)
	if err != nil {
		return 0, err
	}
	defer h.Release()
	freed, err = s.evict(ctx, h)
	if err != nil {
		return freed, fmt.Errorf("layer %s: %w", k.Short(), err)
	}
	if s.opts.Evicted != nil {
		s.opts.Evicted(k, freed)
	}
	return freed, nil
}

func (s *Store) evict(ctx context.Context, h *Layer) (int64, error) {
	l := h.layer
	if _, err := s.remote(ctx, l); err != nil {
		return 0, err
	}
	l.opening.Lock()
	defer l.opening.Unlock()
	s.owned.mu.Lock()
	pinned := s.owned.pinnedLocked()[h.data.key]
	s.owned.mu.Unlock()
	s.mu.Lock()
	err := l.keptLocked()
	info := l.info
	s.mu.Unlock()
	switch {
	case err != nil:
		return 0, err
	case pinned:
		return 0, fault.New(fault.Conflict, "%w: it is pinned", errKept)
	}
	if err := s.toLazy(h.data, &info); err != nil {
		return 0, err
	}
	freed, err := h.data.lazy.Load().Evict()
	giveBack()
	s.mu.Lock()
	s.sizeLocked(l)
	s.mu.Unlock()
	return freed, err
}

// giveBack has files closed that were replaced or removed. Who may still read
// one is known to the collector alone, and until it has looked, which in an idle
// process is every two minutes, their bytes stay on disk. Once is not enough:
// what lies in a pool survives that.
func giveBack() {
	runtime.GC()
	runtime.GC()
}

// toLazy makes a data file that is whole one that package lazy fills.
//
// Preconditions: the layer's opening is held.
func (s *Store) toLazy(d *Data, info *LayerInfo) error {
	if d.lazy.Load() != nil {
		return nil
	}
	f, err := s.openLazy(d, info)
	if err != nil {
		return err
	}
	d.lazy.Store(f)
	d.whole.Store(nil) // not closed: who reads may have it still
	s.mu.Lock()
	d.layer.lazy = true
	s.mu.Unlock()
	return nil
}

// keepLimit evicts when the cache has grown beyond its limit, until Close. It
// looks first how large the cache is.
func (s *Store) keepLimit() {
	s.look()
	for {
		select {
		case <-s.over:
		case <-s.ctx.Done():
			return
		}
		if err := s.shrink(s.ctx); err != nil && s.ctx.Err() == nil {
			s.log.Warn("cache is larger than its limit", "err", err)
		}
	}
}

// shrink evicts layers, those used least recently first and those in use last,
// until the cache is a tenth below its limit, so that it is not at once beyond
// it again.
func (s *Store) shrink(ctx context.Context) error {
	limit := s.opts.CacheLimit
	target := limit - limit/10
	for _, k := range s.evictable() {
		s.mu.Lock()
		disk := s.disk
		s.mu.Unlock()
		if disk <= target {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		freed, err := s.Evict(ctx, k)
		if err != nil {
			s.log.Info("layer is not evicted", "layer", k, "err", err)
			continue
		}
		s.log.Info("layer was evicted", "layer", k, "freed", freed)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.disk > limit {
		return fmt.Errorf("%d bytes of layers, and nothing more to evict", s.disk)
	}
	return nil
}

// evictable lists the layers to evict, first to last.
func (s *Store) evictable() []id.LayerKey {
	s.owned.mu.Lock()
	pins := s.owned.pinnedLocked()
	s.owned.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*layer
	for k, l := range s.layers {
		claimed := l.sealing || len(l.work) > 0 // would be fetched again at once
		if !pins[k] && !claimed && l.info.Damage == "" && s.lookLocked(l).disk > 0 && l.keptLocked() == nil {
			list = append(list, l)
		}
	}
	slices.SortFunc(list, func(a, b *layer) int {
		return cmp.Or(cmp.Compare(min(a.users, 1), min(b.users, 1)), a.used.Compare(b.used))
	})
	keys := make([]id.LayerKey, len(list))
	for i, l := range list {
		keys[i] = l.info.Key
	}
	return keys
}

// Usage is what the store takes on disk, in bytes.
type Usage struct {
	Data      int64 // data files
	Evictable int64 // of these, what could be evicted now
	Pinned    int64 // of these, what is pinned
	Tables    int64 // indexes, span tables and the like, of layers
	Chains    int64 // indexes of chains
	Temporary int64 // passes and the like under way
	Limit     int64 // of Data; 0: none
}

// DF says what the store takes on disk.
func (s *Store) DF() (Usage, error) {
	layers, err := s.Layers()
	if err != nil {
		return Usage{}, err
	}
	u := Usage{Limit: s.opts.CacheLimit}
	s.mu.Lock()
	for i := range layers {
		info := &layers[i]
		l := s.layers[info.Key]
		if l == nil {
			continue
		}
		u.Data += l.disk
		u.Tables += info.Disk - l.disk
		switch {
		case info.Pinned:
			u.Pinned += l.disk
		case l.keptLocked() == nil:
			u.Evictable += l.disk
		}
	}
	s.mu.Unlock()
	for sub, n := range map[string]*int64{"chains": &u.Chains, "tmp": &u.Temporary} {
		if *n, err = diskUsage(s.dir + "/" + sub); err != nil {
			return Usage{}, fmt.Errorf("layer store: %w", err)
		}
	}
	return u, nil
}

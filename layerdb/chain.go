package layerdb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/span"
)

// chain is an open stack of layers, shared by its handles.
type chain struct {
	id    id.ChainKey
	diffs []id.LayerKey
	ready chan struct{} // closed after err, img and layers are set
	err   error
	img   *erofs.Image
	// layers are the handles of each, in order; of a layer that the stack
	// holds twice there are two.
	layers []*Layer
	users  int // handles and who waits for ready; guarded by Store.mu
}

// Chain is a handle of an open stack of layers. It, and what its methods
// return, is good until Release.
type Chain struct {
	s       *Store
	c       *chain
	hold    sync.Once // see Hold
	held    bool      // Hold was called
	release sync.Once
}

// Layer is a handle of one open layer, for views of it alone.
type Layer struct {
	s       *Store
	layer   *layer
	data    *Data
	img     *erofs.Image // nil if only the data was asked for
	release sync.Once
}

// ID returns the chain ID, "" of the empty stack.
func (c *Chain) ID() id.ChainKey { return c.c.id }

// Image returns the merged tree, whose devices are Data in order.
func (c *Chain) Image() *erofs.Image { return c.c.img }

// Data returns the layers' data files, lowest first.
func (c *Chain) Data() []*Data {
	list := make([]*Data, len(c.c.layers))
	for i, l := range c.c.layers {
		list[i] = l.data
	}
	return list
}

// Layers returns the diffIDs, lowest first.
func (c *Chain) Layers() []id.LayerKey { return slices.Clone(c.c.diffs) }

// IndexPath returns the path of the index file, for the kernel to mount.
func (c *Chain) IndexPath() string { return c.s.chainIndex(c.c.id) }

// DataPaths returns the paths of the layers' data files, lowest first.
func (c *Chain) DataPaths() []string {
	list := make([]string, len(c.c.diffs))
	for i, d := range c.c.diffs {
		list[i] = c.s.dataPath(d)
	}
	return list
}

// Release ends the use of the handle. Further calls do nothing.
func (c *Chain) Release() {
	c.release.Do(func() {
		c.unhold()
		c.s.dropChain(c.c)
	})
}

// Chain opens the stack of diffs, lowest first, and makes its index if there
// is none. No diffs are the empty stack. Callers share one build and one open
// stack; who leaves does not stop it.
//
// Errors: fault.NotFound if a layer is not stored, else what the merge or the
// disk said.
func (s *Store) Chain(ctx context.Context, diffs []id.LayerKey) (*Chain, error) {
	for _, d := range diffs {
		if _, err := id.ParseLayerKey(string(d)); err != nil {
			return nil, fault.New(fault.Invalid, "chain: %w", err)
		}
	}
	cid := id.Stack(diffs)
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, fault.New(fault.Unavailable, "layer store is closed")
	}
	c := s.chains[cid]
	if c == nil {
		c = &chain{id: cid, diffs: slices.Clone(diffs), ready: make(chan struct{})}
		s.chains[cid] = c
		s.wg.Go(func() { s.openChain(c) })
	}
	c.users++
	s.mu.Unlock()

	select {
	case <-c.ready:
	case <-ctx.Done():
		// The build goes on: its result is on disk for the next one.
		s.dropChain(c)
		return nil, context.Cause(ctx)
	}
	if c.err != nil {
		s.dropChain(c)
		return nil, c.err
	}
	return &Chain{s: s, c: c}, nil
}

// openChain opens c, building its index if need be, and wakes who waits.
func (s *Store) openChain(c *chain) {
	c.err = s.guard("merge", func() error { return s.fillChain(c) })
	if c.err != nil {
		c.err = fmt.Errorf("chain %s: %w", c.id.Short(), s.diskError(c.err))
		releaseAll(c.layers)
		c.layers = nil
	}
	s.mu.Lock()
	if c.err != nil || c.users == 0 {
		delete(s.chains, c.id) // a failure is not remembered
	}
	unused := c.users == 0
	close(c.ready)
	s.mu.Unlock()
	if unused {
		s.closeChain(c)
	}
}

// dropChain takes one user from c and closes it after the last, unless it is
// still being opened.
func (s *Store) dropChain(c *chain) {
	s.mu.Lock()
	c.users--
	last := c.users == 0
	select {
	case <-c.ready:
	default:
		last = false // openChain closes it
	}
	if last && s.chains[c.id] == c {
		delete(s.chains, c.id)
	}
	s.mu.Unlock()
	if last {
		s.closeChain(c)
	}
}

// closeChain gives back what fillChain opened.
func (s *Store) closeChain(c *chain) {
	releaseAll(c.layers)
	if c.img != nil {
		if err := c.img.Close(); err != nil {
			s.log.Warn("close of a chain index", "chain", c.id, "err", err)
		}
	}
}

func releaseAll(layers []*Layer) {
	for _, l := range layers {
		l.Release()
	}
}

// fillChain opens data files and index. What it opened is in c even if it
// fails.
func (s *Store) fillChain(c *chain) error {
	for _, d := range c.diffs {
		l, err := s.openLayer(d, false)
		if err != nil {
			return err
		}
		c.layers = append(c.layers, l)
	}
	img, err := s.openChainIndex(c.diffs)
	switch {
	case err == nil:
		c.img = img
		return nil
	case errors.Is(err, os.ErrNotExist):
	case errors.Is(err, erofs.ErrCorrupt):
		s.problem("index of chain %s is damaged and made anew: %v", c.id.Short(), err)
	default:
		return err
	}
	if err := s.buildChain(c); err != nil {
		return err
	}
	c.img, err = s.openChainIndex(c.diffs)
	return err
}

// buildChain makes the index of c on that of its longest ancestor there is.
func (s *Store) buildChain(c *chain) error {
	var parent *erofs.Image
	from := 0
	for n := len(c.diffs) - 1; n > 0 && parent == nil; n-- {
		img, err := s.openChainIndex(c.diffs[:n])
		if err == nil {
			parent, from = img, n
			defer img.Close()
		}
	}
	var top []*erofs.Image
	for _, d := range c.diffs[from:] {
		l, err := s.openLayer(d, true)
		if err != nil {
			return err
		}
		defer l.Release()
		top = append(top, l.img)
	}
	dir, forget, err := s.tempDir("chain-")
	if err != nil {
		return err
	}
	defer forget()
	index, err := writeFile(filepath.Join(dir, "index"), func(w io.Writer) error { return s.opts.Merge(w, parent, top) })
	if err != nil {
		return fmt.Errorf("merge: %w", err)
	}
	if err := writeJSON(filepath.Join(dir, chainRecord), index); err != nil {
		return err
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	s.mu.Lock()
	target := filepath.Dir(s.chainIndex(c.id))
	grave, err := s.buryLocked(target)
	if err == nil {
		err = os.Rename(dir, target)
	}
	s.mu.Unlock()
	grave()
	if err != nil {
		return err
	}
	return syncDir(filepath.Join(s.dir, "chains"))
}

func (s *Store) chainIndex(c id.ChainKey) string {
	name := c.Hex()
	if name == "" {
		name = emptyChain
	}
	return filepath.Join(s.dir, "chains", name, "index")
}

// emptyChain is the directory of the stack of no layers.
const emptyChain = "empty"

// Layer opens one layer; fault.NotFound if it is not stored.
func (s *Store) Layer(d id.LayerKey) (*Layer, error) { return s.openLayer(d, true) }

// Image returns the layer's own index, with layertar's markers in it.
func (l *Layer) Image() *erofs.Image { return l.img }

// Data returns the layer's data file.
func (l *Layer) Data() *Data { return l.data }

// Info returns the layer's record.
func (l *Layer) Info() LayerInfo {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	return l.layer.info
}

// Release ends the use of the handle. Further calls do nothing.
func (l *Layer) Release() { l.release.Do(func() { l.s.dropLayer(l) }) }

// openLayer returns a handle, with the layer's index open if index is set.
func (s *Store) openLayer(k id.LayerKey, index bool) (*Layer, error) {
	if err := s.check(k); err != nil {
		return nil, err
	}
	return s.openUnchecked(k, index)
}

// openUnchecked is openLayer for a layer that may be known to be damaged.
func (s *Store) openUnchecked(k id.LayerKey, index bool) (*Layer, error) {
	h := &Layer{s: s}
	s.mu.Lock()
	l := s.layers[k]
	if l == nil {
		s.mu.Unlock()
		return nil, fault.New(fault.NotFound, "%w: %s", errAbsent, k)
	}
	s.lookLocked(l)
	if l.work == nil {
		l.work = make(chan struct{}, 1)
	}
	l.users++ // from here on it is not removed
	l.opened, l.used = true, time.Now()
	h.layer = l
	s.mu.Unlock()
	var err error
	if h.data, err = s.dataOf(l); err == nil && index {
		h.img, err = openIndex(filepath.Join(s.layerDir(k), "index"), layerLabel, []id.LayerKey{k})
	}
	if err != nil {
		h.Release()
		return nil, fmt.Errorf("layer %s: %w", k.Short(), err)
	}
	return h, nil
}

// dataOf returns the data of a layer in use, opened by the first to ask.
func (s *Store) dataOf(l *layer) (*Data, error) {
	l.opening.Lock()
	defer l.opening.Unlock()
	s.mu.Lock()
	d := l.data
	s.mu.Unlock()
	if d != nil {
		if f := d.lazy.Load(); f != nil {
			return d, f.Recheck() // whoever opens it anew can ask for that much
		}
		return d, nil
	}
	d, err := s.openData(l)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	l.data = d
	s.mu.Unlock()
	return d, nil
}

// dropLayer closes a handle, and the layer's data file with the last.
func (s *Store) dropLayer(h *Layer) {
	l := h.layer
	l.opening.Lock()
	s.mu.Lock()
	l.users--
	l.used = time.Now()
	var data *Data
	if l.users == 0 {
		data, l.data = l.data, nil
	}
	used, key := l.used, l.info.Key
	s.mu.Unlock()
	if data != nil {
		if err := data.close(); err != nil {
			s.log.Warn("close of a layer's data", "layer", key, "err", err)
		}
		// Where that is not possible the layer is the first to be evicted.
		_ = os.Chtimes(filepath.Join(s.layerDir(key), recordFile), time.Time{}, used)
	}
	l.opening.Unlock()
	if h.img != nil {
		if err := h.img.Close(); err != nil {
			s.log.Warn("close of a layer's index", "layer", key, "err", err)
		}
	}
}

// Spans returns the layer's span table; fault.Invalid if it has none.
func (l *Layer) Spans() (*span.Table, error) {
	info := l.Info()
	return readSpans(l.s.layerDir(info.Key), &info)
}

// Skeleton returns what the layer's stream holds beside payload, as our own
// table of contents has it; fault.Invalid if it is not kept, or not proven: what
// somebody else said is not to be said again in our name.
func (l *Layer) Skeleton() ([]byte, error) {
	info := l.Info()
	if !info.Sealed || info.Table.Sum == "" || info.tableFile() != skeletonFile {
		return nil, fault.New(fault.Invalid, "layer %s has no skeleton", info.Key.Short())
	}
	return readSummed(filepath.Join(l.s.layerDir(info.Key), skeletonFile), info.Table)
}

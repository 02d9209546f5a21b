package layerdb

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/lazy"
)

// Has reports whether the layer is stored and its files look whole.
func (s *Store) Has(d id.LayerKey) bool { return s.check(d) == nil }

// errAbsent is returned (wrapped) when a layer is not stored.
var errAbsent = errors.New("layer does not exist")

// check returns nil if the layer is there and whole, or can be fetched. The
// files are looked at once per process: that they exist, have the sizes and
// times recorded or, failing that, the content, and that the index opens. Data
// that is damaged is dropped, if it can be fetched again span by span. Any
// other damaged layer counts as absent from then on.
func (s *Store) check(k id.LayerKey) error {
	s.mu.Lock()
	l := s.layers[k]
	s.mu.Unlock()
	if l == nil {
		return fault.New(fault.NotFound, "%w: %s", errAbsent, k)
	}
	s.mu.Lock()
	info, isLazy, checked := l.info, s.lookLocked(l).lazy, l.checked
	s.mu.Unlock()
	if info.Damage != "" {
		return absent(&info)
	}
	if checked {
		return nil
	}
	err := s.inspect(&info, isLazy)
	if err == nil && !isLazy {
		err = s.inspectData(l, &info)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		l.info.Damage = err.Error()
		s.problemLocked("layer %s is damaged and counts as absent: %v", k.Short(), err)
		return absent(&l.info)
	}
	l.checked = true
	return nil
}

// absent is the error about a layer that is damaged.
func absent(i *LayerInfo) error {
	return fault.New(fault.NotFound, "%w: %s: damaged: %s", errAbsent, i.Key, i.Damage)
}

// inspect looks whether a layer's files, data apart, are what its record says.
func (s *Store) inspect(i *LayerInfo, isLazy bool) error {
	dir := s.layerDir(i.Key)
	index := filepath.Join(dir, "index")
	if err := i.Index.unchanged(index, i.Index.proveSum); err != nil {
		return err
	}
	if isLazy {
		for name, w := range map[string]written{spansFile: i.Spans, i.tableFile(): i.Table} {
			if w.Sum == "" {
				continue
			}
			if err := w.unchanged(filepath.Join(dir, name), w.proveSum); err != nil {
				return err
			}
		}
	}
	img, err := openIndex(index, layerLabel, []id.LayerKey{i.Key})
	if err != nil {
		return err
	}
	return img.Close()
}

// inspectData looks whether data of which all should be here is what the record
// says. If it is not, and can be fetched, the layer is one without bytes. (What
// a lazy data file holds is package lazy's to look at.)
func (s *Store) inspectData(l *layer, i *LayerInfo) error {
	l.opening.Lock()
	defer l.opening.Unlock()
	s.mu.Lock()
	done := l.checked || l.lazy // by another goroutine
	kept := l.keptLocked()
	s.mu.Unlock()
	if done {
		return nil
	}
	data := written{Size: i.DataSize, Time: i.DataTime}
	damage := data.unchanged(s.dataPath(i.Key), func(f *os.File) error { return s.proveData(i, f) })
	if damage == nil || kept != nil {
		return damage
	}
	if _, err := s.remote(s.ctx, l); err != nil {
		return damage
	}
	spans, err := readSpans(s.layerDir(i.Key), i)
	if err != nil {
		return damage
	}
	// Removed, not emptied: a kernel mount of a daemon that is gone may have it.
	if err := os.Remove(s.dataPath(i.Key)); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("%w; to fetch it again: %w", damage, err)
	}
	if err := lazy.Create(s.layerDir(i.Key), lazy.Options{Table: spans, Size: i.DataSize}); err != nil {
		return fmt.Errorf("%w; to fetch it again: %w", damage, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l.lazy = true
	s.sizeLocked(l)
	s.problemLocked("data of layer %s is damaged and fetched again: %v", i.Key.Short(), damage)
	return nil
}

package layerdb

import (
	"maps"
	"slices"

	"github.com/imgfs/imgfs/internal/id"
)

// Presence returns how many bytes of data a stored layer has, and how many of
// these are here; of a lazy layer that is not open, about how many. 0 of a layer
// that is not stored or damaged. Files are looked at once in the process.
func (s *Store) Presence(k id.LayerKey) (present, size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.layers[k]
	if l == nil || l.info.Damage != "" {
		return 0, 0
	}
	return s.lookLocked(l).present(), l.info.DataSize
}

// Figures are what layers come to, in bytes.
type Figures struct {
	Content       int64 // of regular files, as docker counts an image
	Present, Data int64 // as of Presence; of a layer that is there twice, once
}

// FiguresOf sums up layers; one that is not stored or damaged counts nothing.
// Present and Data stay 0 unless presence is set.
func (s *Store) FiguresOf(keys []id.LayerKey, presence bool) Figures {
	var f Figures
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, k := range keys {
		l := s.layers[k]
		if l == nil || l.info.Damage != "" {
			continue
		}
		f.Content += l.info.Content
		if presence && !slices.Contains(keys[:i], k) {
			f.Present += s.lookLocked(l).present()
			f.Data += l.info.DataSize
		}
	}
	return f
}

// Look has the files of all layers looked at, on a goroutine of the store: so
// who asks first for all of them need not wait. See lookLocked.
func (s *Store) Look() { s.wg.Go(s.look) }

func (s *Store) look() {
	s.mu.Lock()
	layers := slices.Collect(maps.Values(s.layers))
	s.mu.Unlock()
	for _, l := range layers {
		if s.ctx.Err() != nil {
			return
		}
		s.mu.Lock()
		if s.layers[l.info.Key] == l {
			s.lookLocked(l)
		}
		s.mu.Unlock()
	}
}

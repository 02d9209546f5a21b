package layerdb

import "github.com/imgfs/imgfs/internal/id"

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

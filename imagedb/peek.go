package imagedb

import "github.com/imgfs/imgfs/internal/id"

// Peek is [Store.Get] without the image's bytes: no file is looked at, and a
// broken image is no error.
func (s *Store) Peek(i id.ImageID) (Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.images[i]
	if e == nil {
		return Image{}, noSuchImage(string(i))
	}
	return e.Image, nil
}

package imagedb

import (
	"slices"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// SetParent notes that image i was made of parent; "" takes the note away. It
// has docker's texts: fault.NotFound if one of them is not here,
// fault.Invalid if i would be its own ancestor.
func (s *Store) SetParent(i, parent id.ImageID) error {
	s.change.Lock()
	defer s.change.Unlock()
	e := s.images[i]
	if e == nil {
		return noSuchImage(string(i))
	}
	if err := s.checkParent(i, parent); err != nil || e.Parent == parent {
		return err
	}
	changed := s.copyOf(i)
	changed.Parent = parent
	if err := s.commit(map[string][]byte{imageKey + i.Hex(): record(&changed)}); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unlink(e)
	e.Parent = parent
	s.link(e)
	return nil
}

// checkParent refuses a parent that is not here, or of which i is an ancestor.
//
// Preconditions: s.change is held.
func (s *Store) checkParent(i, parent id.ImageID) error {
	if parent != "" && parent != i && s.images[parent] == nil {
		return fault.New(fault.NotFound, "unknown parent image ID %s", parent)
	}
	for n, p := 0, parent; p != "" && s.images[p] != nil; p = s.images[p].Parent {
		if n++; p == i || n > len(s.images) {
			return fault.New(fault.Invalid, "image %s cannot be its own ancestor", i.Short())
		}
	}
	return nil
}

// GetParent returns what image i was made of, "" if that is not known.
// fault.NotFound if there is no such image.
func (s *Store) GetParent(i id.ImageID) (id.ImageID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.images[i]
	if e == nil {
		return "", noSuchImage(string(i))
	}
	return e.Parent, nil
}

// Children returns the images that were made of i, sorted.
func (s *Store) Children(i id.ImageID) []id.ImageID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.children[i])
}

// link enters e among its parent's children, and unlink takes it out.
//
// Preconditions: s.change and s.mu are held.
func (s *Store) link(e *entry) {
	if e.Parent == "" {
		return
	}
	list := s.children[e.Parent]
	if at, found := slices.BinarySearch(list, e.ID); !found {
		s.children[e.Parent] = slices.Insert(list, at, e.ID)
	}
}

func (s *Store) unlink(e *entry) {
	list := s.children[e.Parent]
	at, found := slices.BinarySearch(list, e.ID)
	switch {
	case !found:
	case len(list) == 1:
		delete(s.children, e.Parent)
	default:
		s.children[e.Parent] = slices.Delete(list, at, at+1)
	}
}

// Has reports whether there is such an image, broken or not.
func (s *Store) Has(i id.ImageID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.images[i] != nil
}

// Map returns all images, without their bytes.
func (s *Store) Map() map[id.ImageID]Image { return byID(s.List()) }

// Heads returns the images that no other was made of, without their bytes.
func (s *Store) Heads() map[id.ImageID]Image {
	list := s.List()
	s.mu.Lock()
	defer s.mu.Unlock()
	return byID(slices.DeleteFunc(list, func(i Image) bool { return len(s.children[i.ID]) > 0 }))
}

func byID(list []Image) map[id.ImageID]Image {
	m := make(map[id.ImageID]Image, len(list))
	for _, i := range list {
		m[i.ID] = i
	}
	return m
}

package overlay

import "github.com/imgfs/imgfs/internal/erofs"

// directory is what is known of the names in a directory that has a part in
// the upper.
type directory struct {
	names map[string]*entry
}

// entry is a name in the upper.
type entry struct {
	name string
	n    *node
}

// reverse finds the names of lower inodes.
type reverse struct{}

func (u *Union) openRoot() error { return nil }

var _ erofs.NID

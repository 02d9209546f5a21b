package imagedb

import (
	"fmt"
	"os"

	"github.com/imgfs/imgfs/internal/id"
)

// OpenKept opens a blob that Keep has stored. fs.ErrNotExist if there is none;
// what it holds is for the reader to prove.
func (s *Store) OpenKept(b id.Blob) (*os.File, error) {
	f, err := os.Open(s.blobPath(b.Hex()))
	if err != nil {
		return nil, fmt.Errorf("images: %w", err)
	}
	return f, nil
}

package imagedb

import (
	"encoding/json"
	"os"
	"path/filepath"

	"github.com/imgfs/imgfs/internal/id"
)

// maxConfig is the longest file that is looked into for a config.
const maxConfig = 8 << 20

// Find makes the records of images again that no record and no name speaks of,
// but whose configs are among the files: of those that a lost database had. It
// returns how many there are.
//
// Preconditions: nobody else uses the store yet.
func (s *Store) Find() (int, error) {
	entries, err := os.ReadDir(s.blobs)
	if err != nil {
		return 0, err
	}
	lost := map[id.ImageID]string{}
	for _, f := range entries {
		i, err := id.ParseImageID(algorithm + f.Name())
		if err != nil || s.images[i] != nil {
			continue
		}
		if st, err := f.Info(); err != nil || st.Size() > maxConfig {
			continue
		}
		b, _, err := readFile(filepath.Join(s.blobs, f.Name()))
		if err != nil || len(b) == 0 || b[0] != '{' || id.ImageIDOf(b) != i {
			continue
		}
		var c struct {
			RootFS json.RawMessage `json:"rootfs"`
		}
		if json.Unmarshal(b, &c) == nil && c.RootFS != nil {
			lost[i] = "its record is lost"
		}
	}
	return len(lost), s.recover(lost)
}

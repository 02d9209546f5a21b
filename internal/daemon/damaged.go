package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// putAside renames what is in the place of a directory of the store and is
// none: the store goes on with an empty one.
func (e *engine) putAside(names ...string) error {
	for _, n := range names {
		path := filepath.Join(e.paths.Root, n)
		st, err := os.Lstat(path)
		switch {
		// A link is somebody's wish; if it leads nowhere, who opens it says so.
		case errors.Is(err, os.ErrNotExist) || err == nil && (st.IsDir() || st.Mode()&os.ModeSymlink != 0):
			continue
		case err != nil:
			return err
		}
		to, err := asideOf(path)
		if err == nil {
			err = os.Rename(path, to)
		}
		if err != nil {
			return err
		}
		e.problem("%s was no directory, and was put aside as %s", path, filepath.Base(to))
	}
	return nil
}

// asideOf returns a name that is free, for what is damaged.
func asideOf(path string) (string, error) {
	for n := 1; n < 1000; n++ {
		to := fmt.Sprintf("%s.damaged-%d", path, n)
		if _, err := os.Lstat(to); errors.Is(err, os.ErrNotExist) {
			return to, nil
		}
	}
	return "", fmt.Errorf("%s: too many damaged ones lie beside it", path)
}

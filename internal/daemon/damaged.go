package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/imgfs/imgfs/internal/metadb"
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

// openDB opens the database. One that is damaged is put aside, and what can be
// read of it is used.
func (e *engine) openDB() (err error) {
	path := filepath.Join(e.paths.Root, "db")
	if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
		e.lostDB = true // unless the store is new too
	}
	if rest := metadb.Unfinished(path); dirAt(rest) { // what it was made of is lost, or in there
		to, err := asideOf(path)
		if err == nil {
			err = os.Rename(rest, to)
		}
		if err != nil {
			return err
		}
		e.lostDB = true
		e.problem("a recovery of the database was cut off: what was left of it is in %s", filepath.Base(to))
	}
	e.db, err = metadb.Open(path)
	if !errors.Is(err, metadb.ErrUnusable) {
		return err
	}
	to, aerr := asideOf(path)
	if aerr != nil {
		return errors.Join(err, aerr)
	}
	why := err
	if e.db, err = metadb.Recover(path, to); err != nil {
		return errors.Join(why, err)
	}
	e.lostDB = true
	e.problem("the database was damaged, and put aside as %s; what could be read of it is in use: %v", filepath.Base(to), why)
	return nil
}

func dirAt(path string) bool {
	st, err := os.Lstat(path)
	return err == nil && st.IsDir()
}

// findImages makes images known again that a database had which is lost, or of
// which not all could be read. Their names are lost with it: a pull gives them
// back, and fetches no layer for that.
func (e *engine) findImages() error {
	if !e.lostDB {
		return nil
	}
	n, err := e.images.Find()
	if err == nil && n > 0 {
		e.problem("%s of which the database knew nothing: pull, or tag them by their IDs, to give them names", count(n, "image"))
	}
	return err
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

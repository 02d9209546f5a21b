package layerdb

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/layertar"
)

// Damage is something that CheckLayer has found.
type Damage struct {
	What     string
	Repaired bool
}

// ChainDamage is something that CheckChains has found.
type ChainDamage struct {
	Name  string      // of the directory
	Chain id.ChainKey // what it is the name of; "" of the empty stack, or of none
	None  bool        // it is the name of none
	What  string
}

// CheckLayer reads all that is stored of a layer and compares it with what is
// known of it, whether that was done before or not: record, index, tables,
// sizes, data. With repair, records and sizes are written anew, and data that is
// damaged is dropped, to be fetched again, if it can be. A layer that is still
// damaged then counts as absent from now on: [Store.Ensure] brings it in anew.
//
// The error says why it could not be found out; fault.NotFound, that the layer
// is not stored.
func (s *Store) CheckLayer(ctx context.Context, k id.LayerKey, repair bool) ([]Damage, error) {
	s.mu.Lock()
	l := s.layers[k]
	if l == nil {
		s.mu.Unlock()
		return nil, fault.New(fault.NotFound, "%w: %s", errAbsent, k)
	}
	info, isLazy := l.info, s.lookLocked(l).lazy
	s.mu.Unlock()
	switch {
	case info.Bad != "":
		return []Damage{{What: info.Bad}}, nil
	case info.Index.Sum == "": // of which there is no record
		return []Damage{{What: info.Damage}}, nil
	}
	var found []Damage
	note := func(err error, mended bool) { found = append(found, Damage{What: err.Error(), Repaired: mended}) }

	sizes, err := s.checkIndex(&info)
	if err == nil {
		err = checkFile(s.dataPath(k), info.DataSize)
	}
	tables := s.checkTables(&info)
	if err == nil && isLazy {
		err = tables
	}
	if err != nil {
		return []Damage{s.condemn(l, err)}, nil
	}
	if err := s.checkRecord(&info); err != nil {
		note(err, repair && s.amend(l, func(*LayerInfo) {}) == nil)
	}
	if tables != nil { // it is all here: it can be read, but not evicted
		note(tables, repair && s.amend(l, func(i *LayerInfo) { i.Spans, i.Table = written{}, written{} }) == nil)
	}
	if sizes != (contents{info.Content, info.Entries, info.Files}) {
		err := fmt.Errorf("its record says that it has %d files of %d bytes, its index %d of %d", info.Files, info.Content, sizes.files, sizes.bytes)
		note(err, repair && s.amend(l, func(i *LayerInfo) { i.Content, i.Entries, i.Files = sizes.bytes, sizes.entries, sizes.files }) == nil)
	}
	if err := ctx.Err(); err != nil {
		return found, err
	}
	bad, err := s.Verify(ctx, k, repair)
	switch {
	case err == nil && bad > 0:
		note(errors.New("its data on disk was damaged and is fetched again"), true)
	case fault.KindOf(err) == fault.Integrity || fault.KindOf(err) == fault.NotFound:
		note(errors.New(strings.TrimPrefix(err.Error(), "layer "+k.Short()+": ")), false)
	case err != nil:
		return found, err
	}
	return found, nil
}

// condemn has a layer count as absent.
func (s *Store) condemn(l *layer, why error) Damage {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.info.Damage == "" {
		l.info.Damage = why.Error()
		s.problemLocked("layer %s is damaged and counts as absent: %v", l.info.Key.Short(), why)
	}
	return Damage{What: why.Error()}
}

// checkRecord compares a layer's own record with what is known of it.
func (s *Store) checkRecord(info *LayerInfo) error {
	stored, err := s.readRecord(info.Key)
	if err != nil {
		return err
	}
	a, err := json.Marshal(stored)
	if err != nil {
		return err
	}
	b, err := json.Marshal(info)
	if err != nil {
		return err
	}
	if string(a) != string(b) {
		return errors.New("its record says something else than the database")
	}
	return nil
}

// checkTables reads through what a layer is fetched by.
func (s *Store) checkTables(info *LayerInfo) error {
	for name, w := range map[string]written{spansFile: info.Spans, info.tableFile(): info.Table} {
		if w.Sum == "" {
			continue
		}
		if err := w.prove(filepath.Join(s.layerDir(info.Key), name)); err != nil {
			return err
		}
	}
	return nil
}

// prove reads a file through that must be the one described.
func (w written) prove(path string) error {
	if err := checkFile(path, w.Size); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := w.proveSum(f); err != nil {
		return fmt.Errorf("%s was changed: %w", filepath.Base(path), err)
	}
	return nil
}

// checkFile looks whether there is a file of that size.
func checkFile(path string, size int64) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%s is missing", filepath.Base(path))
	case err != nil:
		return err
	case !st.Mode().IsRegular() || st.Size() != size:
		return fmt.Errorf("%s is %d bytes long, not %d", filepath.Base(path), st.Size(), size)
	}
	return nil
}

// contents is what a layer's index lists.
type contents struct {
	bytes          int64 // of regular files, hard links counted once
	entries, files int
}

// checkIndex reads a layer's index through, and counts what it lists.
func (s *Store) checkIndex(info *LayerInfo) (contents, error) {
	var c contents
	path := filepath.Join(s.layerDir(info.Key), "index")
	if err := info.Index.prove(path); err != nil {
		return c, err
	}
	img, err := openIndex(path, layerLabel, []id.LayerKey{info.Key})
	if err != nil {
		return c, err
	}
	defer img.Close()
	seen := map[erofs.NID]bool{} // files with several names
	dirs := []erofs.NID{img.Root()}
	for len(dirs) > 0 {
		dir := dirs[len(dirs)-1]
		dirs = dirs[:len(dirs)-1]
		var failed error
		err := img.ReadDir(dir, 0, func(e *erofs.Dirent) bool {
			if name := string(e.Name); name == "." || name == ".." {
				return true
			}
			var a erofs.Attr
			if failed = img.Stat(e.NID, &a); failed != nil {
				return false
			}
			c.entries++
			switch a.Mode & unix.S_IFMT {
			case unix.S_IFDIR:
				dirs = append(dirs, e.NID)
			case unix.S_IFREG:
				if a.Size == 0 {
					_, err := img.Xattr(e.NID, layertar.MarkLink)
					if err == nil { // to a file of a layer below
						return true
					}
					if !errors.Is(err, erofs.ErrNotExist) {
						failed = err
						return false
					}
				}
				if a.Nlink > 1 && seen[e.NID] {
					return true
				}
				if a.Nlink > 1 {
					seen[e.NID] = true
				}
				c.files++
				c.bytes += int64(a.Size)
			}
			return true
		})
		if err == nil {
			err = failed
		}
		if err != nil {
			return c, err
		}
	}
	return c, nil
}

// Discard removes a layer that is damaged, or that nobody holds, if it is not in
// use; removed says whether it did.
func (s *Store) Discard(k id.LayerKey) (removed bool, err error) {
	s.owned.mu.Lock()
	defer s.owned.mu.Unlock()
	r, err := s.removeLocked([]id.LayerKey{k}, nil)
	return len(r.Layers) > 0, err
}

// CheckChains reads the index of every chain through. checked is how many there
// are.
func (s *Store) CheckChains(ctx context.Context) (found []ChainDamage, checked int, err error) {
	names, err := readNames(filepath.Join(s.dir, "chains"))
	if err != nil {
		return nil, 0, fmt.Errorf("layer store: %w", err)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return found, checked, err
		}
		c, err := id.ParseChainKey("sha256:" + name)
		if err != nil && name != emptyChain {
			found = append(found, ChainDamage{Name: name, None: true, What: "chains/" + name + " is not a chain"})
			continue
		}
		checked++
		if err := s.checkChain(c); err != nil {
			found = append(found, ChainDamage{Name: name, Chain: c, What: err.Error()})
		}
	}
	return found, checked, nil
}

// checkChain reads a chain's index and its record.
func (s *Store) checkChain(c id.ChainKey) error {
	path := s.chainIndex(c)
	text, err := os.ReadFile(filepath.Join(filepath.Dir(path), chainRecord))
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	var w written
	if err := json.Unmarshal(text, &w); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	if err := w.prove(path); err != nil {
		return err
	}
	layers := s.Stack(c)
	if layers == nil && c != "" {
		return nil // nobody can say what should be in it
	}
	img, err := s.openChainIndex(layers)
	if err != nil {
		return err
	}
	return img.Close()
}

// RenewChain removes a chain's index, and makes it anew if somebody holds the
// stack; else it would be made when somebody asks for it. Who has it open keeps
// what he has.
func (s *Store) RenewChain(c id.ChainKey) error {
	s.mu.Lock()
	grave, err := s.buryLocked(filepath.Dir(s.chainIndex(c)))
	s.mu.Unlock()
	grave()
	layers := s.Stack(c)
	if err != nil || layers == nil {
		return err
	}
	fresh := &chain{id: c, diffs: layers}
	err = s.guard("merge", func() error { return s.fillChain(fresh) })
	s.closeChain(fresh)
	return err
}

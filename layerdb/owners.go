package layerdb

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// Report says what a GC removed.
type Report struct {
	Layers    []id.LayerKey
	Chains    []id.ChainKey
	Reclaimed int64 // bytes that were allocated on disk
}

// Retain makes owner hold diffs, lowest first, in place of what it held. The
// layers need not be stored yet: a pull retains, then calls Ensure, so that
// nothing collects its layers in between. The record is synced.
func (s *Store) Retain(owner string, diffs []id.LayerKey) error {
	if owner == "" {
		return fault.New(fault.Invalid, "layers: owner has no name")
	}
	for _, d := range diffs {
		if _, err := id.ParseLayerKey(string(d)); err != nil {
			return fault.New(fault.Invalid, "layers of %s: %w", owner, err)
		}
	}
	s.owned.mu.Lock()
	defer s.owned.mu.Unlock()
	if held, ok := s.owned.held[owner]; ok && slices.Equal(held, diffs) {
		return nil
	}
	if err := s.update(map[string][]byte{ownerKey + owner: ownedCopy(diffs)}); err != nil {
		return err
	}
	s.owned.setLocked(owner, slices.Clone(diffs))
	delete(s.owned.lost, owner)
	return nil
}

// DamagedOwners returns the owners whose records cannot be read, sorted. They
// hold nothing until they are retained anew.
func (s *Store) DamagedOwners() []string {
	s.owned.mu.Lock()
	defer s.owned.mu.Unlock()
	return slices.Sorted(maps.Keys(s.owned.lost))
}

// DropDamaged removes the record of such an owner.
func (s *Store) DropDamaged(owner string) error {
	s.owned.mu.Lock()
	defer s.owned.mu.Unlock()
	if !s.owned.lost[owner] {
		return nil
	}
	if err := s.update(map[string][]byte{ownerKey + owner: nil}); err != nil {
		return err
	}
	delete(s.owned.lost, owner)
	return nil
}

// Held returns what owner holds, lowest first; nil if that is nothing. The list
// is the store's: it is not to be changed.
func (s *Store) Held(owner string) []id.LayerKey {
	s.owned.mu.Lock()
	defer s.owned.mu.Unlock()
	return slices.Clip(s.owned.held[owner])
}

// HeldStacks returns the keys of the stacks that owners hold.
func (s *Store) HeldStacks() map[id.ChainKey]bool {
	s.owned.mu.Lock()
	defer s.owned.mu.Unlock()
	return s.owned.stacksLocked()
}

// Release ends what owner holds, removes the layers that were the last owner's
// and no open chain uses, and the indexes of chains that nobody can need
// because of it. It returns the layers removed. An owner that holds nothing is
// no error.
func (s *Store) Release(owner string) (freed []id.LayerKey, err error) {
	s.owned.mu.Lock()
	defer s.owned.mu.Unlock()
	held, ok := s.owned.held[owner]
	if !ok {
		return nil, nil
	}
	if err := s.update(map[string][]byte{ownerKey + owner: nil}); err != nil {
		return nil, err
	}
	s.owned.dropLocked(owner)
	var chains []id.ChainKey
	for i, c := range prefixes(held) {
		if !s.owned.holdsLocked(held[:i+1]) {
			chains = append(chains, c)
		}
	}
	r, err := s.removeLocked(held, chains)
	return r.Layers, err
}

// Owners returns the names of all owners whose name begins with prefix, sorted.
func (s *Store) Owners(prefix string) []string {
	s.owned.mu.Lock()
	defer s.owned.mu.Unlock()
	var list []string
	for o := range s.owned.held {
		if strings.HasPrefix(o, prefix) {
			list = append(list, o)
		}
	}
	slices.Sort(list)
	return list
}

// GC removes every layer without an owner that no open chain uses, damaged
// layers, the indexes of all chains that are neither open nor an owner's, and
// leftovers in tmp/.
func (s *Store) GC(ctx context.Context) (Report, error) {
	if err := ctx.Err(); err != nil {
		return Report{}, err
	}
	chains, err := s.storedChains()
	if err != nil {
		return Report{}, fmt.Errorf("layer store: %w", err)
	}
	s.owned.mu.Lock()
	held := s.owned.stacksLocked()
	chains = slices.DeleteFunc(chains, func(c id.ChainKey) bool { return held[c] })
	s.mu.Lock()
	layers := slices.Collect(maps.Keys(s.layers))
	s.mu.Unlock()
	r, err := s.removeLocked(layers, chains)
	s.owned.mu.Unlock()
	if err != nil {
		return r, err
	}
	names, err := readNames(filepath.Join(s.dir, "tmp"))
	if err != nil {
		return r, fmt.Errorf("layer store: %w", err)
	}
	for _, n := range names {
		s.mu.Lock()
		used := s.tmp[n]
		s.mu.Unlock()
		if used {
			continue
		}
		path := filepath.Join(s.dir, "tmp", n)
		bytes, err := diskUsage(path)
		if err == nil {
			err = os.RemoveAll(path)
		}
		if err != nil {
			return r, fmt.Errorf("layer store: %w", err)
		}
		r.Reclaimed += bytes
	}
	return r, nil
}

// prefixes returns the chains that diffs goes through.
func prefixes(diffs []id.LayerKey) []id.ChainKey {
	list := make([]id.ChainKey, 0, len(diffs))
	var c id.ChainKey
	for _, d := range diffs {
		c = c.Append(d)
		list = append(list, c)
	}
	return list
}

// storedChains lists chains/.
func (s *Store) storedChains() ([]id.ChainKey, error) {
	names, err := readNames(filepath.Join(s.dir, "chains"))
	if err != nil {
		return nil, err
	}
	var list []id.ChainKey
	for _, n := range names {
		if c, err := id.ParseChainKey("sha256:" + n); err == nil {
			list = append(list, c)
		} else if n == emptyChain {
			list = append(list, "")
		}
	}
	slices.Sort(list)
	return list, nil
}

// removeLocked removes those of some layers that are not needed, and those of
// some chains, which no owner holds, that are not open.
//
// Preconditions: s.owned.mu is held.
func (s *Store) removeLocked(layers []id.LayerKey, chains []id.ChainKey) (Report, error) {
	var r Report
	var graves []func() int64
	var firstErr error
	bury := func(path string) bool {
		_, err := os.Lstat(path)
		if err == nil {
			var grave func() int64
			grave, err = s.buryLocked(path)
			graves = append(graves, grave)
		}
		if err != nil && !os.IsNotExist(err) && firstErr == nil {
			firstErr = fmt.Errorf("layer store: %w", err)
		}
		return err == nil
	}
	changes := map[string][]byte{}

	opened := false // files of what is removed, that is: they may have been replaced
	s.mu.Lock()
	wanted := map[id.DiffID]bool{}
	for w := range s.flights {
		wanted[w.diff] = w.diff != ""
	}
	for _, c := range chains {
		if s.chains[c] != nil {
			continue
		}
		if bury(filepath.Dir(s.chainIndex(c))) {
			r.Chains = append(r.Chains, c)
		}
	}
	for _, d := range layers {
		l := s.layers[d]
		if l == nil || l.users > 0 || wanted[l.info.DiffID] || s.owned.count[d] > 0 && l.info.Damage == "" {
			continue
		}
		if bury(s.layerDir(d)) || l.info.Damage != "" {
			r.Layers = append(r.Layers, d)
			opened = opened || l.opened
			s.forgetLocked(l)
			changes[layerKey+d.Hex()] = nil
			for _, b := range append(l.more, l.info.Blob) {
				if b != "" && s.blobs[b] == d {
					delete(s.blobs, b)
					changes[blobKey+b.Hex()] = nil
				}
			}
		}
	}
	s.mu.Unlock()

	for _, g := range graves {
		r.Reclaimed += g()
	}
	if opened {
		giveBack()
	}
	slices.Sort(r.Layers)
	slices.Sort(r.Chains)
	if len(changes) > 0 {
		if err := s.update(changes); err != nil && firstErr == nil {
			firstErr = err
		}
	}
	return r, firstErr
}

// digestOf reads r to its end.
func digestOf(ctx context.Context, r io.Reader) (id.DiffID, error) {
	sum := sha256.New()
	b := make([]byte, outBuffer)
	for {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		n, err := r.Read(b)
		sum.Write(b[:n])
		if err == io.EOF {
			return id.DiffIDFrom([sha256.Size]byte(sum.Sum(nil))), nil
		}
		if err != nil {
			return "", err
		}
	}
}

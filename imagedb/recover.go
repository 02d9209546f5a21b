package imagedb

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/imgfs/imgfs/internal/id"
)

// amend reads the configs of images whose records have no summary of them, and
// writes records of the first version anew.
func (s *Store) amend(list []*entry) error {
	changes := map[string][]byte{}
	for _, e := range list {
		img := e.Image
		seen, err := s.readBlobs(&img, e.stamp)
		if err == nil {
			_, err = img.parseConfig()
		}
		if err != nil {
			s.mark(e, seen, err)
			continue
		}
		e.Created, e.Labels, e.seen = img.Created, img.Labels, seen
		if old := e.stamp == (stamp{}); old {
			e.stamp, e.summed = seen, true
			changes[imageKey+e.ID.Hex()] = record(e)
		}
	}
	return s.commit(changes)
}

// recover makes the records of images again that are known by name or key
// only, from their configs and from manifests that speak of these. One whose
// config is damaged too is entered as broken: it can be removed, or fetched.
func (s *Store) recover(lost map[id.ImageID]string) error {
	if len(lost) == 0 {
		return nil
	}
	names := map[id.ImageID][]string{}
	for n, i := range s.names {
		if lost[i] != "" {
			names[i] = append(names[i], n)
		}
	}
	manifests := s.manifests()
	changes := map[string][]byte{}
	for _, i := range slices.Sorted(maps.Keys(lost)) {
		e, err := s.rebuild(i, manifests)
		if err != nil {
			e = &entry{Image: Image{ID: i}, lost: true}
			s.mark(e, stamp{}, fmt.Errorf("%s, and it cannot be made again: %w", lost[i], err))
		} else {
			changes[imageKey+i.Hex()] = record(e)
			s.problem("image %s: %s; made again from its files", i.Short(), lost[i])
		}
		slices.Sort(names[i])
		e.names = names[i]
		s.add(e)
	}
	return s.commit(changes)
}

// manifest is what is read of an image's manifest to make its record again.
type manifest struct {
	digest id.Blob
	layers []layerRef
}

type layerRef struct {
	Digest id.Blob `json:"digest"`
	Size   int64   `json:"size"`
}

// maxManifest is the longest file that is looked into for a manifest.
const maxManifest = 4 << 20

// manifests returns the manifests there are, by the image that each is of.
func (s *Store) manifests() map[id.ImageID]manifest {
	found := map[id.ImageID]manifest{}
	entries, _ := os.ReadDir(s.blobs)
	for _, f := range entries {
		st, err := f.Info()
		if err != nil || st.Size() > maxManifest || !isHex(f.Name()) {
			continue
		}
		b, _, err := readFile(filepath.Join(s.blobs, f.Name()))
		if err != nil || len(b) == 0 || b[0] != '{' {
			continue
		}
		var m struct {
			Config struct {
				Digest id.ImageID `json:"digest"`
			} `json:"config"`
			Layers []layerRef `json:"layers"`
		}
		d := id.BlobOf(b)
		if json.Unmarshal(b, &m) == nil && m.Config.Digest != "" && d.Hex() == f.Name() {
			found[m.Config.Digest] = manifest{d, m.Layers}
		}
	}
	return found
}

// rebuild makes an image's entry from its files.
func (s *Store) rebuild(i id.ImageID, manifests map[id.ImageID]manifest) (*entry, error) {
	e := &entry{Image: Image{ID: i}, summed: true}
	img := e.Image
	seen, err := s.readBlobs(&img, stamp{})
	if err != nil {
		return nil, err
	}
	c, err := img.parseConfig()
	if err != nil {
		return nil, err
	}
	e.Created, e.Labels = img.Created, img.Labels
	e.stamp, e.seen = seen, seen
	e.Image.Put = time.Unix(0, seen.time).UTC()
	e.Platform = c.OS + "/" + c.Architecture
	if c.Variant != "" {
		e.Platform += "/" + c.Variant
	}
	for _, d := range c.RootFS.DiffIDs {
		e.Layers = append(e.Layers, Layer{DiffID: d})
	}
	if m, ok := manifests[i]; ok && len(m.layers) == len(e.Layers) {
		e.ManifestDigest, e.Digest = m.digest, m.digest
		for n, l := range m.layers {
			e.Layers[n].Blob, e.Layers[n].Size = l.Digest, l.Size
		}
	}
	return e, nil
}

// Damage is one thing in the store that cannot be used.
type Damage struct {
	Image id.ImageID // the image that is broken, or "",
	Name  string     // the full name whose record is damaged
	What  string
}

// Check reads every image's files through, and lists what is damaged: images
// by ID, then names. A broken image is mended by a Create, or goes with its
// Delete; a name by a Tag, or goes with its Untag.
func (s *Store) Check() []Damage {
	s.mu.Lock()
	entries := slices.Clone(s.order)
	s.mu.Unlock()
	var list []Damage
	for _, e := range entries {
		if _, err := s.Get(e.ID); err == nil {
			continue
		}
		s.mu.Lock()
		if s.images[e.ID] == e {
			list = append(list, Damage{Image: e.ID, What: e.Broken})
		}
		s.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range slices.Sorted(maps.Keys(s.damaged)) {
		list = append(list, Damage{Name: n, What: s.damaged[n]})
	}
	return list
}

// Problems lists the damage found since Open, a sentence each.
func (s *Store) Problems() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := slices.Clone(s.problems)
	for _, e := range s.order {
		if e.Broken != "" {
			list = append(list, fmt.Sprintf("image %s is broken: %s", e.ID.Short(), e.Broken))
		}
	}
	slices.Sort(list)
	return list
}

// maxProblems bounds the list; the log has them all.
const maxProblems = 100

// problem notes damage found by Open.
func (s *Store) problem(format string, args ...any) {
	p := fmt.Sprintf(format, args...)
	s.log.Warn(p)
	if len(s.problems) < maxProblems {
		s.problems = append(s.problems, p)
	}
}

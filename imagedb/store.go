package imagedb

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/metadb"
)

// Keys in Badger.
const (
	imageKey = "imagedb/image/" // <hex image ID> -> Image as JSON
	nameKey  = "imagedb/name/"  // <name> -> hex image ID
)

// Image is an image and how it came here.
type Image struct {
	ID             id.ImageID `json:"id"`
	Config         []byte     `json:"-"`                        // byte for byte; nil from List
	Manifest       []byte     `json:"-"`                        // nil from List, and if there was none (docker-archive)
	ManifestDigest id.Blob    `json:"manifestDigest,omitempty"` // "" if there was none
	Digest         id.Blob    `json:"digest,omitempty"`         // of what the name pointed to: manifest or index
	Platform       string     `json:"platform"`                 // os/architecture[/variant]
	Layers         []Layer    `json:"layers"`                   // lowest first
	Parent         id.ImageID `json:"parent,omitempty"`         // the image it was made of here, or ""; see SetParent

	// Of the config, filled by Create: what a listing shows.
	Created time.Time         `json:"created,omitzero"` // zero: it does not say
	Labels  map[string]string `json:"labels,omitempty"`

	Put            time.Time  `json:"put"`                      // when it first came; set by Put
	Tagged         time.Time  `json:"tagged,omitzero"`          // when a name last came to point to it
	Broken         string     `json:"-"`                        // why its files cannot be used, or ""
}

// DiffIDs returns the image's layers, lowest first.
func (i *Image) DiffIDs() []id.DiffID {
	list := make([]id.DiffID, len(i.Layers))
	for n, l := range i.Layers {
		list[n] = l.DiffID
	}
	return list
}

// Layer is one layer of an image.
type Layer struct {
	DiffID id.DiffID `json:"diffID"`
	Blob   id.Blob   `json:"blob,omitempty"`
	Size   int64     `json:"size"` // bytes of the blob; 0 if unknown
}

// Options configure a Store; the zero value works.
type Options struct {
	Logger *slog.Logger // nil: discarded
}

// Store is the images of one state directory. Its methods may be called by
// several goroutines at once.
type Store struct {
	blobs string // directory
	db    *badger.DB
	log   *slog.Logger

	mu       sync.Mutex // guards the rest
	images   map[id.ImageID]*entry
	names    map[string]id.ImageID
	children map[id.ImageID][]id.ImageID // sorted; of those that have some
	problems []string
}

// entry is an image without its bytes.
type entry struct {
	Image
	checked bool // the files were looked at since Open
}

// Open opens the images in dir, which it makes if absent. A damaged record is
// reported and left out.
func Open(dir string, db *badger.DB, o Options) (*Store, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Store{
		blobs:  filepath.Join(dir, "blobs", "sha256"),
		db:     db,
		log:    o.Logger,
		images: map[id.ImageID]*entry{},
		names:  map[string]id.ImageID{},

		children: map[id.ImageID][]id.ImageID{},
	}
	if err := os.MkdirAll(s.blobs, 0o700); err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	err := metadb.Scan(db, imageKey, func(hex string, v []byte) error {
		var e entry
		if err := json.Unmarshal(v, &e.Image); err != nil || e.ID.Hex() != hex {
			s.problem("record of image %.12s is damaged", hex)
			return nil
		}
		s.images[e.ID] = &e
		return nil
	})
	if err == nil {
		err = metadb.Scan(db, nameKey, func(name string, v []byte) error {
			i, err := id.ParseImageID("sha256:" + string(v))
			if err != nil || s.images[i] == nil {
				s.problem("name %s points to an image that is not here", name)
				return nil
			}
			s.names[name] = i
			return nil
		})
	}
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	return s, nil
}

// Create stores an image, or mends it, or renews how it came here. ID may be "".
// fault.Integrity if config, manifest and layers do not belong together.
func (s *Store) Create(img Image) (id.ImageID, error) {
	if len(img.Config) == 0 {
		return "", fault.New(fault.Invalid, "image: Invalid empty data")
	}
	got := id.ImageIDOf(img.Config)
	if img.ID == "" {
		img.ID = got
	}
	if err := img.prove(got); err != nil {
		return "", err
	}
	if err := s.writeBlob(img.ID.Hex(), img.Config); err != nil {
		return "", err
	}
	if img.Manifest != nil {
		if err := s.writeBlob(img.ManifestDigest.Hex(), img.Manifest); err != nil {
			return "", err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := &entry{Image: img, checked: true}
	e.Config, e.Manifest, e.Broken = nil, nil, ""
	e.Layers = slices.Clone(img.Layers)
	e.Image.Put = time.Now().UTC()
	old := s.images[img.ID]
	if old != nil {
		e.Image.Put, e.Tagged = old.Image.Put, old.Tagged
		if img.Manifest == nil {
			e.ManifestDigest = old.ManifestDigest
		}
	}
	if err := s.commitLocked(map[string][]byte{imageKey + img.ID.Hex(): record(&e.Image)}); err != nil {
		return "", err
	}
	s.images[img.ID] = e
	if old != nil && old.ManifestDigest != e.ManifestDigest {
		s.dropBlobsLocked(old.blobs()...)
	}
	return img.ID, nil
}

// prove checks that the parts of an image are one image; got is the digest of
// the config.
func (i *Image) prove(got id.ImageID) error {
	if i.ID != got {
		return fault.New(fault.Integrity, "image config verification failed for digest %s: what arrived is %s", i.ID, got)
	}
	if i.Manifest != nil {
		if m := id.BlobOf(i.Manifest); m != i.ManifestDigest {
			return fault.New(fault.Integrity, "manifest verification failed for digest %s: what arrived is %s", i.ManifestDigest, m)
		}
	}
	var c struct {
		RootFS *struct {
			DiffIDs []id.DiffID `json:"diff_ids"`
		} `json:"rootfs"`
		History []struct {
			Empty bool `json:"empty_layer"`
		} `json:"history"`
	}
	if err := json.Unmarshal(i.Config, &c); err != nil {
		return fault.New(fault.Integrity, "image %s: config: %w", i.ID.Short(), err)
	}
	if c.RootFS == nil {
		return fault.New(fault.Integrity, "image %s: invalid rootfs in image configuration", i.ID.Short())
	}
	if !slices.Equal(c.RootFS.DiffIDs, i.DiffIDs()) {
		return fault.New(fault.Integrity, "image %s: layers from manifest don't match image configuration", i.ID.Short())
	}
	full := 0
	for _, h := range c.History {
		if !h.Empty {
			full++
		}
	}
	if full > len(i.Layers) {
		return fault.New(fault.Integrity, "image %s: too many non-empty layers in History section", i.ID.Short())
	}
	return nil
}

// Get returns an image with its config, proven, and its manifest.
// fault.NotFound if there is none, fault.Integrity if it is broken.
func (s *Store) Get(i id.ImageID) (Image, error) {
	s.mu.Lock()
	e := s.images[i]
	if e == nil {
		s.mu.Unlock()
		return Image{}, noSuchImage(string(i))
	}
	img := e.clone()
	s.mu.Unlock()
	err := s.readBlobs(&img)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.images[i] == e {
		s.markLocked(e, err)
	}
	if err != nil {
		return Image{}, fault.WithHint(fault.New(fault.Integrity, "image %s is broken: %w", i.Short(), err), "fetch it again: imgfs pull NAME")
	}
	img.Broken = ""
	return img, nil
}

// List returns all images, without their bytes, in the order of their IDs.
func (s *Store) List() []Image {
	s.mu.Lock()
	var unchecked []id.ImageID
	for i, e := range s.images {
		if !e.checked {
			unchecked = append(unchecked, i)
		}
	}
	s.mu.Unlock()
	for _, i := range unchecked {
		_, _ = s.Get(i) // its error ends up in Broken
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Image, 0, len(s.images))
	for _, e := range s.images {
		list = append(list, e.clone())
	}
	slices.SortFunc(list, func(a, b Image) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return list
}

// Delete removes an image and the names that point to it, which it returns
// sorted. fault.NotFound if there is none.
func (s *Store) Delete(i id.ImageID) (untagged []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.images[i]
	if e == nil {
		return nil, fault.New(fault.NotFound, "unrecognized image ID %s", i)
	}
	untagged = s.referencesLocked(i)
	changes := map[string][]byte{imageKey + i.Hex(): nil}
	for _, n := range untagged {
		changes[nameKey+n] = nil
	}
	if err := s.commitLocked(changes); err != nil {
		return nil, err
	}
	for _, n := range untagged {
		delete(s.names, n)
	}
	delete(s.images, i)
	s.dropBlobsLocked(e.blobs()...)
	return untagged, nil
}

// Keep moves the file of a layer's blob, synced and proven by the caller, into
// the store: a layer made here has no registry to be had from again, and is to
// be pushed as it was made. It stays while an image has the layer; Sweep takes
// one that no image has.
func (s *Store) Keep(path string, b id.Blob) error {
	if err := os.Rename(path, s.blobPath(b.Hex())); err != nil {
		return diskError(fmt.Errorf("image store: %w", err))
	}
	return syncDir(s.blobs)
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// Sweep removes the files that no image needs and returns their size. It does
// nothing while a record is damaged: the files may be all there is of it.
func (s *Store) Sweep() (reclaimed int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.problems) > 0 {
		return 0, nil
	}
	entries, err := os.ReadDir(s.blobs)
	if err != nil {
		return 0, fmt.Errorf("image store: %w", err)
	}
	needed := s.neededLocked()
	for _, e := range entries {
		if needed[e.Name()] {
			continue
		}
		if st, err := e.Info(); err == nil {
			reclaimed += st.Size()
		}
		if err := os.Remove(filepath.Join(s.blobs, e.Name())); err != nil {
			return reclaimed, fmt.Errorf("image store: %w", err)
		}
	}
	return reclaimed, nil
}

// Problems lists the damage found since Open, a sentence each.
func (s *Store) Problems() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := slices.Clone(s.problems)
	for _, e := range s.images {
		if e.Broken != "" {
			list = append(list, fmt.Sprintf("image %s is broken: %s", e.ID.Short(), e.Broken))
		}
	}
	slices.Sort(list)
	return list
}

// problem notes damage found by Open.
func (s *Store) problem(format string, args ...any) {
	p := fmt.Sprintf(format, args...)
	s.log.Warn(p)
	s.problems = append(s.problems, p)
}

// markLocked notes whether an image's files can be used.
//
// Preconditions: s.mu is held.
func (s *Store) markLocked(e *entry, err error) {
	e.checked = true
	switch {
	case err == nil:
		e.Broken = ""
	case e.Broken == "":
		e.Broken = err.Error()
		s.log.Warn("image is broken", "image", e.ID, "err", err)
	}
}

// blobs returns the names of the files that an image may have here: config,
// manifest and, if it was made here, the blobs of its layers (see Keep).
func (e *entry) blobs() []string {
	list := []string{e.ID.Hex(), e.ManifestDigest.Hex()}
	for _, l := range e.Layers {
		list = append(list, l.Blob.Hex())
	}
	return list
}

func (e *entry) clone() Image {
	img := e.Image
	img.Layers = slices.Clone(e.Layers)
	return img
}

// record returns an image's record. It holds nothing that JSON cannot.
func record(i *Image) []byte {
	b, err := json.Marshal(i)
	if err != nil {
		panic("imagedb: image record: " + err.Error())
	}
	return b
}

// commitLocked writes records.
//
// Preconditions: s.mu is held.
func (s *Store) commitLocked(changes map[string][]byte) error {
	if err := metadb.Update(s.db, changes); err != nil {
		return diskError(fmt.Errorf("image records: %w", err))
	}
	return nil
}

// diskError adds the hint that a full disk needs.
func diskError(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fault.WithHint(err, "what no image needs is removed by: imgfs gc")
	}
	return err
}

func (s *Store) blobPath(hex string) string { return filepath.Join(s.blobs, hex) }

// readBlobs fills in config and manifest. A manifest that is lost is no
// damage: only a push would miss it.
func (s *Store) readBlobs(i *Image) error {
	c, err := os.ReadFile(s.blobPath(i.ID.Hex()))
	if err != nil {
		return err
	}
	if got := id.ImageIDOf(c); got != i.ID {
		return fmt.Errorf("failed to verify: config has digest %s", got)
	}
	i.Config = c
	if i.ManifestDigest == "" {
		return nil
	}
	m, err := os.ReadFile(s.blobPath(i.ManifestDigest.Hex()))
	switch {
	case err == nil && id.BlobOf(m) == i.ManifestDigest:
		i.Manifest = m
	case err == nil, errors.Is(err, fs.ErrNotExist):
		s.log.Warn("manifest is lost", "image", i.ID, "manifest", i.ManifestDigest)
	default:
		return err
	}
	return nil
}

// writeBlob stores b under its hexadecimal digest, synced.
func (s *Store) writeBlob(hex string, b []byte) (err error) {
	defer func() {
		if err != nil {
			err = diskError(fmt.Errorf("image store: %w", err))
		}
	}()
	f, err := os.CreateTemp(s.blobs, "tmp-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), s.blobPath(hex)); err != nil {
		return err
	}
	return syncDir(s.blobs)
}

// neededLocked returns the names of the files that images need.
//
// Preconditions: s.mu is held.
func (s *Store) neededLocked() map[string]bool {
	needed := map[string]bool{}
	for _, e := range s.images {
		for _, hex := range e.blobs() {
			needed[hex] = true
		}
	}
	return needed
}

// dropBlobsLocked removes files unless an image needs them. What it cannot
// remove is left for Sweep.
//
// Preconditions: s.mu is held.
func (s *Store) dropBlobsLocked(hexes ...string) {
	needed := s.neededLocked()
	for _, h := range hexes {
		if h == "" || needed[h] {
			continue
		}
		if err := os.Remove(s.blobPath(h)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("removal of an image's file", "err", err)
		}
	}
}

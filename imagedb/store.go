package imagedb

import (
	"encoding/hex"
	"errors"
	"fmt"
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
	imageKey = "imagedb/image/" // <hex image ID> -> record
	nameKey  = "imagedb/name/"  // <name> -> hex image ID
)

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

	watch *watch // of blobs; its lock comes first of all

	// change is held by who changes names and records, while that is committed.
	change sync.Mutex

	mu       sync.Mutex // guards the rest; the maps change with both locks held
	images   map[id.ImageID]*entry
	order    []*entry // by ID
	names    map[string]id.ImageID
	children map[id.ImageID][]id.ImageID // sorted; of those that have some
	damaged  map[string]string           // names whose record says nothing -> what is wrong
	problems []string
}

// entry is an image without its bytes.
type entry struct {
	Image
	names  []string // sorted
	stamp  stamp    // of the config's file when it was written
	seen   stamp    // of the config's file when it was last read through, zero if it was not there
	summed bool     // Created and Labels are the config's
	lost   bool     // its record says nothing: manifest and layers are not known
}

// Open opens the images in dir, which it makes if absent. What is damaged is
// made again, as far as the files go, and reported: an image that a name or a
// record speaks of is there, if broken.
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
		damaged:  map[string]string{},
	}
	if err := os.MkdirAll(s.blobs, 0o700); err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	s.watch = watchDir(s.blobs)
	if err := s.load(); err != nil {
		s.watch.close()
		return nil, fmt.Errorf("image store: %w", err)
	}
	return s, nil
}

// Close frees what the store has open. It is not to be used any more.
func (s *Store) Close() {
	s.watch.mu.Lock()
	defer s.watch.mu.Unlock()
	s.watch.close()
}

// load reads records and names, and mends the former.
func (s *Store) load() error {
	lost := map[id.ImageID]string{} // whose record says nothing -> why
	var amend []*entry
	var r reader
	err := metadb.Scan(s.db, imageKey, func(hex string, v []byte) error {
		e, err := r.entry(hex, v)
		if err != nil {
			if i, err := id.ParseImageID(algorithm + hex); err == nil {
				lost[i] = "its record is damaged"
			} else {
				s.problem("record %q is of no image", hex)
			}
			return nil
		}
		s.order = append(s.order, e) // keys come sorted
		if !e.summed {
			amend = append(amend, e)
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.images = make(map[id.ImageID]*entry, len(s.order))
	for _, e := range s.order {
		s.images[e.ID] = e
	}
	s.names = make(map[string]id.ImageID, 2*len(s.order))
	err = metadb.Scan(s.db, nameKey, func(name string, v []byte) error {
		key := append([]byte(algorithm), v...)
		if e := s.images[id.ImageID(key)]; e != nil {
			e.names = append(e.names, name)
			s.names[name] = e.ID
			return nil
		}
		i, err := id.ParseImageID(string(key))
		if err != nil {
			s.damaged[name] = "its record is damaged"
			s.problem("name %s: its record is damaged", name)
			return nil
		}
		if lost[i] == "" {
			lost[i] = "its record is lost"
		}
		s.names[name] = i
		return nil
	})
	if err != nil {
		return err
	}
	if err := s.amend(amend); err != nil {
		return err
	}
	if err := s.recover(lost); err != nil {
		return err
	}
	for _, e := range s.order {
		if s.checkParent(e.ID, e.Parent) != nil {
			e.Parent = ""
		}
		s.link(e)
	}
	return nil
}

// add enters an image.
//
// Preconditions: s.change and s.mu are held.
func (s *Store) add(e *entry) {
	at, found := s.place(e.ID)
	if found {
		s.order[at] = e
	} else {
		s.order = slices.Insert(s.order, at, e)
	}
	s.images[e.ID] = e
}

// place returns where in s.order an image stands, or would.
//
// Preconditions: s.change or s.mu is held.
func (s *Store) place(i id.ImageID) (at int, found bool) {
	return slices.BinarySearchFunc(s.order, i, func(e *entry, i id.ImageID) int { return strings.Compare(string(e.ID), string(i)) })
}

// Create stores an image, or mends it, or renews how it came here; its names
// stay, and so does its parent, unless another is given. ID may be "".
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
	s.change.Lock()
	defer s.change.Unlock()
	old := s.images[img.ID]
	if old != nil && img.Parent == "" {
		img.Parent = old.Parent
	}
	if err := s.checkParent(img.ID, img.Parent); err != nil {
		return "", err
	}
	e := &entry{Image: img, summed: true}
	var err error
	if e.stamp, err = s.writeBlob(img.ID.Hex(), img.Config); err != nil {
		return "", err
	}
	e.seen = e.stamp
	if img.Manifest != nil {
		if _, err := s.writeBlob(img.ManifestDigest.Hex(), img.Manifest); err != nil {
			return "", err
		}
	}
	e.Config, e.Manifest, e.Broken = nil, nil, ""
	e.Layers = slices.Clone(img.Layers)
	e.Image.Put, e.Tagged = time.Now().UTC(), time.Time{}
	if old != nil {
		e.Image.Put, e.Tagged, e.names = old.Image.Put, old.Tagged, old.names
		if img.Manifest == nil {
			e.ManifestDigest = old.ManifestDigest
		}
	}
	if err := s.commit(map[string][]byte{imageKey + img.ID.Hex(): record(e)}); err != nil {
		return "", err
	}
	s.mu.Lock()
	if old != nil {
		s.unlink(old)
	}
	s.add(e)
	s.link(e)
	s.mu.Unlock()
	if old != nil {
		s.dropBlobs(old)
	}
	return img.ID, nil
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
	img, stamp, lost := e.Image, e.stamp, e.lost
	s.mu.Unlock()
	seen, err := s.readBlobs(&img, stamp)
	if lost {
		err = errors.New(img.Broken)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.images[i] == e {
		s.mark(e, seen, err)
	}
	if err != nil {
		return Image{}, fault.WithHint(fault.New(fault.Integrity, "image %s is broken: %w", i.Short(), err), "fetch it again: imgfs pull NAME")
	}
	img.Broken = ""
	img.Layers = slices.Clone(img.Layers)
	return img, nil
}

// Peek is [Store.Get] without the image's bytes: no file is looked at, and a
// broken image is no error.
func (s *Store) Peek(i id.ImageID) (Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.images[i]
	if e == nil {
		return Image{}, noSuchImage(string(i))
	}
	return e.Image, nil
}

// List returns all images, without their bytes, in the order of their IDs.
func (s *Store) List() []Image {
	s.look()
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Image, len(s.order))
	for n, e := range s.order {
		list[n] = e.Image
		list[n].Names = e.names
	}
	return list
}

// Each calls visit with what List tells of each image, as far as it is known:
// no file is looked at. visit must not use the store.
func (s *Store) Each(visit func(*Image)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.order {
		visit(&e.Image)
	}
}

// Len returns the number of images.
func (s *Store) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.order)
}

// Delete removes an image and the names that point to it, which it returns
// sorted; its children have no parent any more. fault.NotFound if there is
// none.
func (s *Store) Delete(i id.ImageID) (untagged []string, err error) {
	s.change.Lock()
	defer s.change.Unlock()
	e := s.images[i]
	if e == nil {
		return nil, fault.New(fault.NotFound, "unrecognized image ID %s", i)
	}
	untagged = e.names
	changes := map[string][]byte{imageKey + i.Hex(): nil}
	for _, n := range untagged {
		changes[nameKey+n] = nil
	}
	for _, c := range s.children[i] {
		orphan := s.copyOf(c)
		orphan.Parent = ""
		changes[imageKey+c.Hex()] = record(&orphan)
	}
	if err := s.commit(changes); err != nil {
		return nil, err
	}
	s.mu.Lock()
	for _, n := range untagged {
		delete(s.names, n)
	}
	for _, c := range s.children[i] {
		s.images[c].Parent = ""
	}
	delete(s.children, i)
	s.unlink(e)
	delete(s.images, i)
	at, _ := s.place(i)
	s.order = slices.Delete(s.order, at, at+1)
	s.mu.Unlock()
	s.dropBlobs(e)
	return slices.Clone(untagged), nil
}

// copyOf returns an image's entry, for a record that is to say something else.
// While it is made, Get may mark the image.
//
// Preconditions: s.change is held, and there is the image.
func (s *Store) copyOf(i id.ImageID) entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return *s.images[i]
}

// mark notes whether an image's files can be used, and what was looked at.
//
// Preconditions: s.mu is held.
func (s *Store) mark(e *entry, seen stamp, err error) {
	e.seen = seen
	switch {
	case err == nil:
		e.Broken = ""
	case e.Broken == "":
		e.Broken = err.Error()
		s.log.Warn("image is broken", "image", e.ID, "err", err)
	}
}

// commit writes records, many of them in several transactions.
func (s *Store) commit(changes map[string][]byte) error {
	if err := metadb.UpdateAll(s.db, changes); err != nil {
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

// isHex reports whether a file's name is that of a blob.
func isHex(name string) bool {
	_, err := hex.DecodeString(name)
	return err == nil && len(name) == 64
}

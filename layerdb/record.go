package layerdb

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/lazy"
	"github.com/imgfs/imgfs/internal/toc"
)

// LayerInfo is what is known of a stored layer.
type LayerInfo struct {
	Key    id.LayerKey `json:"key"`
	DiffID id.DiffID   `json:"diffID"`         // of the stream if Sealed, else what an image's config claims
	Form   toc.Form    `json:"form"`           // of data
	Kind   string      `json:"kind,omitempty"` // of the table of contents it was imported with; "" of a pass
	Sealed bool        `json:"sealed"`         // all of it was proven: blob, stream, index
	Bad    string      `json:"bad,omitempty"`  // why it is never served again: what it was imported with lied

	Blob        id.Blob `json:"blob,omitempty"` // the blob it came from; "" if that had no digest
	BlobSize    int64   `json:"blobSize"`       // bytes of that blob
	Compression string  `json:"compression"`    // of that blob: gzip, zstd or none
	StreamSize  int64   `json:"streamSize"`     // bytes of the tar stream; in form packed, of data
	DataSize    int64   `json:"dataSize"`       // bytes of data: stream, padding and annex
	DataTime    int64   `json:"dataTime"`       // of data's last change, in nanoseconds since 1970; 0 of a layer imported
	Index       written `json:"index"`
	Spans       written `json:"spans,omitzero"` // zero: there is no span table
	Table       written `json:"table,omitzero"` // what index and proof are made from: skeleton or toc

	Prefetch []toc.Range `json:"prefetch,omitempty"` // what the image's maker wants fetched at a mount

	Content int64     `json:"content"` // bytes of regular files, which docker calls the layer's size
	Entries int       `json:"entries"` // names
	Files   int       `json:"files"`   // regular files
	Created time.Time `json:"created"` // when the pass or the import ended

	Owners  int       `json:"-"` // how many owners hold it now
	Pinned  bool      `json:"-"` // one of them is a pin; filled by Layers only, as the following are
	Disk    int64     `json:"-"` // bytes allocated on disk
	Present int64     `json:"-"` // bytes of data that are here
	LastUse time.Time `json:"-"` // when it was last opened or closed
	InUse   bool      `json:"-"` // it is open now
	Damage  string    `json:"-"` // why the layer counts as absent, or ""
}

// Names of the files of a layer, data and index apart.
const (
	recordFile   = "record"
	spansFile    = "spans"    // a span.Table
	skeletonFile = "skeleton" // what the stream has beside payload: our own table of contents
	tocFile      = "toc"      // a foreign one, for its proof
)

// layer is a directory below layers/.
type layer struct {
	// opening is held while data is opened and closed: of one directory there
	// is never more than one lazy file. Before Store.mu.
	opening sync.Mutex
	// work has room for one, who seals or verifies; nil before the layer was open.
	work chan struct{}

	// The rest is guarded by Store.mu.
	info    LayerInfo
	more    []id.Blob // blobs that are known to be its, beside info.Blob
	checked bool      // files seen to be whole since Open
	looked  bool      // lazy, disk and used are known: see Store.lookLocked
	opened  bool      // it was open since Open
	users   int       // open handles
	data    *Data     // open while users > 0
	holds   int       // chains that the kernel reads, or is about to
	lazy    bool      // data was imported or evicted once, and is package lazy's
	disk    int64     // bytes that data takes on disk, as far as known
	used    time.Time // last opened or closed
	sealing bool      // a goroutine of the store is about to seal it
}

// tableFile returns the name of the file that Table describes.
func (i *LayerInfo) tableFile() string {
	if i.Kind == toc.Soci {
		return tocFile
	}
	return skeletonFile
}

// present returns how many bytes of l's data are here; of a lazy layer that is
// not open, about how many.
//
// Preconditions: Store.mu is held.
func (l *layer) present() int64 {
	switch {
	case l.data != nil:
		return l.data.PresentIn(0, l.info.DataSize)
	case l.lazy:
		return min(l.disk, l.info.DataSize)
	}
	return l.info.DataSize
}

func newLayer(i LayerInfo) *layer {
	return &layer{info: i, used: time.Now()}
}

// addLocked enters a layer that is on disk.
//
// Preconditions: s.mu is held.
func (s *Store) addLocked(i LayerInfo) *layer {
	if i.Bad != "" {
		i.Damage = i.Bad
	}
	l := newLayer(i)
	s.layers[i.Key] = l
	s.provenLocked(&i)
	return l
}

// lookLocked looks at the files of a layer, the first time it is asked: a start
// does not, of thousands of layers, most of which nobody will ask for. It
// returns l.
//
// Preconditions: s.mu is held.
func (s *Store) lookLocked(l *layer) *layer {
	if l.looked {
		return l
	}
	l.looked = true
	dir := s.layerDir(l.info.Key)
	if st, err := os.Lstat(filepath.Join(dir, recordFile)); err == nil {
		l.used = st.ModTime()
	}
	_, err := os.Lstat(filepath.Join(dir, lazy.PresentName))
	l.lazy = err == nil
	s.sizeLocked(l)
	return l
}

// provenLocked enters what a sealed layer proves.
//
// Preconditions: s.mu is held.
func (s *Store) provenLocked(i *LayerInfo) {
	if !i.Sealed || i.Damage != "" {
		return
	}
	if i.Blob != "" {
		s.blobs[i.Blob] = i.Key
		if l := s.layers[i.Key]; l != nil && l.info.Blob != i.Blob && !slices.Contains(l.more, i.Blob) {
			l.more = append(l.more, i.Blob)
		}
	}
	if i.Key != i.DiffID.Key() {
		s.proven[i.DiffID] = i.Key
	}
}

// forgetLocked takes a layer out that is no longer on disk.
//
// Preconditions: s.mu is held.
func (s *Store) forgetLocked(l *layer) {
	s.disk -= l.disk
	delete(s.layers, l.info.Key)
	delete(s.lent, l.info.Key)
	if s.proven[l.info.DiffID] == l.info.Key {
		delete(s.proven, l.info.DiffID)
	}
}

// sizeLocked looks how much l's data takes on disk.
//
// Preconditions: s.mu is held.
func (s *Store) sizeLocked(l *layer) {
	var n int64
	if st, err := os.Lstat(s.dataPath(l.info.Key)); err == nil {
		n = allocated(st)
	}
	s.growLocked(l, n-l.disk)
}

// growLocked counts n bytes more, and wakes who keeps the limit.
//
// Preconditions: s.mu is held.
func (s *Store) growLocked(l *layer, n int64) {
	if s.layers[l.info.Key] != l {
		return // its directory is another's by now
	}
	l.disk += n
	s.disk += n
	if s.opts.CacheLimit > 0 && s.disk > s.opts.CacheLimit {
		select {
		case s.over <- struct{}{}:
		default:
		}
	}
}

// readRecord reads a layer's own record.
func (s *Store) readRecord(k id.LayerKey) (LayerInfo, error) {
	var i LayerInfo
	b, err := os.ReadFile(filepath.Join(s.layerDir(k), recordFile))
	if err != nil {
		return i, fmt.Errorf("record: %w", err)
	}
	if err := json.Unmarshal(b, &i); err != nil {
		return i, fmt.Errorf("record: %w", err)
	}
	if i.Key != k {
		return i, fmt.Errorf("record: is of layer %s", i.Key)
	}
	return i, nil
}

// amend changes the record of a layer that is open. The database comes first:
// its copy is the one that is read at the next start, if there is one.
func (s *Store) amend(l *layer, change func(*LayerInfo)) error {
	s.amending.Lock()
	defer s.amending.Unlock()
	s.mu.Lock()
	change(&l.info)
	info := l.info
	s.provenLocked(&info)
	s.mu.Unlock()
	dir, forget, err := s.tempDir("record-")
	if err != nil {
		return err
	}
	defer forget()
	path := filepath.Join(dir, recordFile)
	if err := writeJSON(path, info); err != nil {
		return err
	}
	if err := s.update(map[string][]byte{layerKey + info.Key.Hex(): copyOf(&info)}); err != nil {
		return err
	}
	if err := os.Rename(path, filepath.Join(s.layerDir(info.Key), recordFile)); err != nil {
		return err
	}
	return syncDir(s.layerDir(info.Key))
}

// spoil marks a layer as bad: it is not what its index or its image says, and
// never served again.
func (s *Store) spoil(l *layer, why error) {
	s.mu.Lock()
	if l.info.Bad != "" {
		s.mu.Unlock()
		return
	}
	if l.data != nil {
		l.data.bad.Store(&why)
	}
	key := l.info.Key
	s.problemLocked("layer %s is not served any more: %v", key.Short(), why)
	s.mu.Unlock()
	err := s.amend(l, func(i *LayerInfo) { i.Bad, i.Damage = why.Error(), why.Error() })
	if err != nil {
		s.log.Error("a bad layer could not be marked as such on disk", "layer", key, "err", err)
	}
	if s.opts.Bad != nil {
		s.mu.Lock()
		info := l.info
		s.mu.Unlock()
		s.opts.Bad(info, why)
	}
}

// Layers lists what is stored, damaged layers included, by key.
func (s *Store) Layers() ([]LayerInfo, error) {
	return s.list(func(id.LayerKey) bool { return true })
}

// Stat returns what Layers tells of one layer, damaged or not; fault.NotFound
// if it is not stored.
func (s *Store) Stat(k id.LayerKey) (LayerInfo, error) {
	list, err := s.list(func(i id.LayerKey) bool { return i == k })
	if err == nil && len(list) == 0 {
		err = fault.New(fault.NotFound, "%w: %s", errAbsent, k)
	}
	if err != nil {
		return LayerInfo{}, err
	}
	return list[0], nil
}

// list is Layers for those that are wanted.
func (s *Store) list(wanted func(id.LayerKey) bool) ([]LayerInfo, error) {
	s.owned.mu.Lock()
	owners, pins := maps.Clone(s.owned.count), s.owned.pinnedLocked()
	s.owned.mu.Unlock()
	s.mu.Lock()
	var list []LayerInfo
	for k, l := range s.layers {
		if !wanted(k) {
			continue
		}
		i := l.info
		i.Owners, i.Pinned = owners[k], pins[k]
		i.Present, i.LastUse, i.InUse = s.lookLocked(l).present(), l.used, l.users > 0
		list = append(list, i)
	}
	s.mu.Unlock()
	for k := range list {
		disk, err := diskUsage(s.layerDir(list[k].Key))
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", list[k].Key.Short(), err)
		}
		list[k].Disk = disk
	}
	slices.SortFunc(list, func(a, b LayerInfo) int { return strings.Compare(string(a.Key), string(b.Key)) })
	return list, nil
}

// Each calls visit with what Info tells of each layer, damaged ones included, in
// any order. It looks at no file, and visit at nothing of the store.
func (s *Store) Each(visit func(*LayerInfo)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.layers {
		visit(&l.info)
	}
}

// Known lists what Info tells of all layers, damaged ones included, by key. It
// looks at no file.
func (s *Store) Known() []LayerInfo {
	var list []LayerInfo
	s.Each(func(i *LayerInfo) { list = append(list, *i) })
	slices.SortFunc(list, func(a, b LayerInfo) int { return strings.Compare(string(a.Key), string(b.Key)) })
	return list
}

// Info returns what is known of a stored layer, apart from what Layers fills;
// fault.NotFound if there is none.
func (s *Store) Info(k id.LayerKey) (LayerInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.layers[k]
	if l == nil || l.info.Damage != "" {
		return LayerInfo{}, fault.New(fault.NotFound, "%w: %s", errAbsent, k)
	}
	return l.info, nil
}

package layerdb

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/layertar"
	"github.com/imgfs/imgfs/internal/metadb"
)

// Keys in Badger.
const (
	layerKey = "layerdb/layer/" // <hex diffID> -> LayerInfo as JSON
	blobKey  = "layerdb/blob/"  // <hex blob digest> -> hex diffID, proven by a pass
	ownerKey = "layerdb/owner/" // <owner> -> JSON list of diffIDs, lowest first
)

// MaxStream is the longest uncompressed layer: what 2^32 - 2 blocks of an EROFS
// device hold, for the last block number means a hole.
const MaxStream = (1<<32 - 2) * erofs.BlockSize

// Merge writes the index of a chain: the layers top (layer indexes, lowest
// first) on parent (a chain index, or nil for none).
type Merge func(w io.Writer, parent *erofs.Image, top []*erofs.Image) error

// Options configure a Store; Merge is mandatory.
type Options struct {
	Merge  Merge
	Logger *slog.Logger // nil: discarded
	// MaxStream limits a layer's uncompressed bytes; 0 is the format's limit.
	MaxStream int64
	// Limits bound what one layer's tar may make the index hold; the zero
	// value is layertar's defaults.
	Limits layertar.Limits
	// Passes is how many layers may be on their way at once; 0 is twice the
	// number of processors and 2. Of these, as many inflate at a time as
	// there are processors.
	Passes int
}

// LayerInfo is what is known of a stored layer.
type LayerInfo struct {
	Key         id.LayerKey `json:"key"`
	DiffID      id.DiffID   `json:"diffID"`
	Blob        id.Blob     `json:"blob,omitempty"` // the blob it came from; "" if that had no digest
	BlobSize    int64       `json:"blobSize"`       // bytes of that blob
	Compression string      `json:"compression"`    // of that blob: gzip, zstd or none
	StreamSize  int64       `json:"streamSize"`     // bytes of the tar stream
	DataSize    int64       `json:"dataSize"`       // bytes of data: stream, padding and annex
	DataTime    int64       `json:"dataTime"`       // of data's last change, in nanoseconds since 1970
	Index       written     `json:"index"`
	Content     int64       `json:"content"` // bytes of regular files, which docker calls the layer's size
	Entries     int         `json:"entries"` // tar entries
	Files       int         `json:"files"`   // regular files
	Created     time.Time   `json:"created"` // when the pass ended
	Owners      int         `json:"-"`       // how many owners hold it now
	Disk        int64       `json:"-"`       // bytes allocated on disk; filled by Layers only
	Damage      string      `json:"-"`       // why the layer counts as absent, or ""
}

// Store is a directory of layers and chains. Its methods may be called by
// several goroutines at once.
type Store struct {
	dir   string
	db    *badger.DB
	opts  Options
	log   *slog.Logger
	ctx   context.Context // of all passes and builds
	stop  context.CancelFunc
	slots chan struct{} // held by a pass
	cpus  chan struct{} // held while inflating
	wg    sync.WaitGroup
	owned ledger

	mu       sync.Mutex // guards the rest
	layers   map[id.LayerKey]*layer
	blobs    map[id.Blob]id.LayerKey
	flights  map[id.LayerKey]*flight
	chains   map[id.ChainKey]*chain
	tmp      map[string]bool // names in tmp/ in use
	problems []string
	closed   bool
}

// layer is a directory below layers/.
type layer struct {
	info    LayerInfo
	checked bool  // files seen to be whole since Open
	users   int   // open handles
	data    *Data // open while users > 0
}

// Open opens the store in dir, which it makes if absent. It removes what
// killed passes left, and mends the records of Badger from the files.
//
// Preconditions: the caller is the only process that has dir open.
func Open(dir string, db *badger.DB, o Options) (*Store, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.MaxStream <= 0 || o.MaxStream > MaxStream {
		o.MaxStream = MaxStream
	}
	if o.Passes <= 0 {
		o.Passes = 2*runtime.GOMAXPROCS(0) + 2
	}
	s := &Store{
		dir:     dir,
		db:      db,
		opts:    o,
		log:     o.Logger,
		slots:   make(chan struct{}, o.Passes),
		cpus:    make(chan struct{}, runtime.GOMAXPROCS(0)),
		layers:  map[id.LayerKey]*layer{},
		blobs:   map[id.Blob]id.LayerKey{},
		owned:   ledger{held: map[string][]id.LayerKey{}},
		flights: map[id.LayerKey]*flight{},
		chains:  map[id.ChainKey]*chain{},
		tmp:     map[string]bool{},
	}
	for _, sub := range []string{"layers", "chains", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, fmt.Errorf("layer store: %w", err)
		}
	}
	if err := s.sweep(); err != nil {
		return nil, fmt.Errorf("layer store: %w", err)
	}
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("layer store: %w", err)
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s, nil
}

// Close stops all passes and waits for them. Open chains stay readable until
// released.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stop()
	s.wg.Wait()
	return nil
}

// sweep empties tmp/.
func (s *Store) sweep() error {
	names, err := readNames(filepath.Join(s.dir, "tmp"))
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := os.RemoveAll(filepath.Join(s.dir, "tmp", n)); err != nil {
			return err
		}
	}
	return nil
}

// load reads layers and owners, and mends Badger's copy of the former.
func (s *Store) load() error {
	records := map[string]LayerInfo{}
	changes := map[string][]byte{}
	err := metadb.Scan(s.db, layerKey, func(hex string, v []byte) error {
		var i LayerInfo
		if err := json.Unmarshal(v, &i); err != nil || i.Key.Hex() != hex {
			s.problem("record of layer %s in the database is damaged; read from its file instead", short(hex))
			return nil
		}
		records[hex] = i
		return nil
	})
	if err != nil {
		return err
	}
	names, err := readNames(filepath.Join(s.dir, "layers"))
	if err != nil {
		return err
	}
	for _, hex := range names {
		d, err := id.ParseLayerKey("sha256:" + hex)
		if err != nil {
			s.problem("layers/%s is not a layer", hex)
			continue
		}
		i, ok := records[hex]
		if !ok {
			var b []byte
			if i, b, err = s.readRecord(d); err != nil {
				s.layers[d] = &layer{info: LayerInfo{Key: d, Damage: err.Error()}}
				s.problem("layer %s is damaged and counts as absent: %v", d.Short(), err)
				continue
			}
			changes[layerKey+hex] = b
		}
		delete(records, hex)
		s.layers[d] = &layer{info: i}
		if i.Blob != "" {
			s.blobs[i.Blob] = d
		}
	}
	for hex := range records {
		// Removed by hand, or by a process killed before it could say so.
		changes[layerKey+hex] = nil
		s.log.Info("layer is no longer on disk", "layer", short(hex))
	}
	err = metadb.Scan(s.db, blobKey, func(hex string, v []byte) error {
		b, err := id.ParseBlob("sha256:" + hex)
		d, err2 := id.ParseLayerKey("sha256:" + string(v))
		if err != nil || err2 != nil || s.layers[d] == nil {
			changes[blobKey+hex] = nil
			return nil
		}
		s.blobs[b] = d
		return nil
	})
	if err != nil {
		return err
	}
	err = metadb.Scan(s.db, ownerKey, func(owner string, v []byte) error {
		var list []id.LayerKey
		if err := json.Unmarshal(v, &list); err != nil {
			s.problem("record of owner %q is damaged; what it held may be removed", owner)
			return nil
		}
		s.owned.held[owner] = list
		return nil
	})
	if err != nil || len(changes) == 0 {
		return err
	}
	return s.update(changes)
}

// readRecord reads a layer's own record.
func (s *Store) readRecord(d id.LayerKey) (LayerInfo, []byte, error) {
	var i LayerInfo
	b, err := os.ReadFile(filepath.Join(s.layerDir(d), "record"))
	if err != nil {
		return i, nil, fmt.Errorf("record: %w", err)
	}
	if err := json.Unmarshal(b, &i); err != nil {
		return i, nil, fmt.Errorf("record: %w", err)
	}
	if i.Key != d {
		return i, nil, fmt.Errorf("record: is of layer %s", i.Key)
	}
	return i, bytes.TrimSpace(b), nil
}

// Has reports whether the layer is stored and its files look whole.
func (s *Store) Has(d id.LayerKey) bool { return s.check(d) == nil }

// errAbsent is returned (wrapped) when a layer is not stored.
var errAbsent = errors.New("layer does not exist")

// check returns nil if the layer is there and whole. The files are looked at
// once per process: that they exist, have the sizes and times recorded or,
// failing that, the content, and that the index opens. A damaged layer counts
// as absent from then on.
func (s *Store) check(d id.LayerKey) error {
	s.mu.Lock()
	l := s.layers[d]
	s.mu.Unlock()
	if l == nil {
		return fault.New(fault.NotFound, "%w: %s", errAbsent, d)
	}
	s.mu.Lock()
	info, checked := l.info, l.checked
	s.mu.Unlock()
	if info.Damage != "" {
		return fault.New(fault.NotFound, "%w: %s: damaged: %s", errAbsent, d, info.Damage)
	}
	if checked {
		return nil
	}
	err := s.inspect(info)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		l.info.Damage = err.Error()
		s.problemLocked("layer %s is damaged and counts as absent: %v", d.Short(), err)
		return fault.New(fault.NotFound, "%w: %s: damaged: %w", errAbsent, d, err)
	}
	l.checked = true
	return nil
}

// inspect looks whether a layer's files are what its record says.
func (s *Store) inspect(i LayerInfo) error {
	data := written{Size: i.DataSize, Time: i.DataTime}
	if err := data.unchanged(s.dataPath(i.Key), func(f *os.File) error { return s.proveData(&i, f) }); err != nil {
		return err
	}
	index := filepath.Join(s.layerDir(i.Key), "index")
	if err := i.Index.unchanged(index, i.Index.proveSum); err != nil {
		return err
	}
	img, err := openIndex(index, layerLabel, []id.LayerKey{i.Key})
	if err != nil {
		return err
	}
	return img.Close()
}

// Labels of the indexes: what they are and in which version of their form.
const (
	layerLabel = layertar.Label
	chainLabel = "imgfs.chain.1"
)

// openIndex opens an index and checks that it is the one meant.
func openIndex(path, label string, layers []id.LayerKey) (*erofs.Image, error) {
	img, err := erofs.Open(path)
	if err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	same := slices.EqualFunc(img.Devices(), layers, func(dev erofs.Device, d id.LayerKey) bool { return dev.Tag == d.Hex() })
	if img.Label() != label || !same {
		img.Close()
		return nil, fmt.Errorf("index: %w: label %q and devices are not those of %q", erofs.ErrCorrupt, img.Label(), label)
	}
	return img, nil
}

// Size returns the bytes of the layer's regular files, as docker counts a
// layer; fault.NotFound if it is not stored.
func (s *Store) Size(d id.LayerKey) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.layers[d]
	if l == nil || l.info.Damage != "" {
		return 0, fault.New(fault.NotFound, "%w: %s", errAbsent, d)
	}
	return l.info.Content, nil
}

// ByBlob returns the layer that a blob with this digest inflates to, "" if no
// pass has seen that blob.
func (s *Store) ByBlob(b id.Blob) id.LayerKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.blobs[b]
}

// Layers lists what is stored, damaged layers included, by diffID.
func (s *Store) Layers() ([]LayerInfo, error) {
	s.owned.mu.Lock()
	owners := s.owned.countLocked()
	s.owned.mu.Unlock()
	s.mu.Lock()
	list := make([]LayerInfo, 0, len(s.layers))
	for d, l := range s.layers {
		i := l.info
		i.Owners = owners[d]
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

// Passes lists the layers on their way now, by diffID.
func (s *Store) Passes() []id.LayerKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]id.LayerKey, 0, len(s.flights))
	for d := range s.flights {
		list = append(list, d)
	}
	slices.Sort(list)
	return list
}

// Problems lists the damage found since Open, a sentence each.
func (s *Store) Problems() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.problems)
}

func (s *Store) problem(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.problemLocked(format, args...)
}

// maxProblems bounds the list; the log has them all.
const maxProblems = 100

func (s *Store) problemLocked(format string, args ...any) {
	p := fmt.Sprintf(format, args...)
	s.log.Warn(p)
	if len(s.problems) < maxProblems {
		s.problems = append(s.problems, p)
	}
}

func (s *Store) layerDir(d id.LayerKey) string { return filepath.Join(s.dir, "layers", d.Hex()) }

func (s *Store) dataPath(d id.LayerKey) string { return filepath.Join(s.layerDir(d), "data") }

// update commits changes to Badger, many of them in several transactions:
// layer records are a copy, and need not change together.
func (s *Store) update(changes map[string][]byte) error {
	part := map[string][]byte{}
	for k, v := range changes {
		if part[k] = v; len(part) == maxChanges {
			if err := s.commit(part); err != nil {
				return err
			}
			clear(part)
		}
	}
	return s.commit(part)
}

// maxChanges bounds a transaction; Badger's own bound is about 6,000.
const maxChanges = 1000

func (s *Store) commit(changes map[string][]byte) error {
	if len(changes) == 0 {
		return nil
	}
	if err := metadb.Update(s.db, changes); err != nil {
		return s.diskError(fmt.Errorf("layer records: %w", err))
	}
	return nil
}

// readNames lists a directory.
func readNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// diskUsage sums the allocated bytes of a directory's files; 0 if it is gone.
func diskUsage(dir string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := e.Info()
		if err != nil {
			return err
		}
		sum += allocated(st)
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	return sum, err
}

func short(hex string) string { return hex[:min(12, len(hex))] }

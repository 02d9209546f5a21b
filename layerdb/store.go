package layerdb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"weak"

	"github.com/dgraph-io/badger/v4"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/layertar"
	"github.com/imgfs/imgfs/internal/lazy"
	"github.com/imgfs/imgfs/internal/metadb"
)

// Keys in Badger.
const (
	layerKey = "layerdb/layer/" // <hex key> -> LayerInfo
	blobKey  = "layerdb/blob/"  // <hex blob digest> -> hex key, proven by a pass
	ownerKey = "layerdb/owner/" // <owner> -> list of keys, lowest first
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
	// Source gives the blob of a layer, of which bytes are missing or about to
	// be evicted; an error says why there is none. It does not wait for a
	// network, and is not remembered when it fails. nil: nothing is evicted.
	Source func(ctx context.Context, l LayerInfo) (lazy.Source, error)
	// CacheLimit is how many bytes the data files may take on disk before
	// those used least recently are evicted; 0 is no limit.
	CacheLimit int64
	// Bad is called, without a lock, when a layer is found not to be what its
	// index or its image says; nil: not.
	Bad func(l LayerInfo, why error)
	// Evicted is called, without a lock, when the bytes of a layer were
	// evicted, with how many that gave back on disk; nil: not.
	Evicted func(k id.LayerKey, freed int64)
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
	aside chan struct{} // by one that is: see Aside
	cpus  chan struct{} // held while inflating
	wg    sync.WaitGroup
	pool  *lazy.Pool
	owned ledger

	amending sync.Mutex    // held while a record is written anew; before mu
	over     chan struct{} // has room for one: the cache limit is exceeded

	mu       sync.Mutex // guards the rest
	layers   map[id.LayerKey]*layer
	blobs    map[id.Blob]id.LayerKey
	proven   map[id.DiffID]id.LayerKey // sealed layers whose key is not their diffID's
	disk     int64                     // sum of layer.disk
	lent     map[id.LayerKey]weak.Pointer[lent]
	flights  map[want]*flight
	chains   map[id.ChainKey]*chain
	tmp      map[string]bool // names in tmp/ in use
	problems []string
	closed   bool
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
		aside:   make(chan struct{}, o.Passes),
		cpus:    make(chan struct{}, runtime.GOMAXPROCS(0)),
		layers:  map[id.LayerKey]*layer{},
		blobs:   map[id.Blob]id.LayerKey{},
		owned:   newLedger(),
		flights: map[want]*flight{},
		proven:  map[id.DiffID]id.LayerKey{},
		lent:    map[id.LayerKey]weak.Pointer[lent]{},
		over:    make(chan struct{}, 1),
		pool:    lazy.NewPool(0),
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
	if o.CacheLimit > 0 {
		s.wg.Go(s.keepLimit)
	}
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
			s.problem("tmp/%s cannot be removed: %v", n, err)
		}
	}
	return nil
}

// load reads layers and owners, and mends Badger's copy of the former.
func (s *Store) load() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	names, err := readNames(filepath.Join(s.dir, "layers"))
	if err != nil {
		return err
	}
	unread := make(map[string]bool, len(names)) // hex keys
	for _, hex := range names {
		if _, err := id.ParseLayerKey("sha256:" + hex); err != nil {
			s.problemLocked("layers/%s is not a layer", hex)
			continue
		}
		unread[hex] = true
	}
	s.layers = make(map[id.LayerKey]*layer, len(unread))
	s.blobs = make(map[id.Blob]id.LayerKey, len(unread))
	var share metadb.Shared
	changes := map[string][]byte{}
	err = metadb.Scan(s.db, layerKey, func(hex string, v []byte) error {
		if !unread[hex] {
			// Removed by hand, or by a process killed before it could say so.
			changes[layerKey+hex] = nil
			s.log.Info("layer is no longer on disk", "layer", short(hex))
			return nil
		}
		if len(v) > 0 && v[0] == '{' {
			return nil // an earlier version's
		}
		var i LayerInfo
		if err := metadb.Decode(v, &share, i.fields); err != nil || i.Key.Hex() != hex {
			s.problemLocked("record of layer %s in the database is damaged; read from its file instead", short(hex))
			return nil
		}
		delete(unread, hex)
		s.addLocked(i)
		return nil
	})
	if err != nil {
		return err
	}
	for _, hex := range slices.Sorted(maps.Keys(unread)) {
		k := id.LayerKey("sha256:" + hex)
		i, err := s.readRecord(k)
		if err != nil {
			s.layers[k] = newLayer(LayerInfo{Key: k, Damage: err.Error()})
			s.problemLocked("layer %s is damaged and counts as absent: %v", k.Short(), err)
			continue
		}
		s.addLocked(i)
		changes[layerKey+hex] = copyOf(&i)
	}
	err = metadb.Scan(s.db, blobKey, func(hex string, v []byte) error {
		b, err := id.ParseBlob("sha256:" + hex)
		if _, known := s.blobs[b]; known {
			return nil // its layer says so
		}
		l := s.layers[id.LayerKey("sha256:"+string(v))]
		if err != nil || l == nil {
			changes[blobKey+hex] = nil
			return nil
		}
		s.blobs[b] = l.info.Key
		l.more = append(l.more, b)
		return nil
	})
	if err != nil {
		return err
	}
	err = metadb.Scan(s.db, ownerKey, func(owner string, v []byte) error {
		list, err := readOwned(v, &share)
		if err != nil {
			s.problemLocked("record of owner %q is damaged; what it held may be removed", owner)
			s.owned.lost[owner] = true
			return nil
		}
		s.owned.setLocked(owner, list)
		return nil
	})
	if err != nil || len(changes) == 0 {
		return err
	}
	return s.update(changes)
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

// Passes lists the layers on their way now whose diffID is known, by diffID.
func (s *Store) Passes() []id.DiffID {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]id.DiffID, 0, len(s.flights))
	for w := range s.flights {
		if w.diff != "" {
			list = append(list, w.diff)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
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
	if err := metadb.UpdateAll(s.db, changes); err != nil {
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

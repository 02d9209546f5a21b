package lazy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
)

// Names of the files in a File's directory.
const (
	DataName    = "data"
	PresentName = "present"
	SeenName    = "seen"
)

// errClosed is what a read gets that is waiting when its File is closed.
var errClosed = errors.New("layer is closed")

// File is a data file that may be incomplete. It is safe for concurrent use.
type File struct {
	dir   string
	o     Options
	log   *slog.Logger
	pool  *Pool
	at    locator
	size  int64  // of the data file
	total int64  // data bytes of all spans
	table uint64 // hash of the table's spans
	seen  *seen  // nil: the table has a digest for each span
	lanes chan struct{}

	ctx    context.Context // of all requests
	cancel context.CancelFunc
	tasks  sync.WaitGroup // requests, and checks of suspects; entered under mu while bad is nil

	now    atomic.Pointer[contents] // replaced under mu
	link   atomic.Int64             // blob bytes that arrive during a round trip
	source sourceCell
	whole  atomic.Bool // the source gives all or nothing

	evicting sync.Mutex // above mu; one eviction at a time

	mu       sync.Mutex
	bad      error      // why nothing is served any more: the data is bad, or closed
	spill    *contents  // in memory: what the disk had no space for; nil: nothing
	requests []*request // under way, by age
	waiters  []*waiter
	readers  []reader // by last use
}

// Create makes the files of a File that has no bytes yet, synced. It uses of o
// only Table and Size.
func Create(dir string, o Options) error {
	if err := makePresent(filepath.Join(dir, PresentName), o.Table.Spans(), hashTable(o.Table)); err != nil {
		return fmt.Errorf("data of a layer: %w", err)
	}
	data, err := makeData(filepath.Join(dir, DataName), max(o.Size, o.Table.DataSize()))
	if err != nil {
		return fmt.Errorf("data of a layer: %w", err)
	}
	if err := errors.Join(data.Sync(), data.Close()); err != nil {
		return fmt.Errorf("data of a layer: %w", err)
	}
	return nil
}

// Open opens the files in dir. What they hold after an unclean stop, or after
// somebody else wrote to them, is compared with its checksums before it is
// served, and fetched again where it differs.
func Open(dir string, o Options) (*File, error) {
	f := &File{
		dir: dir, o: o, log: o.Logger, pool: o.Pool,
		at:    newLocator(o.Table),
		size:  max(o.Size, o.Table.DataSize()),
		table: hashTable(o.Table),
		lanes: make(chan struct{}, lanes),
	}
	for i := range f.at.n {
		f.total += o.Table.At(i).Len
	}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	if f.pool == nil {
		f.pool = NewPool(0)
	}
	f.source.ask, f.source.lock = o.Source, make(chan struct{}, 1)
	f.link.Store(unknownLink)
	var err error
	if f.seen, err = openSeen(filepath.Join(dir, SeenName), o.Table); err != nil {
		return nil, fmt.Errorf("data of a layer: %w", err)
	}
	c, err := f.openContents()
	if err != nil {
		return nil, fmt.Errorf("data of a layer: %w", err)
	}
	f.now.Store(c)
	f.ctx, f.cancel = context.WithCancel(context.Background())
	return f, nil
}

// Present returns how many bytes of data are there, present or raw, of how many.
func (f *File) Present() (have, total int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now.Load().bytes, f.total
}

// PresentIn returns how many of the n bytes at off are there, present or raw.
// Those between spans are not counted.
func (f *File) PresentIn(off, n int64) (have int64) {
	off, end := max(off, 0), off+n
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.now.Load()
	for i, j := f.at.covering(off, end); i < j; i++ {
		if c.have.has(i) || c.has(i, true) {
			s := f.o.Table.At(i)
			have += min(s.Off+s.Len, end) - max(s.Off, off)
		}
	}
	return have
}

// Whole reports whether all bytes are present and none needs to be compared
// with its checksum.
func (f *File) Whole() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.now.Load()
	return f.bad == nil && c.have.next(0, f.at.n, false) == f.at.n &&
		(c.suspect == nil || c.suspect.next(0, f.at.n, true) == f.at.n)
}

// Evict drops all bytes: a new, empty data file takes the place of the old one,
// which stays with those who hold it. It returns how many bytes were dropped.
func (f *File) Evict() (freed int64, err error) {
	f.evicting.Lock()
	defer f.evicting.Unlock()
	next, err := f.emptyContents()
	if err != nil {
		return 0, fmt.Errorf("evict a layer: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	freed = f.now.Load().bytes
	f.now.Store(next)
	f.spill = nil
	return freed, nil
}

// emptyContents puts new files into the place of the old ones. "present" goes
// first: what it says is true of both data files.
func (f *File) emptyContents() (*contents, error) {
	const suffix = ".new"
	data, present := filepath.Join(f.dir, DataName), filepath.Join(f.dir, PresentName)
	if err := makePresent(present+suffix, f.at.n, f.table); err != nil {
		return nil, err
	}
	file, err := makeData(data+suffix, f.size)
	if err != nil {
		return nil, err
	}
	c := newContents(file, f.at.n, f.o.Proof != nil)
	if c.noted, err = stampOf(file); err != nil {
		return nil, err
	}
	if c.present, err = os.OpenFile(present+suffix, os.O_RDWR, 0); err != nil {
		return nil, err
	}
	if err := os.Rename(present+suffix, present); err != nil {
		return nil, err
	}
	if err := syncDir(f.dir); err != nil {
		return nil, err
	}
	return c, os.Rename(data+suffix, data)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Close stops what is under way, syncs the files and marks them as cleanly
// closed. Files that Fill returned stay open, and what is ready is still
// served.
func (f *File) Close() error {
	f.mu.Lock()
	was := f.bad
	if was == nil {
		f.bad = errClosed
	}
	f.mu.Unlock()
	f.cancel()
	f.tasks.Wait()
	if c := f.now.Load(); was == nil && c.present != nil {
		if err := f.seal(c); err != nil {
			return fmt.Errorf("data of a layer: %w", err)
		}
	}
	return nil
}

// condemn makes the data bad for good.
func (f *File) condemn(err error) {
	f.mu.Lock()
	if f.bad != nil {
		f.mu.Unlock()
		return
	}
	f.bad = err
	for i := range f.now.Load().ready {
		f.now.Load().ready[i].Store(0)
	}
	f.spill = nil
	f.mu.Unlock()
	f.log.Error("layer is not what it claims to be", "dir", f.dir, "err", err)
	if f.o.Bad != nil {
		f.o.Bad(err)
	}
	f.cancel()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wakeLocked(err, func(*waiter) bool { return true })
}

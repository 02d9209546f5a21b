package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sync/errgroup"

	"github.com/imgfs/imgfs/imagedb"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/metadb"
	"github.com/imgfs/imgfs/internal/pool"
	"github.com/imgfs/imgfs/layerdb"
	"github.com/imgfs/imgfs/union"
)

// engine is the store at work: the engineapi.Engine behind the server.
type engine struct {
	paths   Paths
	log     *slog.Logger
	db      *badger.DB
	layers  *layerdb.Store
	images  *imagedb.Store
	origins *origins
	act     *activity
	watch   *watcher
	started time.Time
	mountNS string
	userNS  string
	ctx     context.Context // of mounts; ends when the engine closes
	cancel  context.CancelFunc
	stop    chan struct{} // closed by Shutdown
	gone    chan struct{} // closed when the store is unlocked
	tidy    *time.Timer   // returns memory some time after the last pull
	events  events        // what happens, for whoever listens

	transfers *pool.Pool[engineapi.Progress] // pulls and pushes, by name
	intake    intake

	calls sync.WaitGroup // mounts being made
	wg    sync.WaitGroup // the goroutine of each mount

	// names serialises what changes an image's record, its names and the
	// layers it retains: they are several records. Nothing waits for a
	// registry or a layer under it.
	names sync.Mutex

	pruning atomic.Bool // images are being pruned
	figures figures

	mu       sync.Mutex // guards the rest
	mounts   map[string]*mount
	targets  map[place]string     // in use, or about to be, by the mount of that ID
	uppers   map[string]usedUpper // by path
	lostDB   bool                 // the database is new, or not all of it could be read; set when it is opened
	works    int                  // pulls, loads and whatever else the daemon is to stay for, under way
	problems []string
	faults   []engineapi.ReadFault // oldest first
	leaving  bool                  // no new mounts
	ended    mountTotals           // of mounts that are gone
	kept     bool                  // records outlive the mounts: the next daemon mounts again
}

// tidyAfter is how long after the last pull or merge memory is returned.
const tidyAfter = 2 * time.Second

// openEngine opens the store, whose layers' data may take cacheLimit bytes; 0 is
// no limit.
//
// Preconditions: the store's lock is held.
func openEngine(p Paths, cacheLimit int64, act *activity, log *slog.Logger) (*engine, error) {
	e := &engine{
		paths: p, log: log, act: act, started: time.Now(),
		watch:   newWatcher(),
		stop:    make(chan struct{}),
		gone:    make(chan struct{}),
		mounts:  map[string]*mount{},
		targets: map[place]string{},
		uppers:  map[string]usedUpper{},

		transfers: pool.New(func(p engineapi.Progress) string { return p.ID }),
		intake:    make(intake, maxIntake),
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.tidy = time.AfterFunc(tidyAfter, debug.FreeOSMemory)
	var err error
	defer func() {
		if err != nil {
			e.close(false)
		}
	}()
	if e.mountNS, err = os.Readlink("/proc/self/ns/mnt"); err != nil {
		return nil, err
	}
	if e.userNS, err = os.Readlink("/proc/self/ns/user"); err != nil {
		return nil, err
	}
	if err = e.putAside("db", "blobs", "blobs/sha256", "layers", "chains", "tmp", "uppers"); err != nil {
		return nil, err
	}
	if err = e.openDB(); err != nil {
		return nil, err
	}
	e.origins = newOrigins(e.db, e.fetchOptions)
	lo := layerdb.Options{Merge: merge, Logger: log, Source: e.origins.supply, CacheLimit: cacheLimit, Evicted: e.evicted}
	var g errgroup.Group // of thousands of images and layers it takes a while
	g.Go(func() (err error) {
		e.layers, err = layerdb.Open(p.Root, e.db, lo)
		return err
	})
	g.Go(func() (err error) {
		e.images, err = imagedb.Open(p.Root, e.db, imagedb.Options{Logger: log})
		return err
	})
	if err = g.Wait(); err != nil {
		return nil, err
	}
	if err = e.findImages(); err != nil {
		return nil, err
	}
	return e, nil
}

// merge is layerdb's seam to union.
func merge(w io.Writer, parent *erofs.Image, top []*erofs.Image) error {
	var err error
	if parent == nil {
		_, err = union.Merge(w, top)
	} else {
		_, err = union.Extend(w, parent, top)
	}
	return err
}

// close ends the mounts and closes the store. Unless keep is set, mounts are
// unmounted and forgotten; otherwise they stay, dead, with their records, for
// the next daemon to serve again.
//
// Preconditions: the contexts of all requests have ended.
func (e *engine) close(keep bool) error {
	e.mu.Lock()
	e.leaving = true
	e.kept = keep
	e.mu.Unlock()
	e.transfers.Close()
	e.calls.Wait()
	e.mu.Lock()
	var live []*mount
	for _, m := range e.mounts {
		live = append(live, m)
	}
	e.mu.Unlock()
	var errs []error
	if !keep {
		errs = append(errs, e.unmountAll(live))
	}
	for _, m := range live {
		if m.rec.MountNS == e.mountNS {
			m.writeBack()
		}
	}
	e.cancel()
	for _, m := range live {
		m.abandon()
	}
	e.watch.close()
	e.wg.Wait()
	e.tidy.Stop()
	if e.layers != nil {
		errs = append(errs, e.layers.Close())
	}
	if e.images != nil {
		e.images.Close()
	}
	if e.origins != nil {
		e.origins.close()
	}
	if e.db != nil {
		errs = append(errs, metadb.Close(e.db))
	}
	return errors.Join(errs...)
}

// beginWork has the daemon stay until endWork, unless it is leaving: for what is
// neither a mount nor over with its request.
func (e *engine) beginWork() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.leaving {
		return fault.New(fault.Unavailable, "the daemon is leaving")
	}
	e.works++
	return nil
}

func (e *engine) endWork() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.works--
	e.tidyLater()
}

// tidyLater has the memory of a pull or a merge returned when there has been
// none for a while.
//
// Preconditions: e.mu is held.
func (e *engine) tidyLater() {
	if !e.leaving {
		e.tidy.Reset(tidyAfter)
	}
}

// Shutdown implements engineapi.Lifecycle.
func (e *engine) Shutdown(ctx context.Context, force bool) (<-chan struct{}, error) {
	e.mu.Lock()
	var live []*mount
	var targets []string
	for _, m := range e.mounts {
		live = append(live, m)
		targets = append(targets, m.rec.Target)
	}
	if !force && len(live) == 0 && (e.works > 0 || len(e.targets) > 0) {
		e.mu.Unlock()
		return nil, fault.WithHint(fault.New(fault.Conflict, "the daemon is pulling or mounting an image"), "imgfs daemon stop --force")
	}
	if !force && len(live) > 0 {
		e.mu.Unlock()
		return nil, fault.WithHint(
			fault.New(fault.Conflict, "the daemon serves %s: %s", count(len(live), "mount"), strings.Join(targets, ", ")),
			"unmount with imgfs umount, or stop with imgfs daemon stop --force")
	}
	if e.leaving {
		e.mu.Unlock()
		return e.gone, nil
	}
	e.leaving = true
	e.mu.Unlock()
	if err := e.unmountAll(live); err != nil {
		e.mu.Lock()
		e.leaving = false
		e.mu.Unlock()
		return nil, err
	}
	close(e.stop)
	return e.gone, nil
}

// Status implements engineapi.Lifecycle.
func (e *engine) Status(context.Context) (engineapi.Status, error) {
	st := engineapi.Status{
		Version: engineapi.ThisBuild().String(),
		PID:     os.Getpid(),
		Root:    e.paths.Root,
		Socket:  e.paths.Socket,
		Started: e.started,
		RssAnon: rssAnon(),
	}
	st.Images = e.images.Len()
	layers, err := e.layers.Layers()
	if err != nil {
		return st, err
	}
	st.Layers = len(layers)
	for _, l := range layers {
		st.DiskBytes += l.Disk
	}
	for _, d := range e.layers.Passes() {
		st.Passes = append(st.Passes, d.Short())
	}
	st.Transfers = e.transfers.List()
	st.Problems = append(e.layers.Problems(), e.images.Problems()...)
	e.mu.Lock()
	defer e.mu.Unlock()
	st.Mounts = len(e.mounts)
	st.Problems = append(st.Problems, e.problems...)
	st.Faults = slices.Clone(e.faults)
	return st, nil
}

// GC implements engineapi.Lifecycle.
func (e *engine) GC(ctx context.Context) (engineapi.GCReport, error) {
	r, err := e.layers.GC(ctx)
	if err != nil {
		return engineapi.GCReport{}, err
	}
	// A pull writes an image's files before its record.
	e.names.Lock()
	defer e.names.Unlock()
	blobs, err := e.images.Sweep()
	return engineapi.GCReport{Layers: r.Layers, Chains: r.Chains, Reclaimed: r.Reclaimed + blobs}, err
}

// problem notes what a user should know of; the log has all of them.
func (e *engine) problem(format string, args ...any) {
	p := fmt.Sprintf(format, args...)
	e.log.Warn(p)
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.problems) < maxProblems {
		e.problems = append(e.problems, p)
	}
}

// maxProblems bounds the list that Status shows.
const maxProblems = 100

// rssAnon returns the daemon's anonymous memory in bytes, 0 if unknown.
func rssAnon() int64 {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "RssAnon:" {
			kb, _ := strconv.ParseInt(f[1], 10, 64)
			return kb << 10
		}
	}
	return 0
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}

var _ engineapi.Engine = (*engine)(nil)

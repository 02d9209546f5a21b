package daemon

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/fs"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/lower"
	"github.com/imgfs/imgfs/internal/subid"
	"github.com/imgfs/imgfs/internal/upperdir"
	"github.com/imgfs/imgfs/layerdb"
	"github.com/imgfs/imgfs/union/overlay"
)

// place is where a mount is: a path means something only in its namespace.
type place struct{ mountNS, target string }

// mount is a live mount.
type mount struct {
	rec    record
	tree   *tree
	server *fs.Server    // nil for driver erofs; for overlay, of what lies below
	gone   chan struct{} // closed when the record has been dropped
	once   sync.Once
	ended  chan struct{} // driver erofs: closed when the kernel has no mount any more

	readers sync.WaitGroup // who reads tree beside the mount
	closing bool           // no new readers; guarded by engine.mu
}

// abandon stops serving; the kernel's mount is left as it is.
func (m *mount) abandon() {
	if m.server != nil {
		m.server.Close()
		return
	}
	m.end()
}

func (m *mount) end() { m.once.Do(func() { close(m.ended) }) }

// tree is what a mount shows, with what it holds open for it.
type tree struct {
	chain  *layerdb.Chain // nil for the layout view
	upper  *upperdir.Dir  // nil: read-only; engine.leaveUpper closes it
	reads  *reads         // nil: nothing is read of layers, or by the kernel alone
	serve  func(ctx context.Context, fd int) (*fs.Server, error)
	close  func()
	source string // first column of the mount table
}

// Mounts implements engineapi.Mounts.
func (e *engine) Mounts(context.Context) ([]engineapi.Mount, error) {
	e.mu.Lock()
	live := slices.Collect(maps.Values(e.mounts))
	e.mu.Unlock()
	list := make([]engineapi.Mount, 0, len(live))
	for _, m := range live {
		list = append(list, e.wire(m))
	}
	slices.SortFunc(list, func(a, b engineapi.Mount) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID))
	})
	return list, nil
}

// wire returns what is told of a mount.
func (e *engine) wire(m *mount) engineapi.Mount {
	w := m.rec.mount()
	if m.server != nil {
		s := m.server.Stats()
		w.Stats = engineapi.MountStats{
			Lookups: s.Lookups, Getattrs: s.Getattrs, Readdirs: s.Readdirs, Opens: s.Opens,
			Reads: s.Reads, ReadBytes: s.ReadBytes, Writes: s.Writes, WriteBytes: s.WriteBytes, Changes: s.Changes,
			Others: s.Others + s.Xattrs + s.Syncs + s.Closes + s.Forgets + s.Statfs, ErrorsTotal: s.Errors, LastError: s.LastError,
		}
	}
	if r := m.tree.reads; r != nil {
		w.Stats.Waits, w.Stats.Waited, w.Stats.FetchedBytes = r.waits.Load(), time.Duration(r.waited.Load()), r.fetched.Load()
	}
	w.Stats.CachedBytes, w.Stats.LazyBytes = e.presence(m.rec.Layers)
	return w
}

// WaitGone implements engineapi.Mounts.
func (e *engine) WaitGone(ctx context.Context, id string) error {
	e.mu.Lock()
	m := e.mounts[id]
	e.mu.Unlock()
	if m == nil {
		return nil
	}
	select {
	case <-m.gone:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Mount implements engineapi.Mounts.
func (e *engine) Mount(ctx context.Context, req engineapi.MountRequest, report func(engineapi.Progress), exchange engineapi.Exchange) (engineapi.Mount, error) {
	at, id := place{req.MountNS, req.Target}, newID()
	if err := e.reserve(at, id); err != nil {
		return engineapi.Mount{}, err
	}
	defer e.calls.Done()
	rec := record{
		ID: id, Target: req.Target, Driver: req.Driver, Layout: req.Layout,
		Suid: req.Suid, Dev: req.Dev, MountNS: req.MountNS, UserNS: req.UserNS,
		Mode: req.Mode, Upper: req.Upper, UpperDir: req.UpperDir, Tmp: req.Tmp, Squash: req.Squash,
		Prefetch: req.Prefetch, OnError: req.OnError, Provenance: req.Provenance,
	}
	if req.Layout {
		rec.Registry, rec.auth, rec.Platform = withoutSecrets(req.Registry), &req.Registry, req.Platform
	}
	m, err := e.makeMount(ctx, req, rec, report, exchange)
	if err != nil {
		e.unreserve(at, id)
		return engineapi.Mount{}, advise(err)
	}
	return e.wire(m), nil
}

func withoutSecrets(r engineapi.RegistryOptions) engineapi.RegistryOptions {
	r.Password, r.Token, r.IdentityToken = "", "", ""
	return r
}

// makeMount prepares, has mounted, serves and records one mount. When it
// fails it holds nothing, and the client undoes the mount; one that has died
// cannot, so its remains are taken away here.
//
// Preconditions: the place is reserved.
func (e *engine) makeMount(ctx context.Context, req engineapi.MountRequest, rec record, report func(engineapi.Progress), exchange engineapi.Exchange) (_ *mount, err error) {
	if err := e.checkDriver(req); err != nil {
		return nil, err
	}
	t, err := e.prepare(ctx, req, &rec, report)
	if err != nil {
		return nil, err
	}
	before, err := seenAt(rec.Target)
	if err != nil {
		e.closeTree(&rec, t, false)
		return nil, err
	}
	defer func() {
		if err == nil {
			return
		}
		if ctx.Err() != nil && rec.MountNS == e.mountNS {
			e.sweepTarget(&rec, before)
		}
		e.closeTree(&rec, t, false)
	}()
	if rec.Driver == "fuse" {
		_, fd, err := exchange(engineapi.MountReady{ID: rec.ID, Source: t.source})
		if err != nil {
			return nil, err
		}
		rec.Created = time.Now()
		return e.serve(ctx, rec, t, fd)
	}
	return e.makeKernelMount(ctx, rec, t, exchange)
}

// prepare brings in what req names and fills in rec.
func (e *engine) prepare(ctx context.Context, req engineapi.MountRequest, rec *record, report func(engineapi.Progress)) (*tree, error) {
	if req.Layout {
		rec.Source = "imgfs-layout"
		return e.openTree(ctx, rec, nil)
	}
	info, err := e.knownUpper(&req)
	if err != nil {
		return nil, err
	}
	img, err := e.imageOver(ctx, req, info, report)
	if err != nil {
		return nil, err
	}
	rec.setImage(img)
	if wholly(&req) {
		if _, err := e.finishAll(ctx, rec.Layers, report); err != nil {
			return nil, err
		}
	}
	if !rec.writable() {
		return e.openTree(ctx, rec, nil)
	}
	if info != nil {
		rec.Foreign = info.ChainID != rec.ChainID
		if rec.Foreign && !req.Force {
			return nil, foreignUpper(info, rec)
		}
	}
	d, err := e.openUpper(ctx, rec, info == nil)
	if err != nil {
		return nil, err
	}
	t, err := e.openTree(ctx, rec, d)
	if err != nil {
		e.leaveUpper(rec, d, e.worthKeeping(rec, d, nil))
		return nil, err
	}
	return t, nil
}

// openTree opens what a record shows, over which d, if not nil, is laid; d stays
// the caller's if that fails.
func (e *engine) openTree(ctx context.Context, rec *record, d *upperdir.Dir) (*tree, error) {
	if rec.Layout {
		return e.openLayout(rec)
	}
	chain, err := e.layers.Chain(ctx, rec.Layers)
	if err != nil {
		return nil, err
	}
	chain.Image().Prefetch() // whoever mounts is about to look
	if d != nil {
		if err := d.Seed(chain.Image()); err != nil {
			chain.Release()
			return nil, adviseUpper(err, rec.Upper, d.Path())
		}
	}
	t := &tree{chain: chain, upper: d, source: rec.Source, close: chain.Release}
	if rec.Driver == "erofs" {
		// The kernel reads the files themselves, and takes a hole for zeros.
		chain.Hold()
		for _, d := range chain.Data() {
			if err := d.Complete(ctx, nil); err != nil {
				chain.Release()
				return nil, err
			}
		}
		return t, nil
	}
	data, r, stop := e.openReads(rec, chain)
	t.reads = r
	t.close = func() {
		stop()
		chain.Release()
	}
	o := fs.Options{Logger: e.log.With("mount", rec.ID)}
	// Where an image has attributes, the kernel asks for them anyway.
	if rec.Provenance || chain.Image().HasXattrs() {
		o.Notes = e.provenance(chain)
	}
	if d == nil || rec.Driver == "overlay" { // the kernel changes the upper by itself
		t.serve = func(ctx context.Context, fd int) (*fs.Server, error) {
			return fs.Serve(ctx, fs.NewChain(chain.Image(), data, o), fd, o)
		}
		return t, nil
	}
	low := lower.New(chain.Image(), data, 0, lower.Root).WithNotes(o.Notes)
	u, err := overlay.New(&low, d, overlay.Options{Logger: o.Logger, Volatile: rec.Tmp, IDs: idsOf(rec), Foreign: rec.Foreign})
	if err != nil {
		t.close()
		return nil, adviseUpper(err, rec.Upper, d.Path())
	}
	t.serve = func(ctx context.Context, fd int) (*fs.Server, error) { return fs.Serve(ctx, u, fd, o) }
	t.close = func() {
		u.Close()
		stop()
		chain.Release()
	}
	return t, nil
}

// closeTree ends the use of a tree. Unless keep is set, its upper is dropped if
// there is no reason to keep it.
func (e *engine) closeTree(rec *record, t *tree, keep bool) {
	keep = keep || t.upper != nil && e.worthKeeping(rec, t.upper, t.chain)
	t.close()
	if t.upper != nil {
		e.leaveUpper(rec, t.upper, keep)
	}
}

// serve answers the kernel on fd, which it owns, and records the mount.
func (e *engine) serve(ctx context.Context, rec record, t *tree, fd *os.File) (*mount, error) {
	srv, err := startServer(ctx, t, fd)
	if err != nil {
		return nil, err
	}
	m, err := e.adopt(rec, t, srv)
	if err != nil {
		srv.Close()
		return nil, err
	}
	return m, nil
}

// startServer answers the kernel on fd, which it owns.
func startServer(ctx context.Context, t *tree, fd *os.File) (*fs.Server, error) {
	if fd == nil {
		return nil, fault.New(fault.Invalid, "mount reply: no descriptor")
	}
	if err := checkFuse(fd); err != nil {
		fd.Close()
		return nil, err
	}
	// The server owns a bare descriptor; fd's finalizer must not close it.
	raw, err := unix.FcntlInt(fd.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	fd.Close()
	if err != nil {
		return nil, fmt.Errorf("fuse descriptor: %w", err)
	}
	return t.serve(ctx, raw)
}

// checkFuse returns nil if f is /dev/fuse: character device 10:229.
func checkFuse(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("fuse descriptor: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || unix.Major(st.Rdev) != 10 || unix.Minor(st.Rdev) != 229 {
		return fault.New(fault.Invalid, "mount reply: the descriptor is not /dev/fuse")
	}
	return nil
}

// adopt records a mount that works and follows it to its end. srv is nil for
// driver erofs. When it fails, t stays the caller's.
func (e *engine) adopt(rec record, t *tree, srv *fs.Server) (*mount, error) {
	if !e.act.begin() {
		return nil, fault.New(fault.Unavailable, "the daemon is leaving")
	}
	m := &mount{rec: rec, tree: t, server: srv, gone: make(chan struct{}), ended: make(chan struct{})}
	if err := saveRecord(e.db, &rec); err != nil {
		e.act.end()
		return nil, err
	}
	e.mu.Lock()
	if e.leaving {
		e.mu.Unlock()
		e.act.end()
		return nil, errors.Join(fault.New(fault.Unavailable, "the daemon is leaving"), dropRecord(e.db, rec.ID))
	}
	e.mounts[rec.ID] = m
	e.tidyLater() // there may have been a merge
	e.wg.Add(1)
	e.mu.Unlock()
	if srv == nil {
		if err := e.watch.add(mountMark{rec.Device, rec.Target}, m.end); err != nil {
			e.log.Warn("mount cannot be watched", "mount", rec.ID, "target", rec.Target, "err", err)
		}
	}
	e.log.Info("mounted", "mount", rec.ID, "image", rec.Source, "target", rec.Target, "driver", rec.Driver)
	e.mountEvent("mount", &rec)
	go e.follow(m)
	return m, nil
}

// follow waits for the end of a mount and forgets it.
func (e *engine) follow(m *mount) {
	defer e.wg.Done()
	defer e.act.end()
	if m.server != nil {
		if err := m.server.Wait(); err != nil {
			e.log.Error("mount ended", "mount", m.rec.ID, "err", err)
		}
	} else {
		<-m.ended
	}
	e.mu.Lock()
	kept := e.kept
	m.closing = true
	e.mu.Unlock()
	m.readers.Wait()
	e.closeTree(&m.rec, m.tree, kept)
	if !kept {
		if err := dropRecord(e.db, m.rec.ID); err != nil {
			e.log.Error("mount ended", "mount", m.rec.ID, "err", err)
		}
		e.mountEvent("unmount", &m.rec)
		e.log.Info("unmounted", "mount", m.rec.ID, "target", m.rec.Target)
	}
	e.unreserve(place{m.rec.MountNS, m.rec.Target}, m.rec.ID)
	e.mu.Lock()
	delete(e.mounts, m.rec.ID)
	e.ended.add(m)
	e.forgetFaultsLocked(m.rec.ID)
	e.mu.Unlock()
	close(m.gone)
}

// reserve makes sure that nobody else mounts at the same place. After success
// e.calls.Done is to be called once.
//
// The client has looked: nothing of ours is mounted there. So a mount that is
// on record there has just been unmounted by somebody else, and we are about
// to hear of it, or it was detached while busy: either way the place is free.
func (e *engine) reserve(at place, id string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.leaving {
		return fault.New(fault.Unavailable, "the daemon is leaving")
	}
	if old, ok := e.targets[at]; ok {
		m := e.mounts[old] // nil: being made
		if m == nil || at.mountNS == e.mountNS && m.stands() {
			return fault.WithHint(fault.New(fault.Conflict, "%s is mounted already", at.target), "imgfs umount %s", at.target)
		}
		if m.server == nil {
			m.end() // the watcher could take the next one, of the same device number, for it
		}
	}
	e.targets[at] = id
	e.calls.Add(1)
	return nil
}

// unreserve frees a place unless another mount has taken it since.
func (e *engine) unreserve(at place, id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.targets[at] == id {
		delete(e.targets, at)
	}
}

// unmountAll unmounts live mounts, also busy ones, and waits until they are
// forgotten. Those of other mount namespaces are only cut off.
func (e *engine) unmountAll(live []*mount) error {
	var errs []error
	for _, m := range live {
		var err error
		if m.rec.MountNS == e.mountNS && m.stands() {
			m.writeBack() // whoever still uses it will not do so any more
			err = fs.Unmount(m.rec.Target, true)
		}
		if m.server != nil {
			m.server.Close() // a busy mount's files are gone for their readers
		} else if err == nil {
			m.end()
		}
		if err != nil && m.stands() {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m.rec.Target, err))
			continue
		}
		<-m.gone
	}
	return errors.Join(errs...)
}

// writeBack has the kernel write what it has cached of a writable mount, while
// that is still served and can be reached.
func (m *mount) writeBack() {
	if !m.rec.writable() || m.rec.Driver != "fuse" {
		return
	}
	select {
	case <-m.server.Done():
		return
	default:
	}
	// Not by package os, see ARCHITECTURE.md: this process serves what it opens.
	fd, err := unix.Open(m.rec.Target, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return // in another namespace, or covered
	}
	defer unix.Close(fd)
	_ = unix.Syncfs(fd) // what fails has failed for its writer
}

// stands reports whether something is still mounted at the mount's target.
func (m *mount) stands() bool {
	at, err := fs.MountAt(m.rec.Target)
	return err != nil || at != nil
}

// newID returns 12 hexadecimal digits.
func newID() string {
	var b [6]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// idsOf returns who is whom in a mount whose user is root in the tree: as in
// the user namespaces that he can make, his subordinate users and groups are
// the others.
func idsOf(rec *record) *overlay.IDs {
	if !rec.Squash {
		return nil
	}
	users, groups := subid.Ranges(os.Geteuid())
	return overlay.RootIs(uint32(os.Geteuid()), uint32(os.Getegid()), idRanges(users), idRanges(groups))
}

func idRanges(sub []subid.Range) []overlay.IDRange {
	var ranges []overlay.IDRange
	for _, r := range sub {
		ranges = append(ranges, overlay.IDRange{Wire: uint32(r.Outside), Tree: uint32(r.Inside), Count: uint32(r.Size)})
	}
	return ranges
}

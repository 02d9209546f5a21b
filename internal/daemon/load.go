package daemon

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/fetch"
	"github.com/imgfs/imgfs/imagedb"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/span"
	"github.com/imgfs/imgfs/layerdb"
)

// How an archive comes in. It is a stream, and says what its layers are where
// it pleases, as a rule at its end. Nothing is written twice all the same:
//
//	a file that is a layer here, by its name   is skipped
//	a large plain tar                          goes into a pass as it comes
//	all else                                   is spooled
//
// A pass that nobody turns out to have wanted is undone with the load. Layers
// that were spooled are known to be layers at the end of the archive alone,
// and are brought in then, side by side: those are the compressed ones, whose
// passes wait for a processor, and the small ones, which wait for the disk.

// loadsAside is how many passes may be ending while an archive is read on.
const loadsAside = 4

// loading is an archive on its way into the store.
type loading struct {
	e      *engine
	owner  string // of the layers, until the images are stored
	passes errgroup.Group
	stop   context.CancelCauseFunc // of receiving
	early  map[string]*early       // by the name of the file; of who receives

	mu     sync.Mutex // guards the rest, and serialises report
	report func(engineapi.Progress)
	held   []id.LayerKey // each once
	holds  map[id.LayerKey]bool
}

// early is a file that was taken for a layer before anything said that it is
// one. Its fields are set when loading.passes have ended.
type early struct {
	key id.LayerKey
	err error // why it is none
}

// Load implements engineapi.Archives. Nothing of the archive is visible before
// all of its images are there.
func (e *engine) Load(ctx context.Context, req engineapi.LoadRequest, body io.Reader, report func(engineapi.Progress)) ([]engineapi.LoadedImage, error) {
	want, err := fetch.ParsePlatform(req.Platform)
	if err != nil {
		return nil, err
	}
	if err := e.beginWork(); err != nil {
		return nil, err
	}
	defer e.endWork()
	leave, err := e.intake.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	l := &loading{e: e, owner: pullOwner + newID(), report: report, holds: map[id.LayerKey]bool{}, early: map[string]*early{}}
	defer e.release("load", l.owner)
	spool, err := tempFile(e.paths.Root)
	if err != nil {
		return nil, err
	}
	defer spool.Close()
	archive, err := l.receive(ctx, body, spool)
	if err != nil {
		return nil, e.spoolError(err)
	}
	list, err := archive.Images(want)
	if err != nil {
		return nil, err
	}
	keys, err := l.layers(ctx, archive, list)
	if err != nil {
		return nil, err
	}
	return e.putLoaded(list, keys)
}

// spoolError adds the hint that a full disk needs.
func (e *engine) spoolError(err error) error {
	if fault.HintOf(err) == "" && (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) {
		return fault.WithHint(fmt.Errorf("disk of %s is full: %w", e.paths.Root, err), "what no image needs is removed by: imgfs gc")
	}
	return err
}

// receive reads the archive to its end.
func (l *loading) receive(ctx context.Context, body io.Reader, spool fetch.Spool) (_ *fetch.Archive, err error) {
	ctx, l.stop = context.WithCancelCause(ctx)
	defer func() {
		if err != nil {
			l.stop(err)
		}
		// An error of a pass comes first: it is why the archive was not read on.
		if perr := l.passes.Wait(); perr != nil {
			err = perr
		}
		l.stop(nil)
	}()
	tar, end, err := plainTar(body)
	if err != nil {
		return nil, err
	}
	defer end()
	l.passes.SetLimit(loadsAside)
	return fetch.ReadArchive(tar, spool, func(f *fetch.ArchiveFile) (bool, error) { return l.take(ctx, f) })
}

// plainTar returns the tar that body is, perhaps compressed. The caller ends with
// end.
func plainTar(body io.Reader) (_ io.Reader, end func(), err error) {
	from := &noting{r: body}
	b := bufio.NewReaderSize(from, 64<<10)
	head, err := b.Peek(8)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	if fetch.Compression(head) == "" {
		return b, func() {}, nil
	}
	r, w := io.Pipe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer func() {
			if v := recover(); v != nil { // of a decoder, by foreign bytes
				w.CloseWithError(fault.New(fault.Failed, "internal error: archive: panic: %v\n%s", v, debug.Stack()))
			}
		}()
		_, err := span.NewReader(b, span.Options{}).WriteTo(w)
		switch {
		case err == nil || errors.Is(err, io.ErrClosedPipe):
		case from.err != nil:
			err = from.err
		default:
			err = fault.New(fault.Integrity, "the archive cannot be uncompressed: %w", err)
		}
		w.CloseWithError(err)
	}()
	return r, func() {
		r.Close()
		<-ended
	}, nil
}

// noting is a reader that notes how it failed.
type noting struct {
	r   io.Reader
	err error
}

func (n *noting) Read(p []byte) (int, error) {
	k, err := n.r.Read(p)
	if err != nil && err != io.EOF {
		n.err = err
	}
	return k, err
}

// maxHeld is how many layers an archive may have: what one record says of it.
const maxHeld = 30_000

// hold keeps layers in the store until the load has ended.
func (l *loading) hold(keys ...id.LayerKey) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range keys {
		l.noteLocked(k)
	}
	if len(l.held) > maxHeld {
		return fault.New(fault.Invalid, "the archive has more than %d layers", maxHeld)
	}
	return l.e.layers.Retain(l.owner, l.held)
}

// noteLocked enters a layer that is to be held.
//
// Preconditions: l.mu is held.
func (l *loading) noteLocked(k id.LayerKey) {
	if !l.holds[k] {
		l.holds[k] = true
		l.held = append(l.held, k)
	}
}

// errPassed ends the writing of a layer whose pass needs no more of it.
var errPassed = errors.New("the pass has ended")

// take brings a file in that is a layer, by all that can be known of it.
func (l *loading) take(ctx context.Context, f *fetch.ArchiveFile) (bool, error) {
	delete(l.early, f.Name) // of two files with one name the later counts
	if l.known(f) {
		return true, nil
	}
	if f.Size < smallLayer {
		return false, nil
	}
	head, err := f.Body.Peek(512)
	if err != nil {
		return false, err
	}
	if string(head[257:262]) != "ustar" {
		return false, nil
	}
	r, w := io.Pipe()
	// What it is called is not said to the pass: that would be shared by all who
	// want the same, and this one comes at the pace of its client.
	spec := layerdb.Spec{
		Size: f.Size,
		Open: func(context.Context) (io.ReadCloser, error) { return r, nil },
		Hold: func(k id.LayerKey) error { return l.hold(k) },
	}
	x := &early{}
	l.early[f.Name] = x
	l.passes.Go(func() error {
		var err error
		x.key, _, err = l.e.layers.Ensure(ctx, spec, l.step(shownFile(f.Name)))
		switch {
		case err == nil:
		case fault.KindOf(err) == fault.Integrity:
			// Perhaps it is no layer, and nobody wants it.
			x.err, err = err, nil
		default:
			l.stop(err)
		}
		r.CloseWithError(errPassed)
		return err
	})
	_, err = io.Copy(w, f.Body)
	if errors.Is(err, errPassed) {
		err = context.Cause(ctx)
	}
	w.CloseWithError(err)
	return true, err
}

// known reports whether a file is a layer that is here.
func (l *loading) known(f *fetch.ArchiveFile) bool {
	if f.Hex == "" {
		return false
	}
	key, ok := l.e.layers.Proven(id.DiffID("sha256:" + f.Hex))
	if !ok {
		key = l.e.layers.ByBlob(id.Blob("sha256:" + f.Hex))
	}
	if key == "" || !l.e.layers.Has(key) {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.noteLocked(key) // and retained with the others: see layer
	l.early[f.Name] = &early{key: key}
	return true
}

// shownFile returns what a layer is called of which its file's name alone is
// known: by its digest, or its directory.
func shownFile(name string) string {
	const shown = 12
	hex := ""
	for _, c := range name {
		switch {
		case c >= '0' && c <= '9' || c >= 'a' && c <= 'f':
			if hex += string(c); len(hex) == shown {
				return hex
			}
		default:
			hex = ""
		}
	}
	return id.BlobOf([]byte(name)).Short()
}

// step reports how far a layer is, in docker's words. What counts nothing is not
// said: docker's CLI would print it where it prints nothing of its own daemon's.
func (l *loading) step(name string) func(layerdb.Step) {
	return func(s layerdb.Step) {
		if s.Current == 0 || s.Status == layerdb.StatusDone {
			return
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.report(engineapi.Progress{ID: name, Status: "Loading layer", Current: s.Current, Total: s.Total})
	}
}

// layers brings in all layers of the images, and returns their keys for each.
func (l *loading) layers(ctx context.Context, a *fetch.Archive, list []*fetch.ArchiveImage) ([][]id.LayerKey, error) {
	type layer struct {
		diff id.DiffID
		file string
	}
	found := map[layer]*id.LayerKey{}
	var wanted []id.LayerKey
	for _, img := range list {
		if img.ID != "" && l.e.hasImage(img.ID) {
			continue
		}
		for i, at := range img.Layers {
			found[layer{at.DiffID, img.Files[i]}] = new(id.LayerKey)
			if at.DiffID != "" {
				wanted = append(wanted, at.DiffID.Key())
			}
		}
	}
	if err := l.hold(wanted...); err != nil {
		return nil, err
	}
	// One that is wrong does not end the others: a pass that is left at its end may
	// store its layer after all, when nobody is there to release it.
	// But it is the last that is begun.
	var g errgroup.Group
	var failed atomic.Bool
	g.SetLimit(2 * loadsAside)
	begun := map[layer]bool{}
	keys := make([][]id.LayerKey, len(list))
	for _, img := range list {
		for i, at := range img.Layers {
			name := layer{at.DiffID, img.Files[i]}
			into := found[name]
			if into == nil || begun[name] || failed.Load() {
				continue
			}
			begun[name] = true
			g.Go(func() (err error) {
				if *into, err = l.layer(ctx, a, img, i); err != nil {
					failed.Store(true)
				}
				return err
			})
		}
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for n, img := range list {
		if img.ID != "" && l.e.hasImage(img.ID) {
			continue
		}
		for i, at := range img.Layers {
			k := found[layer{at.DiffID, img.Files[i]}]
			if k == nil { // its image has gone meanwhile
				return nil, fault.New(fault.Conflict, "image %s was removed while it was loaded: try again", img.ID.Short())
			}
			keys[n] = append(keys[n], *k)
		}
	}
	return keys, nil
}

// hasImage reports whether an image is here with all its layers.
func (e *engine) hasImage(i id.ImageID) bool {
	img, err := e.images.Get(i)
	return err == nil && e.hasAll(e.keysOf(&img))
}

// layer brings in layer i of an image.
func (l *loading) layer(ctx context.Context, a *fetch.Archive, img *fetch.ArchiveImage, i int) (id.LayerKey, error) {
	at := img.Layers[i]
	if at.DiffID != "" {
		if key, ok := l.e.layers.Proven(at.DiffID); ok {
			return key, nil
		}
	}
	if x := l.early[img.Files[i]]; x != nil {
		if x.err != nil {
			return "", x.err
		}
		info, err := l.e.layers.Info(x.key)
		if err != nil {
			return "", fault.WithHint(fault.New(fault.Conflict, "a layer was removed while it was loaded: %w", err), "load the archive again")
		}
		if at.DiffID != "" && info.DiffID != at.DiffID {
			err = fault.New(fault.Integrity, "invalid diffID for layer %d: expected %q, got %q", i, at.DiffID, info.DiffID)
		}
		return x.key, err
	}
	file, err := a.Open(img.Files[i])
	if err != nil {
		return "", err
	}
	name := at.DiffID.Short()
	if name == "" {
		name = shownFile(img.Files[i])
	}
	key, _, err := l.e.layers.Ensure(ctx, layerdb.Spec{
		DiffID: at.DiffID, Blob: at.Blob, Size: file.Size(),
		Open: func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(io.NewSectionReader(file, 0, file.Size())), nil
		},
		Hold: func(k id.LayerKey) error { return l.hold(k) },
	}, l.step(name))
	return key, err
}

// putLoaded stores images whose layers are all there, and then their names. What
// is here already, from a registry perhaps, stays as it is.
func (e *engine) putLoaded(list []*fetch.ArchiveImage, keys [][]id.LayerKey) (loaded []engineapi.LoadedImage, err error) {
	e.names.Lock()
	defer e.names.Unlock()
	var made []id.ImageID
	defer func() {
		if err != nil {
			e.unmake(made)
		}
	}()
	ids := map[string]id.ImageID{} // by the archive's names
	for n, img := range list {
		i, isNew, err := e.putArchived(img, keys[n], ids[img.Parent])
		if err != nil {
			return nil, err
		}
		if isNew {
			made = append(made, i)
		}
		ids[img.Name] = i
	}
	parents := map[string]bool{}
	for _, img := range list {
		parents[img.Parent] = true
	}
	tags := map[string]id.ImageID{}
	for _, img := range list {
		for _, t := range img.Tags {
			tags[t.String()] = ids[img.Name]
		}
	}
	_, refused, err := e.images.TagAll(tags, true)
	for _, why := range refused {
		err = errors.Join(err, why)
	}
	if err != nil {
		return nil, err
	}
	for _, img := range list {
		i := ids[img.Name]
		for _, t := range img.Tags {
			loaded = append(loaded, engineapi.LoadedImage{Reference: t.Familiar(), ID: i})
		}
		if len(img.Tags) == 0 && !(img.Legacy() && parents[img.Name]) {
			loaded = append(loaded, engineapi.LoadedImage{ID: i})
		}
		e.event(imageEvents, "load", string(i), "name", string(i))
		e.log.Info("loaded", "image", i, "names", len(img.Tags))
	}
	return loaded, nil
}

// putArchived stores an image of an archive; isNew says that it was not here.
//
// Preconditions: e.names is held.
func (e *engine) putArchived(img *fetch.ArchiveImage, keys []id.LayerKey, parent id.ImageID) (i id.ImageID, isNew bool, err error) {
	if img.ID != "" && keys == nil && len(img.Layers) > 0 { // it was here
		if !e.images.Has(img.ID) {
			return "", false, fault.WithHint(fault.New(fault.Conflict, "image %s was removed while it was loaded", img.ID.Short()), "load the archive again")
		}
		if parent != "" {
			err = e.images.SetParent(img.ID, parent)
		}
		return img.ID, false, err
	}
	rec := imagedb.Image{
		ID: img.ID, Config: img.Config, Manifest: img.Manifest, ManifestDigest: img.ManifestDigest, Digest: img.Digest,
		Platform: img.Platform.String(), Parent: parent,
	}
	diffs := make([]id.DiffID, len(keys))
	for n, k := range keys {
		l := imagedb.Layer{DiffID: img.Layers[n].DiffID, Blob: img.Layers[n].Blob}
		if l.Blob != "" {
			l.Size = img.Layers[n].Size
		}
		if l.DiffID == "" {
			info, err := e.layers.Info(k)
			if err != nil {
				return "", false, err
			}
			l.DiffID = info.DiffID
		}
		diffs[n] = l.DiffID
		rec.Layers = append(rec.Layers, l)
	}
	if img.Legacy() {
		if rec.Config, err = img.ConfigOf(diffs); err != nil {
			return "", false, err
		}
		rec.ID = id.ImageIDOf(rec.Config)
	}
	isNew = !e.images.Has(rec.ID)
	if old, err := e.images.Get(rec.ID); err == nil && rec.Manifest == nil {
		// An archive knows less than a registry did.
		rec.Manifest, rec.ManifestDigest, rec.Digest, rec.Layers = old.Manifest, old.ManifestDigest, old.Digest, old.Layers
	}
	i, err = e.create(rec, keys)
	return i, isNew, err
}

// unmake takes back images that were just made and have no names.
//
// Preconditions: e.names is held.
func (e *engine) unmake(made []id.ImageID) {
	for _, i := range slices.Backward(made) {
		if _, err := e.images.Delete(i); err != nil {
			e.log.Error("load: an image stays", "image", i, "err", err)
			continue
		}
		e.release("load", imageOwner+string(i))
	}
}

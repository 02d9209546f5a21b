package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"

	"github.com/imgfs/imgfs/fetch"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/metadb"
)

// sourceError is an error of who was to give a blob, not of the registry that
// it is pushed to.
type sourceError struct{ error }

func (e sourceError) Unwrap() error { return e.error }

// place brings the blob d, which is layer i, into the repository; false if
// there is nobody to have it from.
func (p *pushing) place(ctx context.Context, i int, d descriptor) (bool, error) {
	places, err := p.e.origins.of(d.Digest)
	if err != nil {
		return false, err
	}
	open, from := p.source(ctx, i, d, len(places) > 0), ""
	for _, o := range places {
		if ref, err := fetch.ParseReference(o.Name); err == nil && ref.Domain() == p.at.Domain() && ref.Path() != p.at.Path() {
			from = ref.Path() // the registry need not be sent what it has
			break
		}
	}
	if open == nil && from == "" {
		there, err := p.client.HasBlob(ctx, p.at, d.Digest)
		if there {
			p.show(i, statusThere, 0, 0)
		}
		return there, err
	}
	if open == nil {
		open = func() (io.ReadCloser, error) {
			return nil, fault.New(fault.NotFound, "layer %s: nobody knows where it is to be had from", d.Digest.Short())
		}
	}
	err = p.send(ctx, i, d, open, from)
	return err == nil, err
}

// source returns what opens the blob d, which is layer i; nil if nobody has it.
// elsewhere says that it came from a registry.
func (p *pushing) source(ctx context.Context, i int, d descriptor, elsewhere bool) func() (io.ReadCloser, error) {
	e, k := p.e, p.keys[i]
	if f, err := e.images.OpenKept(d.Digest); err == nil {
		f.Close()
		return func() (io.ReadCloser, error) { return e.images.OpenKept(d.Digest) }
	}
	bare := d.Digest == id.Blob(p.img.Layers[i].DiffID)
	present, size := e.layers.Presence(k)
	switch {
	case bare && size > 0 && (present == size || !elsewhere):
		return func() (io.ReadCloser, error) {
			return newPiped(func(w io.Writer) error { return e.layers.WriteStream(ctx, k, w) }), nil
		}
	case elsewhere:
		info, _ := e.layers.Info(k) // whatever else it says, it is this blob that is wanted
		info.Blob = d.Digest
		return func() (io.ReadCloser, error) {
			src, err := e.origins.supply(ctx, info)
			if err != nil {
				return nil, err
			}
			return src.Range(ctx, 0, d.Size)
		}
	}
	return nil
}

// send pushes a blob, which open opens, and tells how far it is.
func (p *pushing) send(ctx context.Context, i int, d descriptor, open func() (io.ReadCloser, error), from string) error {
	// Why the source failed in the last try. Its bytes are read by the
	// transport, which may go on for a while when the request has ended.
	var failed atomic.Pointer[error]
	how, err := p.client.PushBlob(ctx, p.at, d.Digest, d.Size, func() (io.ReadCloser, error) {
		failed.Store(nil)
		body, err := open()
		if err != nil {
			failed.Store(&err)
			return nil, err
		}
		p.show(i, statusPushing, 0, d.Size)
		r := io.TeeReader(body, progressOf(d.Size, func(n int64) { p.show(i, statusPushing, n, d.Size) }))
		return &watchedBody{r: r, c: body, failed: &failed}, nil
	}, from)
	why := failed.Load()
	switch {
	case err != nil && why != nil && ctx.Err() == nil:
		return sourceError{*why}
	case err != nil:
		return err
	case how == fetch.Existed:
		p.show(i, statusThere, 0, 0)
	case how == fetch.Mounted:
		p.show(i, statusMounted+from, 0, 0)
	default:
		p.show(i, statusPushed, 0, 0)
	}
	return nil
}

// watchedBody notes why reading failed.
type watchedBody struct {
	r      io.Reader
	c      io.Closer
	failed *atomic.Pointer[error]
}

func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err != nil && err != io.EOF {
		b.failed.Store(&err)
	}
	return n, err
}

func (b *watchedBody) Close() error { return b.c.Close() }

// progressOf returns a writer that counts, and tells of each hundredth of
// total, or half MiB if that is less often.
func progressOf(total int64, tell func(n int64)) io.Writer {
	return &tally{step: max(total/100, 512<<10), tell: tell}
}

type tally struct {
	n, told, step int64
	tell          func(int64)
}

func (t *tally) Write(p []byte) (int, error) {
	if t.n += int64(len(p)); t.n-t.told >= t.step {
		t.told = t.n
		t.tell(t.n)
	}
	return len(p), nil
}

// piped reads what a function writes, on a goroutine that ends before Close
// returns.
type piped struct {
	*io.PipeReader
	done chan struct{}
}

func newPiped(write func(io.Writer) error) *piped {
	r, w := io.Pipe()
	p := &piped{r, make(chan struct{})}
	go func() {
		defer close(p.done)
		w.CloseWithError(write(w))
	}()
	return p
}

// Close ends the writing.
func (p *piped) Close() error {
	err := p.PipeReader.Close()
	<-p.done
	return err
}

// packedKey is followed by the hexadecimal digest of a diffID; the value is a
// list of the blobs that pushes made of its tar, as JSON. Where they are to be
// had the origins know.
const packedKey = "daemon/packed/"

// maxPacked bounds how many are remembered of one layer.
const maxPacked = 4

// packedOf returns the blobs that were made of a layer.
func packedOf(db *badger.DB, d id.DiffID) ([]id.Blob, error) {
	v, err := metadb.Get(db, packedKey+d.Hex())
	if err != nil {
		return nil, fmt.Errorf("packed layers: %w", err)
	}
	var list []id.Blob
	if json.Unmarshal(v, &list) != nil {
		return nil, nil // there is none, or it is damaged
	}
	return list, nil
}

// notePacked remembers blobs that were made of layers.
func notePacked(db *badger.DB, made map[id.DiffID]id.Blob) error {
	changes := map[string][]byte{}
	for d, b := range made {
		list, err := packedOf(db, d)
		if err != nil {
			return err
		}
		v, err := json.Marshal(latest(b, list, maxPacked))
		if err != nil {
			return err
		}
		changes[packedKey+d.Hex()] = v
	}
	if len(changes) == 0 {
		return nil
	}
	return metadb.Update(db, changes)
}

// latest returns list with b in front, once, and at most n long.
func latest[T comparable](b T, list []T, n int) []T {
	all := []T{b}
	for _, other := range list {
		if other != b && len(all) < n {
			all = append(all, other)
		}
	}
	return all
}

// sweepPacked forgets what was made of layers that keep does not name, and adds
// to blobs what was made of the others.
func sweepPacked(db *badger.DB, keep func(id.DiffID) bool, blobs map[id.Blob]bool) error {
	changes := map[string][]byte{}
	err := metadb.Scan(db, packedKey, func(hex string, v []byte) error {
		d, err := id.ParseDiffID("sha256:" + hex)
		var list []id.Blob
		if err != nil || !keep(d) || json.Unmarshal(v, &list) != nil {
			changes[packedKey+hex] = nil
			return nil
		}
		for _, b := range list {
			blobs[b] = true
		}
		return nil
	})
	if err == nil {
		err = metadb.UpdateAll(db, changes)
	}
	if err != nil {
		return fmt.Errorf("packed layers: %w", err)
	}
	return nil
}

package layerdb

import (
	"context"
	"io"
	"sync"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// Spec says which layer is wanted and where its blob comes from.
type Spec struct {
	DiffID id.DiffID // what the uncompressed stream must hash to; "" if unknown (schema 1)
	Blob   id.Blob   // what the blob must hash to; "" if unknown (docker-archive)
	Size   int64     // bytes of the blob; 0 or less if unknown
	// Open starts the blob, from its first byte. Reads must end when ctx
	// does. It is called on a goroutine of the store, and once more if the
	// blob was not the one promised.
	Open func(ctx context.Context) (io.ReadCloser, error)
	// Hold is called before a layer is stored whose DiffID was not known, with
	// the key it gets: the chance to retain it. nil: it is not called.
	Hold func(k id.LayerKey) error
}

// Step is how far a layer has come. Status is one of docker's words, or what
// Tell was given.
type Step struct {
	Status         string
	Current, Total int64 // bytes of the blob; Total 0 if unknown
}

// The statuses a Step can have.
const (
	StatusWaiting     = "Waiting"
	StatusDownloading = "Downloading"
	StatusVerifying   = "Verifying Checksum"
	StatusExtracting  = "Extracting"
	StatusDone        = "Pull complete"
	StatusExists      = "Already exists"
)

// want is what a pass is for. Who claims a diffID for another blob has a pass
// of its own: a false claim costs nobody else anything.
type want struct {
	diff  id.DiffID // "": not known yet
	blob  id.Blob   // "": unknown
	aside bool      // see Aside
}

type tellKey struct{}

// Tell has all who wait for a layer know how its bytes come: a status beside
// those above. ctx is the one that Spec.Open was called with.
func Tell(ctx context.Context, status string) {
	if f, ok := ctx.Value(tellKey{}).(*flight); ok {
		f.report(Step{Status: status})
	}
}

type asideKey struct{}

// Aside returns a context for layers that come at the pace of somebody who is
// not trusted, by an upload or from a registry of their choice: their passes
// have slots of their own, and nobody else's waits for them.
func Aside(ctx context.Context) context.Context { return context.WithValue(ctx, asideKey{}, true) }

// flight is one pass under way and who waits for it.
type flight struct {
	want    want
	cancel  context.CancelFunc
	done    chan struct{} // closed after key and err are set
	key     id.LayerKey
	err     error
	waiters int // guarded by Store.mu

	mu      sync.Mutex // guards the rest
	step    Step
	changed chan struct{} // closed when step is replaced
}

// report replaces the flight's step.
func (f *flight) report(s Step) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.step = s
	close(f.changed)
	f.changed = make(chan struct{})
}

// now returns the step and a channel that is closed when there is a newer one.
func (f *flight) now() (Step, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.step, f.changed
}

// newFlight returns a flight that waits for the first of size bytes of blob.
func newFlight(w want, size int64, cancel context.CancelFunc) *flight {
	return &flight{
		want:    w,
		cancel:  cancel,
		done:    make(chan struct{}),
		step:    Step{Status: StatusWaiting, Total: max(size, 0)},
		changed: make(chan struct{}),
	}
}

// Ensure returns the key under which the layer is stored, after a pass if it
// is not; existed says that it was before. A layer that was imported and sealed
// is stored, whether its bytes are here or not.
//
// Callers that want the same layer from the same blob share one pass: each
// gets its result or its error, and report (nil for none) the latest of its
// steps, on the caller's goroutine. A caller whose ctx ends leaves; the pass
// ends with the last. Failure is not remembered. A caller that claims the same
// diffID for another blob makes its own pass beside the first, and both end
// when one of them has proven the claim: whose claim is false cannot spoil it
// for others, nor delay them. A layer of which neither diffID nor blob is known
// has a pass of its own.
//
// Errors are fault.Integrity if blob or content are not what was promised,
// else what Open, the reader or the disk said. A caller that needs the layer
// to stay calls Retain first.
func (s *Store) Ensure(ctx context.Context, spec Spec, report func(Step)) (key id.LayerKey, existed bool, err error) {
	if report == nil {
		report = func(Step) {}
	}
	if _, err := id.ParseBlob(string(spec.Blob)); spec.Blob != "" && err != nil {
		return "", false, fault.New(fault.Invalid, "layer: %w", err)
	}
	if _, err := id.ParseDiffID(string(spec.DiffID)); spec.DiffID != "" && err != nil {
		return "", false, fault.New(fault.Invalid, "layer: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return "", false, err
	}
	if key, ok := s.stored(want{diff: spec.DiffID, blob: spec.Blob}); ok {
		report(Step{Status: StatusExists})
		return key, true, nil
	}
	f, err := s.join(spec, ctx.Value(asideKey{}) != nil)
	if err != nil {
		return "", false, err
	}
	if err := s.wait(ctx, f, report); err != nil {
		return "", false, err
	}
	report(Step{Status: StatusDone})
	return f.key, false, nil
}

// stored returns the key of the layer that is wanted, if it is stored.
func (s *Store) stored(w want) (id.LayerKey, bool) {
	if w.diff != "" {
		return s.Proven(w.diff)
	}
	if w.blob == "" {
		return "", false
	}
	k := s.ByBlob(w.blob)
	return k, k != "" && s.Has(k)
}

// Proven returns the key of a stored layer that is proven to be d, the one
// kept as the stream itself if there is one.
func (s *Store) Proven(d id.DiffID) (id.LayerKey, bool) {
	if s.Has(d.Key()) {
		return d.Key(), true
	}
	s.mu.Lock()
	k := s.proven[d]
	s.mu.Unlock()
	return k, k != "" && s.Has(k)
}

// join returns the pass of spec's layer, started if there is none, with the
// caller counted among its waiters.
func (s *Store) join(spec Spec, aside bool) (*flight, error) {
	w := want{spec.DiffID, spec.Blob, aside}
	shared := w.diff != "" || w.blob != ""
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fault.New(fault.Unavailable, "layer store is closed")
	}
	if f := s.flights[w]; f != nil && shared {
		f.waiters++
		return f, nil
	}
	ctx, cancel := context.WithCancel(s.ctx)
	f := newFlight(w, spec.Size, cancel)
	f.waiters = 1
	if shared {
		s.flights[w] = f
	}
	s.wg.Go(func() {
		defer cancel()
		err := s.guard("layer", func() (err error) {
			f.key, err = s.pass(ctx, spec, f)
			return err
		})
		s.mu.Lock()
		if s.flights[w] == f {
			delete(s.flights, w)
		}
		s.mu.Unlock()
		if err != nil && w.diff != "" {
			// Another blob's pass may have proven the same.
			if key, ok := s.stored(w); ok {
				f.key, err = key, nil
			}
		}
		f.err = err
		close(f.done)
	})
	return f, nil
}

// wait passes on a flight's steps until it ends or ctx does.
func (s *Store) wait(ctx context.Context, f *flight, report func(Step)) error {
	for {
		step, changed := f.now()
		report(step)
		select {
		case <-f.done:
			return f.err
		case <-ctx.Done():
			s.leave(f)
			return context.Cause(ctx)
		case <-changed:
		}
	}
}

// leave takes a waiter away. With the last the pass stops, and is forgotten at
// once, so that who comes now does not join it.
func (s *Store) leave(f *flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.waiters--; f.waiters > 0 {
		return
	}
	if s.flights[f.want] == f {
		delete(s.flights, f.want)
	}
	f.cancel()
}

// landedLocked ends the other passes for a layer that is stored now.
//
// Preconditions: s.mu is held.
func (s *Store) landedLocked(d id.DiffID) {
	for w, f := range s.flights {
		if w.diff == d {
			f.cancel()
		}
	}
}

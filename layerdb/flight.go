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
	DiffID id.DiffID // what the uncompressed stream must hash to; mandatory
	Blob   id.Blob   // what the blob must hash to; "" if unknown (docker-archive)
	Size   int64     // bytes of the blob; 0 or less if unknown
	// Open starts the blob, from its first byte. Reads must end when ctx
	// does. It is called on a goroutine of the store, and once more if the
	// blob was not the one promised.
	Open func(ctx context.Context) (io.ReadCloser, error)
}

// Step is how far a layer has come. Status is one of docker's words.
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

// flight is one pass under way and who waits for it.
type flight struct {
	blob    id.Blob
	cancel  context.CancelFunc
	done    chan struct{} // closed after err is set
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

// Ensure returns when the layer is stored; existed says that it was before.
//
// Callers that want the same layer from the same blob share one pass: each
// gets its result or its error, and report (nil for none) the latest of its
// steps, on the caller's goroutine. A caller whose ctx ends leaves; the pass
// ends with the last. Failure is not remembered. A caller that claims the same
// diffID for another blob waits and, if that pass fails, makes its own: whose
// claim is false cannot spoil it for others.
//
// Errors are fault.Integrity if blob or content are not what was promised,
// else what Open, the reader or the disk said. A caller that needs the layer
// to stay calls Retain first.
func (s *Store) Ensure(ctx context.Context, spec Spec, report func(Step)) (existed bool, err error) {
	if report == nil {
		report = func(Step) {}
	}
	if _, err := id.ParseDiffID(string(spec.DiffID)); err != nil {
		return false, fault.New(fault.Invalid, "layer: %w", err)
	}
	for {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		if s.Has(spec.DiffID.Key()) {
			report(Step{Status: StatusExists})
			return true, nil
		}
		f, err := s.join(spec)
		if err != nil {
			return false, err
		}
		if err := s.wait(ctx, f, spec.DiffID.Key(), report); err != nil {
			if f.blob != spec.Blob && ctx.Err() == nil {
				continue
			}
			return false, err
		}
		report(Step{Status: StatusDone})
		return false, nil
	}
}

// join returns the pass of spec's layer, started if there is none, with the
// caller counted among its waiters.
func (s *Store) join(spec Spec) (*flight, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fault.New(fault.Unavailable, "layer store is closed")
	}
	if f := s.flights[spec.DiffID.Key()]; f != nil {
		f.waiters++
		return f, nil
	}
	ctx, cancel := context.WithCancel(s.ctx)
	f := &flight{
		blob:    spec.Blob,
		cancel:  cancel,
		done:    make(chan struct{}),
		waiters: 1,
		step:    Step{Status: StatusWaiting, Total: max(spec.Size, 0)},
		changed: make(chan struct{}),
	}
	s.flights[spec.DiffID.Key()] = f
	s.wg.Go(func() {
		defer cancel()
		err := s.guard("layer", func() error { return s.pass(ctx, spec, f) })
		s.mu.Lock()
		if s.flights[spec.DiffID.Key()] == f {
			delete(s.flights, spec.DiffID.Key())
		}
		s.mu.Unlock()
		f.err = err
		close(f.done)
	})
	return f, nil
}

// wait passes on a flight's steps until it ends or ctx does.
func (s *Store) wait(ctx context.Context, f *flight, d id.LayerKey, report func(Step)) error {
	for {
		step, changed := f.now()
		report(step)
		select {
		case <-f.done:
			return f.err
		case <-ctx.Done():
			s.leave(f, d)
			return context.Cause(ctx)
		case <-changed:
		}
	}
}

// leave takes a waiter away. With the last the pass stops, and is forgotten at
// once, so that who comes now does not join it.
func (s *Store) leave(f *flight, d id.LayerKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.waiters--; f.waiters > 0 {
		return
	}
	if s.flights[d] == f {
		delete(s.flights, d)
	}
	f.cancel()
}

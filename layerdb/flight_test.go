package layerdb

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/imgfs/imgfs/internal/fault"
)

// hold keeps a blob back.
type hold struct {
	opened chan struct{} // closed when the blob is asked for
	goOn   chan struct{} // closed by the test to let it flow
	ended  chan struct{} // closed when the pass's context ended
}

func holding(spec Spec) (Spec, *hold) {
	h := &hold{make(chan struct{}), make(chan struct{}), make(chan struct{})}
	open := spec.Open
	spec.Open = func(ctx context.Context) (io.ReadCloser, error) {
		close(h.opened)
		select {
		case <-h.goOn:
			return open(ctx)
		case <-ctx.Done():
			close(h.ended)
			return nil, ctx.Err()
		}
	}
	return spec, h
}

// once returns a report that closes c at its first step.
func once(c chan struct{}) func(Step) {
	var o sync.Once
	return func(Step) { o.Do(func() { close(c) }) }
}

func TestSharedPass(t *testing.T) {
	t.Parallel()
	stream := tarOf(t, sample)
	bad := specOf(stream, stream)
	bad.DiffID = specOf(nil, nil).DiffID
	for _, tt := range []struct {
		name string
		spec Spec
		kind fault.Kind
		ok   bool
	}{
		{"both get the layer", specOf(stream, stream), 0, true},
		{"both learn of the failure", bad, fault.Integrity, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			spec, h := holding(tt.spec) // panics if it is opened twice
			errs := make(chan error, 2)
			var steps []Step
			go func() {
				_, _, err := p.Ensure(context.Background(), spec, func(s Step) { steps = append(steps, s) })
				errs <- err
			}()
			<-h.opened
			joined := make(chan struct{})
			go func() {
				_, _, err := p.Ensure(context.Background(), spec, once(joined))
				errs <- err
			}()
			<-joined
			close(h.goOn)
			for range 2 {
				if err := <-errs; (err == nil) != tt.ok || !tt.ok && fault.KindOf(err) != tt.kind {
					t.Errorf("error %v", err)
				}
			}
			if last := steps[len(steps)-1].Status; tt.ok && last != StatusDone {
				t.Errorf("last step is %q", last)
			}
			if n := len(p.Passes()); n != 0 {
				t.Errorf("%d passes are under way after it", n)
			}
			if !tt.ok {
				p.nothing()
			}
		})
	}
}

func TestLeave(t *testing.T) {
	t.Parallel()
	stream := tarOf(t, sample)

	t.Run("the first waiter", func(t *testing.T) {
		t.Parallel()
		p := newPlace(t)
		spec, h := holding(specOf(stream, stream))
		ctx, cancel := context.WithCancel(context.Background())
		first, second := make(chan error, 1), make(chan error, 1)
		go func() { _, _, err := p.Ensure(ctx, spec, nil); first <- err }()
		<-h.opened
		joined := make(chan struct{})
		go func() { _, _, err := p.Ensure(context.Background(), spec, once(joined)); second <- err }()
		<-joined
		cancel()
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Errorf("who left: %v", err)
		}
		close(h.goOn)
		if err := <-second; err != nil {
			t.Errorf("who stayed: %v", err)
		}
		if !p.Has(spec.DiffID.Key()) {
			t.Error("layer is not stored")
		}
	})

	t.Run("the last waiter", func(t *testing.T) {
		t.Parallel()
		p := newPlace(t)
		spec, h := holding(specOf(stream, stream))
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { _, _, err := p.Ensure(ctx, spec, nil); done <- err }()
		<-h.opened
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) || fault.KindOf(err) != fault.Canceled {
			t.Errorf("error %v", err)
		}
		<-h.ended // the pass was stopped
		// Who comes now does not join the dying pass.
		if _, _, err := p.Ensure(context.Background(), specOf(stream, stream), nil); err != nil {
			t.Errorf("after it: %v", err)
		}
	})

	t.Run("Close", func(t *testing.T) {
		t.Parallel()
		p := newPlace(t)
		spec, h := holding(specOf(stream, stream))
		done := make(chan error, 1)
		go func() { _, _, err := p.Ensure(context.Background(), spec, nil); done <- err }()
		<-h.opened
		s := p.Store
		p.close()
		if err := <-done; fault.KindOf(err) != fault.Canceled {
			t.Errorf("error %v", err)
		}
		if _, _, err := s.Ensure(context.Background(), specOf(stream, stream), nil); fault.KindOf(err) != fault.Unavailable {
			t.Errorf("after Close: %v", err)
		}
		if _, err := s.Chain(context.Background(), nil); fault.KindOf(err) != fault.Unavailable {
			t.Errorf("after Close: %v", err)
		}
	})
}

// TestAside has somebody who is not trusted take all their time over all the
// passes they may have: the same layer, and others, come to everybody else.
func TestAside(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	stream := tarOf(t, sample)
	ctx, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer leave()
	for i := range cap(p.aside) + 1 {
		spec := specOf(stream, stream)
		spec.Blob = "" // one of which nothing is known until it is here
		spec.DiffID = ""
		if i == 0 {
			spec = specOf(stream, stream)
		}
		spec, h := holding(spec)
		wg.Go(func() { p.Ensure(Aside(ctx), spec, nil) })
		if i < cap(p.aside) {
			<-h.opened
		}
	}
	if _, _, err := p.Ensure(t.Context(), specOf(stream, stream), nil); err != nil {
		t.Error(err)
	}
}

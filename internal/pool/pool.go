// Package pool has what many ask for at the same time done once: the pulls and
// pushes of images by their names.
//
// Terms. A flight is one run of the work under a kind and a name. Who asks for
// the same (kind, name and variant: how it is to be done) while it goes on
// joins it, and gets its result or its error and the latest of its steps; who
// asks for another kind under the same name is refused, and so is a second push
// of another variant. Pulls of one name in several variants go on side by side.
//
// Invariants: a flight runs on the pool's context, never on a caller's; it stops
// with the last caller that leaves, and whoever comes then starts a new one. An
// outcome is not remembered. No step is waited for by the work: a caller that
// takes them slowly sees fewer.
//
// Lock order: Pool.mu, flight.mu.
package pool

import (
	"context"
	"runtime/debug"
	"slices"
	"sync"

	"github.com/imgfs/imgfs/internal/fault"
)

// Kind is what is done under a name.
type Kind string

// The kinds of flights; under one name only one of them goes on at a time.
const (
	Pull Kind = "pull"
	Push Kind = "push"
)

// Call says what is asked for.
type Call struct {
	Kind    Kind
	Name    string // as users read it
	Variant any    // how; comparable
}

// Pool knows the flights under way. Step is what they report.
type Pool[Step any] struct {
	ctx    context.Context
	cancel context.CancelFunc
	topic  func(Step) string
	wg     sync.WaitGroup

	mu      sync.Mutex // guards the rest
	closed  bool
	flights map[string][]*flight[Step] // by name; of one kind each
}

// New returns a pool. Of two steps with the same topic, the later stands for
// both; those without one ("") all count.
func New[Step any](topic func(Step) string) *Pool[Step] {
	p := &Pool[Step]{topic: topic, flights: map[string][]*flight[Step]{}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// Close ends all flights and returns when they have ended. Later calls are
// refused (fault.Unavailable).
func (p *Pool[Step]) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	p.wg.Wait()
}

// flight is one run and who waits for it.
type flight[Step any] struct {
	call    Call
	cancel  context.CancelFunc
	done    chan struct{} // closed after result and err are set
	result  any
	err     error
	waiters int // guarded by Pool.mu

	mu      sync.Mutex     // guards the rest
	steps   []dated[Step]  // the last of each topic, in the order in which they first came
	at      map[string]int // index in steps, by topic
	clock   int            // steps so far
	changed chan struct{}  // closed when there are newer ones
}

// dated is a step and which one it was.
type dated[Step any] struct {
	n    int
	step Step
}

// Do returns what run returns, or what the same call that is under way will.
// report, not nil, is called with the steps of either, on the caller's
// goroutine; joined, if not nil, before those of a flight that others began.
// When ctx ends the caller leaves with its cause.
//
// Errors: fault.Conflict where the name is in use by another kind, with
// docker's text.
func Do[R, Step any](ctx context.Context, p *Pool[Step], c Call, run func(ctx context.Context, report func(Step)) (R, error), report func(Step), joined func()) (R, error) {
	var none R
	if err := ctx.Err(); err != nil {
		return none, err
	}
	f, own, err := p.join(c, func(ctx context.Context, report func(Step)) (any, error) { return run(ctx, report) })
	if err != nil {
		return none, err
	}
	if !own && joined != nil {
		joined()
	}
	if err := p.wait(ctx, f, report); err != nil {
		return none, err
	}
	return f.result.(R), nil
}

// join returns the flight of c with the caller among those who wait for it; own
// says that it is new.
func (p *Pool[Step]) join(c Call, run func(context.Context, func(Step)) (any, error)) (_ *flight[Step], own bool, err error) {
	if c.Kind != Pull && c.Kind != Push {
		return nil, false, fault.New(fault.Invalid, "Unknown pool type")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, false, fault.New(fault.Unavailable, "the daemon is leaving")
	}
	for _, f := range p.flights[c.Name] {
		if f.call == c {
			f.waiters++
			return f, false, nil
		}
		if f.call.Kind != c.Kind || c.Kind == Push {
			return nil, false, fault.New(fault.Conflict, "%s %s is already in progress", f.call.Kind, c.Name)
		}
	}
	ctx, cancel := context.WithCancel(p.ctx)
	f := &flight[Step]{call: c, cancel: cancel, waiters: 1, done: make(chan struct{}), at: map[string]int{}, changed: make(chan struct{})}
	p.flights[c.Name] = append(p.flights[c.Name], f)
	p.wg.Go(func() {
		defer cancel()
		f.result, f.err = guard(ctx, run, func(s Step) { f.report(p.topic(s), s) })
		p.mu.Lock()
		p.forgetLocked(f)
		p.mu.Unlock()
		close(f.done)
	})
	return f, true, nil
}

// guard is run, whose panic becomes its error: many may depend on this process.
func guard[Step any](ctx context.Context, run func(context.Context, func(Step)) (any, error), report func(Step)) (_ any, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fault.New(fault.Failed, "internal error: panic: %v\n%s", v, debug.Stack())
		}
	}()
	return run(ctx, report)
}

// forgetLocked has nobody join f any more.
//
// Preconditions: p.mu is held.
func (p *Pool[Step]) forgetLocked(f *flight[Step]) {
	all := p.flights[f.call.Name]
	all = slices.DeleteFunc(all, func(g *flight[Step]) bool { return g == f })
	if len(all) == 0 {
		delete(p.flights, f.call.Name)
		return
	}
	p.flights[f.call.Name] = all
}

// wait passes on steps until f ends or ctx does.
func (p *Pool[Step]) wait(ctx context.Context, f *flight[Step], report func(Step)) error {
	seen := 0
	for {
		steps, clock, changed := f.since(seen)
		for _, s := range steps {
			report(s)
		}
		seen = clock
		select {
		case <-ctx.Done():
			p.leave(f)
			return context.Cause(ctx)
		case <-changed:
		case <-f.done:
			steps, _, _ = f.since(seen) // what came before the end
			for _, s := range steps {
				report(s)
			}
			return f.err
		}
	}
}

// leave takes a waiter away. With the last the flight stops, and is forgotten
// at once.
func (p *Pool[Step]) leave(f *flight[Step]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f.waiters--; f.waiters == 0 {
		p.forgetLocked(f)
		f.cancel()
	}
}

// report notes a step.
func (f *flight[Step]) report(topic string, s Step) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clock++
	d := dated[Step]{f.clock, s}
	if i, ok := f.at[topic]; ok && topic != "" {
		f.steps[i] = d
	} else {
		f.at[topic] = len(f.steps)
		f.steps = append(f.steps, d)
	}
	close(f.changed)
	f.changed = make(chan struct{})
}

// since returns the steps after the n-th, oldest first, how many there have
// been, and a channel that is closed when there are more.
func (f *flight[Step]) since(n int) (list []Step, clock int, changed <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var later []dated[Step]
	for _, d := range f.steps {
		if d.n > n {
			later = append(later, d)
		}
	}
	slices.SortFunc(later, func(a, b dated[Step]) int { return a.n - b.n })
	for _, d := range later {
		list = append(list, d.step)
	}
	return list, f.clock, f.changed
}

// List returns what goes on, as "pull ubuntu:14.04", sorted.
func (p *Pool[Step]) List() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []string
	for _, all := range p.flights {
		for _, f := range all {
			list = append(list, string(f.call.Kind)+" "+f.call.Name)
		}
	}
	slices.Sort(list)
	return list
}

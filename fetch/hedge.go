package fetch

import (
	"context"
	"io"
	"math"
	"slices"
	"time"
)

// A source is slow when it takes hedgeFactor times its usual round trip to
// begin its answer, or stallFactor times to go on with it, but never before
// Options.Hedge, or stallFloor. One that nobody knows has hedgeUnknown.
const (
	hedgeFactor  = 4
	hedgeUnknown = time.Second
	stallFactor  = 20
	stallFloor   = 2 * time.Second
)

// patience is how long a source may take to begin before another is asked.
func (r *blobReader) patience(s *source) time.Duration {
	if r.c.opts.Hedge < 0 {
		return math.MaxInt64
	}
	rtt, _ := s.state.link()
	if rtt == 0 {
		return max(r.c.opts.Hedge, hedgeUnknown)
	}
	return max(r.c.opts.Hedge, hedgeFactor*rtt)
}

// stall is how long a body may say nothing: where another source is left, not
// as long as where there is only this one to wait for.
func (r *blobReader) stall(h *host) time.Duration {
	limit := r.c.opts.Stall
	if rtt, _ := h.link(); len(r.sources) > 1 && rtt > 0 {
		limit = min(limit, max(stallFloor, stallFactor*rtt))
	}
	return limit
}

// answer is what one of two sources said.
type answer struct {
	from *source
	begun
	err error
}

// first returns the body of the current source, or that of the second one if
// the current one is slow and is overtaken. The source that answered, be it
// with an error, is the current one then.
func (r *blobReader) first() (begun, error) {
	if len(r.sources) == 1 {
		return r.ask(r.ctx, r.sources[0])
	}
	slow := r.sources[0]
	answers := make(chan answer, 2)
	stop := map[*source]context.CancelFunc{}
	ask := func(s *source) {
		ctx, cancel := context.WithCancel(r.ctx)
		stop[s] = cancel
		asker := *r // r goes on while the slower of two is still asked
		go func() {
			got, err := asker.ask(ctx, s)
			if err == nil {
				got.body = &canceled{got.body, cancel}
			} else {
				cancel()
			}
			answers <- answer{s, got, err}
		}()
	}
	ask(slow)
	timer := time.NewTimer(r.patience(slow))
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			ask(r.sources[1])
		case a := <-answers:
			delete(stop, a.from)
			r.sources = slices.DeleteFunc(r.sources, func(s *source) bool { return s == a.from })
			if a.err != nil && len(stop) > 0 {
				continue // the other one decides
			}
			for _, cancel := range stop {
				cancel()
				go func() { // ends at once, as its request did
					if late := <-answers; late.body != nil {
						late.body.Close()
					}
				}()
			}
			if a.err == nil && a.from != slow {
				r.b.overtaken(slow)
			}
			r.sources = slices.Insert(r.sources, 0, a.from)
			return a.begun, a.err
		}
	}
}

// canceled ends a request's context with its body.
type canceled struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (c *canceled) Close() error {
	c.cancel()
	return c.ReadCloser.Close()
}

package lazy

import (
	"context"
	"sync/atomic"
)

// sourceCell asks for the source when bytes are missing for the first time.
type sourceCell struct {
	ask  func(ctx context.Context) (Source, error)
	lock chan struct{} // capacity 1: one asks at a time
	got  atomic.Pointer[Source]
}

// get returns the source. A failure is not remembered.
func (s *sourceCell) get(ctx context.Context) (Source, error) {
	if src := s.got.Load(); src != nil {
		return *src, nil
	}
	select {
	case s.lock <- struct{}{}:
		defer func() { <-s.lock }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if src := s.got.Load(); src != nil {
		return *src, nil
	}
	src, err := s.ask(ctx)
	if err != nil {
		return nil, err
	}
	s.got.Store(&src)
	return src, nil
}

// measure sets link to the bytes that arrive during a round trip, if they are
// known.
func (s *sourceCell) measure(link *atomic.Int64) {
	src := s.got.Load()
	if src == nil {
		return
	}
	if rtt, speed := (*src).Link(); rtt > 0 && speed > 0 {
		link.Store(int64(min(max(rtt.Seconds()*speed, leastLink), mostLink)))
	}
}

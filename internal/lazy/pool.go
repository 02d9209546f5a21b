package lazy

import (
	"context"
	"math/bits"
	"runtime"
	"sync"
)

// background is how many requests that nobody waits for may read at a time, in
// all Files of a Pool.
const background = 16

// Pool is what the Files of a store share: processors, buffers, and the
// knowledge that somebody waits.
type Pool struct {
	slots   chan struct{} // one taken for each group of spans being decoded
	lanes   chan struct{} // one taken for each request that nobody waits for
	buffers [32]sync.Pool // of *[]byte with capacity 1 << index

	mu    sync.Mutex
	hot   int           // requests that somebody waits for
	quiet chan struct{} // closed when hot becomes 0; nil while it is 0
}

// NewPool returns a Pool that decodes n spans at a time; 0: one per processor.
func NewPool(n int) *Pool {
	if n <= 0 {
		n = runtime.GOMAXPROCS(0)
	}
	return &Pool{slots: make(chan struct{}, n), lanes: make(chan struct{}, background)}
}

// take takes a slot to decode; give gives it back.
func (p *Pool) take(ctx context.Context) error {
	select {
	case p.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *Pool) give() { <-p.slots }

// heat counts requests that somebody waits for.
func (p *Pool) heat(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hot == 0 {
		p.quiet = make(chan struct{})
	}
	if p.hot += n; p.hot == 0 {
		close(p.quiet)
		p.quiet = nil
	}
}

// calm returns a channel that is closed when nobody waits for anything; nil if
// that is now.
func (p *Pool) calm() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.quiet
}

// buffer returns n bytes of any content.
func (p *Pool) buffer(n int64) []byte {
	class := bits.Len64(uint64(max(n, 1) - 1))
	if class >= len(p.buffers) {
		return make([]byte, n)
	}
	if b, ok := p.buffers[class].Get().(*[]byte); ok {
		return (*b)[:n]
	}
	return make([]byte, n, 1<<class)
}

// free takes back a buffer that nobody uses any more.
func (p *Pool) free(b []byte) {
	if class := bits.Len64(uint64(cap(b))) - 1; class >= 0 && class < len(p.buffers) && cap(b) == 1<<class {
		p.buffers[class].Put(&b)
	}
}

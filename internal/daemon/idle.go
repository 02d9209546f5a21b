package daemon

import (
	"sync"
	"time"
)

// activity counts what keeps a daemon alive: connections with a request, and
// mounts. When there has been nothing for a while, expired is closed, and
// from then on nothing new begins.
type activity struct {
	idle    time.Duration // < 0: never expires
	expired chan struct{}

	mu    sync.Mutex // guards the rest
	busy  int
	since time.Time // when busy last fell to 0
	timer *time.Timer
	over  bool
}

func newActivity(idle time.Duration) *activity {
	a := &activity{idle: idle, expired: make(chan struct{}), since: time.Now()}
	if idle >= 0 {
		a.timer = time.AfterFunc(idle, a.fire)
	}
	return a
}

// begin reports whether there is still a daemon to do it. Each true is to be
// followed by one end.
func (a *activity) begin() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.over {
		return false
	}
	a.busy++
	return true
}

func (a *activity) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.busy--
	if a.busy == 0 && a.timer != nil {
		a.since = time.Now()
		a.timer.Reset(a.idle)
	}
}

// stop makes begin false from now on.
func (a *activity) stop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.over = true
	if a.timer != nil {
		a.timer.Stop()
	}
}

// fire runs when the timer does, which may be late: it was perhaps set by an
// earlier idle time.
func (a *activity) fire() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.busy > 0 || a.over {
		return
	}
	if rest := a.idle - time.Since(a.since); rest > 0 {
		a.timer.Reset(rest)
		return
	}
	a.over = true
	close(a.expired)
}

package imgtest

import (
	"bufio"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// exchange is when a request came and when its answer began.
type exchange struct{ came, began time.Time }

// answer notes when a request's answer began.
type answer struct {
	http.ResponseWriter
	mu *sync.Mutex // guards e
	e  *exchange
}

func (a *answer) begin() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.e.began.IsZero() {
		a.e.began = time.Now()
	}
}

func (a *answer) WriteHeader(status int) {
	a.begin()
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(p []byte) (int, error) {
	a.begin()
	return a.ResponseWriter.Write(p)
}

// Flush implements http.Flusher.
func (a *answer) Flush() { a.ResponseWriter.(http.Flusher).Flush() }

// Hijack implements http.Hijacker.
func (a *answer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return a.ResponseWriter.(http.Hijacker).Hijack()
}

// Connections returns over how many connections the requests came.
func (r *Registry) Connections() int {
	seen := map[string]bool{}
	for _, q := range r.Requests() {
		seen[q.Conn] = true
	}
	return len(seen)
}

// Trips returns how many of the requests were serial round trips on a link
// with this round-trip time: the longest chain of requests in which each came
// late enough after the answer to the one before to be the client's reaction
// to it. Those that were under way together count as one; setting up
// connections counts as nothing.
func (r *Registry) Trips(rtt time.Duration) int {
	var all []exchange
	for _, q := range r.Requests() {
		all = append(all, q.exchange)
	}
	return trips(all, rtt)
}

func trips(all []exchange, rtt time.Duration) int {
	all = slices.DeleteFunc(all, func(e exchange) bool { return e.began.IsZero() })
	slices.SortFunc(all, func(a, b exchange) int { return a.began.Compare(b.began) })
	n := 0
	var last time.Time // when the answer that ends the chain is at the client, and its reaction here
	for _, e := range all {
		if !e.came.Before(last) {
			n++
			last = e.began.Add(rtt)
		}
	}
	return n
}

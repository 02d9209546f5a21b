package imgtest

import (
	"bufio"
	"net"
	"net/http"
	"slices"
	"time"
)

// answer notes when a request's answer began.
type answer struct {
	http.ResponseWriter
	r *Registry
	q *Request
}

func (a *answer) begin() {
	a.r.clock.Lock()
	defer a.r.clock.Unlock()
	if a.q.began.IsZero() {
		a.q.began = time.Now()
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
	all := slices.DeleteFunc(r.Requests(), func(q Request) bool { return q.began.IsZero() })
	slices.SortFunc(all, func(a, b Request) int { return a.began.Compare(b.began) })
	n := 0
	var last time.Time // when the answer that ends the chain is at the client, and its reaction here
	for _, q := range all {
		if !q.came.Before(last) {
			n++
			last = q.began.Add(rtt)
		}
	}
	return n
}

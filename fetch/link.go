package fetch

import (
	"context"
	"io"
	"net/http"
	"net/http/httptrace"
	"sync"
	"time"
)

// timing takes the time of the last of a chain of redirected requests. The
// transport calls its hooks from goroutines of its own.
type timing struct {
	mu           sync.Mutex
	wrote, began time.Time
}

func (t *timing) trace(ctx context.Context) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteRequest: func(httptrace.WroteRequestInfo) {
			t.mu.Lock()
			defer t.mu.Unlock()
			t.wrote, t.began = time.Now(), time.Time{}
		},
		GotFirstResponseByte: func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			t.began = time.Now()
		},
	})
}

// trip returns the time from request to answer, 0 if there was none.
func (t *timing) trip() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.wrote.IsZero() || t.began.Before(t.wrote) {
		return 0
	}
	return t.began.Sub(t.wrote)
}

// send sends one request, redirects included, and notes how long the server
// that answered took.
func (c *Client) send(client *http.Client, req *http.Request) (*http.Response, error) {
	var t timing
	resp, err := client.Do(req.WithContext(t.trace(req.Context())))
	if err == nil {
		if d := t.trip(); d > 0 {
			c.host(resp.Request.URL.Host).sawTrip(d)
		}
	}
	return resp, err
}

// meter measures the rate of a body.
type meter struct {
	io.ReadCloser
	host  *host
	began time.Time
	n     int64
	done  bool
}

// minMetered is the least size of a transfer that says something of the rate.
const minMetered = 64 << 10

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.ReadCloser.Read(p)
	m.n += int64(n)
	if err != nil {
		m.note()
	}
	return n, err
}

func (m *meter) Close() error {
	m.note()
	return m.ReadCloser.Close()
}

func (m *meter) note() {
	if m.done {
		return
	}
	m.done = true
	if d := time.Since(m.began); m.n >= minMetered && d > 0 {
		m.host.sawRate(float64(m.n) / d.Seconds())
	}
}

func (h *host) link() (time.Duration, float64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.rtt, h.rate
}

// sawTrip and sawRate follow what is measured, as TCP does its round trip.
func (h *host) sawTrip(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.rtt == 0 {
		h.rtt = d
		return
	}
	h.rtt += (d - h.rtt) / 8
}

func (h *host) sawRate(r float64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.rate == 0 {
		h.rate = r
		return
	}
	h.rate += (r - h.rate) / 4
}

package imgtest

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A request costs a round trip, connecting another; a large body what the
// link's width asks for. Times are lower bounds: a busy machine adds to them.
func TestShaper(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.URL.Query().Get("n"))
		w.Header().Set("Content-Length", strconv.Itoa(n))
		w.Write(make([]byte, n))
	}))
	defer srv.Close()
	link := Link{RTT: 50 * time.Millisecond, Bandwidth: 100e6}
	s, err := NewShaper(strings.TrimPrefix(srv.URL, "http://"), link)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	get := func(n int) time.Duration {
		began := time.Now()
		resp, err := client.Get(fmt.Sprintf("http://%s/?n=%d", s.Addr(), n))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if got, err := io.Copy(io.Discard, resp.Body); err != nil || got != int64(n) {
			t.Fatalf("%d bytes of %d: %v", got, n, err)
		}
		return time.Since(began)
	}
	first, second, large := get(1), get(1), get(5<<20)
	t.Logf("first request %v, second %v, 5 MiB %v", first, second, large)
	if first < 2*link.RTT || second < link.RTT {
		t.Errorf("requests took %v and %v, with a round trip of %v", first, second, link.RTT)
	}
	if least := time.Duration(5 << 20 * 8 * 1e9 / link.Bandwidth); large < least {
		t.Errorf("5 MiB took %v, which the link can carry in %v at least", large, least)
	}
	if got := s.Bytes(); got < 5<<20 || got > 6<<20 {
		t.Errorf("%d bytes were counted", got)
	}
}

// Requests that follow one another are as many round trips, those that are
// under way together are one.
func TestCounter(t *testing.T) {
	t.Parallel()
	const together = 4
	var arrived sync.WaitGroup
	arrived.Add(together)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/together" {
			arrived.Done()
			arrived.Wait()
		}
		io.WriteString(w, "ok")
	}))
	defer srv.Close()
	c, err := NewCounter(strings.TrimPrefix(srv.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	get := func(path string) {
		resp, err := http.Get("http://" + c.Addr() + path)
		if err != nil {
			t.Error(err)
			return
		}
		defer resp.Body.Close()
		if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "ok" {
			t.Errorf("%q, %v", b, err)
		}
	}
	get("/forgotten")
	c.Forget()
	for range 3 {
		get("/alone")
	}
	var all sync.WaitGroup
	for range together {
		all.Go(func() { get("/together") })
	}
	all.Wait()
	if n, trips := c.Count(), c.Trips(0); n != 3+together || trips != 4 {
		t.Errorf("%d requests in %d round trips, want %d in 4", n, trips, 3+together)
	}
}

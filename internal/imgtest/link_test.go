package imgtest

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
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

package fetch

import (
	"bytes"
	"context"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// mirrored returns two mirrors in front of an origin, each with the image, and
// its layer as a blob.
func mirrored(t *testing.T, o Options) (servers [3]*imgtest.Registry, b *Blob, layer []byte) {
	t.Helper()
	layer = noise(blobSize)
	for i := range servers {
		servers[i] = imgtest.NewRegistry(t, imgtest.RegistryOptions{})
		makeImage(t, servers[i], "x", "1", "", layer)
	}
	var text strings.Builder
	text.WriteString("server = \"" + servers[2].URL + "\"\n")
	for _, s := range servers[:2] {
		text.WriteString("[host.\"" + s.URL + "\"]\n")
	}
	o.CertsDirs = []string{hostsFile(t, "example.com", text.String())}
	b = mustResolve(t, New(o), "example.com/x:1").Blob(0)
	for _, s := range servers {
		s.Forget()
	}
	return servers, b, layer
}

func counts(servers [3]*imgtest.Registry) (n [3]int) {
	for i, s := range servers {
		n[i] = s.Count(imgtest.KindBlob)
		s.Forget()
	}
	return n
}

// Regression 14, for ranges: mirrors are asked in order, and told for whom.
func TestRangeMirrors(t *testing.T) {
	t.Parallel()
	servers, b, layer := mirrored(t, options(t))
	wantRange(t, b, 5, layer[5:100])
	for _, q := range servers[0].Requests() {
		if q.URL.Query().Get("ns") != "example.com" {
			t.Errorf("%s without ns", q.URL)
		}
	}
	if n := counts(servers); n != [3]int{1, 0, 0} {
		t.Errorf("asked %v", n)
	}
	servers[0].Inject(imgtest.Fault{On: imgtest.KindBlob, Status: 404})
	servers[1].Inject(imgtest.Fault{On: imgtest.KindBlob, Short: 10})
	wantRange(t, b, 5, layer[5:100])
	if got := asked(servers[2]); got != "25-99" {
		t.Errorf("the origin was asked for %q", got)
	}
	if n := counts(servers); n != [3]int{1, 2, 1} {
		t.Errorf("asked %v", n)
	}
	servers[1].Heal()
	servers[1].Inject(imgtest.Fault{On: imgtest.KindBlob, IgnoreRange: true})
	// One of them gives ranges: that will do.
	wantRange(t, b, 5, layer[5:100])
	if b.Whole() {
		t.Error("whole")
	}
	for _, s := range servers {
		s.Heal()
		s.Inject(imgtest.Fault{On: imgtest.KindBlob, Status: 500})
	}
	_, err := readRange(t.Context(), b, 5, 10)
	wantFault(t, err, fault.Network, "500", "")
}

// Regression 10: who gave wrong bytes is not asked again, until nobody else is
// left.
func TestBlame(t *testing.T) {
	t.Parallel()
	servers, b, layer := mirrored(t, options(t))
	// The first mirror breaks off; the second gives the rest.
	servers[0].Inject(imgtest.Fault{On: imgtest.KindBlob, Short: 10, Times: 2})
	wantRange(t, b, 0, layer[:100])
	counts(servers)
	if !b.Blame(50, 5) {
		t.Error("nobody left of three")
	}
	wantRange(t, b, 50, layer[50:55])
	if n := counts(servers); n != [3]int{1, 0, 0} {
		t.Errorf("asked %v", n)
	}
	for range 2 {
		if !b.Blame(0, 5) {
			t.Error("nobody left of two")
		}
	}
	wantRange(t, b, 50, layer[50:55])
	if n := counts(servers); n != [3]int{0, 0, 1} {
		t.Errorf("asked %v", n)
	}
	if b.Blame(50, 5) {
		t.Error("somebody left")
	}
	wantRange(t, b, 50, layer[50:55])
	if n := counts(servers); n != [3]int{1, 0, 0} {
		t.Errorf("asked %v", n)
	}
}

// Of what was given by several, each is blamed for his part.
func TestBlameParts(t *testing.T) {
	t.Parallel()
	s := []*source{{host: "a"}, {host: "b"}, {host: "c"}}
	for _, c := range []struct {
		off, n int64
		want   string
	}{{0, 10, "a"}, {0, 100, "abc"}, {25, 10, "b"}, {60, 40, "a"}, {45, 10, "c"}, {45, 20, "ac"}, {100, 1, ""}, {15, 10, "ab"}, {10, 0, ""}} {
		b := &Blob{sources: s, given: []given{{0, 100, s[0]}, {20, 60, s[1]}, {40, 60, s[2]}}}
		for _, s := range s {
			s.bad = false
		}
		b.blameLocked(c.off, c.off+c.n, 2)
		got := ""
		for _, s := range s {
			if s.bad {
				got += s.host
			}
		}
		if got != c.want {
			t.Errorf("%d+%d: blamed %q, want %q", c.off, c.n, got, c.want)
		}
	}
	// What was given long ago is forgotten.
	b := &Blob{}
	for i := range int64(10 * maxGiven) {
		b.gives(s[0], i, i+1, nil)
	}
	if len(b.given) > maxGiven {
		t.Errorf("%d runs remembered", len(b.given))
	}
}

// Regression 11: a lone server has a second chance, and only one.
func TestBlameAlone(t *testing.T) {
	t.Parallel()
	reg, img, layer := oneLayer(t, imgtest.RegistryOptions{CDN: true}, options(t))
	b := img.Blob(0)
	for range 3 {
		wantRange(t, b, 5, layer[5:10])
		if !b.Blame(5, 5) {
			t.Error("no second chance")
		}
		reg.Forget()
		wantRange(t, b, 5, layer[5:10])
		// Not where it came from: another server may stand behind the name.
		wantCounts(t, reg, map[imgtest.Kind]int{imgtest.KindBlob: 1, imgtest.KindCDN: 1})
		if b.Blame(5, 5) {
			t.Error("a third chance")
		}
	}
}

// A server that is slow to begin is overtaken by the next, and asked last for a
// while.
func TestHedge(t *testing.T) {
	t.Parallel()
	o := options(t)
	o.Hedge = time.Second
	servers, b, layer := mirrored(t, o)
	wantRange(t, b, 5, layer[5:100])
	counts(servers)
	servers[0].Inject(imgtest.Fault{On: imgtest.KindBlob, Delay: time.Hour, Times: 1})
	wantRange(t, b, 5, layer[5:100])
	if n := counts(servers); n != [3]int{1, 1, 0} {
		t.Errorf("asked %v", n)
	}
	wantRange(t, b, 5, layer[5:100])
	if n := counts(servers); n != [3]int{0, 1, 0} {
		t.Errorf("asked %v", n)
	}
	b.sources[0].slowUntil = time.Now()
	wantRange(t, b, 5, layer[5:100])
	if n := counts(servers); n != [3]int{1, 0, 0} {
		t.Errorf("asked %v", n)
	}
	// The one that hurries to help fails: the slow one is waited for.
	servers[0].Inject(imgtest.Fault{On: imgtest.KindBlob, Delay: 2 * time.Second, Times: 1})
	servers[1].Inject(imgtest.Fault{On: imgtest.KindBlob, Status: 404, Times: 1})
	wantRange(t, b, 5, layer[5:100])
	if n := counts(servers); n != [3]int{1, 1, 0} {
		t.Errorf("asked %v", n)
	}
	// Both are slow, and both fail.
	for _, s := range servers[:2] {
		s.Inject(imgtest.Fault{On: imgtest.KindBlob, Delay: 2 * time.Second, Status: 404, Times: 1})
	}
	wantRange(t, b, 5, layer[5:100])
	if n := counts(servers); n != [3]int{1, 1, 1} {
		t.Errorf("asked %v", n)
	}
}

// A server that stops in the middle is left for the next, which goes on there.
func TestStallTakesAnother(t *testing.T) {
	t.Parallel()
	o := options(t)
	o.Stall = 300 * time.Millisecond
	servers, b, layer := mirrored(t, o)
	servers[0].Inject(imgtest.Fault{On: imgtest.KindBlob, Short: 20, Stall: true, Times: 1})
	wantRange(t, b, 5, layer[5:100])
	if got := asked(servers[1]); got != "25-99" {
		t.Errorf("the second mirror was asked for %q", got)
	}
	counts(servers)
	wantRange(t, b, 5, layer[5:100])
	if n := counts(servers); n != [3]int{0, 1, 0} {
		t.Errorf("asked %v", n)
	}
}

// Many readers, endpoints that fail, blame: nothing races, no byte is wrong.
func TestRangesSideBySide(t *testing.T) {
	t.Parallel()
	servers, b, layer := mirrored(t, options(t))
	for i, s := range servers {
		s.Inject(imgtest.Fault{On: imgtest.KindBlob, Short: int64(100 * (i + 1)), Skip: 3, Times: 10})
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for off := i * 100; off+5000 < blobSize; off += 50_000 {
				ctx, cancel := context.WithCancel(t.Context())
				r, err := b.Range(ctx, int64(off), 5000)
				if err != nil {
					cancel()
					continue // all of them may have failed
				}
				if i == 7 {
					cancel()
				}
				got, err := io.ReadAll(r)
				if !bytes.Equal(got, layer[off:off+len(got)]) || err == nil && len(got) != 5000 {
					t.Errorf("range %d: %d bytes, %v", off, len(got), err)
				}
				b.Link()
				b.Blame(int64(off), 1)
				r.Close()
				cancel()
			}
		})
	}
	wg.Wait()
}

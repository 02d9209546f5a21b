package fetch

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// readRange reads a range to its end.
func readRange(ctx context.Context, b *Blob, off, n int64) ([]byte, error) {
	r, err := b.Range(ctx, off, n)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func wantRange(t *testing.T, b *Blob, off int64, want []byte) {
	t.Helper()
	got, err := readRange(t.Context(), b, off, int64(len(want)))
	if err != nil {
		t.Fatalf("range %d+%d: %v after %d bytes", off, len(want), err, len(got))
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("range %d+%d: other bytes", off, len(want))
	}
}

// asked returns the Range headers of the requests for blobs.
func asked(reg *imgtest.Registry, kinds ...imgtest.Kind) string {
	var s []string
	for _, q := range reg.Requests(kinds...) {
		s = append(s, strings.TrimPrefix(q.Header.Get("Range"), "bytes="))
	}
	return strings.Join(s, " ")
}

// TestRange: whatever happens to a transfer, the bytes come out right, and no
// more is asked for than is missing, one range at a time (regressions 4 to 9).
func TestRange(t *testing.T) {
	t.Parallel()
	const off, n = 100_000, 50_000
	for _, c := range []struct {
		name   string
		faults []imgtest.Fault
		asked  string // Range headers; "-" = not compared
	}{
		{"nothing wrong", nil, "100000-149999"},
		{"ends early, right Content-Length", []imgtest.Fault{{Short: 20_000, Times: 1}}, "100000-149999 120000-149999"},
		{"reset", []imgtest.Fault{{Short: 20_000, Reset: true, Times: 1}}, "-"},
		{"nothing but a header", []imgtest.Fault{{Empty: true, Times: 1}}, "100000-149999 100000-149999"},
		{"stall", []imgtest.Fault{{Short: 20_000, Stall: true, Times: 1}}, "100000-149999 120000-149999"},
		{"range ignored", []imgtest.Fault{{IgnoreRange: true, Times: 1}}, "100000-149999"},
		{"range ignored, and cut", []imgtest.Fault{{IgnoreRange: true, Short: 120_000, Times: 1}}, "100000-149999 "},
		{"wrong start", []imgtest.Fault{{ContentRange: "bytes 5-149999/300000", Times: 1}}, "100000-149999 "},
		{"wrong end", []imgtest.Fault{{ContentRange: "bytes 100000-150000/300000", Times: 1}}, "100000-149999 "},
		{"wrong total", []imgtest.Fault{{ContentRange: "bytes 100000-149999/300001", Times: 1}}, "100000-149999 "},
		{"no total", []imgtest.Fault{{ContentRange: "bytes 100000-149999/*", Times: 1}}, "100000-149999"},
		{"416", []imgtest.Fault{{Status: 416, Times: 1}}, "100000-149999 "},
		{"400 to a range", []imgtest.Fault{{Status: 400, Times: 1}}, "-"},
		{"500", []imgtest.Fault{{Status: 500, Times: 1}}, "100000-149999 100000-149999"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o := options(t)
			o.Stall = time.Second
			reg, img, layer := oneLayer(t, imgtest.RegistryOptions{}, o)
			for _, f := range c.faults {
				f.On = imgtest.KindBlob
				reg.Inject(f)
			}
			wantRange(t, img.Blob(0), off, layer[off:off+n])
			if got := asked(reg, imgtest.KindBlob); c.asked != "-" && got != c.asked {
				t.Errorf("asked for %q, want %q", got, c.asked)
			}
			if reg.Count(imgtest.KindBlobHead) > 0 {
				t.Error("HEAD of a blob, which some refuse")
			}
		})
	}
}

func TestRangeOutside(t *testing.T) {
	t.Parallel()
	reg, img, layer := oneLayer(t, imgtest.RegistryOptions{}, options(t))
	b := img.Blob(0)
	for _, c := range [][2]int64{{-1, 1}, {0, -1}, {0, blobSize + 1}, {blobSize, 1}, {blobSize + 1, 0}, {1, 1<<63 - 1}} {
		if _, err := b.Range(t.Context(), c[0], c[1]); err == nil {
			t.Errorf("range %v of %d bytes", c, blobSize)
		}
	}
	wantRange(t, b, blobSize, nil)
	wantRange(t, b, 7, nil)
	if reg.Count() != 0 {
		t.Error("requests for nothing")
	}
	wantRange(t, b, blobSize-1, layer[blobSize-1:])
	wantRange(t, b, 0, layer)
	if img.Blob(1) != nil || img.Blob(-1) != nil || img.Blob(0) != b {
		t.Error("Blob: another one")
	}
}

// Ranges in a row, and side by side, use connections that are there.
func TestRangesShareConnections(t *testing.T) {
	t.Parallel()
	reg, img, layer := oneLayer(t, imgtest.RegistryOptions{}, options(t))
	b := img.Blob(0)
	for off := int64(0); off < blobSize; off += 10_000 {
		wantRange(t, b, off, layer[off:off+10_000])
	}
	if n := reg.Connections(); n != 1 {
		t.Errorf("%d connections for ranges in a row, the manifest and the config", n)
	}
	var wg sync.WaitGroup
	for i := range int64(4) {
		wg.Go(func() {
			for off := i * 1000; off+1000 <= blobSize; off += 40_000 {
				if got, err := readRange(t.Context(), b, off, 1000); err != nil || !bytes.Equal(got, layer[off:off+1000]) {
					t.Errorf("range %d: %v", off, err)
				}
			}
		})
	}
	wg.Wait()
	// A request may find an idle connection while one is dialled for it.
	if n := reg.Connections(); n > 8 {
		t.Errorf("%d connections for 30 ranges by 4 readers", n)
	}
	if rtt, rate := b.Link(); rtt <= 0 || rtt > time.Minute || rate != 0 {
		t.Errorf("measured %v, %v of small ranges", rtt, rate)
	}
	wantRange(t, b, 0, layer)
	if _, rate := b.Link(); rate <= 0 {
		t.Error("no rate measured")
	}
}

// Regression 4: who ignores ranges is not asked for them again, and nobody
// pays for much that is dropped without having known.
func TestWhole(t *testing.T) {
	t.Parallel()
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	layer := noise(maxWaste + 1000)
	makeImage(t, reg, "x", "1", "", layer)
	b := mustResolve(t, New(options(t)), reg.Host+"/x:1").Blob(0)
	reg.Forget()
	if b.Whole() {
		t.Error("whole before anything was asked")
	}
	reg.Inject(imgtest.Fault{On: imgtest.KindBlob, IgnoreRange: true})
	off := int64(maxWaste + 1)
	if _, err := b.Range(t.Context(), off, 10); err == nil || !errors.Is(err, errNoRange) {
		t.Fatalf("got %v", err)
	}
	if !b.Whole() {
		t.Fatal("not whole")
	}
	wantRange(t, b, off, layer[off:off+10])
	wantRange(t, b, 0, layer[:10])
	wantRange(t, b, 0, layer)
	if got := asked(reg, imgtest.KindBlob); got != "8388609-8388618   " {
		t.Errorf("asked for %q", got)
	}
	// At the start of the blob a range ignored costs nothing.
	reg.Forget()
	fresh := mustResolve(t, New(options(t)), reg.Host+"/x:1").Blob(0)
	wantRange(t, fresh, 0, layer[:1000])
	wantCounts(t, reg, map[imgtest.Kind]int{imgtest.KindBlob: 2}) // the config's is one
	// A proxy that fetched the blob meanwhile knows ranges.
	reg.Heal()
	b.sources[0].state.mu.Lock()
	b.sources[0].state.noRange = time.Now()
	b.sources[0].state.mu.Unlock()
	reg.Forget()
	wantRange(t, b, 5, layer[5:10])
	if got := asked(reg, imgtest.KindBlob); got != "5-9" || b.Whole() {
		t.Errorf("asked for %q", got)
	}
}

// Regression 3: where the registry redirected to is asked directly until that
// is over, and the registry once for each failure of it; nothing secret is
// sent there, nor said.
func TestRangeRedirected(t *testing.T) {
	t.Parallel()
	o := options(t)
	o.Auth.Username, o.Auth.Password = "u", "p"
	reg, img, layer := oneLayer(t, imgtest.RegistryOptions{CDN: true, Auth: "basic", Username: "u", Password: "p"}, o)
	b := img.Blob(0)
	counts := func(blob, cdn int) {
		t.Helper()
		wantCounts(t, reg, map[imgtest.Kind]int{imgtest.KindBlob: blob, imgtest.KindCDN: cdn})
		reg.Forget()
	}
	for off := range int64(5) {
		wantRange(t, b, off, layer[off:1000])
	}
	counts(1, 5)
	for _, status := range []int{400, 401, 403, 404, 410, 500} {
		reg.Inject(imgtest.Fault{On: imgtest.KindCDN, Status: status, Times: 1})
		wantRange(t, b, 10, layer[10:1000])
		counts(1, 2)
	}
	// It breaks in the middle: the link is as good as before.
	reg.Inject(imgtest.Fault{On: imgtest.KindCDN, Short: 100, Times: 1})
	wantRange(t, b, 10, layer[10:1000])
	if got := asked(reg, imgtest.KindCDN); got != "10-999 110-999" {
		t.Errorf("asked for %q", got)
	}
	counts(0, 2)
	b.sources[0].redirect.until = time.Now()
	wantRange(t, b, 10, layer[10:1000])
	counts(1, 1)
	reg.Inject(imgtest.Fault{On: imgtest.KindCDN, Status: 403})
	_, err := readRange(t.Context(), b, 10, 10)
	if err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v", err)
	}
	counts(2, 3)
	reg.Heal()
	// Regression 12 at the other host: it is left alone as long as it says.
	reg.Inject(imgtest.Fault{On: imgtest.KindCDN, Skip: 1, Times: 1, Status: 429, Header: map[string]string{"Retry-After": "1"}})
	wantRange(t, b, 10, layer[10:20])
	start := time.Now()
	wantRange(t, b, 10, layer[10:20])
	if d := time.Since(start); d < time.Second {
		t.Errorf("asked again after %v", d)
	}
}

// Regressions 1 and 2 for ranges, days into a mount: every token is stale and
// the password on disk is another.
func TestRangeReauthorized(t *testing.T) {
	t.Parallel()
	for _, status := range []int{0, 400} {
		reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{Auth: "token", Username: "u", Password: "p", StaleStatus: status})
		layer := noise(10_000)
		makeImage(t, reg, "x", "1", "", layer)
		o := options(t)
		login := func(pass string) {
			writeFile(t, o.Auth.DockerConfig+"/config.json", `{"auths":{"`+reg.Host+`":{"auth":"`+b64("u:"+pass)+`"}}}`)
		}
		login("p")
		b := mustResolve(t, New(o), reg.Host+"/x:1").Blob(0)
		wantRange(t, b, 5, layer[5:50])
		reg.ExpireTokens()
		reg.SetPassword("new")
		login("new")
		reg.Forget()
		wantRange(t, b, 5, layer[5:50])
		wantCounts(t, reg, map[imgtest.Kind]int{imgtest.KindToken: 1, imgtest.KindBlob: 2})
		// The token server is down: an error, until it is up again.
		reg.ExpireTokens()
		reg.Inject(imgtest.Fault{On: imgtest.KindToken, Status: 500})
		_, err := readRange(t.Context(), b, 5, 5)
		wantFault(t, err, fault.Network, "500", "")
		reg.Heal()
		wantRange(t, b, 5, layer[5:50])
	}
}

// Regression 7: a server that says nothing is an error in the end, and who
// waits can leave.
func TestRangeStalls(t *testing.T) {
	t.Parallel()
	o := options(t)
	o.Stall, o.MaxRetry = 100*time.Millisecond, 1
	reg, img, _ := oneLayer(t, imgtest.RegistryOptions{}, o)
	reg.Inject(imgtest.Fault{On: imgtest.KindBlob, Short: 100, Stall: true})
	_, err := readRange(t.Context(), img.Blob(0), 0, 1000)
	wantFault(t, err, fault.Network, "no data for too long", "")
	ctx, cancel := context.WithCancel(t.Context())
	r, err := img.Blob(0).Range(ctx, 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := io.ReadAll(r); fault.KindOf(err) != fault.Canceled {
		t.Errorf("got %v", err)
	}
}

// Regression 12: who is to be left alone for longer than a moment is not asked
// meanwhile, and the reader learns it at once.
func TestRangeRetryAfter(t *testing.T) {
	t.Parallel()
	reg, img, layer := oneLayer(t, imgtest.RegistryOptions{}, options(t))
	reg.Inject(imgtest.Fault{On: imgtest.KindBlob, Times: 1, Status: 429, Header: map[string]string{"Retry-After": "60"}})
	for range 3 {
		_, err := readRange(t.Context(), img.Blob(0), 5, 10)
		wantFault(t, err, fault.Network, "asks to come back in", "")
	}
	if n := reg.Count(imgtest.KindBlob); n != 1 {
		t.Errorf("asked %d times", n)
	}
	h := img.Blob(0).sources[0].state
	h.mu.Lock()
	h.notUntil = time.Now()
	h.mu.Unlock()
	wantRange(t, img.Blob(0), 5, layer[5:10])
}

// Regression 17: ranges of a foreign layer come from its URLs.
func TestRangeForeign(t *testing.T) {
	t.Parallel()
	layer := noise(1000)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("credentials sent to the URL")
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(layer))
	}))
	defer srv.Close()
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{Auth: "basic", Username: "u", Password: "p"})
	o := options(t)
	o.Auth.Username, o.Auth.Password = "u", "p"
	b := New(o).Blob(mustParse(t, reg.Host+"/x:1"), Layer{Blob: id.BlobOf(layer), Size: 1000, URLs: []string{"ftp://x/y", srv.URL + "/layer"}})
	wantRange(t, b, 10, layer[10:100])
	wantRange(t, b, 0, layer)
}

// Regression 18: redirects of redirects, to a name beneath the registry's.
func TestRangeRedirectedTwice(t *testing.T) {
	t.Parallel()
	reg, img, layer := oneLayer(t, imgtest.RegistryOptions{CDN: true}, options(t))
	b := img.Blob(0)
	wantRange(t, b, 5, layer[5:10])
	first := b.sources[0].redirect.get(time.Now()).String()
	b.sources[0].redirect.drop()
	other := strings.Replace(first, "127.0.0.1", "localhost", 1)
	reg.Inject(imgtest.Fault{On: imgtest.KindCDN, Times: 1, Location: other})
	reg.Forget()
	wantRange(t, b, 5, layer[5:10])
	wantRange(t, b, 5, layer[5:10])
	wantCounts(t, reg, map[imgtest.Kind]int{imgtest.KindBlob: 1, imgtest.KindCDN: 3})
	if got := b.sources[0].redirect.get(time.Now()).String(); got != other {
		t.Errorf("%s is remembered, not %s", got, other)
	}
}

func TestSignedUntil(t *testing.T) {
	t.Parallel()
	for query, want := range map[string]string{
		"X-Amz-Date=20240102T030405Z&X-Amz-Expires=60&X-Amz-Signature=x": "2024-01-02T03:05:05Z",
		"X-Goog-Date=20240102T030405Z&X-Goog-Expires=3600":               "2024-01-02T04:04:05Z",
		"Expires=1704164645&Signature=x&Key-Pair-Id=y":                   "2024-01-02T03:04:05Z",
		"se=2024-01-02T03%3A04%3A05Z&sig=x":                              "2024-01-02T03:04:05Z",
		"X-Amz-Date=20240102T030405Z":                                    "",
		"X-Amz-Date=yesterday&X-Amz-Expires=60":                          "",
		"X-Amz-Date=20240102T030405Z&X-Amz-Expires=-1":                   "",
		"X-Amz-Date=20240102T030405Z&X-Amz-Expires=99999999999999999999": "",
		"Expires=Tue%2C+02+Jan+2024+03%3A04%3A05+GMT":                    "",
		"se=soon":                     "",
		"":                            "",
		"verify=1704164645-signature": "",
	} {
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		got, ok := signedUntil(q)
		if ok != (want != "") || ok && got.UTC().Format(time.RFC3339) != want {
			t.Errorf("%s: %v, want %q", query, got.UTC(), want)
		}
	}
}

// Ranges of what is not in a registry.
func TestRangeLocal(t *testing.T) {
	t.Parallel()
	dir, layer := layout(t)
	ref := mustParse(t, "oci:"+dir)
	c := New(options(t))
	img, err := c.Resolve(t.Context(), ref, Platform{})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range []*Blob{img.Blob(0), c.Blob(ref, img.Layers[0])} {
		wantRange(t, b, 0, layer)
		wantRange(t, b, 700, layer[700:2000])
		wantRange(t, b, int64(len(layer)), nil)
		if rtt, rate := b.Link(); rtt != 0 || rate != 0 || b.Whole() || b.Blame(0, 1) {
			t.Error("a file has no link, and no other source")
		}
	}
	gone := Layer{Blob: someDigest, Size: 5}
	if _, err := c.Blob(ref, gone).Range(t.Context(), 0, 5); fault.KindOf(err) != fault.NotFound {
		t.Errorf("got %v", err)
	}
}

package fetch

import (
	"bytes"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync/atomic"
	"testing"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// Debian's docker-registry has no referrers API, and deletes nothing unless
// it is told to.
func TestDistributionReferrers(t *testing.T) {
	t.Parallel()
	for _, deletes := range []bool{false, true} {
		more := ""
		if deletes {
			more = "  delete:\n    enabled: true\n"
		}
		host := imgtest.DistributionStorage(t, more, "", "")
		dir, _ := layout(t)
		push(t, dir, host+"/lib/x:1")
		image := mustResolve(t, New(options(t)), host+"/lib/x:1")
		exchangeReferrers(t, host, options(t), image.Digest, false, deletes)
		if !deletes {
			err := New(options(t)).DeleteManifest(t.Context(), image.Reference, image.Digest)
			wantFault(t, err, fault.Denied, "does not delete manifests", "")
		}
	}
}

// Uploads to docker-registry: whole, mounted, and broken on the way.
func TestDistributionPush(t *testing.T) {
	t.Parallel()
	host := imgtest.Distribution(t, "", "")
	var cut, puts atomic.Int64 // cut: bytes after which the next upload breaks; 0 = never
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: host})
	proxy.ErrorLog = log.New(io.Discard, "", 0)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			puts.Add(1)
			if n := cut.Swap(0); n > 0 {
				r.Body = &cutBody{r: io.LimitReader(r.Body, n), c: r.Body}
			}
		}
		proxy.ServeHTTP(w, r)
	}))
	defer srv.Close()
	c := New(options(t))
	addr := srv.Listener.Addr().String()
	ref, other := mustParse(t, addr+"/lib/x:1"), mustParse(t, addr+"/lib/y:1")
	for n, want := range map[int]int64{0: 1, 1000: 1, 20 << 20: 2} {
		blob := noise(n)
		puts.Store(0)
		if want == 2 {
			cut.Store(11 << 20)
		}
		if err := pushBlob(t.Context(), c, ref, blob, ""); err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		got, err := c.FetchBlob(t.Context(), ref, id.BlobOf(blob), int64(n))
		if err != nil || !bytes.Equal(got, blob) {
			t.Errorf("%d bytes came back, %v", len(got), err)
		}
		if err := pushBlob(t.Context(), c, other, blob, "lib/x"); err != nil || puts.Load() != want {
			t.Errorf("%d bytes: mount: %v, %d uploads, want %d", n, err, puts.Load(), want)
		}
	}
}

// cutBody fails where r ends.
type cutBody struct {
	r io.Reader
	c io.Closer
}

func (b *cutBody) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (b *cutBody) Close() error { return b.c.Close() }

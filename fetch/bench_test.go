package fetch

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

// BenchmarkBlob reads layers of 256 MiB from loopback as layerdb does, with a
// buffer of 256 KiB; BenchmarkPlain is the same by net/http alone.
func BenchmarkBlob(b *testing.B)  { benchBlob(b, false) }
func BenchmarkPlain(b *testing.B) { benchBlob(b, true) }

func benchBlob(b *testing.B, plain bool) {
	const size = 256 << 20
	data := make([]byte, 1<<20)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "268435456")
		for range size / len(data) {
			w.Write(data)
		}
	}))
	defer srv.Close()
	c := New(Options{CertsDirs: []string{b.TempDir()}})
	ref, err := ParseReference(srv.Listener.Addr().String() + "/x:1")
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 256<<10)
	b.SetBytes(size)
	for b.Loop() {
		var r io.ReadCloser
		if plain {
			resp, err := http.Get(srv.URL)
			if err != nil {
				b.Fatal(err)
			}
			r = resp.Body
		} else if r, err = c.Blob(ref, Layer{Blob: someDigest, Size: size}).Open(b.Context()); err != nil {
			b.Fatal(err)
		}
		// Hide what would shorten the way.
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, buf)
		r.Close()
		if err != nil || n != size {
			b.Fatal(n, err)
		}
	}
}

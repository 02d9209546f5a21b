package layerdb

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func TestDetect(t *testing.T) {
	t.Parallel()
	header := make([]byte, 512)
	copy(header, "BZh-is-a-file-name")
	copy(header[257:], "ustar\x0000")
	for _, tt := range []struct {
		name string
		head string
		want compression
	}{
		{"nothing", "", plain},
		{"one byte", "\x1f", plain},
		{"gzip", "\x1f\x8b\x08", gzipped},
		{"zstd", "\x28\xb5\x2f\xfd", zstandard},
		{"zstd cut", "\x28\xb5\x2f", plain},
		{"skippable frame", "\x50\x2a\x4d\x18", zstandard},
		{"the last skippable frame", "\x5f\x2a\x4d\x18", zstandard},
		{"not quite skippable", "\x60\x2a\x4d\x18", plain},
		{"bzip2", "BZh91AY", ""},
		{"tar of a file called BZh…", string(header), plain},
		{"xz", "\xfd7zXZ\x00", ""},
		{"lz4", "\x04\x22\x4d\x18", ""},
		{"zip", "PK\x03\x04", ""},
		{"zeros", string(make([]byte, 512)), plain},
	} {
		got, err := detect([]byte(tt.head))
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%s: %q, %v; want %q", tt.name, got, err, tt.want)
		}
	}
}

// FuzzUncompress holds the front of the pass to what the standard library says
// of gzip, and to its limits with everything else.
func FuzzUncompress(f *testing.F) {
	var gz, zs bytes.Buffer
	zw := gzip.NewWriter(&gz)
	zw.Write([]byte("hello hello hello"))
	zw.Close()
	sw, err := zstd.NewWriter(&zs)
	if err != nil {
		f.Fatal(err)
	}
	sw.Write([]byte("hello hello hello"))
	sw.Close()
	f.Add([]byte{})
	f.Add([]byte("plain"))
	f.Add(gz.Bytes())
	f.Add(append(gz.Bytes(), gz.Bytes()...))
	f.Add(append(gz.Bytes(), 0, 0, 0))
	f.Add(zs.Bytes())
	f.Add(append(skippable(3, "x"), zs.Bytes()...))
	f.Add(withHeader(gz.Bytes()))
	f.Add([]byte("BZh9"))
	f.Fuzz(func(t *testing.T, in []byte) {
		var out bytes.Buffer
		w := &capped{w: &out, left: 1 << 20}
		kind, err := uncompress(w, bytes.NewReader(in))
		if errors.Is(err, errFull) {
			return
		}
		switch kind {
		case plain:
			if err != nil || !bytes.Equal(out.Bytes(), in) {
				t.Errorf("plain data came out changed (%v)", err)
			}
		case gzipped:
			if r, rerr := gzip.NewReader(bytes.NewReader(in)); rerr == nil {
				r.Multistream(false)
				want, rerr := io.ReadAll(io.LimitReader(r, 1<<20))
				if rerr == nil && err == nil && !bytes.HasPrefix(out.Bytes(), want) {
					t.Errorf("first member is %q, want %q", out.Bytes(), want)
				}
			}
		case zstandard:
		case "":
			if err == nil || out.Len() > 0 {
				t.Errorf("no kind, yet %d bytes and error %v", out.Len(), err)
			}
		default:
			t.Errorf("kind %q", kind)
		}
	})
}

var errFull = errors.New("full")

// capped fails after some bytes: fuzzing finds bombs.
type capped struct {
	w    io.Writer
	left int
}

func (c *capped) Write(p []byte) (int, error) {
	if len(p) > c.left {
		return 0, errFull
	}
	c.left -= len(p)
	return c.w.Write(p)
}

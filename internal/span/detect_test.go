package span

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/imgfs/imgfs/internal/fault"
)

func TestDetect(t *testing.T) {
	t.Parallel()
	const refused = Codec(255)
	header := make([]byte, 512)
	copy(header, "BZh-is-a-file-name")
	copy(header[257:], "ustar\x0000")
	for _, tt := range []struct {
		name string
		head string
		want Codec
	}{
		{"nothing", "", Plain},
		{"one byte", "\x1f", Plain},
		{"gzip", "\x1f\x8b\x08", Gzip},
		{"zstd", "\x28\xb5\x2f\xfd", Zstd},
		{"zstd cut", "\x28\xb5\x2f", Plain},
		{"skippable frame", "\x50\x2a\x4d\x18", Zstd},
		{"the last skippable frame", "\x5f\x2a\x4d\x18", Zstd},
		{"not quite skippable", "\x60\x2a\x4d\x18", Plain},
		{"bzip2", "BZh91AY", Bzip2},
		{"tar of a file called BZh…", string(header), Plain},
		{"xz", "\xfd7zXZ\x00", Xz},
		{"lz4", "\x04\x22\x4d\x18", refused},
		{"zip", "PK\x03\x04", refused},
		{"zeros", string(make([]byte, 512)), Plain},
	} {
		got, err := detect([]byte(tt.head))
		if tt.want == refused {
			if fault.KindOf(err) != fault.Invalid {
				t.Errorf("%s: %v", tt.name, err)
			}
		} else if got != tt.want || err != nil {
			t.Errorf("%s: %v, %v; want %v", tt.name, got, err, tt.want)
		}
	}
}

// FuzzReader holds a Reader to what the standard library says of gzip, and its
// tables to the data they came with.
func FuzzReader(f *testing.F) {
	hello := bytes.Repeat([]byte("hello "), 20)
	var zs bytes.Buffer
	sw, err := zstd.NewWriter(&zs)
	if err != nil {
		f.Fatal(err)
	}
	sw.Write(hello)
	sw.Close()
	gz := member(f, hello)
	big := sample(100_000)
	f.Add([]byte{})
	f.Add([]byte("plain"))
	f.Add(gz)
	f.Add(append(bytes.Clone(gz), gz...))
	f.Add(append(bytes.Clone(gz), 0, 0, 0))
	f.Add(member(f, big))
	f.Add(append(member(f, big[:50_000]), member(f, big[50_000:])...))
	f.Add(zs.Bytes())
	f.Add(append([]byte("\x50\x2a\x4d\x18\x01\x00\x00\x00x"), zs.Bytes()...))
	f.Add([]byte("BZh9"))
	f.Fuzz(func(t *testing.T, in []byte) {
		const limit = 1 << 20
		var out bytes.Buffer
		r := NewReader(bytes.NewReader(in), Options{Spacing: 1})
		_, err := r.WriteTo(&capped{w: &out, left: limit})
		if err != nil {
			if out.Len() > 0 && r.Kind() == Plain {
				t.Errorf("plain data is refused: %v", err)
			}
			return
		}
		switch r.Kind() {
		case Plain:
			if !bytes.Equal(out.Bytes(), in) {
				t.Error("plain data came out changed")
			}
		case Gzip:
			if r, err := gzip.NewReader(bytes.NewReader(in)); err == nil {
				r.Multistream(false)
				want, err := io.ReadAll(io.LimitReader(r, limit))
				if err == nil && !bytes.HasPrefix(out.Bytes(), want) {
					t.Errorf("first member is %q, want %q", out.Bytes(), want)
				}
			}
		}
		table, err := r.Table(int64(len(in)))
		if err != nil {
			if r.Kind() != Zstd {
				t.Errorf("no table: %v", err)
			}
			return
		}
		check(t, table, in, out.Bytes())
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

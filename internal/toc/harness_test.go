package toc

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
	"github.com/imgfs/imgfs/internal/layertar"
	"github.com/klauspost/compress/zstd"
)

// memBlob is a blob in memory that remembers what was read of it.
type memBlob struct {
	b     []byte
	reads []Range
}

func (m *memBlob) ReadAt(ctx context.Context, p []byte, off int64) error {
	m.reads = append(m.reads, Range{off, int64(len(p))})
	if off < 0 || off+int64(len(p)) > int64(len(m.b)) {
		return fmt.Errorf("read of %d bytes at %d of %d", len(p), off, len(m.b))
	}
	copy(p, m.b[off:])
	return ctx.Err()
}

// bytes returns how many bytes were read.
func (m *memBlob) bytes() (n int64) {
	for _, r := range m.reads {
		n += r.Len
	}
	return n
}

// data decodes all spans of an index.
func data(x *Index, blob []byte) ([]byte, error) {
	out := make([]byte, x.DataSize)
	for i := range x.Spans.Spans() {
		s := x.Spans.At(i)
		if s.Off+s.Len > x.DataSize {
			return nil, fmt.Errorf("span %d reaches behind the data", i)
		}
		if err := x.Spans.Decode(i, blob[s.From:s.To], out[:s.Off], out[s.Off:s.Off+s.Len]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// list lists the tree of an index with the contents of files.
func list(t testing.TB, x *Index, blob []byte) string {
	t.Helper()
	b, err := data(x, blob)
	if err != nil {
		t.Fatal(err)
	}
	to := layertar.NewIndexer(layertar.Limits{})
	if err := x.Fill(to); err != nil {
		t.Fatal(err)
	}
	s, err := listIndexer(to, b)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// listTar lists the tree of a tar stream.
func listTar(stream []byte) (string, error) {
	x := layertar.NewIndexer(layertar.Limits{})
	if _, err := x.Write(stream); err != nil {
		return "", err
	}
	return listIndexer(x, stream)
}

func listIndexer(x *layertar.Indexer, data []byte) (string, error) {
	var out bytes.Buffer
	sum, err := x.Finish(&out, strings.Repeat("0", 64))
	if err != nil {
		return "", err
	}
	img, err := erofs.New(out.Bytes())
	if err != nil {
		return "", err
	}
	for _, c := range sum.Annex {
		if n := c.To + c.Len - int64(len(data)); n > 0 {
			data = append(data[:len(data):len(data)], make([]byte, n)...)
		}
		copy(data[c.To:c.To+c.Len], data[c.From:])
	}
	return imgtest.List(img, func(_ int, p []byte, off int64) error {
		if off+int64(len(p)) > int64(len(data)) {
			return io.ErrUnexpectedEOF
		}
		copy(p, data[off:])
		return nil
	}), nil
}

// asStargz makes a listing what stargz's builder makes of it: times are whole
// seconds, and its own files are not shown.
func asStargz(s string) string {
	times := regexp.MustCompile(` @(-?\d+)(\.\d+)?`)
	var out strings.Builder
	for line := range strings.Lines(s) {
		if name, _, _ := strings.Cut(line, " "); name == "/.prefetch.landmark" || name == "/.no.prefetch.landmark" || name == "/"+estargzName {
			continue
		}
		out.WriteString(times.ReplaceAllStringFunc(line, func(m string) string {
			sec, frac, _ := strings.Cut(m[2:], ".")
			n, _ := strconv.ParseInt(sec, 10, 64)
			if frac >= "5" { // a fraction is added, before 1970 too
				n++
			}
			return fmt.Sprintf(" @%d", n)
		}))
	}
	return out.String()
}

// compare reports the first lines in which two listings differ.
func compare(t *testing.T, got, want string) {
	t.Helper()
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range max(len(g), len(w)) {
		var a, b string
		if i < len(g) {
			a = g[i]
		}
		if i < len(w) {
			b = w[i]
		}
		if a != b {
			t.Fatalf("line %d of %d:\n got %s\nwant %s", i+1, len(w), a, b)
		}
	}
}

func gunzip(t testing.TB, b []byte) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func unzstd(t testing.TB, b []byte) []byte {
	t.Helper()
	z, err := zstd.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	out, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// tarOf makes a tar from text, see imgtest.Tar.
func tarOf(t testing.TB, text string) []byte {
	t.Helper()
	b, err := imgtest.Tar(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// descriptor describes a layer that was written.
func (w *Written) descriptor() Descriptor {
	return Descriptor{Blob: w.Blob, Size: w.Size, MediaType: w.MediaType, DiffID: w.DiffID, Annotations: w.Annotations}
}

func describe(b []byte, mediaType string, notes map[string]string) Descriptor {
	return Descriptor{Blob: id.BlobOf(b), Size: int64(len(b)), MediaType: mediaType, Annotations: notes}
}

// zoo is a layer with everything that tables of contents tell.
const zoo = `
dir ./ mode=0755 mtime=1700000000
dir bin mode=0755 uid=1 gid=2
file bin/sh "#!/bin/x\n" mode=04755 mtime=1700000001
file empty
file big size=4500001 mtime=1700000002
file bin/middle size=70000 xattr:security.capability="\x01\x00\x00\x02\x00 \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" xattr:user.a=b
symlink lib usr/lib mtime=1700000003
link bin/ash bin/sh
link other/name lower/file
char dev/null 1:3 mode=0666
block dev/sda 8:0 mode=0660 gid=6
fifo run/pipe mode=0600
file usr/.wh.gone
dir var/cache mode=0700
file var/cache/.wh..wh..opq
file "spaced name" "x"
file "nön-ascii" "y" mtime=1
file last "the last one"
`

package layertar

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// TestLargeFiles passes files beyond the 8 GiB of an octal size field, in both
// notations there are for them; offsets behind them have to be right.
func TestLargeFiles(t *testing.T) {
	const size = 9<<30 + 3
	for _, format := range []string{"", " format=gnu base256=1"} {
		x := NewIndexer(Limits{})
		for _, name := range []string{"a", "b"} {
			b, err := imgtest.Tar(fmt.Sprintf("file %s declare=%d%s\nnoend\n", name, size, format))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := x.Write(b); err != nil {
				t.Fatal(err)
			}
			zeros := make([]byte, 1<<26)
			for left := int64(size + 509); left > 0; {
				n, err := x.Write(zeros[:min(left, int64(len(zeros)))])
				if err != nil {
					t.Fatal(err)
				}
				left -= int64(n)
			}
		}
		var out bytes.Buffer
		sum, err := x.Finish(&out, "")
		if err != nil {
			t.Fatal(err)
		}
		img, err := erofs.New(out.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		n, _, err := img.Lookup(img.Root(), []byte("b"))
		if err != nil {
			t.Fatal(err)
		}
		e, err := img.Extent(n, 8<<30)
		if err != nil {
			t.Fatal(err)
		}
		if start := sum.StreamSize - size - 509; e.Off != uint64(start)+8<<30 || e.Len != 1<<30+3 {
			t.Errorf("%q: extent %+v, data starts at %d", format, e, start)
		}
	}
}

// TestLimits checks that each limit refuses with a sentence that names it, and
// that the refusal stays.
func TestLimits(t *testing.T) {
	for _, c := range []struct {
		limits Limits
		text   string
		want   string
	}{
		{Limits{Entries: 3}, "file a\nfile b\nfile c\nfile d\n", "more than 3 entries"},
		{Limits{Memory: 4096}, "file a\nsymlink s " + strings.Repeat("t", 4000) + "\n", "more than 4096 bytes"},
		{Limits{Special: 1000}, "file a pax:comment=" + strings.Repeat("c", 1000) + "\n", "extended header of 1014 bytes (limit 1000)"},
		{Limits{Special: 1000}, "file " + strings.Repeat("n", 1000) + " format=gnu\n", "extended header of 1001 bytes (limit 1000)"},
		{Limits{Path: 10}, "file a/b/c/d/e/f\n", "path of 11 bytes (limit 10)"},
		{Limits{Path: 10}, "link l a/b/c/d/e/f\n", "hard link to a path of 11 bytes (limit 10)"},
		{Limits{Depth: 3}, "file a/b/c/f\ndir a/b/c/d\n", "nested deeper than 3"},
		{Limits{Depth: 3}, "file a/b/c/d/f\n", "nested deeper than 3"},
		{Limits{Depth: 3}, "dir a/b/c\nsymlink s a/b/c\ndir s/d\n", "nested deeper than 3"},
		{Limits{Xattrs: 100}, "file a xattr:user.a=" + strings.Repeat("x", 100) + "\n", "extended attributes of 114 bytes (limit 100)"},
		{Limits{}, "file a xattr:user.a=" + strings.Repeat("x", 65536) + "\n", "value of 65536 bytes"},
		{Limits{}, "file a xattr:user." + strings.Repeat("n", 251) + "=x\n", "name of 256"},
		{Limits{}, "file a uid=4294967296\n", "does not fit 32 bits"},
		{Limits{Device: 2000}, "file a size=2000\n", "size 2000 is beyond"},
		{Limits{Device: 4000}, "file a\nfile b\nzeros 4000\n", "the stream is larger than 4000 bytes"},
		{Limits{Device: 1 << 20}, "file a sparse=0.1 size=1048577 map=7+1\n", "beyond what an index can address"},
		{Limits{Device: 10000}, "file a sparse=0.1 size=9000 map=7+1,5000+1\n", "sparse files need more than"},
	} {
		b, err := imgtest.Tar(c.text)
		if err != nil {
			t.Fatal(err)
		}
		x := NewIndexer(c.limits)
		_, err = x.Write(b)
		if err == nil {
			_, err = x.Finish(io.Discard, "")
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || fault.KindOf(err) != fault.Integrity {
			t.Errorf("%.40q: %v, want %q", c.text, err, c.want)
			continue
		}
		if _, again := x.Write([]byte{0}); !errors.Is(again, err) {
			t.Errorf("%.40q: a later write gives %v", c.text, again)
		}
	}
}

// TestSparseAgainstArchiveTar compares the content of sparse files, laid out
// anew or not, with archive/tar's.
func TestSparseAgainstArchiveTar(t *testing.T) {
	for _, c := range imgtest.Cases(t, "../../testdata") {
		if !strings.HasPrefix(c.Name, "sparse-") || c.Error != "" || len(c.Layers) != 1 {
			continue
		}
		img, data, err := index(c.Layers[0], Limits{})
		if err != nil {
			t.Fatal(err)
		}
		r := tar.NewReader(bytes.NewReader(c.Layers[0]))
		for {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			want, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			if h.Typeflag == tar.TypeDir || h.Typeflag == tar.TypeLink {
				continue
			}
			at := img.Root()
			for _, name := range strings.Split(filepath.Clean(h.Name), "/") {
				if at, _, err = img.Lookup(at, []byte(name)); err != nil {
					t.Fatal(err)
				}
			}
			if got := contentOf(t, img, at, data); !bytes.Equal(got, want) {
				t.Errorf("%s: %s: content differs", c.Name, h.Name)
			}
		}
	}
}

func contentOf(t *testing.T, img *erofs.Image, n erofs.NID, d dataFile) []byte {
	t.Helper()
	var got []byte
	for {
		e, err := img.Extent(n, uint64(len(got)))
		if err == io.EOF {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, e.Len)
		if !e.Hole {
			if err := d.read(0, p, int64(e.Off)); err != nil {
				t.Fatal(err)
			}
		}
		got = append(got, p...)
	}
}

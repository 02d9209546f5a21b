package toc

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/imgfs/imgfs/internal/layertar"
)

// sociSpan is small, so that small layers have many checkpoints.
const sociSpan = 16 << 10

// ztocCase is a layer in testdata.
type ztocCase struct {
	file string // "" before .gz: the stream as it is
	ztoc string // sha256 of what SOCI's own builder made of it, at TZ=UTC
}

// ztocCases are made by gzip and pigz. The zTOCs were made by the builder of
// soci-snapshotter 77fb4266 with zlib 1.2.13; of each only the digest is here.
func ztocCases() []ztocCase {
	return []ztocCase{
		{"gzip9.tar.gz", "2ce371d0a59051e3d86585528e2c991d70e5e0774f524a211ec3f677989e95d7"},
		{"pigz.tar.gz", "04977385f742da1d02c87634eefa8e573f50c60a28a55ced1897bf1225b67f83"},
		{"members.tar.gz", "0b1268f9a466c3dd4922aa75e46f178928ec00dfe9b678c1b30fe6576501efa0"},
		{"members.tar", "93033556bd243543739944e80e2fb9f8b0a5882fc3bfc69123dc4bfeb61a296b"},
	}
}

// read returns a layer's blob and stream.
func (l ztocCase) read(t testing.TB) (blob, stream []byte) {
	t.Helper()
	blob, err := os.ReadFile("testdata/soci/" + strings.TrimSuffix(l.file, ".gz") + ".gz")
	if err != nil {
		t.Fatal(err)
	}
	r, err := gzip.NewReader(bytes.NewReader(blob))
	if err != nil {
		t.Fatal(err)
	}
	if stream, err = io.ReadAll(r); err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(l.file, ".gz") {
		blob = stream
	}
	return blob, stream
}

// build returns a layer's zTOC.
func (l ztocCase) build(t testing.TB) []byte {
	t.Helper()
	blob, _ := l.read(t)
	b, err := BuildZtoc(bytes.NewReader(blob), sociSpan, "test")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestZtocIsSocis compares what is built with what SOCI builds, byte for byte.
func TestZtocIsSocis(t *testing.T) {
	for _, l := range ztocCases() {
		if sum := sha256.Sum256(l.build(t)); hex.EncodeToString(sum[:]) != l.ztoc {
			t.Errorf("%s: %x, SOCI's is %s", l.file, sum, l.ztoc)
		}
	}
}

// TestZtocGivesTheLayer reads the zTOCs: the index is the stream's, every span
// decodes to its bytes, and the stream proves to be the one told of.
func TestZtocGivesTheLayer(t *testing.T) {
	spans := 0
	for _, l := range ztocCases() {
		blob, stream := l.read(t)
		z, err := parseZtoc(l.build(t))
		if err != nil {
			t.Fatal(err)
		}
		x, err := z.Index(Descriptor{Size: int64(len(blob))})
		if err != nil {
			t.Fatalf("%s: %v", l.file, err)
		}
		spans += x.Spans.Spans()
		want, _, err := indexOf(t, stream[:x.DataSize])
		if err != nil {
			t.Fatal(err)
		}
		if got, err := filled(x.Fill); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: not the index of the stream: %v", l.file, err)
		}
		for i := range x.Spans.Spans() {
			s := x.Spans.At(i)
			got := make([]byte, s.Len)
			if err := x.Spans.Decode(i, blob[s.From:s.To], nil, got); err != nil || !bytes.Equal(got, stream[s.Off:s.Off+s.Len]) {
				t.Errorf("%s, span %d: %v", l.file, i, err)
			}
			if err := x.Proof.Check(bytes.NewReader(stream), s.Off, s.Off+s.Len); err != nil {
				t.Errorf("%s, span %d: %v", l.file, i, err)
			}
		}
		again, err := Reopen(x.Kind, x.Raw)
		if err != nil {
			t.Fatal(err)
		}
		if err := again.Check(bytes.NewReader(stream), 0, x.DataSize); err != nil {
			t.Errorf("%s: %v", l.file, err)
		}
	}
	if spans < 20 {
		t.Errorf("only %d spans", spans)
	}
}

// filled returns the layer index that an Index fills.
func filled(fill func(x *layertar.Indexer) error) ([]byte, error) {
	x := layertar.NewIndexer(layertar.Limits{})
	if err := fill(x); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if _, err := x.Finish(&out, "tag"); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// TestFirstPoint reads checkpoints of both versions.
func TestFirstPoint(t *testing.T) {
	var b []byte
	b = binary.LittleEndian.AppendUint32(b, 2)
	b = binary.LittleEndian.AppendUint64(b, sociSpan)
	header := len(b)
	for _, p := range []zpoint{{in: 10}, {in: 500, out: 20000, bits: 3}} {
		b = binary.LittleEndian.AppendUint64(b, uint64(p.in))
		b = binary.LittleEndian.AppendUint64(b, uint64(p.out))
		b = append(b, p.bits)
		b = append(b, make([]byte, zinfoWindow)...)
	}
	old := append(bytes.Clone(b[:header]), b[header+zinfoPoint:]...)
	for version, b := range [][]byte{old, b} {
		points, err := gzipPoints(b)
		if err != nil || len(points) != 2 || points[0].in != 10 || points[0].out != 0 || len(points[0].window) != 0 {
			t.Fatalf("version %d: %+v, %v", version+1, points, err)
		}
		if p := points[1]; p.in != 500 || p.out != 20000 || p.bits != 3 || len(p.window) != 20000 {
			t.Errorf("version %d: %+v", version+1, p)
		}
	}
	for n := range len(b) {
		if _, err := gzipPoints(b[:n]); (err == nil) != (n == len(old)) {
			t.Errorf("%d bytes of %d: %v", n, len(b), err)
		}
	}
}

// lyingZtoc makes a zTOC of a layer after change.
func lyingZtoc(t *testing.T, l ztocCase, change func(z *ztocWriter)) []byte {
	t.Helper()
	blob, _ := l.read(t)
	z := ztocWriter{spanSize: sociSpan, blobSize: int64(len(blob))}
	if err := z.gzip(bytes.NewReader(blob)); err != nil {
		t.Fatal(err)
	}
	change(&z)
	b, err := z.encode("test")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestZtocLies makes zTOCs that are not the layer's: each is refused when it is
// opened, when its entries are taken, or when the stream is compared.
func TestZtocLies(t *testing.T) {
	layer := ztocCases()[1] // many spans, all kinds of entries
	blob, stream := layer.read(t)
	find := func(z *ztocWriter, name string) *toldAt {
		for i := range z.files {
			if z.files[i].name == name {
				return &z.files[i]
			}
		}
		t.Fatal(name)
		return nil
	}
	for name, c := range map[string]struct {
		change func(z *ztocWriter)
		when   string
	}{
		"truth":            {func(z *ztocWriter) {}, ""},
		"size of the blob": {func(z *ztocWriter) { z.blobSize++ }, "open"},
		"stream is longer": {func(z *ztocWriter) { z.size += 1 << 20 }, "decode"},
		"digests missing":  {func(z *ztocWriter) { z.digests = z.digests[1:] }, "open"},
		"other digest":     {func(z *ztocWriter) { z.digests[1][0]++ }, "decode"},
		"points swapped": {func(z *ztocWriter) {
			p := z.zinfo.Points()
			p[1], p[2] = p[2], p[1]
		}, "open"},
		"point at a bit":  {func(z *ztocWriter) { z.zinfo.Points()[1].Bits = 9 }, "open"},
		"other window":    {func(z *ztocWriter) { copy(z.zinfo.Points()[2].Window, "lie"); clear(z.zinfo.Points()[2].Window) }, "decode"},
		"point elsewhere": {func(z *ztocWriter) { z.zinfo.Points()[1].Out -= 512 }, "decode"},
		"data outside":    {func(z *ztocWriter) { z.files[len(z.files)-1].size = 1 << 40 }, "fill"},
		"negative size":   {func(z *ztocWriter) { find(z, "usr/bin/tool").size = -1 }, "fill"},
		"entries overlap": {func(z *ztocWriter) { find(z, "usr/bin/tool").size += 512 }, "fill"},
		"data in a block": {func(z *ztocWriter) { find(z, "usr/bin/tool").data++ }, "fill"},
		"name with NUL":   {func(z *ztocWriter) { find(z, "usr/bin/tool").name = "a\x00" }, "fill"},
		"other name":      {func(z *ztocWriter) { find(z, "usr/bin/tool").name = "usr/bin/sh" }, "compare"},
		"other link":      {func(z *ztocWriter) { find(z, "usr/bin/soft").link = "/bin/sh" }, "compare"},
		"other mode":      {func(z *ztocWriter) { find(z, "usr/bin/tool").mode = 0o777 }, "compare"},
		"other owner":     {func(z *ztocWriter) { find(z, "usr/bin/tool").uid = 0 }, "compare"},
		"other group":     {func(z *ztocWriter) { find(z, "usr/bin/tool").gid = 0 }, "compare"},
		"other time":      {func(z *ztocWriter) { e := find(z, "etc/frac"); e.time = e.time.Add(time.Nanosecond) }, "compare"},
		"other device":    {func(z *ztocWriter) { find(z, "dev/null").minor = 5 }, "compare"},
		"shorter":         {func(z *ztocWriter) { find(z, "usr/bin/tool").size -= 1 }, "compare"},
		"other type":      {func(z *ztocWriter) { find(z, "usr/bin/soft").typ = '1' }, "compare"},
		"other attribute": {func(z *ztocWriter) { e := find(z, "etc/capable"); e.pax[1].value += "x" }, "compare"},
		"attribute more":  {func(z *ztocWriter) { e := find(z, "etc/capable"); e.pax = append(e.pax, paxRecord{"z", ""}) }, "compare"},
		"entry left out":  {func(z *ztocWriter) { z.files = append(z.files[:3:3], z.files[4:]...) }, "compare"},
		"sparse": {func(z *ztocWriter) {
			e := find(z, "etc/frac")
			e.pax = append(e.pax, paxRecord{"GNU.sparse.major", "1"})
		}, "fill"},
	} {
		when := func() string {
			z, err := parseZtoc(lyingZtoc(t, layer, c.change))
			if err != nil {
				return "parse"
			}
			x, err := z.Index(Descriptor{Size: int64(len(blob))})
			if err != nil {
				if !errors.Is(err, ErrCorrupt) {
					t.Errorf("%s: %v", name, err)
				}
				return "open"
			}
			if _, err := filled(x.Fill); err != nil {
				return "fill"
			}
			for i := range x.Spans.Spans() {
				s := x.Spans.At(i)
				got := make([]byte, s.Len)
				if err := x.Spans.Decode(i, blob[s.From:s.To], nil, got); err != nil || !bytes.HasPrefix(stream[s.Off:], got) {
					return "decode"
				}
			}
			if err := x.Proof.Check(bytes.NewReader(stream), 0, x.DataSize); err != nil {
				if !errors.Is(err, ErrCorrupt) {
					t.Errorf("%s: %v", name, err)
				}
				return "compare"
			}
			return ""
		}()
		if when != c.when {
			t.Errorf("%s: found by %q, want %q", name, when, c.when)
		}
	}
}

// TestZtocNone names layers that SOCI has nothing for.
func TestZtocNone(t *testing.T) {
	for name, blob := range map[string][]byte{
		"zstd":   {0x28, 0xb5, 0x2f, 0xfd, 0},
		"empty":  {},
		"sparse": mustTar(t, "file a sparse=1.0 size=5000 map=0+1,4096+4\n"),
		"old":    mustTar(t, "file a sparse=old size=5000 map=0+512\n"),
	} {
		if _, err := BuildZtoc(bytes.NewReader(blob), sociSpan, ""); !errors.Is(err, ErrNone) {
			t.Errorf("%s: %v", name, err)
		}
	}
	blob, _ := ztocCases()[0].read(t)
	if _, err := BuildZtoc(bytes.NewReader(blob[:len(blob)/2]), sociSpan, ""); err == nil || errors.Is(err, ErrNone) {
		t.Errorf("half of a layer: %v", err)
	}
	if _, err := BuildZtoc(iotest.ErrReader(errUnreadable), sociSpan, ""); !errors.Is(err, errUnreadable) || errors.Is(err, ErrNone) {
		t.Errorf("a blob that cannot be read: %v", err)
	}
}

// FuzzZtoc reads anything as a zTOC. There is no panic, no work without end, and
// what is taken is a table and entries in order.
func FuzzZtoc(f *testing.F) {
	stream := mustTar(f, "dir a\nfile a/b \"x\" xattr:user.a=b mtime=1.5\nlink c a/b\nsymlink d a\n")
	var blob bytes.Buffer
	gz := gzip.NewWriter(&blob)
	if _, err := gz.Write(stream); err != nil || gz.Close() != nil {
		f.Fatal(err)
	}
	for _, b := range [][]byte{stream, blob.Bytes()} {
		zt, err := BuildZtoc(bytes.NewReader(b), 1000, "")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(zt)
	}
	var w fbWriter
	w.begin(1)
	f.Add(w.finish(w.end()))
	zeros := make([]byte, 64<<10)
	f.Fuzz(func(t *testing.T, b []byte) {
		z, err := parseZtoc(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if x, err := z.Index(Descriptor{Size: z.blobSize}); err == nil {
			for i := range x.Spans.Spans() {
				s := x.Spans.At(i)
				if s.To > s.From+int64(len(zeros)) || s.Len > int64(len(zeros)) {
					continue
				}
				x.Spans.Decode(i, zeros[:s.To-s.From], nil, make([]byte, s.Len))
			}
		} else if !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
		filled(z.fill)
		p := z.Proof()
		if start := p.Start(1000); start > 1000 {
			t.Fatalf("the entry of byte 1000 starts at %d", start)
		}
		p.Check(bytes.NewReader(zeros), 0, int64(len(zeros)))
	})
}

package span

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	kgzip "github.com/klauspost/compress/gzip"
)

// sample is data of many kinds: text, zeros, noise, far and near repeats.
func sample(size int) []byte {
	rnd := rand.New(rand.NewPCG(3, 4))
	words := strings.Fields("the of layer index span checkpoint whiteout opaque lower upper a mount with and to /usr/share/doc/ .so \x00\x00\x00\x00\x00\x00 0644")
	var b bytes.Buffer
	for b.Len() < size {
		switch rnd.IntN(8) {
		case 0:
			b.Write(make([]byte, rnd.IntN(60_000)))
		case 1:
			for range rnd.IntN(50_000) {
				b.WriteByte(byte(rnd.Uint32()))
			}
		case 2:
			if all := b.Bytes(); len(all) > 40_000 {
				from := len(all) - 1 - rnd.IntN(40_000)
				b.Write(bytes.Clone(all[from:min(len(all), from+rnd.IntN(20_000))]))
			}
		default:
			for range rnd.IntN(8000) {
				b.WriteString(words[rnd.IntN(len(words))])
				if rnd.IntN(7) == 0 {
					fmt.Fprintf(&b, "%x", rnd.Uint64())
				}
			}
		}
	}
	return b.Bytes()[:size]
}

// run returns what a program makes of data; the test goes on without it where
// the program is not installed.
func run(t testing.TB, data []byte, name string, args ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s is not installed", name)
	}
	cmd := exec.Command(name, args...)
	cmd.Stdin = bytes.NewReader(data)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v: %s", name, err, stderr.Bytes())
	}
	return out
}

// read reads blob with a Reader and returns its table.
func read(t testing.TB, blob, want []byte, o Options) (*Table, error) {
	t.Helper()
	r := NewReader(bytes.NewReader(blob), o)
	var got bytes.Buffer
	if _, err := r.WriteTo(&got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Fatalf("%d bytes of data, want %d", got.Len(), len(want))
	}
	return r.Table(int64(len(blob)))
}

// check decodes every span of a table, several at a time, and holds the table
// to its encoded form.
func check(t *testing.T, table *Table, blob, want []byte) {
	t.Helper()
	code := table.Encode()
	parsed, err := Parse(code)
	if err != nil {
		t.Fatal(err)
	}
	if again := parsed.Encode(); !bytes.Equal(code, again) {
		t.Error("a parsed table encodes to other bytes")
	}
	if table.DataSize() != int64(len(want)) || parsed.DataSize() != table.DataSize() || parsed.BlobSize() != int64(len(blob)) {
		t.Errorf("sizes %d and %d, want %d and %d", parsed.DataSize(), parsed.BlobSize(), len(want), len(blob))
	}
	end := int64(0)
	var wg sync.WaitGroup
	for i := range table.Spans() {
		s := table.At(i)
		if s != parsed.At(i) || s.Off != end {
			t.Errorf("span %d: %v, parsed %v", i, s, parsed.At(i))
		}
		end += s.Len
		wg.Go(func() {
			got := make([]byte, s.Len)
			if err := parsed.Decode(i, blob[s.From:s.To], want[:s.Off], got); err != nil || !bytes.Equal(got, want[s.Off:s.Off+s.Len]) {
				t.Errorf("span %d of %d, %v: %v", i, table.Spans(), s, err)
			}
			if !parsed.Proves(i) {
				t.Errorf("span %d has no digest", i)
			}
		})
	}
	wg.Wait()
}

// Every kind of gzip stream that programs write has spans from which its data
// can be had again, one by one.
func TestGzip(t *testing.T) {
	t.Parallel()
	data := sample(1_300_000)
	members := func(size int, level int, header gzip.Header) []byte {
		var b bytes.Buffer
		for off := 0; off < len(data); off += size {
			w, err := gzip.NewWriterLevel(&b, level)
			if err != nil {
				t.Fatal(err)
			}
			w.Header = header
			w.Write(data[off:min(off+size, len(data))])
			w.Close()
			if off == 0 {
				b.Write(member(t, nil))
			}
		}
		return b.Bytes()
	}
	flushed := func() []byte {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		for off := 0; off < len(data); off += 700 {
			w.Write(data[off:min(off+700, len(data))])
			w.Flush()
		}
		w.Close()
		return b.Bytes()
	}
	klauspost := func() []byte {
		var b bytes.Buffer
		w := kgzip.NewWriter(&b)
		w.Write(data)
		w.Close()
		return b.Bytes()
	}
	long := strings.Repeat("n", 20_000)
	for _, tt := range []struct {
		name string
		slow bool // only the beginning
		blob func(*testing.T) []byte
	}{
		{"gzip -1", false, func(t *testing.T) []byte { return run(t, data, "gzip", "-1") }},
		{"gzip -6", false, func(t *testing.T) []byte { return run(t, data, "gzip", "-6") }},
		{"gzip -9", false, func(t *testing.T) []byte { return run(t, data, "gzip", "-9") }},
		{"pigz", false, func(t *testing.T) []byte { return run(t, data, "pigz", "-p2") }},
		{"pigz, independent blocks", false, func(t *testing.T) []byte { return run(t, data, "pigz", "-p2", "-i", "-b32") }},
		{"pigz -11", true, func(t *testing.T) []byte { return run(t, data[:300_000], "pigz", "-11", "-I1") }},
		{"zopfli", true, func(t *testing.T) []byte {
			file := filepath.Join(t.TempDir(), "data")
			if err := os.WriteFile(file, data[:300_000], 0o600); err != nil {
				t.Fatal(err)
			}
			return run(t, nil, "zopfli", "--i1", "-c", file)
		}},
		{"bgzip", false, func(t *testing.T) []byte { return run(t, data, "bgzip", "-c") }},
		{"libdeflate", false, func(t *testing.T) []byte { return run(t, data, "libdeflate-gzip", "-c", "-8") }},
		{"igzip", false, func(t *testing.T) []byte { return run(t, data, "igzip", "-c", "-1") }},
		{"stored", false, func(*testing.T) []byte { return members(len(data), gzip.NoCompression, gzip.Header{}) }},
		{"huffman only", false, func(*testing.T) []byte { return members(len(data), gzip.HuffmanOnly, gzip.Header{}) }},
		{"members", false, func(*testing.T) []byte { return members(100_003, 6, gzip.Header{}) }},
		{"members with headers", false, func(*testing.T) []byte {
			return members(50_000, 6, gzip.Header{Name: long, Comment: "c", Extra: []byte("extra")})
		}},
		{"flushed often", false, func(*testing.T) []byte { return flushed() }},
		{"klauspost", false, func(*testing.T) []byte { return klauspost() }},
		{"padded", false, func(*testing.T) []byte { return append(klauspost(), make([]byte, 1000)...) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			blob := tt.blob(t)
			want := data
			if tt.slow {
				want = data[:300_000]
			}
			for _, o := range []Options{{}, {Spacing: 1}, {Spacing: 99_000, Step: 1}, {Spacing: 200_000, Step: 200_000}} {
				table, err := read(t, blob, want, o)
				if err != nil {
					t.Fatal(err)
				}
				if o.Spacing != 1 && o != (Options{}) && !tt.slow && table.Spans() < 4 {
					t.Errorf("only %d spans", table.Spans())
				}
				check(t, table, blob, want)
			}
		})
	}
}

// Spans are far smaller than checkpoints are apart, and what is between two
// needs nothing but the data before it.
func TestSteps(t *testing.T) {
	t.Parallel()
	data := sample(4_000_000)
	blob := run(t, data, "gzip", "-6")
	table, err := read(t, blob, data, Options{})
	if err != nil {
		t.Fatal(err)
	}
	steps := 0
	for i := range table.Spans() {
		s := table.At(i)
		if table.Needs(i) == i {
			continue
		}
		steps++
		dst := make([]byte, s.Len)
		before := data[s.Off-Window : s.Off]
		if err := table.Decode(i, blob[s.From:s.To], before, dst); err != nil || !bytes.Equal(dst, data[s.Off:s.Off+s.Len]) {
			t.Errorf("span %d: %v", i, err)
		}
		if err := table.Decode(i, blob[s.From:s.To], before[1:], dst); err == nil {
			t.Error("decoded without a whole window")
		}
		wrong := bytes.Clone(blob[s.From:s.To])
		wrong[len(wrong)/2] ^= 1
		if err := table.Decode(i, wrong, before, dst); !errors.Is(err, ErrDigest) {
			t.Errorf("wrong bytes: %v", err)
		}
	}
	if all := table.Spans(); all < 20 || all-steps > 6 {
		t.Errorf("%d steps of %d spans", steps, all)
	}
	if size := len(table.Encode()); size > len(data)/300 {
		t.Errorf("a table of %d bytes", size)
	}
}

func TestPlain(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, defaultSpacing, defaultSpacing + 1, 3*defaultSpacing - 1} {
		data := sample(size)
		table, err := read(t, data, data, Options{})
		if err != nil {
			t.Fatal(err)
		}
		check(t, table, data, data)
		if want := (size + defaultSpacing - 1) / defaultSpacing; table.Spans() != want {
			t.Errorf("%d bytes: %d spans, want %d", size, table.Spans(), want)
		}
	}
}

func TestEmptyGzip(t *testing.T) {
	t.Parallel()
	table, err := read(t, member(t, nil), nil, Options{})
	if err != nil || table.Spans() != 0 {
		t.Fatal(table, err)
	}
	check(t, table, member(t, nil), nil)
}

// Where no decoder could begin within reason, a stream is read all the same.
func TestLongBlocksAreRead(t *testing.T) {
	t.Parallel()
	// One block with the fixed code: a literal 0, then 258 bytes at a time of
	// the byte before, then the end.
	var w bitWriter
	w.put(0b011, 3)
	w.put(0b00001100, 8)
	const times = maxRecorded/258 + 1
	for range times {
		w.put(0b10100011, 8)
		w.put(0, 5)
	}
	w.put(0, 7)
	data := make([]byte, 1+258*times)
	blob := append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}, w.b...)
	blob = binary.LittleEndian.AppendUint32(blob, crc32.ChecksumIEEE(data))
	blob = binary.LittleEndian.AppendUint32(blob, uint32(len(data)))
	for name, blob := range map[string][]byte{
		"last":  blob,
		"first": append(blob, member(t, nil)...),
		"empty blocks": slices.Concat([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}, bytes.Repeat([]byte{0, 0, 0, 0xff, 0xff}, maxRecorded/5),
			[]byte{3, 0, 0, 0, 0, 0, 0, 0, 0, 0}),
	} {
		want := data
		if name == "empty blocks" {
			want = nil
		}
		if _, err := read(t, blob, want, Options{}); !errors.Is(err, errLongBlock) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// bitWriter writes bits, the lowest first.
type bitWriter struct {
	b []byte
	n uint // bits used of the last byte
}

func (w *bitWriter) put(v, n uint) {
	for ; n > 0; n, v = n-1, v>>1 {
		if w.n%8 == 0 {
			w.b = append(w.b, 0)
		}
		w.b[len(w.b)-1] |= byte(v&1) << (w.n % 8)
		w.n++
	}
}

// A checkpoint that does not lead to the data is found out while it is made.
func TestFinishTests(t *testing.T) {
	t.Parallel()
	data := sample(10_000)
	blob := member(t, data)
	for name, alter := range map[string]func(*draft){
		"":                                     func(d *draft) {},
		"it leads to other bytes":              func(d *draft) { d.head[5]++ },
		"test of a checkpoint":                 func(d *draft) { d.blob = d.blob[:20] },
		"span 0: data":                         func(d *draft) { d.e.Len = 0 },
		"internal error: panic: runtime error": func(d *draft) { d.window = make([]byte, 2*Window) },
	} {
		rec := &recording{b: NewBuilder(Gzip, int64(len(blob)))}
		d := &draft{e: Entry{Len: int64(len(data)), To: int64(len(blob)), Header: true}, blob: blob, head: bytes.Clone(data)}
		alter(d)
		if err := rec.finish(d); (err == nil) != (name == "") || err != nil && !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReadErrorIsReturned(t *testing.T) {
	t.Parallel()
	data := sample(1 << 20)
	broken := errors.New("broken pipe")
	for _, blob := range [][]byte{member(t, data), data} {
		r := NewReader(io.MultiReader(bytes.NewReader(blob[:len(blob)/2]), iotest.ErrReader(broken)), Options{})
		if _, err := r.WriteTo(io.Discard); !errors.Is(err, broken) {
			t.Error(err)
		}
		if _, err := r.Table(int64(len(blob))); err == nil {
			t.Error("a table of half a stream")
		}
		r = NewReader(bytes.NewReader(blob), Options{})
		if _, err := r.WriteTo(brokenWriter{broken}); !errors.Is(err, broken) {
			t.Error(err)
		}
	}
}

type brokenWriter struct{ err error }

func (w brokenWriter) Write([]byte) (int, error) { return 0, w.err }

package inflate

import (
	"bytes"
	stdgzip "compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/gzip"
)

// texts are contents that lead to every kind of block and match.
func texts() map[string][]byte {
	rnd := rand.New(rand.NewPCG(1, 2))
	random := make([]byte, 300_000)
	for i := range random {
		random[i] = byte(rnd.Uint32())
	}
	words := strings.Fields("the of layer index span checkpoint whiteout opaque lower upper a mount with and to /usr/share/doc/ .so \x00\x00\x00\x00\x00\x00 0644")
	var prose bytes.Buffer
	for prose.Len() < 1_500_000 {
		prose.WriteString(words[rnd.IntN(len(words))])
		if rnd.IntN(7) == 0 {
			fmt.Fprintf(&prose, "%x", rnd.Uint64())
		}
	}
	skewed := make([]byte, 200_000) // long codes: subtables
	for i := range skewed {
		for skewed[i] < 250 && rnd.IntN(2) == 0 {
			skewed[i]++
		}
		if rnd.IntN(50) == 0 {
			skewed[i] = byte(rnd.Uint32())
		}
	}
	return map[string][]byte{
		"empty": nil, "one": {7}, "zeros": make([]byte, 2_000_000), "random": random,
		"prose": prose.Bytes(), "skewed": skewed,
		"short periods": bytes.Repeat([]byte("abcab"), 50_000),
		"far":           append(append(random[:windowSize:windowSize], random[:windowSize]...), random[:5000]...),
	}
}

func deflate(t testing.TB, b []byte, level int) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := stdgzip.NewWriterLevel(&buf, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestReadsWhatWritersWrite(t *testing.T) {
	t.Parallel()
	for name, want := range texts() {
		for _, level := range []int{stdgzip.HuffmanOnly, stdgzip.NoCompression, 1, 6, 9} {
			z := deflate(t, want, level)
			for kind, r := range map[string]io.Reader{
				"whole": bytes.NewReader(z), "by one": iotest.OneByteReader(bytes.NewReader(z)),
				"data with EOF": iotest.DataErrReader(bytes.NewReader(z)),
			} {
				got, err := io.ReadAll(NewReader(r))
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s, level %d, %s: %d bytes, %v; want %d", name, level, kind, len(got), err, len(want))
				}
			}
		}
		for _, tool := range [][]string{{"gzip", "-1"}, {"gzip", "-9"}, {"pigz", "-6"}, {"pigz", "-11", "-I1"}, {"pigz", "-i", "-b32"}} {
			if _, err := exec.LookPath(tool[0]); err != nil || len(want) > 1_600_000 && tool[1] == "-11" {
				continue
			}
			cmd := exec.Command(tool[0], append(tool[1:], "-c")...)
			cmd.Stdin = bytes.NewReader(want)
			z, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v: %v", tool, err)
			}
			got, err := io.ReadAll(NewReader(bytes.NewReader(z)))
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s, %v: %d bytes, %v; want %d", name, tool, len(got), err, len(want))
			}
		}
	}
}

func TestMembers(t *testing.T) {
	t.Parallel()
	a, b := []byte("first "), []byte("second")
	full := append([]byte{0x1f, 0x8b, 8, flagExtra | flagName | flagComment, 0, 0, 0, 0, 0, 3, 20, 0}, "twenty bytes of extraname\x00comment\x00"...)
	full = append(full, deflate(t, b, 6)[10:]...)
	tests := []struct {
		name string
		in   []byte
		want string
		err  error
	}{
		{"two", append(deflate(t, a, 6), deflate(t, b, 0)...), "first second", nil},
		{"an empty one between", slicesJoin(deflate(t, a, 6), deflate(t, nil, 6), deflate(t, b, 9)), "first second", nil},
		{"all header fields", full, "second", nil},
		{"zero padding", slicesJoin(deflate(t, a, 6), make([]byte, 1000)), "first ", nil},
		{"garbage behind", slicesJoin(deflate(t, a, 6), []byte("x")), "first ", nil},
		{"long garbage behind", slicesJoin(deflate(t, a, 6), []byte("not a gzip header")), "first ", nil},
		{"a broken header behind", slicesJoin(deflate(t, a, 6), []byte{0x1f, 0x8b, 9, 0, 0, 0, 0, 0, 0, 3}), "", ErrCorrupt},
		{"half a header behind", slicesJoin(deflate(t, a, 6), []byte{0x1f, 0x8b, 8, 0}), "", io.ErrUnexpectedEOF},
		{"nothing", nil, "", io.ErrUnexpectedEOF},
		{"no gzip", []byte("plain text, and long"), "", ErrCorrupt},
		{"zeros only", make([]byte, 100), "", ErrCorrupt},
		{"wrong checksum", flip(deflate(t, a, 6), -8), "", ErrCorrupt},
		{"wrong size", flip(deflate(t, a, 6), -1), "", ErrCorrupt},
		{"header checksum wrong", []byte{0x1f, 0x8b, 8, flagHeaderCRC, 0, 0, 0, 0, 0, 3, 1, 2, 3, 0}, "", ErrCorrupt},
	}
	for _, test := range tests {
		got, err := io.ReadAll(NewReader(bytes.NewReader(test.in)))
		if !errors.Is(err, test.err) {
			t.Errorf("%s: error %v, want %v", test.name, err, test.err)
		}
		if err == nil && string(got) != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

func slicesJoin(s ...[]byte) []byte { return bytes.Join(s, nil) }

func flip(b []byte, at int) []byte {
	b[len(b)+at] ^= 0x55
	return b
}

// A stream cut anywhere is an unexpected end, never a shorter content.
func TestTruncated(t *testing.T) {
	t.Parallel()
	for _, level := range []int{stdgzip.HuffmanOnly, 0, 1, 9} {
		z := deflate(t, texts()["prose"][:20_000], level)
		for n := 0; n < len(z); n += 1 + n/97 {
			if _, err := io.ReadAll(NewReader(bytes.NewReader(z[:n]))); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("level %d, %d of %d bytes: %v", level, n, len(z), err)
			}
		}
	}
}

func TestSourceErrorIsReturned(t *testing.T) {
	t.Parallel()
	z := deflate(t, texts()["prose"], 6)
	broken := errors.New("broken pipe")
	r := NewReader(io.MultiReader(bytes.NewReader(z[:len(z)/2]), iotest.ErrReader(broken)))
	for range 2 {
		if _, err := io.Copy(io.Discard, struct{ io.Reader }{r}); !errors.Is(err, broken) {
			t.Fatal(err)
		}
	}
}

func TestReadAllocatesNothing(t *testing.T) {
	z := deflate(t, texts()["prose"], 6)
	src := bytes.NewReader(z)
	r := NewReader(src)
	buf := make([]byte, 64<<10)
	n := testing.AllocsPerRun(10, func() {
		if _, err := r.Read(buf); err != nil {
			t.Fatal(err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations per Read", n)
	}
}

// What the standard library reads, Reader reads alike; what it refuses,
// Reader refuses.
func FuzzReader(f *testing.F) {
	for _, b := range texts() {
		f.Add(deflate(f, b[:min(len(b), 3000)], 6), 1)
		f.Add(deflate(f, b[:min(len(b), 500)], stdgzip.HuffmanOnly), 100)
	}
	f.Fuzz(func(t *testing.T, z []byte, piece int) {
		const limit = 4 << 20
		want, stdErr := standard(z, limit)
		got, err := io.ReadAll(io.LimitReader(NewReader(&pieces{z, max(1, piece)}), limit))
		if (err == nil) != (stdErr == nil) {
			t.Fatalf("error %v, standard library %v", err, stdErr)
		}
		if err == nil && stdErr == nil && !bytes.Equal(got, want) {
			t.Fatalf("%d bytes, standard library %d, and they differ", len(got), len(want))
		}
	})
}

// standard reads members with the standard library for as long as another
// begins behind the one before.
func standard(z []byte, limit int64) (all []byte, err error) {
	src := bytes.NewReader(z)
	r, err := stdgzip.NewReader(src)
	for err == nil && int64(len(all)) < limit {
		r.Multistream(false)
		var b []byte
		b, err = io.ReadAll(io.LimitReader(r, limit-int64(len(all))))
		all = append(all, b...)
		if rest := z[len(z)-src.Len():]; err != nil || !bytes.HasPrefix(rest, []byte{0x1f, 0x8b}) {
			break
		}
		if int64(len(all)) < limit {
			err = r.Reset(src)
		}
	}
	return all, err
}

// pieces reads at most n bytes at a time.
type pieces struct {
	b []byte
	n int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.b) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), p.n)], p.b)
	p.b = p.b[n:]
	return n, nil
}

func BenchmarkReader(b *testing.B) {
	for _, name := range []string{"prose", "skewed", "random"} {
		text := texts()[name]
		z := deflate(b, text, 6)
		b.Run(name+"/imgfs", func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				io.Copy(io.Discard, NewReader(bytes.NewReader(z)))
			}
		})
		b.Run(name+"/klauspost", func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				r, _ := gzip.NewReader(bytes.NewReader(z))
				io.Copy(io.Discard, r)
			}
		})
	}
}

package span

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"
)

// farSample is data of many kinds with repeats from all of what was before.
func farSample(size int) []byte {
	rnd := rand.New(rand.NewPCG(7, 8))
	data := sample(size / 2)
	for len(data) < size {
		if rnd.IntN(3) == 0 { // noise, which is stored
			for range rnd.IntN(300_000) {
				data = append(data, byte(rnd.Uint32()))
			}
		}
		for range rnd.IntN(2000) {
			from := rnd.IntN(len(data) - 200)
			data = append(data, data[from:from+4+rnd.IntN(100)]...)
		}
	}
	return data[:size]
}

// klauspost returns what klauspost's encoder makes of data.
func klauspost(t testing.TB, data []byte, o ...zstd.EOption) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b, o...)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// skippable returns a skippable frame of n bytes.
func skippable(n int) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 0x184d2a53)
	return append(binary.LittleEndian.AppendUint32(b, uint32(n)), make([]byte, n)...)
}

// Every kind of zstd stream that programs write has spans from which its data
// can be had again, one by one; with a spacing of 1 they begin at every block
// where that is possible.
func TestZstd(t *testing.T) {
	t.Parallel()
	data := farSample(3 << 20)
	file := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	frames := func(size int, between []byte) []byte {
		b := bytes.Clone(between)
		for off := 0; off < len(data); off += size {
			b = append(b, klauspost(t, data[off:min(off+size, len(data))], zstd.WithEncoderCRC(off%2 == 0))...)
			b = append(b, between...)
		}
		return b
	}
	tool := func(args ...string) func(*testing.T) []byte {
		return func(t *testing.T) []byte { return run(t, data, "zstd", append(args, "-q", "-c")...) }
	}
	encoder := func(o ...zstd.EOption) func(*testing.T) []byte {
		return func(t *testing.T) []byte { return klauspost(t, data, o...) }
	}
	for _, tt := range []struct {
		name string
		blob func(*testing.T) []byte
	}{
		{"zstd --fast", tool("--fast=4")},
		{"zstd -1", tool("-1")},
		{"zstd -3", tool("-3")},
		{"zstd -3, no checksum", tool("-3", "--no-check")},
		{"zstd -3, size known", func(t *testing.T) []byte { return run(t, nil, "zstd", "-3", "-q", "-c", file) }},
		{"zstd -9", tool("-9")},
		{"zstd -15", tool("-15")},
		{"zstd -19", tool("-19")},
		{"zstd -22, one segment", func(t *testing.T) []byte { return run(t, nil, "zstd", "--ultra", "-22", "-q", "-c", file) }},
		{"zstd, several threads", tool("-3", "-T3", "-B1MiB")},
		{"zstd --rsyncable", tool("-3", "-T2", "--rsyncable")},
		{"zstd --long=27", tool("-3", "--long=27")},
		{"zstd, small window", tool("-3", "--zstd=wlog=11")},
		{"zstd, small blocks", tool("-7", "--target-compressed-block-size=2000")},
		{"pzstd", func(t *testing.T) []byte { return run(t, data, "pzstd", "-1", "-p2", "-q", "-c") }},
		{"klauspost fastest", encoder(zstd.WithEncoderLevel(zstd.SpeedFastest))},
		{"klauspost default", encoder()},
		{"klauspost better", encoder(zstd.WithEncoderLevel(zstd.SpeedBetterCompression))},
		{"klauspost best", encoder(zstd.WithEncoderLevel(zstd.SpeedBestCompression))},
		{"klauspost, small window", encoder(zstd.WithWindowSize(1 << 10))},
		{"klauspost, stored literals", encoder(zstd.WithNoEntropyCompression(true))},
		{"klauspost, padded", encoder(zstd.WithEncoderPadding(1 << 20))},
		{"frames", func(*testing.T) []byte { return frames(1_000_003, nil) }},
		{"small frames", func(*testing.T) []byte { return frames(30_000, nil) }},
		{"empty frames", func(*testing.T) []byte { return frames(200_000, klauspost(t, nil, zstd.WithZeroFrames(true))) }},
		{"skippable frames", func(*testing.T) []byte { return frames(300_000, skippable(1000)) }},
		{"zstd:chunked, trailing frames", func(t *testing.T) []byte {
			return slices.Concat(encoder()(t), skippable(200_000), skippable(64), klauspost(t, nil, zstd.WithZeroFrames(true)))
		}},
		{"large skippable frames", func(*testing.T) []byte { return frames(1_000_003, skippable(1<<20)) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			blob := tt.blob(t)
			for _, spacing := range []int64{0, 1, 200_000} {
				table, err := read(t, blob, data, Options{Spacing: spacing})
				if err != nil {
					t.Fatal(err)
				}
				if spacing == 200_000 && table.Spans() < 3 {
					t.Errorf("only %d spans", table.Spans())
				}
				check(t, table, blob, data)
			}
		})
	}
}

// Large skippable frames are no part of spans: nobody fetches them.
func TestZstdSkipsWhatIsSkippable(t *testing.T) {
	t.Parallel()
	data := sample(300_000)
	frame := klauspost(t, data)
	blob := bytes.Join([][]byte{skippable(200_000), frame, skippable(10), frame, skippable(zstdSkipped + 1), frame, skippable(10)}, nil)
	table, err := read(t, blob, bytes.Repeat(data, 3), Options{})
	if err != nil {
		t.Fatal(err)
	}
	check(t, table, blob, bytes.Repeat(data, 3))
	n := int64(len(frame))
	first := int64(200_008)
	second := first + 2*n + 18 + zstdSkipped + 9
	if want := (Span{0, 600_000, first, first + 2*n + 18}); table.Spans() != 2 || table.At(0) != want {
		t.Errorf("%d spans, the first one %v, want %v", table.Spans(), table.At(0), want)
	}
	if want := (Span{600_000, 300_000, second, second + n}); table.At(1) != want {
		t.Errorf("second span %v, want %v", table.At(1), want)
	}
}

// A block which takes over a table from before a checkpoint makes it none.
func TestZstdTablesTakenOver(t *testing.T) {
	t.Parallel()
	data := treeless(t, 40)
	table, err := read(t, data.blob, data.want, Options{Spacing: 1})
	if err != nil {
		t.Fatal(err)
	}
	check(t, table, data.blob, data.want)
	if table.Spans() != 1 {
		t.Errorf("%d spans, want 1", table.Spans())
	}
	// Over too long a time there can be no table.
	data = treeless(t, MaxSpan/(128<<10)+1)
	if _, err = read(t, data.blob, data.want, Options{}); err == nil {
		t.Error("a table of a span of more than 64 MiB")
	}
}

type stream struct{ blob, want []byte }

// treeless returns a frame whose first block leaves a Huffman table, which a
// treeless block takes over after n stored ones.
func treeless(t *testing.T, n int) stream {
	t.Helper()
	rnd := rand.New(rand.NewPCG(1, 1))
	text := make([]byte, 2000) // literals that compress, and nothing that repeats
	for i := range text {
		text[i] = byte(rnd.IntN(1 + rnd.IntN(1+rnd.IntN(200))))
	}
	frame := run(t, text, "zstd", "-1", "--no-check", "-c")
	var h zstd.Header
	if err := h.Decode(frame); err != nil {
		t.Fatal(err)
	}
	body := frame[h.HeaderSize+3:]
	section := binary.LittleEndian.Uint32(body)
	if section&0xf != 2|2<<2 || int(section>>18)+4+1 != len(body) {
		t.Fatalf("not a block of Huffman literals alone: % x", body[:5])
	}
	tree := 1 + int(body[4]) // how long its description is
	if body[4] >= 128 {
		tree = 1 + (int(body[4])-127+1)/2
	}
	block := func(last, kind, size int) []byte {
		v := size<<3 | kind<<1 | last
		return []byte{byte(v), byte(v >> 8), byte(v >> 16)}
	}
	var s stream
	s.blob = append(s.blob, 0x28, 0xb5, 0x2f, 0xfd, 0, 7<<3)
	s.blob = append(append(s.blob, block(0, 2, len(body))...), body...)
	s.want = append(s.want, text...)
	stored := make([]byte, 128<<10)
	for i := range stored {
		stored[i] = byte(rnd.Uint32())
	}
	for range n {
		s.blob = append(append(s.blob, block(0, 0, len(stored))...), stored...)
		s.want = append(s.want, stored...)
	}
	// The section's kind is in the first two bits, its size in the last 14.
	s.blob = append(s.blob, block(1, 2, len(body)-tree)...)
	s.blob = binary.LittleEndian.AppendUint32(s.blob, (section|1)-uint32(tree)<<18)
	s.blob = append(s.blob, body[4+tree:]...)
	s.want = append(s.want, text...)
	return s
}

func TestZstdEmpty(t *testing.T) {
	t.Parallel()
	blob := klauspost(t, nil, zstd.WithZeroFrames(true))
	for _, blob := range [][]byte{blob, skippable(0), append(skippable(70_000), blob...)} {
		table, err := read(t, blob, nil, Options{})
		if err != nil || table.Spans() != 0 {
			t.Fatal(table, err)
		}
		check(t, table, blob, nil)
	}
}

func TestZstdErrorIsReturned(t *testing.T) {
	t.Parallel()
	blob := klauspost(t, farSample(2<<20))
	broken := errors.New("broken pipe")
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

// A checkpoint that was altered leads to the same bytes or to an error.
func TestZstdCheckpointAltered(t *testing.T) {
	t.Parallel()
	data := farSample(1 << 20)
	blob := klauspost(t, data)
	table, err := read(t, blob, data, Options{Spacing: 100_000})
	if err != nil {
		t.Fatal(err)
	}
	z, err := newZstdDecoder()
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(9, 9))
	s := table.At(3)
	state, err := z.states.DecodeAll(table.state(3), nil)
	if err != nil || len(state) == 0 {
		t.Fatal(len(state), err)
	}
	dst := make([]byte, s.Len)
	for range 300 {
		bad := bytes.Clone(state)
		bad[rnd.IntN(min(len(bad), 1+rnd.IntN(len(bad))))] ^= 1 << rnd.IntN(8)
		parsed, err := parseZstdState(bad)
		if err != nil {
			continue
		}
		if err := z.resume(parsed, blob[s.From:s.To], []part{{dst: dst}}); err == nil && !bytes.Equal(dst, data[s.Off:s.Off+s.Len]) {
			t.Fatal("wrong bytes")
		}
	}
}

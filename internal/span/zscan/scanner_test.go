package zscan

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os/exec"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"
)

const maxWindow = 128 << 20

// text is data with matches of all kinds, from near and far.
func text(size int) []byte {
	rnd := rand.New(rand.NewPCG(1, 2))
	var b []byte
	for len(b) < size {
		switch rnd.IntN(4) {
		case 0:
			for range rnd.IntN(3000) {
				b = append(b, byte(rnd.IntN(1+rnd.IntN(256))))
			}
		case 1:
			b = append(b, make([]byte, rnd.IntN(4000))...)
		default:
			for range rnd.IntN(200) {
				if len(b) > 100 {
					from := rnd.IntN(len(b) - 100)
					b = append(b, b[from:from+3+rnd.IntN(90)]...)
				}
				b = append(b, "literals"[:rnd.IntN(8)]...)
			}
		}
	}
	return b[:size]
}

func encode(t testing.TB, data []byte, o ...zstd.EOption) []byte {
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

// scan reads all of a stream and checks that its blocks lie end to end. It
// returns how much data there is.
func scan(r io.Reader) (data int64, blocks []Block, err error) {
	s := New(r, maxWindow)
	var b Block
	var pos int64
	for {
		s.Base = data
		err := s.Next(&b)
		if err == io.EOF {
			return data, blocks, nil
		}
		if err != nil {
			return data, blocks, err
		}
		if b.From != pos || b.To <= b.From || b.Off != data || b.Len < 0 || b.Len > MaxBlock {
			return data, blocks, errors.New("blocks do not lie end to end")
		}
		for _, r := range b.Refs {
			if r.Off < b.Start || r.Off < b.Off-b.Window || r.Len <= 0 || r.Off+int64(r.Len) > b.Off {
				return data, blocks, errors.New("a reference to elsewhere")
			}
		}
		if b.Uses&b.Sets != 0 || b.Uses&^b.Known != 0 {
			return data, blocks, errors.New("tables that cannot be")
		}
		pos, data = b.To, data+b.Len
		b.Refs = nil
		blocks = append(blocks, b)
	}
}

// A scanner counts the data of whatever an encoder writes, and reads to the
// last bit of every sequence on the way.
func TestScan(t *testing.T) {
	t.Parallel()
	data := text(3 << 20)
	streams := map[string][]byte{
		"empty":           encode(t, nil, zstd.WithZeroFrames(true)),
		"one byte":        encode(t, data[:1]),
		"small window":    encode(t, data, zstd.WithWindowSize(MinWindow)),
		"no checksum":     encode(t, data, zstd.WithEncoderCRC(false)),
		"stored literals": encode(t, data, zstd.WithNoEntropyCompression(true)),
		"one segment":     encode(t, data, zstd.WithSingleSegment(true)),
		"padded":          encode(t, data, zstd.WithEncoderPadding(1<<20)),
		"frames":          append(encode(t, data[:1<<20]), encode(t, data[1<<20:])...),
	}
	for _, l := range []zstd.EncoderLevel{zstd.SpeedFastest, zstd.SpeedDefault, zstd.SpeedBetterCompression, zstd.SpeedBestCompression} {
		streams["klauspost "+l.String()] = encode(t, data, zstd.WithEncoderLevel(l))
	}
	for _, level := range []string{"--fast=9", "-1", "-3", "-7", "-12", "-19", "--long=27"} {
		if _, err := exec.LookPath("zstd"); err != nil {
			t.Log("zstd is not installed")
			break
		}
		cmd := exec.Command("zstd", level, "-q", "-c")
		cmd.Stdin = bytes.NewReader(data)
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		streams["zstd "+level] = out
	}
	for name, blob := range streams {
		want := int64(len(data))
		switch name {
		case "empty":
			want = 0
		case "one byte":
			want = 1
		}
		for kind, r := range map[string]io.Reader{
			"whole": bytes.NewReader(blob), "by halves": iotest.HalfReader(bytes.NewReader(blob)), "data with EOF": iotest.DataErrReader(bytes.NewReader(blob)),
		} {
			n, blocks, err := scan(r)
			if err != nil || n != want {
				t.Errorf("%s, %s: %d bytes in %d blocks, want %d: %v", name, kind, n, len(blocks), want, err)
			}
			if len(blocks) == 0 || blocks[len(blocks)-1].To != int64(len(blob)) {
				t.Errorf("%s: blocks do not reach the end", name)
			}
		}
	}
}

// What frames' headers say is told.
func TestHeader(t *testing.T) {
	t.Parallel()
	data := text(1 << 20)
	for _, tt := range []struct {
		options  []zstd.EOption
		window   int64
		checksum bool
	}{
		{[]zstd.EOption{zstd.WithWindowSize(1 << 17)}, 1 << 17, true},
		{[]zstd.EOption{zstd.WithWindowSize(1 << 20), zstd.WithEncoderCRC(false)}, 1 << 20, false},
	} {
		_, blocks, err := scan(bytes.NewReader(encode(t, data, tt.options...)))
		if err != nil {
			t.Fatal(err)
		}
		for i, b := range blocks {
			if b.Window != tt.window || b.Checksum != tt.checksum || b.First != (i == 0) || b.Last != (i == len(blocks)-1) || b.Skippable {
				t.Errorf("block %d: %+v", i, b)
			}
		}
	}
	if w := WindowSize(10<<3 | 3); w != 1<<20+3<<17 {
		t.Error(w)
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	data := text(200_000)
	dict := bytes.Repeat([]byte("words of a dictionary "), 50)
	whole := encode(t, data)
	for _, tt := range []struct {
		name string
		blob []byte
		want error
	}{
		{"dictionary", encode(t, data, zstd.WithEncoderDictRaw(77, dict)), ErrUnsupported},
		{"window", []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 18 << 3}, ErrUnsupported},
		{"one large segment", []byte{0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0, 0, 0, 0, 0, 1}, ErrUnsupported},
		{"reserved bit", []byte{0x28, 0xb5, 0x2f, 0xfd, 8, 0}, ErrCorrupt},
		{"gzip", []byte{0x1f, 0x8b, 8, 0}, ErrCorrupt},
		{"garbage behind", append(bytes.Clone(whole), "garbage"...), ErrCorrupt},
		{"cut short", whole[:len(whole)-1], io.ErrUnexpectedEOF},
		{"cut in a skippable frame", []byte{0x50, 0x2a, 0x4d, 0x18, 9, 0, 0, 0, 1}, io.ErrUnexpectedEOF},
		{"reserved block", []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0, 6, 0, 0}, ErrCorrupt},
	} {
		if _, _, err := scan(bytes.NewReader(tt.blob)); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
}

// FuzzScan holds the scanner to the decoder: what that decodes, this must
// understand, and count the same.
func FuzzScan(f *testing.F) {
	data := text(30_000)
	f.Add(encode(f, data))
	f.Add(encode(f, data[:3000], zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false)))
	f.Add(encode(f, data, zstd.WithWindowSize(MinWindow)))
	f.Add(append(encode(f, data[:300]), encode(f, data[:40])...))
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(16<<20), zstd.IgnoreChecksum(true))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, blob []byte) {
		n, _, err := scan(bytes.NewReader(blob))
		if got, decoded := z.DecodeAll(blob, nil); decoded == nil && (err != nil || n != int64(len(got))) {
			t.Fatalf("decoded to %d bytes; scanned %d: %v", len(got), n, err)
		}
	})
}

func BenchmarkScan(b *testing.B) {
	blob := encode(b, text(20<<20))
	b.SetBytes(20 << 20)
	for b.Loop() {
		if _, _, err := scan(bytes.NewReader(blob)); err != nil {
			b.Fatal(err)
		}
	}
}

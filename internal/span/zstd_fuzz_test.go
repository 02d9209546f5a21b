package span

import (
	"bytes"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/imgfs/imgfs/internal/span/zscan"
)

// FuzzZstdStream reads any stream: what its table leads to, if it has one, is
// what the pass wrote.
func FuzzZstdStream(f *testing.F) {
	data := farSample(40_000)
	f.Add(klauspost(f, data))
	f.Add(klauspost(f, data, zstd.WithWindowSize(1<<10), zstd.WithEncoderLevel(zstd.SpeedFastest)))
	f.Add(append(append(skippable(10), klauspost(f, data[:500])...), klauspost(f, data[:5000], zstd.WithEncoderCRC(false))...))
	f.Fuzz(func(t *testing.T, blob []byte) {
		if c, err := detect(blob); err != nil || c != Zstd || claimsMuch(blob) {
			return
		}
		r := NewReader(bytes.NewReader(blob), Options{Spacing: 1})
		var out bytes.Buffer
		if _, err := r.WriteTo(&limited{w: &out, left: 8 << 20}); err != nil {
			return
		}
		table, err := r.Table(int64(len(blob)))
		if err != nil {
			return
		}
		if table.DataSize() != int64(out.Len()) {
			t.Fatalf("table of %d bytes, data of %d", table.DataSize(), out.Len())
		}
		for i := range table.Spans() {
			s := table.At(i)
			dst := make([]byte, s.Len)
			if err := table.Decode(i, blob[s.From:s.To], nil, dst); err != nil {
				t.Fatalf("span %d, %v: %v", i, s, err)
			}
			if !bytes.Equal(dst, out.Bytes()[s.Off:s.Off+s.Len]) {
				t.Fatalf("span %d, %v: wrong bytes", i, s)
			}
		}
	})
}

// claimsMuch reports whether the first frame asks for more memory than a fuzz
// worker should have.
func claimsMuch(blob []byte) bool {
	var h zstd.Header
	return h.Decode(blob) == nil && max(h.WindowSize, h.FrameContentSize) > 8<<20
}

// limited fails when more is written.
type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	if l.left -= len(p); l.left < 0 {
		return 0, io.ErrShortWrite
	}
	return l.w.Write(p)
}

// FuzzZstdState decodes with any state: it is refused, or its prologue is one
// that the decoder understands and that has the length promised.
func FuzzZstdState(f *testing.F) {
	for _, s := range []zstdState{
		{repeat: noRepeat},
		{window: 1, checksum: true, repeat: [3]uint32{1152, 1, 700}},
		{window: 8 << 3, repeat: [3]uint32{5, 6, 7}, runs: []zstdRun{{3, 5000}, {0, 1}, {2, 0}}, bytes: []byte("abcde")},
		{window: 13 << 3, repeat: [3]uint32{8 << 20, 1 << 20, 3}, runs: []zstdRun{{4, 8<<20 - 4}}, bytes: []byte("abcd")},
	} {
		f.Add(s.appendTo(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseZstdState(b)
		if err != nil || zscan.WindowSize(s.window) > 8<<20 {
			return
		}
		again, err := parseZstdState(s.appendTo(nil))
		if err != nil || !bytes.Equal(again.bytes, s.bytes) || len(again.runs) != len(s.runs) || again.repeat != s.repeat {
			t.Fatal("encoded again it is another state")
		}
		code, n := s.prologue(nil)
		const lastBlock = "\x01\x00\x00"
		z, err := zstd.NewReader(nil, zstd.IgnoreChecksum(true))
		if err != nil {
			t.Fatal(err)
		}
		defer z.Close()
		code = append(code, lastBlock...)
		if s.checksum {
			code = append(code, 0, 0, 0, 0)
		}
		got, err := z.DecodeAll(code, nil)
		if err != nil || int64(len(got)) != n {
			t.Fatalf("%d bytes, want %d: %v", len(got), n, err)
		}
		// The scanner, too, sees what the decoder then knows.
		sc := zscan.New(bytes.NewReader(code), maxZstdWindow)
		var block zscan.Block
		for !block.Last {
			if err := sc.Next(&block); err != nil {
				t.Fatal(err)
			}
		}
		if block.Repeat != s.repeat || block.Window != zscan.WindowSize(s.window) || block.Off != n || block.Checksum != s.checksum {
			t.Fatalf("the decoder is in the state %+v", block)
		}
		var window []byte
		for rest, i := s.bytes, 0; i < len(s.runs); i++ {
			window = append(window, rest[:s.runs[i].used]...)
			window = append(window, make([]byte, s.runs[i].gap)...)
			rest = rest[s.runs[i].used:]
		}
		if !bytes.HasSuffix(got, window) {
			t.Fatal("wrong window")
		}
	})
}

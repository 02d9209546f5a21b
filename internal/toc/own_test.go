package toc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/imgfs/imgfs/internal/layertar"
	"github.com/imgfs/imgfs/internal/span"
)

// ownIndex makes our index of a layer, as a first pass over it does.
func ownIndex(t testing.TB, blob, stream []byte) (layer, skeleton []byte, spans *span.Table) {
	t.Helper()
	_, skeleton, err := indexOf(t, stream)
	if err != nil {
		t.Fatal(err)
	}
	r := span.NewReader(bytes.NewReader(blob), span.Options{Spacing: 128 << 10, Step: 32 << 10})
	if _, err := r.WriteTo(io.Discard); err != nil {
		t.Fatal(err)
	}
	if spans, err = r.Table(int64(len(blob))); err != nil {
		t.Fatal(err)
	}
	return EncodeLayer(skeleton, spans), skeleton, spans
}

func TestOwnIndexGivesTheLayer(t *testing.T) {
	for _, l := range ztocCases() {
		blob, stream := l.read(t)
		layer, _, _ := ownIndex(t, blob, stream)
		x, err := Decode(Own, layer, Descriptor{Size: int64(len(blob))})
		if err != nil {
			t.Fatal(err)
		}
		if x.DataSize != int64(len(stream)) {
			t.Errorf("%s: %d bytes of %d", l.file, x.DataSize, len(stream))
		}
		want, _, _ := indexOf(t, stream)
		if got, err := filled(x.Fill); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: not the index of the stream: %v", l.file, err)
		}
		again, err := Reopen(x.Kind, x.Raw)
		if err != nil {
			t.Fatal(err)
		}
		for i := range x.Spans.Spans() {
			s := x.Spans.At(i)
			got := make([]byte, s.Len)
			if err := x.Spans.Decode(i, blob[s.From:s.To], stream[:s.Off], got); err != nil || !bytes.Equal(got, stream[s.Off:s.Off+s.Len]) {
				t.Errorf("%s, span %d: %v", l.file, i, err)
			}
			if err := again.Check(bytes.NewReader(stream), s.Off, s.Off+s.Len); err != nil {
				t.Errorf("%s, span %d: %v", l.file, i, err)
			}
		}
	}
}

func TestOwnIndexRefused(t *testing.T) {
	blob, stream := ztocCases()[0].read(t)
	layer, skeleton, spans := ownIndex(t, blob, stream)
	d := Descriptor{Size: int64(len(blob))}
	other := mustTar(t, "file a \"x\"\n")
	_, otherSkeleton, _ := indexOf(t, other)
	unproven := span.NewBuilder(span.Plain, int64(len(other)))
	if err := unproven.Add(span.Entry{Len: int64(len(other)), To: int64(len(other))}); err != nil {
		t.Fatal(err)
	}
	bare, err := unproven.Table()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		layer []byte
		d     Descriptor
	}{
		"nothing":             {nil, d},
		"another's":           {[]byte("imgfs layer 2\n"), d},
		"bytes behind":        {append(bytes.Clone(layer), 0), d},
		"of another blob":     {layer, Descriptor{Size: d.Size + 1}},
		"of another stream":   {EncodeLayer(otherSkeleton, spans), d},
		"spans without proof": {EncodeLayer(otherSkeleton, bare), Descriptor{Size: int64(len(other))}},
		"no skeleton":         {EncodeLayer(skeleton[1:], spans), d},
	} {
		if _, err := decodeLayer(c.layer, c.d); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for n := range len(layer) {
		if n > 200 && n < len(layer)-200 && n%97 > 0 {
			continue
		}
		if _, err := decodeLayer(layer[:n:n], d); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%d of %d bytes: %v", n, len(layer), err)
		}
	}
}

// TestProofFindsEveryHeader changes one byte of a stream after the other: the
// proof fails where it is a header's or an extended header's, and nowhere else.
func TestProofFindsEveryHeader(t *testing.T) {
	stream := mustTar(t, "dir d\nfile d/a \"payload\" xattr:user.a=b\nfile d/b size=700\nlink c d/b\nfile s sparse=1.0 size=5000 map=0+1,4096+4\n")
	meaning := make([]bool, len(stream))
	x, w := layertar.NewIndexer(layertar.Limits{}), NewSkeleton()
	x.Record(func(off int64, p []byte, first bool) {
		w.Record(off, p, first)
		for i := range p {
			meaning[off+int64(i)] = true
		}
	})
	if _, err := x.Write(stream); err != nil {
		t.Fatal(err)
	}
	skeleton, err := w.Finish(int64(len(stream)))
	if err != nil {
		t.Fatal(err)
	}
	s, err := parseSkeleton(skeleton)
	if err != nil {
		t.Fatal(err)
	}
	proof, size := s.Proof(), int64(len(stream))
	if err := proof.Check(bytes.NewReader(stream), 0, size); err != nil {
		t.Fatal(err)
	}
	for i := range stream {
		stream[i] ^= 4
		err := proof.Check(bytes.NewReader(stream), 0, size)
		if meaning[i] != errors.Is(err, ErrCorrupt) {
			t.Fatalf("byte %d, which is a header's: %v: %v", i, meaning[i], err)
		}
		// Who is about to read byte i, or one behind it, asks from its entry on.
		if start := proof.Start(int64(i)); start > int64(i) || start%blockSize != 0 {
			t.Fatalf("the entry of byte %d starts at %d", i, start)
		}
		if meaning[i] && proof.Check(bytes.NewReader(stream), int64(i), size) == nil {
			t.Fatalf("byte %d is not compared by who reads it", i)
		}
		stream[i] ^= 4
	}
	if err := proof.Check(unreadable{}, 0, size); !errors.Is(err, errUnreadable) || errors.Is(err, ErrCorrupt) {
		t.Errorf("bytes that cannot be read: %v", err)
	}
	if err := proof.Check(unreadable{}, 0, 100); err != nil {
		t.Errorf("a header that is not all there yet: %v", err)
	}
}

type unreadable struct{}

var errUnreadable = errors.New("the network is down")

func (unreadable) ReadAt([]byte, int64) (int, error) { return 0, errUnreadable }

// FuzzSkeleton makes skeletons of arbitrary streams, and of each an index and a
// proof.
func FuzzSkeleton(f *testing.F) {
	for _, text := range []string{
		"dir a\nfile a/b \"x\" xattr:user.a=b mtime=1.5\nlink c a/b\nsymlink d a\nfile d/e \"y\"\n",
		"file a sparse=old size=5000 map=0+1,9+1,20+1,30+1,40+1,512+512\n",
		"file a sparse=1.0 size=5000 map=0+1,4096+4\nfile b sparse=0.0 size=700 map=512+3\n",
		"char c 1:3 format=gnu base256=1\nglobal a=b\nfile v format=v7\nzeros 1024\nbytes \"x\"\n",
	} {
		f.Add(mustTar(f, text))
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		want, skeleton, err := indexOf(t, mended(stream))
		if err != nil {
			return
		}
		got, err := replay(skeleton)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("not the index of the stream: %v", err)
		}
		s, err := parseSkeleton(skeleton)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Proof().Check(bytes.NewReader(mended(stream)), 0, int64(len(stream))); err != nil {
			t.Fatal(err)
		}
	})
}

// mended gives every record that could be a header the checksum it needs.
func mended(stream []byte) []byte {
	stream = bytes.Clone(stream)
	for off := 0; off+blockSize <= len(stream); off += blockSize {
		if r := (*[blockSize]byte)(stream[off:]); string(r[257:262]) == "ustar" {
			sumForm(r[0]&1 + byte(sumSix)).put(r)
		}
	}
	return stream
}

// FuzzSkeletonBlock replays arbitrary columns. There is no panic, and pieces are
// in order and inside of the stream.
func FuzzSkeletonBlock(f *testing.F) {
	w := NewSkeleton()
	x := layertar.NewIndexer(layertar.Limits{})
	x.Record(w.Record)
	if _, err := x.Write(mustTar(f, "dir a\nfile a/b \"x\" xattr:user.a=b\nfile "+string(bytes.Repeat([]byte("n"), 120))+" format=gnu\n")); err != nil {
		f.Fatal(err)
	}
	var raw []byte
	for _, c := range w.cols {
		raw = binary.AppendUvarint(raw, uint64(len(c)))
		raw = append(raw, c...)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		const size = 1 << 20
		end := int64(0)
		r := pieceReader{size: size, f: func(off int64, p []byte, _ bool) error {
			if off < end || off+int64(len(p)) > size {
				t.Fatalf("a piece at %d behind %d", off, end)
			}
			end = off + int64(len(p))
			return nil
		}}
		if err := r.block(raw); err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
	})
}

// FuzzOwnIndex reads anything as our index of a layer.
func FuzzOwnIndex(f *testing.F) {
	stream := mustTar(f, "dir a\nfile a/b \"x\"\n")
	layer, _, _ := ownIndex(f, stream, stream)
	f.Add(layer)
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := decodeLayer(b, Descriptor{Size: int64(len(stream))})
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		filled(x.Fill)
		x.Proof.Check(bytes.NewReader(stream), 0, x.DataSize)
	})
}

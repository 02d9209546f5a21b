package toc

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/layertar"
)

// recorded is a piece of a skeleton as its writer is given it.
type recorded struct {
	off   int64
	b     []byte
	first bool
}

func piecesOf(t *testing.T, stream []byte) (pieces []recorded) {
	t.Helper()
	x := layertar.NewIndexer(layertar.Limits{})
	x.Record(func(off int64, p []byte, first bool) { pieces = append(pieces, recorded{off, bytes.Clone(p), first}) })
	if _, err := x.Write(stream); err != nil {
		t.Fatal(err)
	}
	return pieces
}

func skeletonOf(t *testing.T, size int64, pieces ...recorded) *Skeleton {
	t.Helper()
	w := NewSkeleton()
	for _, p := range pieces {
		w.Record(p.off, p.b, p.first)
	}
	b, err := w.Finish(size)
	if err != nil {
		t.Fatal(err)
	}
	s, err := parseSkeleton(b)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestProofBeginsWithTheEntry: who reads a byte of a payload has all headers of
// its entry compared, whatever is in them.
func TestProofBeginsWithTheEntry(t *testing.T) {
	// A PAX header whose body looks like a tar header.
	path := "19 path=usr/bin/sh\n"
	pax := path + pad(t, blockSize-len(path))
	header := mustTar(t, "file x size=512\n")[:blockSize]
	header[156] = 'x'
	sumSix.put((*[blockSize]byte)(header))
	looks := append(append(bytes.Clone(header), pax...), mustTar(t, "file a size=5000\n")...)
	if string(pax[257:262]) != "ustar" {
		t.Fatalf("%q", pax)
	}

	many := "file a sparse=old size=100000 map=0+1"
	for i := 1; i < 60; i++ {
		many += fmt.Sprintf(",%d+1", i*1000)
	}
	for name, stream := range map[string][]byte{
		"a body like a header": looks,
		"sparse, continued":    mustTar(t, many+"\n"),
		"sparse, map in data":  mustTar(t, "file a sparse=1.0 size=5000 map=0+1,4096+4\n"),
		"a long name":          mustTar(t, "file "+strings.Repeat("n", 120)+" \"payload\" format=gnu\n"),
		"attributes":           mustTar(t, "file a \"payload\" xattr:user.a=b mtime=1.5\n"),
	} {
		pieces := piecesOf(t, stream)
		s := skeletonOf(t, int64(len(stream)), pieces...)
		if _, err := filled(s.Fill); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		last := len(pieces) - 1
		for ; *(*[blockSize]byte)(stream[pieces[last].off:]) == [blockSize]byte{}; last-- {
		}
		if last == 0 {
			t.Fatalf("%s: one header", name)
		}
		payload := align(pieces[last].off + int64(len(pieces[last].b)))
		if got := s.Proof().Start(payload); got != 0 {
			t.Errorf("%s: the entry begins at byte %d", name, got)
		}
		for _, p := range pieces[:last+1] {
			lie := bytes.Clone(stream)
			lie[p.off] ^= 1
			if err := s.Proof().Check(bytes.NewReader(lie), payload, payload+1); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s: a change at byte %d is not found: %v", name, p.off, err)
			}
		}
	}
}

// pad returns PAX records of n bytes, with "ustar" at byte 257 of a body that
// begins with 512-n others.
func pad(t *testing.T, n int) string {
	t.Helper()
	b := []byte(fmt.Sprintf("%d comment=%s\n", n, strings.Repeat("x", n-len("000 comment=\n"))))
	copy(b[257-(512-n):], "ustar")
	if len(b) != n {
		t.Fatal(len(b), n)
	}
	return string(b)
}

// TestSkeletonLies gives skeletons that would have a Proof overlook headers:
// none may be taken.
func TestSkeletonLies(t *testing.T) {
	stream := mustTar(t, "file "+strings.Repeat("n", 120)+" format=gnu size=2048\nfile b \"x\"\n")
	honest := piecesOf(t, stream)
	size := int64(len(stream))
	if _, err := filled(skeletonOf(t, size, honest...).Fill); err != nil {
		t.Fatal(err)
	}
	with := func(i, n int, more ...recorded) []recorded {
		return append(append(honest[:i:i], more...), honest[i+n:]...)
	}
	long, body, header := honest[0], honest[1], honest[2]
	end := header.off + blockSize
	for name, pieces := range map[string][]recorded{
		"payload as a header":        with(3, 0, recorded{end, stream[end:][:blockSize], true}),
		"payload as part of one":     with(3, 0, recorded{end, stream[end:][:blockSize], false}),
		"nothing as a header":        with(3, 0, recorded{end + blockSize, nil, true}),
		"the second header as first": with(2, 1, recorded{header.off, header.b, true}),
		"the first header not first": with(3, 1, recorded{honest[3].off, honest[3].b, false}),
		"a header in two": with(0, 1, recorded{long.off, long.b[:256], true},
			recorded{long.off + 256, long.b[256:], false}),
		"a body in two": with(1, 1, recorded{body.off, body.b[:50], false},
			recorded{body.off + 50, body.b[50:], false}),
		"two headers in one": with(2, 1, recorded{header.off, stream[header.off:][:2*blockSize], false}),
		"a header left out":  with(3, 1),
		"bytes behind the end": append(honest[:len(honest):len(honest)],
			recorded{size - blockSize, stream[size-blockSize:], true}),
	} {
		if _, err := filled(skeletonOf(t, size, pieces...).Fill); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// TestSkeletonOfEndlessHeaders: comparing what belongs to one entry must not
// cost more than its payload could.
func TestSkeletonOfEndlessHeaders(t *testing.T) {
	long := mustTar(t, "file "+strings.Repeat("n", 120)+" format=gnu\n")[:2*blockSize]
	stream := append(bytes.Repeat(long, maxHeaders/blockSize), mustTar(t, "file a \"x\"\n")...)
	pieces := piecesOf(t, stream)
	w := NewSkeleton()
	for _, p := range pieces {
		w.Record(p.off, p.b, p.first)
	}
	if _, err := w.Finish(int64(len(stream))); err == nil {
		t.Error("written")
	}
	w = NewSkeleton() // a writer that lies
	for _, p := range pieces {
		w.entry = 0
		w.Record(p.off, p.b, p.first)
	}
	b, err := w.Finish(int64(len(stream)))
	if err != nil {
		t.Fatal(err)
	}
	s, err := parseSkeleton(b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := filled(s.Fill); !errors.Is(err, ErrCorrupt) {
		t.Errorf("taken: %v", err)
	}
}

// TestZtocOfHugeSizes: a size and a step that overflow when they are added must
// not make checkpoints for ever.
func TestZtocOfHugeSizes(t *testing.T) {
	z := ztocWriter{spanSize: 1 << 62, size: math.MaxInt64, blobSize: math.MaxInt64}
	b, err := z.encode("test")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parseZtoc(b); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("taken: %v", err)
	}
}

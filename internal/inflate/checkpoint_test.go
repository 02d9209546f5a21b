package inflate

import (
	"bytes"
	stdgzip "compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
)

// point is a checkpoint that was kept.
type point struct {
	Checkpoint
	used Used
}

// points decodes z and returns all borders that are so far apart that it is
// known which bytes of their windows are used.
func points(t testing.TB, z, want []byte) (all []*point) {
	t.Helper()
	r := NewReader(bytes.NewReader(z))
	r.OnBorder(func(c Checkpoint) *Used {
		if len(all) > 0 && c.Out-all[len(all)-1].Out < windowSize {
			return nil
		}
		if c.Bit > 8*r.Consumed() || c.Bit <= 8*(r.Consumed()-1) {
			t.Errorf("bit %d, and %d bytes consumed", c.Bit, r.Consumed())
		}
		c.Window = slices.Clone(c.Window)
		all = append(all, &point{Checkpoint: c})
		return &all[len(all)-1].used
	})
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, %v; want %d", len(got), err, len(want))
	}
	if r.Consumed() != int64(len(z)) {
		t.Errorf("%d bytes consumed of %d", r.Consumed(), len(z))
	}
	return all
}

// From every border the rest of the stream can be decoded, with nothing of the
// window but what was used.
func TestResume(t *testing.T) {
	t.Parallel()
	r := NewReader(nil)
	for name, text := range texts() {
		for _, level := range []int{stdgzip.HuffmanOnly, stdgzip.NoCompression, 1, 6, 9} {
			half := len(text) / 2
			z := append(deflate(t, text[:half], level), deflate(t, text[half:], level)...)
			for i, p := range points(t, z, text) {
				window := p.Window[len(p.Window)-p.Reach:]
				for k := range window {
					if at := windowSize - len(window) + k; p.used[at/64]>>(at%64)&1 == 0 {
						window[k] = 'X'
					}
				}
				r.Resume(bytes.NewReader(z[p.Bit/8:]), uint(p.Bit%8), window)
				got, err := io.ReadAll(r)
				if err != nil || !bytes.Equal(got, text[p.Out:]) {
					t.Fatalf("%s, level %d, point %d at bit %d: %d bytes, %v; want %d", name, level, i, p.Bit, len(got), err, int64(len(text))-p.Out)
				}
			}
		}
	}
}

// Nobody else's use of a window is noted, and what is noted is needed.
func TestUsedIsSparse(t *testing.T) {
	t.Parallel()
	text := texts()["prose"]
	used, windows := 0, 0
	for _, p := range points(t, deflate(t, text, 6), text)[1:] {
		windows += windowSize
		for i := range windowSize {
			used += int(p.used[i/64] >> (i % 64) & 1)
		}
	}
	if windows == 0 || used == 0 || used > windows/2 {
		t.Errorf("%d of %d bytes are used", used, windows)
	}
}

// ReadFull and Discard need no more input than up to the end of the block.
func TestReadFullStopsAtTheBlock(t *testing.T) {
	t.Parallel()
	text := texts()["prose"]
	z := deflate(t, text, 6)
	all := points(t, z, text)
	rnd := rand.New(rand.NewPCG(7, 8))
	r := NewReader(nil)
	for i := range all[1:] {
		from, to := all[i], all[i+1]
		blob := z[from.Bit/8 : (to.Bit+7)/8]
		want := text[from.Out:to.Out]
		skip := rnd.IntN(len(want))
		got := make([]byte, len(want)-skip)
		r.Resume(bytes.NewReader(blob), uint(from.Bit%8), from.Window)
		if err := errors.Join(r.Discard(int64(skip)), r.ReadFull(got)); err != nil || !bytes.Equal(got, want[skip:]) {
			t.Errorf("point %d: %v", i, err)
		}
		r.Resume(bytes.NewReader(blob[:len(blob)-4]), uint(from.Bit%8), from.Window)
		if err := r.Discard(int64(len(want))); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("point %d, cut: %v", i, err)
		}
	}
	r.Reset(bytes.NewReader(z))
	if err := r.Discard(int64(len(text)) + 1); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("more than there is: %v", err)
	}
	r.Resume(bytes.NewReader(nil), 5, nil)
	if err := r.Discard(1); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("no input: %v", err)
	}
}

// Whatever stream, window and bit: no panic, no hang, and a Reader that can be
// used again.
func FuzzResume(f *testing.F) {
	for _, b := range texts() {
		f.Add(deflate(f, b[:min(len(b), 3000)], 6)[10:], uint8(0), 0)
		f.Add(deflate(f, b[:min(len(b), 500)], stdgzip.HuffmanOnly)[11:], uint8(3), 1000)
	}
	r := NewReader(nil)
	good := deflate(f, []byte("good"), 6)
	f.Fuzz(func(t *testing.T, z []byte, bit uint8, window int) {
		size := max(0, window%(windowSize+1))
		r.Resume(bytes.NewReader(z), uint(bit%8), bytes.Repeat([]byte("w"), size))
		r.OnBorder(func(c Checkpoint) *Used {
			if c.Reach > len(c.Window) || len(c.Window) > windowSize || c.Bit > 8*int64(len(z)) {
				t.Fatalf("checkpoint at bit %d of %d, reach %d of %d", c.Bit, 8*len(z), c.Reach, len(c.Window))
			}
			return new(Used)
		})
		_, _ = io.Copy(io.Discard, io.LimitReader(r, 4<<20))
		r.Reset(bytes.NewReader(good))
		if b, err := io.ReadAll(r); string(b) != "good" {
			t.Fatalf("read %q afterwards, %v", b, err)
		}
	})
}

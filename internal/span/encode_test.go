package span

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"testing"
)

// Whatever breaks an invariant is refused, built or parsed.
func TestRefusedSpans(t *testing.T) {
	t.Parallel()
	good := Entry{Off: 100, Len: 50, From: 30, To: 60, Bits: 3, Window: []byte("window")}
	const size = 1000
	for _, tt := range []struct {
		name  string
		codec Codec
		alter func(*Entry)
	}{
		{"no data", Gzip, func(e *Entry) { e.Len = 0 }},
		{"negative data", Gzip, func(e *Entry) { e.Len = -1 }},
		{"too much data", Gzip, func(e *Entry) { e.Len = MaxSpan + 1 }},
		{"data goes back", Gzip, func(e *Entry) { e.Off = 99 }},
		{"offset overflows", Gzip, func(e *Entry) { e.Off = 1<<63 - 10 }},
		{"no blob bytes", Gzip, func(e *Entry) { e.To = e.From }},
		{"blob bytes go back", Gzip, func(e *Entry) { e.From = 19 }},
		{"blob bytes end before the last did", Gzip, func(e *Entry) { e.From, e.To = 25, 29 }},
		{"beyond the blob", Gzip, func(e *Entry) { e.To = size + 1 }},
		{"negative skip", Gzip, func(e *Entry) { e.Skip = -1 }},
		{"absurd skip", Gzip, func(e *Entry) { e.Skip = MaxSpan + 1 }},
		{"bit 8", Gzip, func(e *Entry) { e.Bits = 8 }},
		{"long window", Gzip, func(e *Entry) { e.Window = make([]byte, Window+1) }},
		{"window before a header", Gzip, func(e *Entry) { e.Header, e.Bits = true, 0 }},
		{"bits before a header", Gzip, func(e *Entry) { e.Header, e.Window = true, nil }},
		{"header in zstd", Zstd, func(e *Entry) { e.Header, e.Bits, e.Window = true, 0, nil }},
		{"bits in zstd", Zstd, func(e *Entry) {}},
		{"window without compression", Plain, func(e *Entry) { e.Bits, e.To = 0, e.From+e.Len }},
		{"other length without compression", Plain, func(e *Entry) { e.Bits, e.Window = 0, nil }},
		{"unknown codec", 3, func(e *Entry) { e.Bits, e.Window = 0, nil }},
	} {
		b := NewBuilder(tt.codec, size)
		first := Entry{Off: 0, Len: 100, From: 20, To: 30, Header: tt.codec == Gzip}
		if tt.codec == Plain {
			first.Len = 10
		}
		if err := b.Add(first); (err != nil) != (tt.codec == 3) {
			t.Fatalf("%s: first span: %v", tt.name, err)
		}
		e := good
		tt.alter(&e)
		if err := b.Add(e); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	b := NewBuilder(Gzip, 1000)
	sum := sha256.Sum256(nil)
	for _, e := range []Entry{
		{Len: 100, From: 20, To: 30, Header: true, Blob: &sum},
		{Off: 100, Len: 50, From: 30, To: 60, Bits: 3, Window: []byte("window"), Data: &sum, Skip: 7},
	} {
		if err := b.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	table, err := b.Table()
	if err != nil {
		t.Fatal(err)
	}
	code := table.Encode()
	body := code[:len(code)-4]
	for n := range len(body) {
		if _, err := Parse(sealed(body[:n])); !errors.Is(err, ErrCorrupt) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
		flipped := bytes.Clone(code)
		flipped[n] ^= 0x10
		if _, err := Parse(flipped); !errors.Is(err, ErrCorrupt) {
			t.Errorf("byte %d changed: %v", n, err)
		}
	}
	if _, err := Parse(sealed(append(bytes.Clone(body), 0))); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a byte too many: %v", err)
	}
	if _, err := Parse(sealed(append([]byte(magic), byte(Zstd)+1, 0, 0))); !errors.Is(err, ErrCorrupt) {
		t.Errorf("an unknown codec: %v", err)
	}
	many := append([]byte(magic), byte(Gzip), 1)
	many = binary.AppendUvarint(many, 1<<40)
	if _, err := Parse(sealed(many)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("more spans than bytes: %v", err)
	}
}

// sealed returns an encoded table whose checksum is right.
func sealed(body []byte) []byte {
	return binary.LittleEndian.AppendUint32(bytes.Clone(body), checksum(body))
}

// Only what follows its predecessor at once is a step.
func TestRefusedSteps(t *testing.T) {
	t.Parallel()
	var sum [sha256.Size]byte
	first := Entry{Off: 0, Len: Window, From: 0, To: 30_000, Header: true}
	good := Entry{Off: Window, Len: 50_000, From: 29_999, To: 60_000, Bits: 3, Step: true, Blob: &sum}
	for name, alter := range map[string]func(first, e *Entry, c *Codec){
		"":               func(first, e *Entry, c *Codec) {},
		"zstd":           func(first, e *Entry, c *Codec) { first.Header, e.Bits, e.From, *c = false, 0, 30_000, Zstd },
		"first of all":   func(first, e *Entry, c *Codec) { first.Header, first.Step, first.Blob = false, true, &sum },
		"header":         func(first, e *Entry, c *Codec) { e.Header, e.Bits, e.From = true, 0, 30_000 },
		"window":         func(first, e *Entry, c *Codec) { e.Window = []byte("window") },
		"skip":           func(first, e *Entry, c *Codec) { e.Skip = 1 },
		"no digest":      func(first, e *Entry, c *Codec) { e.Blob, e.Data = nil, &sum },
		"gap in data":    func(first, e *Entry, c *Codec) { e.Off++ },
		"gap in blob":    func(first, e *Entry, c *Codec) { e.From++ },
		"byte twice":     func(first, e *Entry, c *Codec) { e.Bits = 0 },
		"no byte":        func(first, e *Entry, c *Codec) { e.To = 30_000 },
		"no full window": func(first, e *Entry, c *Codec) { first.Len--; e.Off-- },
		"run too long":   func(first, e *Entry, c *Codec) { e.Len = MaxSpan - Window + 1 },
	} {
		first, e, c := first, good, Gzip
		alter(&first, &e, &c)
		b := NewBuilder(c, 1<<30)
		err := b.Add(first)
		if err == nil {
			err = b.Add(e)
		}
		if (err == nil) != (name == "") || err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	b := NewBuilder(Gzip, 1<<30)
	if err := b.Add(first); err != nil {
		t.Fatal(err)
	}
	for i := range int64(maxSteps + 1) {
		e := Entry{Off: Window + i, Len: 1, From: 30_000 + i, To: 30_001 + i, Step: true, Blob: &sum}
		if err := b.Add(e); (err == nil) != (i < maxSteps) {
			t.Fatalf("step %d: %v", i, err)
		}
	}
	table, err := b.Table()
	if err != nil {
		t.Fatal(err)
	}
	for i, first := range map[int]int{0: 0, 1: 0, 2: 0, maxSteps: 0} {
		if got := table.Needs(i); got != first {
			t.Errorf("span %d needs those from %d on", i, got)
		}
	}
}

// A window that unpacks to more than gzip has is refused before it is.
func TestHostileWindow(t *testing.T) {
	t.Parallel()
	p := newPacker()
	for name, state := range map[string][]byte{
		"bomb":    p.pack(nil, make([]byte, 64<<20)),
		"noise":   []byte("\x28\xb5\x2f\xfd no frame"),
		"no zstd": []byte("window"),
	} {
		table := &Table{codec: Gzip, blobSize: 100, states: state}
		if err := table.add(Span{0, 10, 0, 20}, 0, flagState, len(state)); err != nil {
			t.Fatal(err)
		}
		if err := table.Decode(0, make([]byte, 20), nil, make([]byte, 10)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Whatever table and blob: no panic, nothing accepted that a digest denies,
// and a table that is accepted encodes to one that is the same.
func FuzzParse(f *testing.F) {
	data := sample(100_000)
	var noise bytes.Buffer
	for _, blob := range [][]byte{data, member(f, data), append(member(f, data[:40_000]), member(f, data[40_000:])...)} {
		r := NewReader(bytes.NewReader(blob), Options{Spacing: Window})
		noise.Reset()
		if _, err := r.WriteTo(&noise); err != nil {
			f.Fatal(err)
		}
		table, err := r.Table(int64(len(blob)))
		if err != nil {
			f.Fatal(err)
		}
		code := table.Encode()
		f.Add(code[:len(code)-4], blob)
	}
	f.Fuzz(func(t *testing.T, body, blob []byte) {
		table, err := Parse(sealed(body))
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		again, err := Parse(table.Encode())
		if err != nil || again.Spans() != table.Spans() || again.DataSize() != table.DataSize() || again.Codec() != table.Codec() {
			t.Fatalf("encoded and parsed again: %v", err)
		}
		prev, before := Span{}, make([]byte, Window)
		for i := range min(table.Spans(), 100) {
			s := table.At(i)
			if s.Off < prev.Off+prev.Len || s.From < prev.From || s.To < prev.To || s.To > table.BlobSize() || s != again.At(i) {
				t.Fatalf("span %d: %v after %v", i, s, prev)
			}
			if at := table.Find(s.Off); at != i {
				t.Fatalf("span %d is found at %d", i, at)
			}
			if first, n := table.Group(i); first > i || first+n <= i {
				t.Fatalf("span %d is of a group of %d from %d", i, n, first)
			}
			if first := table.Needs(i); first < i && (table.At(first).Off > s.Off-Window || prev.Off+prev.Len != s.Off) {
				t.Fatalf("span %d needs those from %d on", i, first)
			}
			prev = s
			if s.Len > 1<<20 || s.To > int64(len(blob)) || table.rest[i].skip > 1<<20 {
				continue
			}
			piece, dst := blob[s.From:s.To], make([]byte, s.Len)
			if err := table.Decode(i, piece, before, dst); err != nil {
				if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrDigest) {
					t.Fatal(err)
				}
				continue
			}
			blobSum, dataSum := table.digests(i)
			if got := sha256.Sum256(piece); blobSum != nil && !bytes.Equal(got[:], blobSum) {
				t.Fatal("blob bytes of another digest were accepted")
			}
			if got := sha256.Sum256(dst); dataSum != nil && !bytes.Equal(got[:], dataSum) {
				t.Fatal("data of another digest was accepted")
			}
		}
	})
}

package span

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"testing"
)

// member returns a gzip member of data.
func member(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Spans that a foreign table of contents knows: members, parts of members,
// gaps between.
func TestMembersAsSpans(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 300_000)
	for i := range data {
		data[i] = byte(rnd.IntN(20))
	}
	one, two := member(t, data[:100_000]), member(t, data[100_000:])
	blob := append(bytes.Clone(one), two...)
	cut := int64(len(one))
	end := int64(len(blob))
	sum := sha256.Sum256(data[250_000:])
	b := NewBuilder(Gzip, end)
	for _, e := range []Entry{
		{Off: 0, Len: 100_000, From: 0, To: cut, Header: true},
		{Off: 100_096, Len: 150_000, From: cut, To: end, Header: true},
		{Off: 300_032, Len: 50_000, From: cut, To: end, Header: true, Skip: 150_000, Data: &sum},
	} {
		if err := b.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	table, err := b.Table()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse(table.Encode())
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range []*Table{table, again} {
		for i, want := range [][]byte{data[:100_000], data[100_000:250_000], data[250_000:]} {
			s := table.At(i)
			got := make([]byte, s.Len)
			if err := table.Decode(i, blob[s.From:s.To], nil, got); err != nil || !bytes.Equal(got, want) {
				t.Errorf("span %d: %v", i, err)
			}
		}
		if first, n := table.Group(2); first != 1 || n != 2 {
			t.Errorf("group of span 2: %d spans from %d", n, first)
		}
		two, three := make([]byte, 150_000), make([]byte, 50_000)
		if err := table.DecodeGroup(1, blob[cut:], nil, [][]byte{two, three}); err != nil || !bytes.Equal(append(two, three...), data[100_000:]) {
			t.Errorf("group: %v", err)
		}
		for off, want := range map[int64]int{0: 0, 99_999: 0, 100_000: 1, 100_096: 1, 250_100: 2, 350_031: 2, 350_032: 3} {
			if got := table.Find(off); got != want {
				t.Errorf("data byte %d: span %d, want %d", off, got, want)
			}
		}
		bad := bytes.Clone(blob[cut:])
		bad[len(bad)*7/8] ^= 4
		if err := table.Decode(2, bad, nil, make([]byte, 50_000)); !errors.Is(err, ErrDigest) {
			t.Errorf("a changed byte: %v", err)
		}
	}
}

package span

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The blobs of testdata/zinfo have these checkpoints according to
// generate_zinfo_from_file of soci-snapshotter, with spans of 10,000 bytes.
func TestZinfoIsWhatSOCIMakes(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"gzip":    "37968b9e6be4133198c130b040c8c88856bab5ee18e00d3698ca2dc026003e44",
		"pigz":    "5b972e4133c638abda9456038aa72775f77a0f26d8e1af0f36f2612854d4c854",
		"members": "21f19d15936982f900bb008147d1428b2ee339324e1a77663f8e6500d86a28f0",
		"bgzip":   "1c2e056489de28da7845008b3a456049db0f936c98a30e7640f578829d6bba12",
	} {
		blob, err := os.ReadFile(filepath.Join("testdata", "zinfo", name+".gz"))
		if err != nil {
			t.Fatal(err)
		}
		z := NewZinfo(bytes.NewReader(blob), 10_000)
		var data bytes.Buffer
		if _, err := z.WriteTo(&data); err != nil {
			t.Fatal(err)
		}
		if got := sha256.Sum256(z.Encode()); hex.EncodeToString(got[:]) != want {
			t.Errorf("%s: %d points, encoded %x", name, len(z.Points()), got)
		}
		// Its points are spans from which the data can be had again.
		b := NewBuilder(Gzip, int64(len(blob)))
		points := z.Points()
		for i, p := range points {
			e := Entry{Off: p.Out, From: p.From(), Bits: uint8(-p.Bits & 7), Window: p.Window, Blob: &z.Sums()[i]}
			e.Len, e.To = int64(data.Len())-p.Out, int64(len(blob))
			if i+1 < len(points) {
				e.Len, e.To = points[i+1].Out-p.Out, points[i+1].In
			}
			if e.Len == 0 {
				continue
			}
			if err := b.Add(e); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		table, err := b.Table()
		if err != nil {
			t.Fatal(err)
		}
		check(t, table, blob, data.Bytes())
	}
}

// A blob of empty blocks must not make a window of each.
func TestZinfoOfManyEmptyBlocks(t *testing.T) {
	t.Parallel()
	blob := append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}, bytes.Repeat([]byte{0, 0, 0, 0xff, 0xff}, 100_000)...)
	blob = append(blob, 1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0)
	z := NewZinfo(bytes.NewReader(blob), 10_000)
	if _, err := z.WriteTo(io.Discard); err == nil || len(z.Points()) > maxEmpty {
		t.Errorf("%d points, %v", len(z.Points()), err)
	}
	if table, err := read(t, blob, nil, Options{}); err != nil || table.Spans() != 0 {
		t.Error(table, err)
	}
}

// A header that is too long to be kept must not make a border without a point.
func TestZinfoOfALongHeader(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Name = strings.Repeat("n", 300_000)
	for range 3 {
		w.Write([]byte("data"))
		w.Flush()
	}
	w.Close()
	z := NewZinfo(&b, 1)
	z.src.max = 1000
	if _, err := z.WriteTo(io.Discard); err == nil {
		t.Error("taken")
	}
}

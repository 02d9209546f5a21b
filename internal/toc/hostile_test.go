package toc

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/layertar"
	"github.com/klauspost/compress/zstd"
)

// stargzOf makes a layer of 1000 bytes of payload, and a TOC that is JSON of
// the test's.
func stargzOf(t testing.TB, json string) ([]byte, Descriptor) {
	t.Helper()
	b := gzipOf(t, make([]byte, 600), make([]byte, 400))
	at := len(b)
	var toc bytes.Buffer
	z := gzip.NewWriter(&toc)
	w := tar.NewWriter(z)
	if err := w.WriteHeader(&tar.Header{Name: estargzName, Size: int64(len(json)), Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, json)
	w.Close()
	z.Close()
	b = append(append(b, toc.Bytes()...), footer(fmt.Sprintf("SG\x16\x00%016xSTARGZ", at))...)
	return b, describe(b, typeGzip, map[string]string{noteTOCDigest: string(id.BlobOf([]byte(json)))})
}

// gzipOf compresses each part as a member of its own.
func gzipOf(t testing.TB, parts ...[]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, p := range parts {
		z := gzip.NewWriter(&b)
		z.Write(p)
		z.Close()
	}
	return b.Bytes()
}

// footer is an empty gzip member with an extra field.
func footer(extra string) []byte {
	b := binary.LittleEndian.AppendUint16([]byte("\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff"), uint16(len(extra)))
	return append(append(b, extra...), "\x01\x00\x00\xff\xff\x00\x00\x00\x00\x00\x00\x00\x00"...)
}

const aSum = "sha256:ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb" // of "a"

// TestLyingTOC gives tables of contents that lie. None may be taken.
func TestLyingTOC(t *testing.T) {
	reg := func(more string) string {
		return `{"entries":[{"type":"reg","name":"a","digest":"` + aSum + `",` + more + `}]}`
	}
	for name, tt := range map[string]struct{ json, want string }{
		"no JSON":                {`nothing`, "malformed"},
		"cut":                    {`{"entries":[`, "unexpected EOF"},
		"a list":                 {`[]`, "malformed"},
		"no entries":             {`{"version":1}`, "no list of entries"},
		"entries twice":          {`{"entries":[],"Entries":[]}`, "two lists"},
		"data behind":            {`{"entries":[]} x`, "behind the end"},
		"deep":                   {`{"x":` + strings.Repeat("[", 1000) + strings.Repeat("]", 1000) + `,"entries":[]}`, "too deep"},
		"entries of another":     {`{"entries":[1]}`, "malformed"},
		"type unknown":           {`{"entries":[{"type":"socket","name":"a"}]}`, "unknown type"},
		"type missing":           {`{"entries":[{"name":"a"}]}`, "without a type"},
		"name not UTF-8":         {`{"entries":[{"type":"dir","name":"\ufffd"}]}`, "not UTF-8"},
		"name of bytes":          {"{\"entries\":[{\"type\":\"dir\",\"name\":\"\xff\"}]}", "not UTF-8"},
		"time":                   {`{"entries":[{"type":"dir","name":"a","modtime":"yesterday"}]}`, "parsing time"},
		"xattr":                  {`{"entries":[{"type":"dir","name":"a","xattrs":{"user.a":"?"}}]}`, "base64"},
		"digest of another kind": {`{"entries":[{"type":"reg","name":"a","size":1,"offset":10,"digest":"sha512:00"}]}`, "not a sha256"},
		"digest missing":         {`{"entries":[{"type":"reg","name":"a","size":1,"offset":10}]}`, "no digest"},
		"size negative":          {reg(`"size":-1,"offset":10`), "size -1"},
		"size huge":              {reg(`"size":4611686018427387904,"offset":10`), "size 4611686018427387904"},
		"size beyond 64 bits":    {reg(`"size":99999999999999999999,"offset":10`), "64 bits"},
		"size fractional":        {reg(`"size":1.5,"offset":10`), "malformed"},
		"sizes sum to much":      {`{"entries":[` + strings.Repeat(`{"type":"reg","name":"a","size":60000000,"offset":10,"digest":"`+aSum+`"},`, 40000) + `{"type":"dir","name":"d"}]}`, "size 60000000"},
		"chunk large":            {reg(`"size":100000000,"offset":10`), "limit"},
		"offset missing":         {reg(`"size":1`), "chunk at 0"},
		"offset negative":        {reg(`"size":1,"offset":-5`), "chunk at -5"},
		"offset behind payload":  {reg(`"size":1,"offset":1000000`), "blob bytes"},
		"offset in the TOC":      {reg(`"size":1,"offset":60`), "blob bytes"},
		"inner offset negative":  {reg(`"size":1,"offset":10,"innerOffset":-1`), "-1 bytes behind"},
		"inner offset huge":      {reg(`"size":1,"offset":10,"innerOffset":1000000000000`), "skip"},
		"offsets go back":        {`{"entries":[{"type":"reg","name":"a","size":1,"offset":20,"digest":"` + aSum + `"},{"type":"reg","name":"b","size":1,"offset":10,"digest":"` + aSum + `"}]}`, "blob bytes"},
		"chunk of no file":       {`{"entries":[{"type":"chunk","name":"a","offset":10,"chunkSize":1,"chunkDigest":"` + aSum + `"}]}`, "chunk of no file"},
		"chunk missing":          {reg(`"size":2,"offset":10,"chunkSize":1,"chunkDigest":"` + aSum + `"`), "only 1 of the 2"},
		"chunk with a gap":       {`{"entries":[{"type":"reg","name":"a","size":3,"offset":10,"chunkSize":1,"chunkDigest":"` + aSum + `"},{"type":"chunk","name":"a","offset":11,"chunkOffset":2,"chunkSize":1,"chunkDigest":"` + aSum + `"}]}`, "are left at 1"},
		"chunk too many":         {`{"entries":[{"type":"reg","name":"a","size":1,"offset":10,"digest":"` + aSum + `"},{"type":"chunk","name":"a","offset":11,"chunkOffset":1,"chunkSize":1,"chunkDigest":"` + aSum + `"}]}`, "chunk of no file"},
		"chunk type":             {reg(`"size":1,"offset":10,"chunkType":"ones"`), "unknown type"},
	} {
		blob, d := stargzOf(t, tt.json)
		x, err := Open(t.Context(), &memBlob{b: blob}, d)
		if !errors.Is(err, ErrCorrupt) || x != nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

// TestLyingEntries: what only the layer index knows is refused when entries
// are entered, and data that is not what was promised when it is decoded.
func TestLyingEntries(t *testing.T) {
	for name, tt := range map[string]struct{ json, fill, data string }{
		"name long":     {`{"entries":[{"type":"dir","name":"` + strings.Repeat("a", 300) + `"}]}`, "300", ""},
		"name with NUL": {`{"entries":[{"type":"dir","name":"a\u0000b"}]}`, "NUL", ""},
		"root a file":   {`{"entries":[{"type":"fifo","name":"/../"}]}`, "", ""},
		"owner":         {`{"entries":[{"type":"dir","name":"a","uid":4294967296}]}`, "owner", ""},
		"data":          {`{"entries":[{"type":"reg","name":"a","size":1,"offset":10,"digest":"` + aSum + `"}]}`, "", "digest"},
		"data short":    {`{"entries":[{"type":"reg","name":"a","size":60000,"offset":10,"digest":"` + aSum + `"}]}`, "", "digest"},
	} {
		blob, d := stargzOf(t, tt.json)
		x, err := Open(t.Context(), &memBlob{b: blob}, d)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		to := layertar.NewIndexer(layertar.Limits{})
		if err := x.Fill(to); (err == nil) != (tt.fill == "") || err != nil && !strings.Contains(err.Error(), tt.fill) {
			t.Errorf("%s: %v, want %q", name, err, tt.fill)
		}
		if _, err := data(x, blob); (err == nil) != (tt.data == "") || err != nil && !strings.Contains(err.Error(), tt.data) {
			t.Errorf("%s: %v, want %q", name, err, tt.data)
		}
	}
}

// TestLargeTOC: one that is larger than it may be is not read to its end,
// whatever it says of its size.
func TestLargeTOC(t *testing.T) {
	var toc bytes.Buffer
	w := tar.NewWriter(&toc)
	if err := w.WriteHeader(&tar.Header{Name: estargzName, Size: maxTOC + 1, Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenExternal(Descriptor{Size: 1000}, gzipOf(t, toc.Bytes())); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "bytes where") {
		t.Error(err)
	}
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	frame := z.EncodeAll([]byte(`{"entries":[]`+strings.Repeat(" ", maxTOC)+`}`), nil)
	blob := append(make([]byte, frameHeader), frame...)
	d := describe(blob, typeZstd, map[string]string{noteContainers + notePosition: fmt.Sprintf("8:%d:100:1", len(frame))})
	if _, err := Open(t.Context(), &memBlob{b: blob}, d); !errors.Is(err, ErrCorrupt) {
		t.Error(err)
	}
}

// TestFooters: what announces a TOC and has none is not read as one.
func TestFooters(t *testing.T) {
	good, d := stargzOf(t, `{"entries":[]}`)
	if _, err := Open(t.Context(), &memBlob{b: good}, d); err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(good, []byte("STARGZ")) - 16
	legacy := append(bytes.Clone(good[:len(good)-51]), footer(string(good[at:at+22]))...)
	with := func(change func(b []byte) []byte) []byte { return change(bytes.Clone(good)) }
	other := map[string]string{noteTOCDigest: aSum}
	for _, tt := range []struct {
		name  string
		blob  []byte
		notes map[string]string
		want  error // nil: it is read
	}{
		{"current", good, d.Annotations, nil},
		{"legacy", legacy, d.Annotations, nil},
		{"external", append(good[:len(good)-51:len(good)-51], footer("SG\x11\x00STARGZEXTERNALTOC")...), other, ErrExternal},
		{"none", good[:len(good)-51], other, ErrNone},
		{"empty", nil, other, ErrNone},
		{"short", good[len(good)-50:], other, ErrNone},
		{"another digest", good, other, ErrCorrupt},
		{"digest malformed", good, map[string]string{noteTOCDigest: "sha256:../x"}, ErrCorrupt},
		{"no number", with(func(b []byte) []byte { copy(b[at:], "xxxxxxxxxxxxxxxx"); return b }), other, ErrCorrupt},
		{"negative", with(func(b []byte) []byte { copy(b[at:], "-000000000000001"); return b }), other, ErrCorrupt},
		{"behind the end", with(func(b []byte) []byte { copy(b[at:], "7fffffffffffffff"); return b }), other, ErrCorrupt},
		{"at the start", with(func(b []byte) []byte { copy(b[at:], "0000000000000000"); return b }), other, ErrCorrupt},
		{"in the payload", with(func(b []byte) []byte { copy(b[at:], "0000000000000005"); return b }), other, ErrCorrupt},
		{"another file", with(func(b []byte) []byte { copy(b[at:], fmt.Sprintf("%016x", len(gzipOf(t, make([]byte, 600))))); return b }), other, ErrCorrupt},
	} {
		x, err := Open(t.Context(), &memBlob{b: tt.blob}, describe(tt.blob, typeGzip, tt.notes))
		if tt.want == nil && (err != nil || x == nil) || !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
}

// TestChunkedPlaces: the same for positions and footers of zstd:chunked.
func TestChunkedPlaces(t *testing.T) {
	var out bytes.Buffer
	w, err := WriteZstdChunked(t.Context(), &out, bytes.NewReader(tarOf(t, "file a size=100")))
	if err != nil {
		t.Fatal(err)
	}
	blob := out.Bytes()
	const position, checksum = noteContainers + notePosition, noteContainers + noteChecksum
	good := w.Annotations[position]
	field := func(i int, v string) string {
		f := strings.Split(good, ":")
		f[i] = v
		return strings.Join(f, ":")
	}
	for _, tt := range []struct {
		position, checksum string
		blob               []byte
		want               error
	}{
		{good, w.Annotations[checksum], blob, nil},
		{good, aSum, blob, ErrCorrupt},
		{good, "x", blob, ErrCorrupt},
		{"", aSum, blob, ErrCorrupt}, // found by the footer
		{"", "", blob[:len(blob)-1], ErrNone},
		{"", "", nil, ErrNone},
		{"1:2:3", aSum, blob, ErrCorrupt},
		{"x", aSum, blob, ErrCorrupt},
		{field(0, "-1"), "", blob, ErrCorrupt},
		{field(0, "0"), "", blob, ErrCorrupt},
		{field(0, "99999999"), "", blob, ErrCorrupt},
		{field(0, "12"), "", blob, ErrCorrupt},
		{field(1, "0"), "", blob, ErrCorrupt},
		{field(1, "9223372036854775807"), "", blob, ErrCorrupt},
		{field(1, "5"), "", blob, ErrCorrupt},
		{field(2, "999999999"), "", blob, ErrCorrupt},
		{field(3, "2"), "", blob, ErrNone},
	} {
		notes := map[string]string{position: tt.position, checksum: tt.checksum}
		if tt.position == "" {
			notes[noteTOCDigest] = aSum
		}
		if _, err := Open(t.Context(), &memBlob{b: tt.blob}, describe(tt.blob, typeZstd, notes)); !errors.Is(err, tt.want) {
			t.Errorf("%q %q: %v, want %v", tt.position, tt.checksum, err, tt.want)
		}
	}
	if err := func() error {
		m := &memBlob{b: blob[:100]} // the network fails, not the layer
		d := describe(blob, typeZstd, w.Annotations)
		_, err := Open(t.Context(), m, d)
		return err
	}(); err == nil || errors.Is(err, ErrCorrupt) || errors.Is(err, ErrNone) {
		t.Error(err)
	}
}

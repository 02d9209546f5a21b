package toc

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"

	"github.com/imgfs/imgfs/internal/imgtest"
	"github.com/imgfs/imgfs/internal/layertar"
	"github.com/imgfs/imgfs/internal/span"
)

// fuzzLimits bound what one input costs.
var fuzzLimits = layertar.Limits{Entries: 1 << 12, Memory: 1 << 24}

// FuzzJSON compares the reader of JSON with encoding/json: both read the same
// entries, or both refuse them.
func FuzzJSON(f *testing.F) {
	for _, s := range []string{
		`{"entries":[{"type":"reg","name":"a\u00e4\ud83d\ude00\n","size":-12,"xattrs":{"user.a":"YQ=="}}]}`,
		`{"Entries":[{"TYPE":"x","linkName":null,"unknown":[1.5e3,{"a":[true,false,null]}],"mode":420}, {}]}`,
		`{"version":1}`, `[]`, `{"entries":[{"size":01}]}`, `{"entries":[{"size":1.0}]}`, `{"entries":[]} `, "{\"entries\":[{\"name\":\"\x01\"}]}",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		type entry struct {
			Type, Name, LinkName, Digest     string
			Size, Mode, Offset, ChunkOffset  int64
			InnerOffset, DevMajor, EndOffset int64
		}
		var got, want struct{ Entries []entry }
		read := func(r io.Reader) error {
			got.Entries = nil
			j := newJSONReader(r)
			text := func(p *string) error {
				b, err := j.bytes()
				if b != nil {
					*p = string(b)
				}
				return err
			}
			number := func(p *int64) error {
				if null, err := j.null(); null || err != nil {
					return err
				}
				n, err := j.number()
				*p = n
				return err
			}
			err := j.object(func(key []byte) error {
				if !bytes.EqualFold(key, []byte("entries")) {
					return j.skip(jsonDepth)
				}
				got.Entries = []entry{}
				return j.array(func() error {
					got.Entries = append(got.Entries, entry{})
					e := &got.Entries[len(got.Entries)-1]
					return j.object(func(key []byte) error {
						switch strings.ToLower(string(key)) {
						case "type":
							return text(&e.Type)
						case "name":
							return text(&e.Name)
						case "linkname":
							return text(&e.LinkName)
						case "digest":
							return text(&e.Digest)
						case "size":
							return number(&e.Size)
						case "mode":
							return number(&e.Mode)
						case "offset":
							return number(&e.Offset)
						case "chunkoffset":
							return number(&e.ChunkOffset)
						case "inneroffset":
							return number(&e.InnerOffset)
						case "devmajor":
							return number(&e.DevMajor)
						case "endoffset":
							return number(&e.EndOffset)
						}
						return j.skip(jsonDepth)
					})
				})
			})
			if err != nil {
				return err
			}
			return j.end()
		}
		err := read(bytes.NewReader(b))
		first, _ := json.Marshal(got)
		if again := read(iotest.OneByteReader(bytes.NewReader(b))); (again == nil) != (err == nil) {
			t.Fatalf("%v, but in pieces %v", err, again)
		}
		if second, _ := json.Marshal(got); err == nil && !bytes.Equal(first, second) {
			t.Fatalf("%s, but in pieces %s", first, second)
		}
		wantErr := json.Unmarshal(b, &want)
		switch {
		case !utf8.Valid(b) || bytes.Contains(bytes.ToLower(b), []byte(`\ud`)): // halves of pairs are refused here
		case bytes.Contains(b, []byte("ſ")) || bytes.Contains(b, []byte("\u212a")): // keys that fold beyond ASCII
		case bytes.Contains(b, []byte(`\u`)): // the same, escaped
		case bytes.Count(bytes.ToLower(b), []byte("entries")) > 1 || strings.HasPrefix(strings.TrimSpace(string(b)), "null"):
		case bytes.Contains(b, []byte("null")): // for a list or an object
		case err == nil && wantErr != nil, err != nil && wantErr == nil && strings.Count(string(b), "[")+strings.Count(string(b), "{") < jsonDepth && len(b) < jsonString:
			t.Fatalf("%v, encoding/json %v", err, wantErr)
		case err == nil:
			if second, _ := json.Marshal(want); !bytes.Equal(first, second) && len(want.Entries)+len(got.Entries) > 0 {
				t.Fatalf("%s, encoding/json %s", first, second)
			}
		}
	})
}

// FuzzTable takes any JSON as a TOC. What it becomes, if anything, keeps the
// rules: data lies inside of the data file, spans inside of the blob.
func FuzzTable(f *testing.F) {
	for _, s := range []string{
		`{"entries":[{"type":"dir","name":"d"},{"type":"reg","name":"d/a","size":3,"offset":10,"chunkSize":2,"chunkDigest":"` + aSum + `"},{"type":"chunk","offset":20,"chunkOffset":2,"chunkSize":1,"chunkDigest":"` + aSum + `"},{"type":"hardlink","name":"l","linkName":"d/a"}]}`,
		`{"entries":[{"type":"reg","name":".prefetch.landmark","size":1,"offset":10,"digest":"` + aSum + `"},{"type":"reg","name":"a","size":1,"offset":10,"innerOffset":512,"endOffset":15,"digest":"` + aSum + `","modtime":"2020-01-01T00:00:00.5Z"}]}`,
		`{"entries":[{"type":"reg","name":"a","size":5000,"offset":10,"chunkSize":4000,"chunkType":"zeros"},{"type":"chunk","offset":30,"chunkOffset":4000,"chunkDigest":"` + aSum + `"}]}`,
	} {
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, b []byte, gz bool) {
		table := table{landmarks: gz}
		if _, err := table.read(bytes.NewReader(b)); err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		codec := span.Zstd
		if gz {
			codec = span.Gzip
		}
		const size, end = 1 << 20, 1<<20 - 100
		x, err := table.index(Index{}, codec, size, end)
		if err != nil {
			return
		}
		if n := x.Spans.DataSize(); n > x.DataSize || x.DataSize%blockSize != 0 {
			t.Fatalf("data up to %d of %d", n, x.DataSize)
		}
		for i := range x.Spans.Spans() {
			if s := x.Spans.At(i); s.To > end || s.Off < 0 {
				t.Fatalf("span %+v", s)
			}
		}
		for _, r := range x.Prefetch {
			if r.Off < 0 || r.Len <= 0 || r.Off+r.Len > x.DataSize {
				t.Fatalf("prefetch %+v of %d", r, x.DataSize)
			}
		}
		to := layertar.NewIndexer(fuzzLimits)
		if x.Fill(to) == nil {
			to.Finish(io.Discard, "")
		}
	})
}

// FuzzOpen takes any bytes as a layer that announces a TOC.
func FuzzOpen(f *testing.F) {
	blob, _ := stargzOf(f, `{"entries":[{"type":"dir","name":"d"}]}`)
	f.Add(blob, "")
	f.Add(append(blob[:len(blob)-51:len(blob)-51], footer("SG\x11\x00STARGZEXTERNALTOC")...), "")
	var out bytes.Buffer
	w, err := WriteZstdChunked(f.Context(), &out, bytes.NewReader(tarOf(f, "file a size=100")))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(out.Bytes(), "")
	f.Add(out.Bytes(), w.Annotations[noteContainers+notePosition])
	f.Fuzz(func(t *testing.T, b []byte, position string) {
		for _, mediaType := range []string{typeGzip, typeZstd} {
			d := describe(b, mediaType, map[string]string{noteTarSize: "1", noteContainers + notePosition: position})
			if position == "" {
				d.Annotations[noteTOCDigest] = aSum
			}
			x, err := Open(t.Context(), &memBlob{b: b}, d)
			if (err == nil) != (x != nil) || err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNone) {
				t.Fatalf("%v %v", x, err)
			}
		}
	})
}

// FuzzOpenTar takes any bytes as a plain tar: the tree is that of the stream.
func FuzzOpenTar(f *testing.F) {
	for _, c := range imgtest.Cases(f, "../../testdata") {
		f.Add(c.Layers[0])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := OpenTar(t.Context(), &memBlob{b: b}, describe(b, typeTar, nil))
		want, wantErr := listTar(b)
		if err != nil {
			if wantErr == nil && !errors.Is(err, ErrNone) {
				t.Fatalf("%v, but it is a tar", err)
			}
			return
		}
		to := layertar.NewIndexer(layertar.Limits{})
		if err := x.Fill(to); err != nil {
			if wantErr == nil {
				t.Fatal(err)
			}
			return // it ends too early
		}
		got, err := listIndexer(to, b)
		if (err == nil) != (wantErr == nil) || got != want {
			t.Fatalf("%v, want %v:\n%s\n%s", err, wantErr, got, want)
		}
	})
}

package layertar

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// added makes an index of what archive/tar reads in a stream, by Add. ok is
// false where an entry cannot be told by an [Entry].
func added(stream []byte) (index []byte, sum Summary, ok bool, err error) {
	in := bytes.NewReader(stream)
	r := tar.NewReader(in)
	x := NewIndexer(Limits{})
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		} else if err != nil {
			return nil, sum, false, nil
		}
		e := Entry{
			Name: h.Name, Link: h.Linkname, Type: h.Typeflag, Mode: h.Mode, UID: int64(h.Uid), GID: int64(h.Gid), Size: h.Size,
			Mtime: h.ModTime.Unix(), Nsec: uint32(h.ModTime.Nanosecond()), Major: h.Devmajor, Minor: h.Devminor,
			Off: int64(len(stream) - in.Len()),
		}
		for _, k := range slices.Sorted(maps.Keys(h.PAXRecords)) {
			if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
				e.Xattrs = append(e.Xattrs, erofs.Xattr{Name: name, Value: []byte(h.PAXRecords[k])})
			} else if strings.HasPrefix(k, "GNU.sparse.") || strings.HasPrefix(k, "LIBARCHIVE.") || strings.HasPrefix(k, "SCHILY.dev") || k == "SCHILY.filetype" {
				return nil, sum, false, nil
			}
		}
		if h.Typeflag == typeGlobal || h.Typeflag == typeSparse {
			return nil, sum, false, nil
		}
		if err := x.Add(&e); err != nil {
			return nil, sum, true, err
		}
	}
	x.SetSize(int64(len(stream)))
	var out bytes.Buffer
	sum, err = x.Finish(&out, "tag")
	return out.Bytes(), sum, true, err
}

// TestAddIsWrite compares the index of a stream with the one made of its
// entries: the same bytes, or both are refused.
func TestAddIsWrite(t *testing.T) {
	streams := map[string][]byte{}
	for _, c := range imgtest.Cases(t, "../../testdata") {
		for i, l := range c.Layers {
			streams[fmt.Sprint(c.Name, " layer ", i)] = l
		}
	}
	for i := range 50 {
		streams[fmt.Sprint("random ", i)] = randomTar(rand.New(rand.NewPCG(3, uint64(i))), 40)
	}
	compared := 0
	for name, stream := range streams {
		got, gotSum, ok, err := added(stream)
		if !ok {
			continue
		}
		compared++
		want, sum, text := indexInPieces(stream, func() int { return len(stream) })
		switch {
		case text != "" || err != nil:
			if (text != "") != (err != nil) {
				t.Errorf("%s: written: %q, added: %v", name, text, err)
			} else if fault.KindOf(err) != fault.Integrity {
				t.Errorf("%s: %v is %v", name, err, fault.KindOf(err))
			}
		case !bytes.Equal(got, want) || fmt.Sprint(gotSum) != fmt.Sprint(sum):
			t.Errorf("%s: added: %+v, written: %+v", name, gotSum, sum)
		}
	}
	if compared < 60 {
		t.Errorf("only %d of %d streams compared", compared, len(streams))
	}
}

func TestAddRefuses(t *testing.T) {
	file := func(change func(e *Entry)) Entry {
		e := Entry{Name: "a", Type: typeReg, Size: 10, Off: 512}
		change(&e)
		return e
	}
	for _, c := range []struct {
		e    Entry
		want string
	}{
		{file(func(e *Entry) { e.Name = "a\x00b" }), "NUL"},
		{file(func(e *Entry) { e.Type, e.Link = typeSymlink, "a\x00" }), "NUL"},
		{file(func(e *Entry) { e.Off = 513 }), "data of 10 bytes at 513"},
		{file(func(e *Entry) { e.Off = -512 }), "data of 10 bytes at -512"},
		{file(func(e *Entry) { e.Off = maxDevice &^ (blockSize - 1) }), "data of 10 bytes"},
		{file(func(e *Entry) { e.Size = -1 }), "size -1"},
		{file(func(e *Entry) { e.Size = 1 << 62 }), "beyond what an index can address"},
		{file(func(e *Entry) { e.Nsec = 1e9 }), "nanoseconds"},
		{file(func(e *Entry) { e.UID = 1 << 40 }), "does not fit 32 bits"},
		{file(func(e *Entry) { e.Type = typeSparse }), "does not stand for a file"},
		{file(func(e *Entry) { e.Type = typePAX }), "does not stand for a file"},
		{file(func(e *Entry) { e.Xattrs = []erofs.Xattr{{}} }), "extended attribute"},
		{file(func(e *Entry) { e.Xattrs = []erofs.Xattr{{Name: "user.\x00"}} }), "extended attribute"},
		{file(func(e *Entry) { e.Name = strings.Repeat("n", 300) }), "name of 300 bytes"},
	} {
		x := NewIndexer(Limits{})
		err := x.Add(&c.e)
		if err == nil || !strings.Contains(err.Error(), c.want) || fault.KindOf(err) != fault.Integrity {
			t.Errorf("%+v: %v, want %q", c.e, err, c.want)
		}
		if again := x.Add(&Entry{Name: "b", Type: typeDir}); !errors.Is(again, err) {
			t.Errorf("after %v an entry is taken: %v", err, again)
		}
	}
	x := NewIndexer(Limits{})
	if err := x.Add(&Entry{Name: "a", Type: typeReg, Size: 10, Off: 512}); err != nil {
		t.Fatal(err)
	}
	x.SetSize(521)
	if _, err := x.Finish(io.Discard, "tag"); err == nil || !strings.Contains(err.Error(), "data file of 521 bytes") {
		t.Errorf("data behind the end: %v", err)
	}
}

// replayed writes to an Indexer what another recorded, and skips the rest in
// steps of at most most bytes.
func replayed(stream []byte, most int64) ([]byte, Summary, error) {
	type piece struct {
		off int64
		b   []byte
	}
	var pieces []piece
	rec := NewIndexer(Limits{})
	rec.Record(func(off int64, p []byte, _ bool) { pieces = append(pieces, piece{off, bytes.Clone(p)}) })
	if _, err := rec.Write(stream); err != nil {
		return nil, Summary{}, err
	}
	x := NewIndexer(Limits{})
	pos := int64(0)
	skipTo := func(off int64) error {
		for pos < off {
			n := min(off-pos, most)
			if err := x.Skip(n); err != nil {
				return err
			}
			pos += n
		}
		return nil
	}
	for _, p := range pieces {
		if !bytes.Equal(stream[p.off:p.off+int64(len(p.b))], p.b) {
			return nil, Summary{}, fmt.Errorf("at %d other bytes were recorded than written", p.off)
		}
		if p.off > pos && x.Payload() != p.off-pos {
			return nil, Summary{}, fmt.Errorf("at %d: %d bytes of payload, the next piece is at %d", pos, x.Payload(), p.off)
		}
		if err := skipTo(p.off); err != nil {
			return nil, Summary{}, err
		}
		if _, err := x.Write(p.b); err != nil {
			return nil, Summary{}, err
		}
		pos += int64(len(p.b))
	}
	if err := skipTo(int64(len(stream))); err != nil {
		return nil, Summary{}, err
	}
	var out bytes.Buffer
	sum, err := x.Finish(&out, "tag")
	return out.Bytes(), sum, err
}

// TestRecordReplays checks that what is recorded makes the same index.
func TestRecordReplays(t *testing.T) {
	streams := map[string][]byte{"random": randomTar(rand.New(rand.NewPCG(7, 7)), 40)}
	for _, c := range imgtest.Cases(t, "../../testdata") {
		streams[c.Name] = c.Layers[len(c.Layers)-1]
		streams[c.Name+", padded"] = append(bytes.Clone(streams[c.Name]), make([]byte, 9000)...)
	}
	for name, stream := range streams {
		want, sum, text := indexInPieces(stream, func() int { return len(stream) })
		if text != "" {
			continue
		}
		for _, most := range []int64{1 << 40, 700, 1} {
			got, gotSum, err := replayed(stream, most)
			if err != nil || !bytes.Equal(got, want) || fmt.Sprint(gotSum) != fmt.Sprint(sum) {
				t.Errorf("%s, skipping %d: %+v, %v, want %+v", name, most, gotSum, err, sum)
			}
		}
	}
}

func TestSkipRefuses(t *testing.T) {
	b, err := imgtest.Tar("file a \"payload\"\nfile b \"x\"\n")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ written, skip int64 }{{0, 1}, {512, 513}, {512, -1}, {515, 510}, {1000, 100}, {100, 1}} {
		x := NewIndexer(Limits{})
		if _, err := x.Write(b[:c.written]); err != nil {
			t.Fatal(err)
		}
		if err := x.Skip(c.skip); err == nil || fault.KindOf(err) != fault.Integrity {
			t.Errorf("%d bytes skipped behind %d: %v", c.skip, c.written, err)
		}
		if _, err := x.Write(nil); err == nil {
			t.Error("nothing is refused after that")
		}
	}
}

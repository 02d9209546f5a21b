package layerdb

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
)

const sample = `dir etc
file etc/hosts "127.0.0.1 localhost\n"
file big size=700001
file a hello
symlink b a
`

// skippable is a zstd skippable frame.
func skippable(n byte, body string) []byte {
	b := []byte{0x50 | n, 0x2a, 0x4d, 0x18, 0, 0, 0, 0}
	binary.LittleEndian.PutUint32(b[4:], uint32(len(body)))
	return append(b, body...)
}

// withHeader replaces the 10-byte header of a gzip stream by one with every
// optional field.
func withHeader(gz []byte) []byte {
	h := []byte{0x1f, 0x8b, 8, 0x1e, 1, 2, 3, 4, 0, 255}
	h = append(h, 5, 0, 'e', 'x', 't', 'r', 'a')
	h = append(h, strings.Repeat("n", 2000)+"\x00comment\x00"...)
	h = binary.LittleEndian.AppendUint16(h, uint16(crc32.ChecksumIEEE(h)))
	return append(h, gz[10:]...)
}

// TestEnsure passes real streams of every kind, made by the programs that make
// them in the field.
func TestEnsure(t *testing.T) {
	t.Parallel()
	stream := tarOf(t, sample)
	run := func(command ...string) func(t *testing.T) []byte {
		return func(t *testing.T) []byte { return pipe(t, stream, command...) }
	}
	parts := func(t *testing.T, command ...string) (a, b []byte) {
		return pipe(t, stream[:300000], command...), pipe(t, stream[300000:], command...)
	}
	gz := func(t *testing.T) []byte { return pipe(t, stream, "gzip", "-n") }
	zst := func(t *testing.T) []byte { return pipe(t, stream, "zstd", "-q") }
	for _, tt := range []struct {
		name string
		blob func(t *testing.T) []byte
		err  string     // part of the error, "" for none
		kind fault.Kind // of that error
	}{
		{name: "gzip -1", blob: run("gzip", "-1")},
		{name: "gzip -9", blob: run("gzip", "-9")},
		{name: "pigz", blob: run("pigz", "-p4", "-b128")},
		{name: "pigz with independent blocks", blob: run("pigz", "-i", "-b128")},
		{name: "gzip of stored blocks", blob: run("pigz", "-0")},
		{name: "gzip of several members", blob: func(t *testing.T) []byte { a, b := parts(t, "gzip"); return append(a, b...) }},
		{name: "gzip with an empty member", blob: func(t *testing.T) []byte {
			a, b := parts(t, "gzip")
			return bytes.Join([][]byte{a, b}, pipe(t, nil, "gzip"))
		}},
		{name: "gzip with all header fields", blob: func(t *testing.T) []byte { return withHeader(gz(t)) }},
		{name: "gzip, zeros behind it", blob: func(t *testing.T) []byte { return append(gz(t), make([]byte, 1000)...) }},
		{name: "gzip, garbage behind it", blob: func(t *testing.T) []byte { return append(gz(t), "garbage"...) }},
		{name: "gzip, half a member behind it", err: "unexpected EOF", kind: fault.Integrity,
			blob: func(t *testing.T) []byte { g := gz(t); return append(g, g[:len(g)/2]...) }},
		{name: "zstd -1", blob: run("zstd", "-1")},
		{name: "zstd -19", blob: run("zstd", "-19")},
		{name: "zstd --long=27", blob: run("zstd", "--long=27")},
		{name: "zstd --long=28", blob: run("zstd", "--long=28"), err: "window size exceeded: more than 128 MiB", kind: fault.Invalid},
		{name: "zstd without checksum", blob: run("zstd", "--no-check")},
		{name: "zstd of several frames", blob: func(t *testing.T) []byte { a, b := parts(t, "zstd"); return append(a, b...) }},
		{name: "zstd, skippable frames first, between and last", blob: func(t *testing.T) []byte {
			a, b := parts(t, "zstd")
			return bytes.Join([][]byte{nil, a, b, nil}, append(skippable(0, ""), skippable(15, "TOC")...))
		}},
		{name: "zstd, garbage behind it", blob: func(t *testing.T) []byte { return append(zst(t), "garbage"...) },
			err: "magic", kind: fault.Integrity},
		{name: "plain", blob: run("cat")},
		{name: "bzip2", blob: run("bzip2")},
		{name: "xz", blob: run("xz")},
		{name: "lz4", blob: func(*testing.T) []byte { return []byte("\x04\x22\x4d\x18....") }, err: "lz4 compression is not supported", kind: fault.Invalid},
		{name: "nothing", blob: func(*testing.T) []byte { return nil }, err: "wrong diff id", kind: fault.Integrity},
		{name: "one byte of gzip", blob: func(*testing.T) []byte { return []byte{0x1f} }, err: "wrong diff id", kind: fault.Integrity},
		{name: "gzip's magic alone", blob: func(*testing.T) []byte { return []byte{0x1f, 0x8b} }, err: "gzip: unexpected EOF", kind: fault.Integrity},
		{name: "zstd's magic alone", blob: func(*testing.T) []byte { return []byte{0x28, 0xb5, 0x2f, 0xfd} }, err: "zstd: ", kind: fault.Integrity},
		{name: "text", blob: func(*testing.T) []byte { return []byte("<html>not found</html>") }, err: "wrong diff id", kind: fault.Integrity},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			blob := tt.blob(t)
			p := newPlace(t)
			spec := specOf(blob, stream)
			_, existed, err := p.Ensure(context.Background(), spec, nil)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || fault.KindOf(err) != tt.kind {
					t.Errorf("error %v (%v), want %q (%v)", err, fault.KindOf(err), tt.err, tt.kind)
				}
				p.nothing()
				return
			}
			if err != nil || existed {
				t.Fatalf("existed %v, error %v", existed, err)
			}
			data, err := os.ReadFile(filepath.Join(p.layerDir(spec.DiffID.Key()), "data"))
			if err != nil || !bytes.Equal(data, stream) {
				t.Errorf("data is not the stream (%v)", err)
			}
			got, err := p.content(spec.DiffID.Key(), "big")
			if err != nil || !bytes.Equal(got, imgtest.Pattern(700001)) {
				t.Errorf("file read through the index differs (%v)", err)
			}
			if len(p.names("tmp")) > 0 {
				t.Errorf("left in tmp/: %q", p.names("tmp"))
			}
			if p.ByBlob(spec.Blob) != spec.DiffID.Key() {
				t.Error("blob is not known to be that layer's")
			}
			if _, existed, err := p.Ensure(context.Background(), spec, nil); !existed || err != nil {
				t.Errorf("again: existed %v, error %v", existed, err)
			}
		})
	}
}

// TestPromises breaks each promise that a manifest and a config make.
func TestPromises(t *testing.T) {
	t.Parallel()
	stream := tarOf(t, sample)
	blob := pipe(t, stream, "gzip")
	other := tarOf(t, "file evil 1\n")
	otherBlob := pipe(t, other, "gzip")
	body := func(b []byte) func(context.Context) (io.ReadCloser, error) { return (&source{blob: b}).open }
	reset := errors.New("connection reset by peer")
	for _, tt := range []struct {
		name  string
		wrong func(s *Spec)
		err   string
		kind  fault.Kind
	}{
		{"blob of another digest and the same size", func(s *Spec) {
			b := bytes.Clone(blob)
			b[len(b)/2] ^= 1
			s.Open = body(b)
		}, "filesystem layer verification failed for digest " + string(id.BlobOf(blob)) + ": what arrived is sha256:", fault.Integrity},
		{"another layer's blob", func(s *Spec) { s.Open, s.Size = body(otherBlob), int64(len(otherBlob)) },
			"filesystem layer verification failed for digest " + string(id.BlobOf(blob)) + ": what arrived is " + string(id.BlobOf(otherBlob)), fault.Integrity},
		{"short body", func(s *Spec) { s.Open = body(blob[:len(blob)-9]) },
			fmt.Sprintf("ends after %d of the %d bytes its manifest says", len(blob)-9, len(blob)), fault.Integrity},
		{"empty body", func(s *Spec) { s.Open = body(nil) }, "ends after 0 of", fault.Integrity},
		{"long body", func(s *Spec) { s.Open = body(append(bytes.Clone(blob), 0)) },
			fmt.Sprintf("longer than the %d bytes its manifest says", len(blob)), fault.Integrity},
		{"wrong diffID", func(s *Spec) { s.DiffID = id.DiffIDFrom(sha256.Sum256(other)) },
			"wrong diff id calculated on extraction: the image config says " + string(id.DiffIDFrom(sha256.Sum256(other))) +
				", the content is " + string(id.DiffIDFrom(sha256.Sum256(stream))), fault.Integrity},
		{"wrong diffID, blob unknown", func(s *Spec) { s.Blob, s.Size, s.DiffID = "", 0, id.DiffIDFrom(sha256.Sum256(other)) },
			"wrong diff id", fault.Integrity},
		{"blob that is a path", func(s *Spec) { s.Blob = "sha256:../../../../etc" }, "digest", fault.Invalid},
		{"diffID that is a path", func(s *Spec) { s.DiffID = "sha256:../../../../etc" }, "digest", fault.Invalid},
		{"cannot be opened", func(s *Spec) {
			s.Open = func(context.Context) (io.ReadCloser, error) { return nil, fault.New(fault.Denied, "denied") }
		}, "denied", fault.Denied},
		{"breaks off", func(s *Spec) {
			s.Open = func(context.Context) (io.ReadCloser, error) {
				return io.NopCloser(io.MultiReader(bytes.NewReader(blob[:100]), failing{reset})), nil
			}
		}, "connection reset by peer", fault.Failed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			spec := specOf(blob, stream)
			tt.wrong(&spec)
			_, _, err := p.Ensure(context.Background(), spec, nil)
			if err == nil || !strings.Contains(err.Error(), tt.err) || fault.KindOf(err) != tt.kind {
				t.Errorf("error %v (%v), want %q (%v)", err, fault.KindOf(err), tt.err, tt.kind)
			}
			p.nothing()
			if p.ByBlob(spec.Blob) != "" {
				t.Error("the blob is on record")
			}
			// The failure is not remembered.
			if _, _, err := p.Ensure(context.Background(), specOf(blob, stream), nil); err != nil {
				t.Errorf("the honest layer after it: %v", err)
			}
		})
	}
}

// TestDamagedOnTheWay: a blob that arrives damaged is opened once more, which
// may well lead to another mirror; one that is damaged again is not.
func TestDamagedOnTheWay(t *testing.T) {
	t.Parallel()
	stream := tarOf(t, sample)
	good := pipe(t, stream, "gzip")
	bad := bytes.Clone(good)
	bad[len(bad)/2] ^= 1
	for _, tt := range []struct {
		name   string
		bodies [][]byte
		ok     bool
	}{
		{"damaged, good", [][]byte{bad, good}, true},
		{"short, good", [][]byte{good[:50], good}, true},
		{"damaged, damaged, good", [][]byte{bad, bad, good}, false},
	} {
		p := newPlace(t)
		spec, opened := specOf(good, stream), 0
		spec.Open = func(context.Context) (io.ReadCloser, error) {
			opened++
			return io.NopCloser(bytes.NewReader(tt.bodies[opened-1])), nil
		}
		_, _, err := p.Ensure(context.Background(), spec, nil)
		if tt.ok != (err == nil) || opened != 2 {
			t.Errorf("%s: opened %d times, error %v", tt.name, opened, err)
		}
		if !tt.ok {
			p.nothing()
		}
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// TestDamage cuts and flips streams at many places, once as damage on the way
// (the manifest names the good blob), once as an image that is bad at its
// source (the manifest names the bad one).
func TestDamage(t *testing.T) {
	t.Parallel()
	stream := tarOf(t, sample)
	p := newPlace(t)
	for _, c := range [][]string{{"gzip", "-n"}, {"zstd", "-q"}, {"cat"}} {
		blob := pipe(t, stream, c...)
		damage := func(name string, bad []byte) {
			t.Helper()
			spec := specOf(blob, stream)
			spec.Open = (&source{blob: bad}).open
			_, _, err := p.Ensure(context.Background(), spec, nil)
			if fault.KindOf(err) != fault.Integrity {
				t.Errorf("%s, %s on the way: %v, want an integrity error", c[0], name, err)
			}
			spec.Blob, spec.Size = id.BlobOf(bad), int64(len(bad))
			_, _, err = p.Ensure(context.Background(), spec, nil)
			if err == nil {
				// A bit that means nothing, such as a header's time: what is
				// stored is the stream all the same.
				if _, err := p.Verify(context.Background(), spec.DiffID.Key(), false); err != nil {
					t.Errorf("%s, %s at its source: %v", c[0], name, err)
				}
				if _, err := p.GC(context.Background()); err != nil {
					t.Fatal(err)
				}
			} else if k := fault.KindOf(err); k != fault.Integrity && k != fault.Invalid {
				t.Errorf("%s, %s at its source: %v (%v)", c[0], name, err, k)
			}
		}
		for i := range 25 {
			at := i * len(blob) / 25
			if i > 12 {
				at = len(blob) - 1 - (i-13)*3
			}
			damage(fmt.Sprintf("cut at %d", at), blob[:at])
			bad := bytes.Clone(blob)
			bad[at] ^= 1 << (i % 8)
			damage(fmt.Sprintf("flip at %d", at), bad)
		}
	}
	p.nothing()
}

// TestHostileImage has an image claim another's diffID.
func TestHostileImage(t *testing.T) {
	t.Parallel()
	good, evil := tarOf(t, "file passwd good\n"), tarOf(t, "file passwd evil\n")
	d1 := id.DiffIDFrom(sha256.Sum256(good))
	d2 := id.DiffIDFrom(sha256.Sum256(evil))
	hostile := specOf(pipe(t, evil, "gzip"), evil)
	hostile.DiffID = d1

	t.Run("claims it first", func(t *testing.T) {
		t.Parallel()
		p := newPlace(t)
		if _, _, err := p.Ensure(context.Background(), hostile, nil); fault.KindOf(err) != fault.Integrity {
			t.Errorf("error %v, want an integrity error", err)
		}
		p.nothing()
		if p.Has(d1.Key()) || p.Has(d2.Key()) {
			t.Error("something is stored under a diffID")
		}
		if _, _, err := p.Ensure(context.Background(), specOf(good, good), nil); err != nil {
			t.Fatal(err)
		}
		if got, err := p.content(d1.Key(), "passwd"); string(got) != "good" {
			t.Errorf("content %q (%v)", got, err)
		}
	})
	t.Run("comes second", func(t *testing.T) {
		t.Parallel()
		p := newPlace(t)
		if _, _, err := p.Ensure(context.Background(), specOf(good, good), nil); err != nil {
			t.Fatal(err)
		}
		if _, existed, err := p.Ensure(context.Background(), hostile, nil); !existed || err != nil {
			t.Errorf("existed %v, error %v", existed, err)
		}
		if got, err := p.content(d1.Key(), "passwd"); string(got) != "good" {
			t.Errorf("content %q (%v)", got, err)
		}
		if p.ByBlob(hostile.Blob) != "" {
			t.Error("the hostile blob is on record")
		}
	})
	t.Run("is under way", func(t *testing.T) {
		t.Parallel()
		p := newPlace(t)
		held, release := holding(hostile)
		failed := make(chan error, 1)
		go func() {
			_, _, err := p.Ensure(context.Background(), held, nil)
			failed <- err
		}()
		<-release.opened
		waiting := make(chan struct{})
		done := make(chan error, 1)
		go func() {
			_, _, err := p.Ensure(context.Background(), specOf(good, good), once(waiting))
			done <- err
		}()
		<-waiting
		if err := <-done; err != nil {
			t.Errorf("genuine: %v: spoilt by the other's claim", err)
		}
		// What it claims to be is there now; its own blob is not looked at.
		close(release.goOn)
		if err := <-failed; err != nil {
			t.Errorf("hostile: %v", err)
		}
		if p.ByBlob(hostile.Blob) != "" {
			t.Error("the hostile blob is on record")
		}
		if got, err := p.content(d1.Key(), "passwd"); string(got) != "good" {
			t.Errorf("content %q (%v)", got, err)
		}
	})
}

// TestAnnex stores a sparse file that a chunk reference cannot express.
func TestAnnex(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	d := p.put("file before size=1000\nfile s sparse=1.0 map=100+5000,100000+3000 size=200000\nfile after size=1000\n")
	got, err := p.content(d, "s")
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 200000)
	pattern := imgtest.Pattern(8000)
	copy(want[100:], pattern[:5000])
	copy(want[100000:], pattern[5000:])
	if !bytes.Equal(got, want) {
		t.Error("content differs")
	}
	list, err := p.Layers()
	if err != nil || len(list) != 1 || list[0].DataSize <= list[0].StreamSize {
		t.Errorf("layers %+v (%v), want one with an annex", list, err)
	}
	if _, err := p.Verify(context.Background(), d, false); err != nil {
		t.Error(err)
	}
	if after, err := p.content(d, "after"); err != nil || !bytes.Equal(after, imgtest.Pattern(1000)) {
		t.Errorf("the file behind it differs (%v)", err)
	}
}

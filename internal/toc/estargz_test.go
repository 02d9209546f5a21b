package toc

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/externaltoc"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// buildEstargz runs stargz's own builder.
func buildEstargz(t testing.TB, stream []byte, o ...estargz.Option) ([]byte, Descriptor, error) {
	t.Helper()
	blob, err := estargz.Build(io.NewSectionReader(bytes.NewReader(stream), 0, int64(len(stream))), o...)
	if err != nil {
		return nil, Descriptor{}, err
	}
	defer blob.Close()
	b, err := io.ReadAll(blob)
	if err != nil {
		t.Fatal(err)
	}
	return b, describe(b, typeGzip, map[string]string{noteTOCDigest: blob.TOCDigest().String()}), nil
}

// TestEstargz reads what stargz's builder makes, with all of its options, and
// compares it with the tar that is inside.
func TestEstargz(t *testing.T) {
	for name, o := range map[string][]estargz.Option{
		"default":     nil,
		"chunks":      {estargz.WithChunkSize(4096)},
		"min chunk":   {estargz.WithMinChunkSize(50000)},
		"both":        {estargz.WithChunkSize(10000), estargz.WithMinChunkSize(30000)},
		"prioritized": {estargz.WithPrioritizedFiles([]string{"bin/middle", "last"}), estargz.WithMinChunkSize(50000)},
	} {
		t.Run(name, func(t *testing.T) {
			blob, d, err := buildEstargz(t, tarOf(t, strings.Replace(zoo, "link other/name lower/file\n", "", 1)), o...)
			if err != nil {
				t.Fatal(err)
			}
			m := &memBlob{b: blob}
			x, err := Open(t.Context(), m, d)
			if err != nil {
				t.Fatal(err)
			}
			if n := len(m.reads); n > 2 || n == 2 && m.reads[1].Off+m.reads[1].Len != m.reads[0].Off {
				t.Errorf("reads %v", m.reads)
			}
			form, sum := Announced(d)
			if x.Kind != Estargz || x.Form != form || x.Digest != sum || sum == "" || x.Proof != nil {
				t.Errorf("kind %s, form %s, digest %s, announced %s %s", x.Kind, x.Form, x.Digest, form, sum)
			}
			want, err := listTar(gunzip(t, blob))
			if err != nil {
				t.Fatal(err)
			}
			compare(t, list(t, x, blob), asStargz(want))
			switch {
			case name == "prioritized":
				// middle's 70000 bytes, then last's
				if len(x.Prefetch) != 1 || x.Prefetch[0] != (Range{0, 70144 + 512}) {
					t.Errorf("prefetch %v", x.Prefetch)
				}
			case x.Prefetch != nil:
				t.Errorf("prefetch %v", x.Prefetch)
			}
		})
	}
}

// TestEstargzCorpus reads what the builder makes of every layer of the corpus
// that it accepts.
func TestEstargzCorpus(t *testing.T) {
	differs := map[string]string{
		"devices":           "the builder takes a device's number from the header only",
		"xattrs-libarchive": "the builder takes xattrs from SCHILY's records only",
		"sockets":           "the builder takes a socket for the file that its header pretends to be",
	}
	refused := map[string]string{ // read as a stream instead
		"names-odd":              "not UTF-8",
		"format-star-and-signed": "not UTF-8",
		"attributes-far-time":    "parsing time",
	}
	read := 0
	for _, c := range imgtest.Cases(t, "../../testdata") {
		for _, layer := range c.Layers {
			blob, d, err := buildEstargz(t, layer)
			if err != nil {
				continue
			}
			want, err := listTar(gunzip(t, blob))
			if err != nil {
				continue
			}
			t.Run(c.Name, func(t *testing.T) {
				x, err := Open(t.Context(), &memBlob{b: blob}, d)
				if why := refused[c.Name]; why != "" {
					if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), why) {
						t.Fatalf("%v, want %q", err, why)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if why := differs[c.Name]; why != "" {
					t.Skip(why)
				}
				compare(t, list(t, x, blob), asStargz(want))
				read++
			})
		}
	}
	if read < 50 {
		t.Errorf("only %d layers read", read)
	}
}

// TestEstargzExternal reads a layer whose TOC is a blob of its own.
func TestEstargzExternal(t *testing.T) {
	z := externaltoc.NewGzipCompressionWithLevel(nil, gzip.DefaultCompression).(*externaltoc.GzipCompression)
	blob, d, err := buildEstargz(t, tarOf(t, "dir d\nfile d/a size=100000\nfile last \"end\""), estargz.WithCompression(z))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), &memBlob{b: blob}, d); !errors.Is(err, ErrExternal) || !errors.Is(err, ErrNone) {
		t.Fatal(err)
	}
	var toc bytes.Buffer
	if _, err := z.WriteTOCTo(&toc); err != nil {
		t.Fatal(err)
	}
	x, err := OpenExternal(d, toc.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	want, err := listTar(gunzip(t, blob))
	if err != nil {
		t.Fatal(err)
	}
	compare(t, list(t, x, blob), asStargz(want))
	d.Annotations[noteTOCDigest] = aSum
	if _, err := OpenExternal(d, toc.Bytes()); !errors.Is(err, ErrCorrupt) {
		t.Errorf("another TOC than was promised: %v", err)
	}
}

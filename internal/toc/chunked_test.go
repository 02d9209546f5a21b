package toc

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/imgfs/imgfs/internal/imgtest"
	"github.com/klauspost/compress/zstd"
)

// stargzZstd is stargz's zstd:chunked, as its converter puts it together.
type stargzZstd struct {
	*zstdchunked.Decompressor
	*zstdchunked.Compressor
}

// TestZstdChunkedOfStargz reads what stargz's builder makes of its dialect, by
// the annotations and by the footer.
func TestZstdChunkedOfStargz(t *testing.T) {
	notes := map[string]string{}
	z := stargzZstd{&zstdchunked.Decompressor{}, &zstdchunked.Compressor{CompressionLevel: zstd.SpeedDefault, Metadata: notes}}
	blob, d, err := buildEstargz(t, tarOf(t, strings.Replace(zoo, "link other/name lower/file\n", "", 1)),
		estargz.WithCompression(z), estargz.WithChunkSize(100000), estargz.WithPrioritizedFiles([]string{"last"}))
	if err != nil {
		t.Fatal(err)
	}
	d.MediaType = typeZstd
	want, err := listTar(unzstd(t, blob))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range notes {
		if !strings.HasPrefix(k, noteStargz) {
			t.Errorf("annotation %s", k)
		}
		d.Annotations[k] = v
	}
	footer := d
	footer.Annotations = map[string]string{noteTOCDigest: d.Annotations[noteTOCDigest]}
	for _, d := range []Descriptor{d, footer} {
		m := &memBlob{b: blob}
		x, err := Open(t.Context(), m, d)
		if err != nil {
			t.Fatal(err)
		}
		if form, sum := Announced(d); x.Kind != ZstdChunked || x.Form != form || x.Digest != sum || sum == "" {
			t.Errorf("kind %s, form %s, digest %s, announced %s %s", x.Kind, x.Form, x.Digest, form, sum)
		}
		if len(x.Prefetch) != 1 || x.Prefetch[0] != (Range{0, 512}) {
			t.Errorf("prefetch %v", x.Prefetch)
		}
		compare(t, list(t, x, blob), asStargz(want))
	}
}

// TestZstdChunked reads what was written here, of every layer of the corpus
// that the dialect can express: nothing of it may get lost.
func TestZstdChunked(t *testing.T) {
	layers := map[string][]byte{"zoo": tarOf(t, zoo), "zeros": tarOf(t, "file z \""+strings.Repeat(`\x00`, 3<<20)+"end\"\nfile after size=600")}
	for _, c := range imgtest.Cases(t, "../../testdata") {
		for _, l := range c.Layers {
			layers[c.Name] = l
		}
	}
	read := 0
	for name, layer := range layers {
		var out bytes.Buffer
		w, err := WriteZstdChunked(t.Context(), &out, bytes.NewReader(layer))
		if err != nil {
			if _, bad := listTar(layer); bad == nil && !errors.Is(err, ErrUnfit) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		want, err := listTar(layer)
		if err != nil {
			continue
		}
		t.Run(name, func(t *testing.T) {
			blob := out.Bytes()
			if d := describe(blob, typeZstd, nil); w.Blob != d.Blob || w.Size != d.Size {
				t.Errorf("%+v, want %+v", w, d)
			}
			if !bytes.Equal(unzstd(t, blob), layer) {
				t.Error("another tar is inside")
			}
			m := &memBlob{b: blob}
			x, err := Open(t.Context(), m, w.descriptor())
			if err != nil {
				t.Fatal(err)
			}
			if form, sum := Announced(w.descriptor()); x.Kind != ZstdChunked || x.Form != form || x.Digest != sum || sum == "" || len(m.reads) != 1 {
				t.Errorf("kind %s, form %s, digest %s, announced %s %s, reads %v", x.Kind, x.Form, x.Digest, form, sum, m.reads)
			}
			compare(t, list(t, x, blob), want)
			read++
		})
	}
	if read < 50 {
		t.Errorf("only %d layers read", read)
	}
}

package daemon

import (
	"bytes"
	"io"
	"testing"

	stargz "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/externaltoc"
	"github.com/klauspost/compress/gzip"

	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
	"github.com/imgfs/imgfs/internal/toc"
)

// withoutTOC returns a tar as an eStargz layer, and its table of contents.
func withoutTOC(t testing.TB, stream []byte) (l testLayer, table []byte) {
	t.Helper()
	z := externaltoc.NewGzipCompressionWithLevel(nil, gzip.DefaultCompression).(*externaltoc.GzipCompression)
	made, err := stargz.Build(io.NewSectionReader(bytes.NewReader(stream), 0, int64(len(stream))), stargz.WithCompression(z))
	if err != nil {
		t.Fatal(err)
	}
	defer made.Close()
	blob, err := io.ReadAll(made)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := z.WriteTOCTo(&out); err != nil {
		t.Fatal(err)
	}
	notes := map[string]string{stargz.TOCJSONDigestAnnotation: made.TOCDigest().String()}
	return testLayer{mediaType: tarGzip, blob: blob, diff: id.DiffID(made.DiffID().String()), notes: notes}, out.Bytes()
}

// TestExternalTOC mounts an eStargz image whose tables of contents are in the
// image with -esgztoc behind its tag. Without that one, or if it has others,
// the layer is fetched whole.
func TestExternalTOC(t *testing.T) {
	needFUSE(t)
	files := bigTree(30)
	layer, table := withoutTOC(t, tarOf(t, files))
	_, other := withoutTOC(t, tarOf(t, content{"a": "b"}))
	empty := id.DiffIDFrom([32]byte{})
	for _, tt := range []struct {
		name string
		toc  []byte // nil: there is none
		of   id.Blob
		lazy bool
	}{
		{"there", table, id.BlobOf(layer.blob), true},
		{"none", nil, "", false},
		{"of another layer", table, id.BlobOf([]byte("another")), false},
		{"not the one announced", other, id.BlobOf(layer.blob), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
			if tt.toc != nil {
				notes := map[string]string{toc.ExternalAnnotation: string(tt.of)}
				pushImage(t, reg, "x", "1-esgztoc", testLayer{mediaType: tarGzip, blob: tt.toc, diff: empty, notes: notes})
			}
			img := pushImage(t, reg, "x", "1", layer)
			d := runDaemon(t, Options{})
			dir := mountDir(t)
			m, err := mountAs(testContext(t), d.client, img.ref, dir)
			if err != nil {
				t.Fatal(err)
			}
			whole := 0
			for _, q := range reg.Requests(imgtest.KindBlob) {
				if q.Header.Get("Range") == "" && bytes.HasSuffix([]byte(q.URL.Path), []byte(id.BlobOf(layer.blob))) {
					whole++
				}
			}
			if (whole == 0) != tt.lazy {
				t.Errorf("the layer was fetched whole %d times", whole)
			}
			reg.Forget()
			wantTree(t, dir, content{"share/007": files["share/007"]})
			if tt.lazy {
				asked(t, reg, "a small file", 1, 64<<10)
			}
			wantTree(t, dir, files)
			unmounted(t, d.client, m)
		})
	}
}

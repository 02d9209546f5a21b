package layerdb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/lazy"
	"github.com/imgfs/imgfs/internal/toc"
)

// remote is a registry of one place: blobs that it gives ranges of, counted.
type remote struct {
	mu    sync.Mutex
	blobs map[id.Blob][]byte
	bytes atomic.Int64
	down  atomic.Bool
	spoil atomic.Pointer[func(off int64, p []byte)] // changes what is sent
}

var errDown = errors.New("registry is down")

func (r *remote) put(blob []byte) id.Blob {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.blobs == nil {
		r.blobs = map[id.Blob][]byte{}
	}
	b := id.BlobOf(blob)
	r.blobs[b] = blob
	return b
}

func (r *remote) source(_ context.Context, l LayerInfo) (lazy.Source, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if b, ok := r.blobs[l.Blob]; ok {
		return &remoteBlob{r, b}, nil
	}
	return nil, fault.New(fault.NotFound, "nobody has blob %s", l.Blob.Short())
}

type remoteBlob struct {
	r    *remote
	blob []byte
}

func (b *remoteBlob) Range(_ context.Context, off, n int64) (io.ReadCloser, error) {
	if b.r.down.Load() {
		return nil, errDown
	}
	b.r.bytes.Add(n)
	p := bytes.Clone(b.blob[off : off+n])
	if f := b.r.spoil.Load(); f != nil {
		(*f)(off, p)
	}
	return io.NopCloser(bytes.NewReader(p)), nil
}

func (b *remoteBlob) Blame(off, n int64) bool        { return false }
func (b *remoteBlob) Link() (time.Duration, float64) { return 0, 0 }
func (b *remoteBlob) Whole() bool                    { return false }

// ReadAt makes it a toc.Blob as well.
func (b *remoteBlob) ReadAt(ctx context.Context, p []byte, off int64) error {
	body, err := b.Range(ctx, off, int64(len(p)))
	if err == nil {
		_, err = io.ReadFull(body, p)
	}
	return err
}

// newLazyPlace is a place with a remote.
func newLazyPlace(t testing.TB) (*place, *remote) {
	r := &remote{}
	p := &place{t: t, dir: t.TempDir()}
	p.opts.Source = r.source
	p.open()
	t.Cleanup(p.close)
	return p, r
}

// lazyText is a layer of which little is read: 5 MiB in six files.
var lazyText = sync.OnceValue(func() string {
	var b strings.Builder
	b.WriteString("dir etc mode=0755 mtime=1700000000\nfile etc/hosts \"127.0.0.1 localhost\\n\" xattr:user.x=y\n")
	for i := range 2 {
		fmt.Fprintf(&b, "file big%d %q mtime=1700000001.5\n", i, bigFile(i))
	}
	b.WriteString("link etc/again etc/hosts\nsymlink l etc/hosts\nfile last end\nfile none\nfile .wh.gone\n")
	return b.String()
})

// bigFile returns the content of big file i of lazyText, which does not compress.
func bigFile(i int) string {
	b := make([]byte, 5<<19+i*700)
	rand.NewChaCha8([32]byte{byte(i)}).Read(b)
	return string(b)
}

// kinds are the ways in which a layer can be lazy at first sight.
var kinds = []string{toc.Tar, toc.Own, toc.Soci, toc.Estargz, toc.ZstdChunked}

// lazyLayer makes a layer of the kind, puts it on the remote and returns how it
// is imported and what its stream is.
func lazyLayer(t testing.TB, r *remote, kind, text string) (ImportSpec, []byte) {
	t.Helper()
	ctx := context.Background()
	stream := tarOf(t, text)
	var blob bytes.Buffer
	spec := ImportSpec{}
	var err error
	fill := func(w *toc.Written, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		spec.Desc = toc.Descriptor{Blob: w.Blob, Size: w.Size, MediaType: w.MediaType, DiffID: w.DiffID, Annotations: w.Annotations}
	}
	open := func() {
		t.Helper()
		r.put(blob.Bytes())
		b := &remoteBlob{r, blob.Bytes()}
		if kind == toc.Tar {
			spec.Index, err = toc.OpenTar(ctx, b, spec.Desc)
		} else {
			spec.Index, err = toc.Open(ctx, b, spec.Desc)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	switch kind {
	case toc.Tar:
		blob.Write(stream)
		s := specOf(stream, stream)
		spec.Desc = toc.Descriptor{Blob: s.Blob, Size: s.Size, MediaType: "application/vnd.oci.image.layer.v1.tar", DiffID: s.DiffID}
		open()
	case toc.Own, toc.Soci:
		blob.Write(pipe(t, stream, "gzip"))
		s := specOf(blob.Bytes(), stream)
		r.put(blob.Bytes())
		spec.Desc = toc.Descriptor{Blob: s.Blob, Size: s.Size, MediaType: "application/vnd.oci.image.layer.v1.tar+gzip", DiffID: s.DiffID}
		body := ownIndex(t, s)
		if kind == toc.Soci {
			if body, err = toc.BuildZtoc(bytes.NewReader(blob.Bytes()), 1<<20, "test"); err != nil {
				t.Fatal(err)
			}
		}
		if spec.Index, err = toc.Decode(kind, body, spec.Desc); err != nil {
			t.Fatal(err)
		}
	case toc.Estargz:
		fill(toc.WriteEstargz(ctx, &blob, io.NewSectionReader(bytes.NewReader(stream), 0, int64(len(stream))), []string{"etc/hosts"}))
		stream = pipe(t, blob.Bytes(), "gzip", "-dc")
		open()
	case toc.ZstdChunked:
		fill(toc.WriteZstdChunked(ctx, &blob, bytes.NewReader(stream)))
		stream = pipe(t, blob.Bytes(), "zstd", "-dc")
		open()
	}
	return spec, stream
}

// again returns spec with an index that can be imported once more.
func (r *remote) again(t testing.TB, spec ImportSpec) ImportSpec {
	t.Helper()
	if spec.Index.Form == toc.Packed {
		x, err := toc.Open(context.Background(), &remoteBlob{r, r.blobs[spec.Desc.Blob]}, spec.Desc)
		if err != nil {
			t.Fatal(err)
		}
		spec.Index = x
	}
	return spec
}

// ownIndex has another store pass the layer, and returns our index of it.
func ownIndex(t testing.TB, s Spec) []byte {
	t.Helper()
	p := newPlace(t)
	key, _, err := p.Ensure(context.Background(), s, nil)
	if err != nil {
		t.Fatal(err)
	}
	l, err := p.Layer(key)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	skeleton, err := l.Skeleton()
	if err != nil {
		t.Fatal(err)
	}
	spans, err := l.Spans()
	if err != nil {
		t.Fatal(err)
	}
	return toc.EncodeLayer(skeleton, spans)
}

// want fails the test unless a file of the layer's root has this content.
func (p *place) want(k id.LayerKey, name, content string) {
	p.t.Helper()
	got, err := p.content(k, name)
	if err != nil || string(got) != content {
		p.t.Errorf("%s: %.40q, %v; want %.40q", name, got, err, content)
	}
}

// fetched returns how many bytes came since it was last called.
func (r *remote) fetched() int64 { return r.bytes.Swap(0) }

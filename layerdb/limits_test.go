package layerdb

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
	"github.com/imgfs/imgfs/internal/layertar"
)

// generated describes a layer that write makes, compressed on the way.
func generated(t testing.TB, write func(w *tar.Writer) error) Spec {
	t.Helper()
	var blob bytes.Buffer
	sum := sha256.New()
	z, err := gzip.NewWriterLevel(&blob, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(io.MultiWriter(z, sum))
	err = errors.Join(write(w), w.Close(), z.Close())
	if err != nil {
		t.Fatal(err)
	}
	spec := specOf(blob.Bytes(), nil)
	spec.DiffID = id.DiffIDFrom([sha256.Size]byte(sum.Sum(nil)))
	return spec
}

// zeroFile writes a file of n zeros.
func zeroFile(name string, n int64) func(w *tar.Writer) error {
	return func(w *tar.Writer) error {
		err := w.WriteHeader(&tar.Header{Name: name, Size: n, Mode: 0o644})
		if err == nil {
			_, err = io.CopyN(w, zeroReader{}, n)
		}
		return err
	}
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestBombOfZeros stores 256 MiB that came as a quarter of one: it takes next to
// nothing on disk either.
func TestBombOfZeros(t *testing.T) {
	t.Parallel()
	const size = 256 << 20
	p := newPlace(t)
	spec := generated(t, zeroFile("zeros", size))
	if _, _, err := p.Ensure(context.Background(), spec, nil); err != nil {
		t.Fatal(err)
	}
	list, err := p.Layers()
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	if l := list[0]; l.Content != size || l.DataSize < size || l.Disk > 1<<20 {
		t.Errorf("content %d, data %d, on disk %d: want the zeros as holes", l.Content, l.DataSize, l.Disk)
	}
	if _, err := p.Verify(context.Background(), spec.DiffID.Key(), false); err != nil {
		t.Error(err)
	}
}

// TestDiskUse has a layer of ordinary files take little more than its bytes.
func TestDiskUse(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	var text strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&text, "file f%d size=%d\n", i, 100+i*37)
	}
	d := p.put(text.String())
	list, err := p.Layers()
	if err != nil {
		t.Fatal(err)
	}
	if l := list[0]; l.Key != d || float64(l.Disk) > 1.05*float64(l.StreamSize) {
		t.Errorf("%d bytes on disk for a stream of %d", l.Disk, l.StreamSize)
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		opts  func(o *Options)
		write func(w *tar.Writer) error
		err   string
		kind  fault.Kind
	}{
		{"uncompressed size", func(o *Options) { o.MaxStream = 1 << 20 }, zeroFile("z", 8<<20),
			"larger than 1048576 bytes when uncompressed", fault.Integrity},
		{"entries", func(o *Options) { o.Limits = layertar.Limits{Entries: 10} }, func(w *tar.Writer) error {
			for i := range 11 {
				if err := w.WriteHeader(&tar.Header{Name: fmt.Sprint(i), Mode: 0o644}); err != nil {
					return err
				}
			}
			return nil
		}, "10", fault.Integrity},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := &place{t: t, dir: t.TempDir()}
			tt.opts(&p.opts)
			p.open()
			defer p.close()
			_, _, err := p.Ensure(context.Background(), generated(t, tt.write), nil)
			if err == nil || !strings.Contains(err.Error(), tt.err) || fault.KindOf(err) != tt.kind {
				t.Errorf("error %v (%v), want %q (%v)", err, fault.KindOf(err), tt.err, tt.kind)
			}
			p.nothing()
		})
	}
}

// TestMillionEntries puts a million names into one directory.
func TestMillionEntries(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds and 400 MB")
	}
	const n = 1_000_000
	p := newPlace(t)
	d := generated(t, func(w *tar.Writer) error {
		h := tar.Header{Mode: 0o644, Format: tar.FormatUSTAR}
		for i := range n {
			h.Name = fmt.Sprintf("d/%07d", i)
			if err := w.WriteHeader(&h); err != nil {
				return err
			}
		}
		return nil
	})
	if _, _, err := p.Ensure(context.Background(), d, nil); err != nil {
		t.Fatal(err)
	}
	l, err := p.Layer(d.DiffID.Key())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	if got := l.Image().Inodes(); got != n+2 {
		t.Errorf("%d inodes, want %d", got, n+2)
	}
	if l.Info().Entries < n || l.Info().Files != n {
		t.Errorf("%+v", l.Info())
	}
}

// TestFullDisk runs passes and merges on a disk that is too small for them.
func TestFullDisk(t *testing.T) {
	p := newPlace(t)
	p.close()
	// Badger, whose logs are larger than this disk, stays on the other one.
	small := filepath.Join(t.TempDir(), "disk")
	if err := os.Mkdir(small, 0o700); err != nil {
		t.Fatal(err)
	}
	imgtest.Tmpfs(t, small, "16m")
	p.open()
	defer p.close()
	if err := p.Store.Close(); err != nil {
		t.Fatal(err)
	}
	var err error
	if p.Store, err = Open(small, p.db, p.opts); err != nil {
		t.Fatal(err)
	}
	p.dir = small

	random := pipe(t, imgtest.Pattern(40<<20), "cat")
	big := func(w *tar.Writer) error {
		err := w.WriteHeader(&tar.Header{Name: "big", Size: int64(len(random)), Mode: 0o644})
		if err == nil {
			_, err = w.Write(random)
		}
		return err
	}
	spec := generated(t, big)
	known := spec
	unknown := spec
	unknown.Blob, unknown.Size = "", 0
	for name, spec := range map[string]Spec{"size known": known, "size unknown": unknown} {
		_, _, err := p.Ensure(context.Background(), spec, nil)
		if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "disk of "+small+" is full") || !strings.Contains(fault.HintOf(err), "imgfs gc") {
			t.Errorf("%s: error %v, hint %q", name, err, fault.HintOf(err))
		}
		p.nothing()
	}
	d := p.put("file a small\n")
	if got := p.read([]id.LayerKey{d}, "a"); got != "small" {
		t.Errorf("small layer after it: %q", got)
	}

	// The disk fills up under a merge.
	if err := os.WriteFile(filepath.Join(small, "filler"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	fill(t, filepath.Join(small, "filler"))
	if _, err := p.Chain(context.Background(), []id.LayerKey{d, d}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("merge on a full disk: %v", err)
	}
	if n := p.names("tmp"); len(n) > 0 {
		t.Errorf("left in tmp/: %q", n)
	}
	if err := os.Remove(filepath.Join(small, "filler")); err != nil {
		t.Fatal(err)
	}
	if got := p.read([]id.LayerKey{d, d}, "a"); got != "small" {
		t.Errorf("merge after it: %q", got)
	}
}

// fill appends to a file until the disk is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for b := make([]byte, 1<<20); len(b) > 0; {
		if _, err := f.Write(b); err != nil {
			b = b[:len(b)/2]
		}
	}
}

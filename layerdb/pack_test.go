package layerdb

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
)

func TestPack(t *testing.T) {
	p := newPlace(t)
	stream, err := imgtest.Tar("file a size=300000\nfile b x\n")
	if err != nil {
		t.Fatal(err)
	}
	write := func(w io.Writer) error { _, err := w.Write(stream); return err }
	for _, how := range []string{"gzip", "zstd"} {
		a, err := p.Pack(t.Context(), how, write)
		if err != nil {
			t.Fatal(err)
		}
		b, err := p.Pack(t.Context(), how, func(w io.Writer) error { // in other pieces
			for i := range stream {
				if _, err := w.Write(stream[i : i+1]); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if a.DiffID != id.DiffIDFrom(sha256.Sum256(stream)) || a.Blob != b.Blob || a.Size != b.Size || a.Size >= int64(len(stream)) {
			t.Errorf("%s: %+v, %+v", how, a, b)
		}
		b.Close()
		if _, existed, err := p.Ensure(t.Context(), a.Spec(), nil); err != nil || existed != (how == "zstd") {
			t.Errorf("%s: Ensure: %v, %v", how, existed, err)
		}
		if i, err := p.Info(a.DiffID.Key()); err != nil || i.StreamSize != int64(len(stream)) || i.Compression != "gzip" {
			t.Errorf("%s: Info: %+v, %v", how, i, err)
		}
		a.Close()
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Pack(ctx, "gzip", write); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	if _, err := p.Pack(t.Context(), "xz", write); fault.KindOf(err) != fault.Invalid {
		t.Errorf("xz: %v", err)
	}
	if _, err := p.Info("sha256:" + id.LayerKey(make([]byte, 64))); fault.KindOf(err) != fault.NotFound {
		t.Errorf("Info of nothing: %v", err)
	}
	if left, err := os.ReadDir(p.dir + "/tmp"); len(left) > 0 || err != nil {
		t.Errorf("left in tmp/: %v (%v)", left, err)
	}
}

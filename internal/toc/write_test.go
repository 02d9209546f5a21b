package toc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"github.com/imgfs/imgfs/internal/imgtest"
)

// TestWriteEstargz writes every layer of the corpus that the format can
// express. Nothing of one that is written may get lost.
func TestWriteEstargz(t *testing.T) {
	written := 0
	for _, c := range imgtest.Cases(t, "../../testdata") {
		for _, layer := range c.Layers {
			var out bytes.Buffer
			w, err := WriteEstargz(t.Context(), &out, io.NewSectionReader(bytes.NewReader(layer), 0, int64(len(layer))), nil)
			want, wantErr := listTar(layer)
			if err != nil || wantErr != nil {
				if wantErr == nil && !errors.Is(err, ErrUnfit) {
					t.Errorf("%s: %v", c.Name, err)
				}
				continue
			}
			d := describe(out.Bytes(), typeGzip, nil)
			if w.Blob != d.Blob || w.Size != d.Size {
				t.Errorf("%s: %+v, want %+v", c.Name, w, d)
			}
			x, err := Open(t.Context(), &memBlob{b: out.Bytes()}, w.descriptor())
			if err != nil {
				t.Errorf("%s: %v", c.Name, err)
				continue
			}
			t.Run(c.Name, func(t *testing.T) { compare(t, list(t, x, out.Bytes()), asStargz(want)) })
			written++
		}
	}
	if written < 50 {
		t.Errorf("only %d layers written", written)
	}
}

// TestWriteFails: a full disk, and who does not wait any more.
func TestWriteFails(t *testing.T) {
	stream := tarOf(t, "file a size=100000")
	full := errors.New("full")
	stopped, stop := context.WithCancel(t.Context())
	stop()
	for name, write := range map[string]func(context.Context, io.Writer) error{
		"estargz": func(ctx context.Context, w io.Writer) error {
			_, err := WriteEstargz(ctx, w, io.NewSectionReader(bytes.NewReader(stream), 0, int64(len(stream))), nil)
			return err
		},
		"zstd:chunked": func(ctx context.Context, w io.Writer) error {
			_, err := WriteZstdChunked(ctx, w, bytes.NewReader(stream))
			return err
		},
	} {
		if err := write(t.Context(), broken{full}); !errors.Is(err, full) {
			t.Errorf("%s: %v", name, err)
		}
		if err := write(stopped, io.Discard); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type broken struct{ err error }

func (f broken) Write([]byte) (int, error) { return 0, f.err }

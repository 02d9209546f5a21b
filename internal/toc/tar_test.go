package toc

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/imgtest"
)

const typeTar = "application/vnd.oci.image.layer.v1.tar"

// TestOpenTar reads plain tar by its headers: what big files hold is not read.
func TestOpenTar(t *testing.T) {
	stream := tarOf(t, "dir a\nfile a/one size=5000000\nfile a/two size=7000001\nsymlink a/l one\nfile a/three size=9000000 xattr:user.a=b\nfile end \"x\"")
	m := &memBlob{b: stream}
	x, err := OpenTar(t.Context(), m, describe(stream, typeTar, nil))
	if err != nil {
		t.Fatal(err)
	}
	if len(m.reads) > 5 || m.bytes() > int64(len(stream))/10 {
		t.Errorf("reads %v", m.reads)
	}
	if x.Kind != Tar || x.Form != Stream || x.DataSize != int64(len(stream)) || x.Digest == "" || x.Raw == nil {
		t.Errorf("%+v", x)
	}
	want, err := listTar(stream)
	if err != nil {
		t.Fatal(err)
	}
	compare(t, list(t, x, stream), want)

	r := bytes.NewReader(stream)
	if err := x.Proof.Check(r, 6_000_000, 7_000_000); err != nil {
		t.Error(err)
	}
	stream[x.Proof.Start(6_000_000)+1] ^= 1
	if err := x.Proof.Check(r, 6_000_000, 7_000_000); err == nil {
		t.Error("another header than before is not noticed")
	}
}

// TestOpenTarCorpus reads every layer of the corpus in this way.
func TestOpenTarCorpus(t *testing.T) {
	for _, c := range imgtest.Cases(t, "../../testdata") {
		for _, layer := range c.Layers {
			x, err := OpenTar(t.Context(), &memBlob{b: layer}, describe(layer, typeTar, nil))
			want, wantErr := listTar(layer)
			switch {
			case wantErr != nil && err != nil:
				if !errors.Is(err, ErrCorrupt) {
					t.Errorf("%s: %v", c.Name, err)
				}
			case wantErr != nil: // what only the end of the stream shows
			case len(layer) == 0:
				if !errors.Is(err, ErrNone) {
					t.Errorf("%s: %v", c.Name, err)
				}
			case err != nil:
				t.Errorf("%s: %v", c.Name, err)
			default:
				compare(t, list(t, x, layer), want)
			}
		}
	}
}

// TestOpenTarGivesUp: small files are better streamed, and it takes a few
// requests to see that.
func TestOpenTarGivesUp(t *testing.T) {
	stream := tarOf(t, strings.Repeat("file a size=300000\n", 60))
	m := &memBlob{b: stream}
	if _, err := OpenTar(t.Context(), m, describe(stream, typeTar, nil)); !errors.Is(err, ErrNone) || len(m.reads) > trial {
		t.Errorf("%v after %v", err, m.reads)
	}
	for _, d := range []Descriptor{describe(stream, typeGzip, nil), describe(nil, typeTar, nil)} {
		if _, err := OpenTar(t.Context(), m, d); !errors.Is(err, ErrNone) {
			t.Errorf("%s: %v", d.MediaType, err)
		}
	}
}

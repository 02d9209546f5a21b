package toc

import (
	"bytes"
	"testing"

	"github.com/imgfs/imgfs/internal/imgtest"
	"github.com/imgfs/imgfs/internal/layertar"
)

// indexOf returns the layer index of a stream and what it says of it; with a
// skeleton if the stream is accepted.
func indexOf(t testing.TB, stream []byte) (index, skeleton []byte, err error) {
	x, w := layertar.NewIndexer(layertar.Limits{}), NewSkeleton()
	x.Record(w.Record)
	if _, err := x.Write(stream); err != nil {
		return nil, nil, err
	}
	var out bytes.Buffer
	sum, err := x.Finish(&out, "tag")
	if err != nil {
		return nil, nil, err
	}
	skeleton, err = w.Finish(sum.StreamSize)
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), skeleton, nil
}

// replay returns the layer index that a skeleton gives.
func replay(b []byte) ([]byte, error) {
	s, err := parseSkeleton(b)
	if err != nil {
		return nil, err
	}
	x := layertar.NewIndexer(layertar.Limits{})
	if err := s.Fill(x); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if _, err := x.Finish(&out, "tag"); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// TestSkeletonGivesTheIndex replays the skeleton of every stream of the corpus:
// the index is the very one of the stream, and the stream proves to be its own.
func TestSkeletonGivesTheIndex(t *testing.T) {
	for _, c := range imgtest.Cases(t, "../../testdata") {
		for i, stream := range c.Layers {
			want, skeleton, err := indexOf(t, stream)
			if err != nil {
				continue // the corpus has streams that are refused
			}
			got, err := replay(skeleton)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s, layer %d: not the index of the stream: %v", c.Name, i, err)
			}
			s, _ := parseSkeleton(skeleton)
			if err := s.Proof().Check(bytes.NewReader(stream), 0, int64(len(stream))); err != nil {
				t.Errorf("%s, layer %d: %v", c.Name, i, err)
			}
		}
	}
}

// mustTar makes a stream, see [imgtest.Tar].
func mustTar(t testing.TB, text string) []byte {
	t.Helper()
	b, err := imgtest.Tar(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

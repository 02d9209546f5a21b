package layertar

import (
	"bytes"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/imgfs/imgfs/internal/imgtest"
)

// indexInPieces is index with the stream cut as next says; it returns the
// index's bytes, what was summed up, and the error's text.
func indexInPieces(stream []byte, next func() int) ([]byte, Summary, string) {
	x := NewIndexer(Limits{})
	for p := stream; len(p) > 0; {
		n := min(next(), len(p))
		if _, err := x.Write(p[:n:n]); err != nil {
			return nil, Summary{}, err.Error()
		}
		p = p[n:]
	}
	var out bytes.Buffer
	sum, err := x.Finish(&out, "tag")
	if err != nil {
		return nil, Summary{}, err.Error()
	}
	return out.Bytes(), sum, ""
}

// TestAnySplit feeds streams cut in every way; index, summary and error are the
// ones of the uncut stream.
func TestAnySplit(t *testing.T) {
	streams := map[string][]byte{"random": randomTar(rand.New(rand.NewPCG(7, 7)), 40)}
	for _, c := range imgtest.Cases(t, "../../testdata") {
		streams[c.Name] = c.Layers[len(c.Layers)-1]
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	cuts := map[string]func() int{
		"bytes":  func() int { return 1 },
		"511":    func() int { return 511 },
		"512":    func() int { return 512 },
		"513":    func() int { return 513 },
		"random": func() int { return 1 + rnd.IntN(1500) },
	}
	for name, stream := range streams {
		want, sum, text := indexInPieces(stream, func() int { return len(stream) })
		for how, next := range cuts {
			got, gotSum, gotText := indexInPieces(stream, next)
			if !bytes.Equal(got, want) || !reflect.DeepEqual(gotSum, sum) || gotText != text {
				t.Errorf("%s cut in %s: %+v %q, want %+v %q", name, how, gotSum, gotText, sum, text)
			}
		}
	}
}

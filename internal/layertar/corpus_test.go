package layertar

import (
	"bytes"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// TestCorpus indexes every layer of the corpus. A case of one layer has to give
// the wanted tree already, but for the marks that a merge takes off.
func TestCorpus(t *testing.T) {
	for _, c := range imgtest.Cases(t, "../../testdata") {
		t.Run(c.Name, func(t *testing.T) {
			var got string
			for i, layer := range c.Layers {
				img, data, err := index(layer, Limits{})
				if err != nil {
					if c.Error == "" || !strings.Contains(err.Error(), c.Error) {
						t.Fatalf("layer %d: %v", i, err)
					}
					if fault.KindOf(err) != fault.Integrity {
						t.Errorf("%v: kind %v", err, fault.KindOf(err))
					}
					return
				}
				got = imgtest.List(img, data.read)
				if strings.Contains(got, "error:") {
					t.Fatalf("layer %d:\n%s", i, got)
				}
			}
			if len(c.Layers) != 1 || strings.Contains(got, MarkLink) {
				return // the merge's to finish
			}
			if c.Error != "" {
				t.Fatalf("no error, want %q", c.Error)
			}
			if got = withoutMarks(got); got != c.Want {
				t.Errorf("%s\ngot\n%swant\n%s", c.About, got, c.Want)
			}
		})
	}
}

// withoutMarks takes marks and whiteouts off a listing.
func withoutMarks(list string) string {
	var b strings.Builder
	for line := range strings.Lines(list) {
		if strings.Contains(line, MarkWhiteout) {
			continue
		}
		for _, m := range []string{MarkImplied, MarkOpaque} {
			line = strings.Replace(line, " "+m+`=""`, "", 1)
		}
		b.WriteString(line)
	}
	return b.String()
}

// dataFile is a layer's data file as its owner would lay it out.
type dataFile []byte

func (d dataFile) read(_ int, p []byte, off int64) error {
	n := copy(p, d[min(off, int64(len(d))):])
	clear(p[n:])
	return nil
}

// index makes the index and the data file of a stream.
func index(stream []byte, limits Limits) (*erofs.Image, dataFile, error) {
	x := NewIndexer(limits)
	if _, err := x.Write(stream); err != nil {
		return nil, nil, err
	}
	return finish(x, stream)
}

func finish(x *Indexer, stream []byte) (*erofs.Image, dataFile, error) {
	var out bytes.Buffer
	sum, err := x.Finish(&out, strings.Repeat("0", 64))
	if err != nil {
		return nil, nil, err
	}
	img, err := erofs.New(out.Bytes())
	if err != nil {
		return nil, nil, err
	}
	data := dataFile(stream)
	for _, c := range sum.Annex {
		if c.To+c.Len > int64(len(data)) {
			data = append(data[:len(data):len(data)], make([]byte, c.To+c.Len-int64(len(data)))...)
		}
		copy(data[c.To:c.To+c.Len], stream[c.From:])
	}
	return img, data, nil
}

package union

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/imgtest"
	"github.com/imgfs/imgfs/internal/layertar"
)

// indexTar indexes a layer's tar; data is what its data file holds.
func indexTar(stream []byte, tag string) (img *erofs.Image, data []byte, err error) {
	x := layertar.NewIndexer(layertar.Limits{})
	if _, err := x.Write(stream); err != nil {
		return nil, nil, err
	}
	var index bytes.Buffer
	sum, err := x.Finish(&index, tag)
	if err != nil {
		return nil, nil, err
	}
	data = make([]byte, sum.DataSize)
	copy(data, stream)
	for _, c := range sum.Annex {
		copy(data[c.To:c.To+c.Len], data[c.From:])
	}
	img, err = erofs.New(index.Bytes())
	return img, data, err
}

// TestCorpus merges the odd and hostile layers of testdata, every way.
func TestCorpus(t *testing.T) {
	for _, c := range imgtest.Cases(t, "../testdata") {
		t.Run(c.Name, func(t *testing.T) {
			var layers []*erofs.Image
			var data [][]byte
			var err error
			for i, stream := range c.Layers {
				img, b, layerErr := indexTar(stream, fmt.Sprintf("%064x", i+1))
				if err = layerErr; err != nil {
					break
				}
				layers, data = append(layers, img), append(data, b)
			}
			var chain *erofs.Image
			if err == nil {
				chain, err = mergeEveryWay(t, layers)
			}
			if c.Error != "" {
				if err == nil || !strings.Contains(err.Error(), c.Error) || fault.KindOf(err) != fault.Integrity {
					t.Fatalf("error %v (%v), want %q", err, fault.KindOf(err), c.Error)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := imgtest.List(chain, func(dev int, p []byte, off int64) error {
				_, err := bytes.NewReader(data[dev]).ReadAt(p, off)
				return err
			})
			if got != c.Want {
				t.Errorf("%s\ngot:\n%swant:\n%s", c.About, got, c.Want)
			}
		})
	}
}

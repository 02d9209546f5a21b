package layerdb

import (
	"context"
	"testing"
)

// TestCheckLayerOfLinks checks a sound layer that links files of layers below,
// which are none of its own, beside files, links and whiteouts of its own.
func TestCheckLayerOfLinks(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	d := p.put(`
dir odd
link odd/linked odd/below
link odd/linked-again odd/linked
file odd/empty
file odd/last ok
link odd/last-linked odd/last
file odd/.wh.gone
`)
	found, err := p.CheckLayer(context.Background(), d, false)
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 0 {
		t.Errorf("a sound layer: %v", found)
	}
}

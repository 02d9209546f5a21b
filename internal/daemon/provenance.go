package daemon

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/lower"
	"github.com/imgfs/imgfs/internal/toc"
	"github.com/imgfs/imgfs/layerdb"
)

// provenance says of the files of a chain which layer has their bytes. Nothing
// is kept for it: the tree's own references say so when somebody asks.
type provenance struct {
	img   *erofs.Image
	data  []*layerdb.Data // by layer
	blobs []id.Blob       // by layer; "" of one that came without
}

var _ lower.Notes = (*provenance)(nil)

func (e *engine) provenance(chain *layerdb.Chain) *provenance {
	p := &provenance{img: chain.Image(), data: chain.Data()}
	for _, d := range p.data {
		l, _ := e.layers.Info(d.Key()) // that of an open layer is there
		p.blobs = append(p.blobs, l.Blob)
	}
	return p
}

// Note implements lower.Notes.
func (p *provenance) Note(n erofs.NID, name string) (string, bool) {
	var a erofs.Attr
	if err := p.img.Stat(n, &a); err != nil || a.Mode&unix.S_IFMT != unix.S_IFREG {
		return "", false
	}
	ranges := map[int][]toc.Range{}
	size, err := rangesOf(p.img, n, ranges)
	if err != nil || len(ranges) != 1 {
		return "", false // empty, or all holes
	}
	for i, list := range ranges {
		switch name {
		case "layer":
			return fmt.Sprintf("%d/%d", i+1, len(p.data)), true
		case "digest":
			return string(p.blobs[i]), p.blobs[i] != ""
		case "cached":
			here := int64(0)
			for _, r := range list {
				here += p.data[i].PresentIn(r.Off, r.Len)
			}
			return fmt.Sprintf("%d/%d", here, size), true
		}
	}
	return "", false
}

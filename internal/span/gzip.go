package span

import (
	"bytes"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/imgfs/imgfs/internal/inflate"
)

// gzipDecoders decodes spans of gzip blobs. It is safe for concurrent use.
type gzipDecoders struct{ pool sync.Pool }

// gzipDecoder decodes one span at a time.
type gzipDecoder struct {
	z      *inflate.Reader
	src    bytes.Reader
	unpack *zstd.Decoder
	window []byte // room for one
}

// decode fills parts from blob, and needs no more of it than they do.
func (d *gzipDecoders) decode(c checkpoint, blob []byte, parts []part) error {
	g, _ := d.pool.Get().(*gzipDecoder)
	if g == nil {
		unpack, err := newUnpacker()
		if err != nil {
			return err
		}
		g = &gzipDecoder{z: inflate.NewReader(nil), unpack: unpack, window: make([]byte, 0, Window)}
	}
	defer d.pool.Put(g)
	window, err := unpackWindow(g.unpack, g.window, c.state)
	if err != nil {
		return err
	}
	g.src.Reset(blob)
	defer g.src.Reset(nil) // the pool must not keep it
	if c.flags&flagStep != 0 {
		window = c.before
	}
	if c.flags&flagHeader != 0 {
		g.z.Reset(&g.src)
	} else {
		g.z.Resume(&g.src, uint(c.flags&flagBits), window)
	}
	for _, p := range parts {
		if err := g.z.Discard(p.skip); err != nil {
			return err
		}
		if err := g.z.ReadFull(p.dst); err != nil {
			return err
		}
	}
	return nil
}

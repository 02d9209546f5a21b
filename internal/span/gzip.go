package span

import (
	"bytes"
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/imgfs/imgfs/internal/inflate"
)

// maxWindow is how far gzip's matches reach back.
const maxWindow = 32 << 10

// gzipDecoders decodes spans of gzip blobs. It is safe for concurrent use.
type gzipDecoders struct{ pool sync.Pool }

// gzipDecoder decodes one span at a time.
type gzipDecoder struct {
	z      *inflate.Reader
	src    bytes.Reader
	unpack *zstd.Decoder
	window []byte // maxWindow of room
}

func (d *gzipDecoders) decode(c checkpoint, blob []byte, parts []part) error {
	g, _ := d.pool.Get().(*gzipDecoder)
	if g == nil {
		unpack, err := newUnpacker()
		if err != nil {
			return err
		}
		g = &gzipDecoder{z: inflate.NewReader(nil), unpack: unpack, window: make([]byte, 0, maxWindow)}
	}
	defer d.pool.Put(g)
	window, err := unpackWindow(g.unpack, g.window, c.state)
	if err != nil {
		return err
	}
	g.src.Reset(blob)
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

// packer compresses windows.
type packer struct{ z *zstd.Encoder }

func newPacker() *packer {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true), zstd.WithEncoderLevel(zstd.SpeedBetterCompression))
	if err != nil {
		panic(fmt.Sprintf("span: options of our own: %v", err))
	}
	return &packer{z}
}

func (p *packer) pack(window []byte) []byte { return p.z.EncodeAll(window, nil) }

// newUnpacker returns a decoder of packed windows, which refuses longer ones.
func newUnpacker() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(maxWindow))
}

// unpackWindow unpacks a window into buf's room.
func unpackWindow(z *zstd.Decoder, buf, packed []byte) ([]byte, error) {
	if len(packed) == 0 {
		return nil, nil
	}
	window, err := z.DecodeAll(packed, buf[:0])
	if err == nil && len(window) > maxWindow {
		err = errors.New("too long")
	}
	if err != nil {
		return nil, fmt.Errorf("window: %w", err)
	}
	return window, nil
}

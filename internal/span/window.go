package span

import (
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// packer compresses gzip's windows, of which most bytes are zeros.
type packer struct{ z *zstd.Encoder }

func newPacker() *packer {
	z, err := zstd.NewWriter(nil,
		zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderLevel(zstd.SpeedBetterCompression),
		zstd.WithEncoderCRC(false), // the table has a checksum
		zstd.WithSingleSegment(true),
	)
	if err != nil {
		panic(fmt.Sprintf("span: options of our own: %v", err))
	}
	return &packer{z}
}

// pack appends the packed window to dst.
func (p *packer) pack(dst, window []byte) []byte { return p.z.EncodeAll(window, dst) }

// newUnpacker returns a decoder of packed windows, which refuses longer ones.
func newUnpacker() (*zstd.Decoder, error) {
	return zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderMaxWindow(Window),
		zstd.WithDecoderMaxMemory(Window),
	)
}

// unpackWindow unpacks a window into buf's room.
func unpackWindow(z *zstd.Decoder, buf, packed []byte) ([]byte, error) {
	if len(packed) == 0 {
		return nil, nil
	}
	window, err := z.DecodeAll(packed, buf[:0])
	if err == nil && len(window) > Window {
		err = errors.New("too long")
	}
	if err != nil {
		return nil, fmt.Errorf("window: %w", err)
	}
	return window, nil
}

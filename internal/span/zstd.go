package span

import (
	"bytes"
	"errors"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/imgfs/imgfs/internal/fault"
)

const (
	// maxZstdWindow is the largest zstd window accepted, the limit of zstd(1)
	// itself (--long=27): a frame header may ask for terabytes.
	maxZstdWindow = 128 << 20
	// maxStream is the largest frame decoded.
	maxStream = 1 << 41
)

// zstdDecoders decodes spans of zstd blobs. It is safe for concurrent use.
type zstdDecoders struct{ pool sync.Pool }

func (d *zstdDecoders) decode(c checkpoint, blob []byte, parts []part) error {
	if len(c.state) > 0 {
		return errors.New("zstd: checkpoints are not known")
	}
	z, _ := d.pool.Get().(*zstd.Decoder)
	if z == nil {
		var err error
		z, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecoderMaxMemory(maxStream))
		if err != nil {
			return err
		}
	}
	defer d.pool.Put(z)
	if err := z.Reset(bytes.NewReader(blob)); err != nil {
		return err
	}
	for _, p := range parts {
		if _, err := io.CopyN(io.Discard, z, p.skip); err != nil {
			return err
		}
		if _, err := io.ReadFull(z, p.dst); err != nil {
			return err
		}
	}
	return nil
}

// passZstd decodes src, every frame of it, to w, and lets rec know of
// checkpoints.
func passZstd(src io.Reader, w io.Writer, rec *recording) (int64, error) {
	rec.giveUp(errors.New("zstd: checkpoints are not recorded"))
	z, err := zstd.NewReader(src,
		zstd.WithDecoderConcurrency(1), // the stages around it run beside it already
		zstd.WithDecoderMaxWindow(maxZstdWindow),
		zstd.WithDecoderMaxMemory(maxStream),
	)
	if err != nil {
		return 0, err
	}
	defer z.Close()
	n, err := z.WriteTo(w)
	if errors.Is(err, zstd.ErrWindowSizeExceeded) {
		return n, fault.New(fault.Invalid, "%w: more than %d MiB", err, maxZstdWindow>>20)
	}
	return n, err
}

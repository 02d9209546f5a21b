package layerdb

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/toc"
)

// WriteStream writes a layer's uncompressed tar to w: the very bytes that its
// diffID is of. What is missing is fetched; of a layer that is not sealed
// nothing is written before it is. A layer in form packed passes once more,
// from whoever has its blob, and nothing of it stays.
//
// fault.Integrity, once all is written, if it was something else.
func (s *Store) WriteStream(ctx context.Context, k id.LayerKey, w io.Writer) error {
	h, err := s.openLayer(k, false)
	if err != nil {
		return err
	}
	defer h.Release()
	info := h.Info()
	write := s.writePacked
	if info.Form == toc.Stream {
		if err := s.Seal(ctx, k, nil); err != nil {
			return err
		}
		write = s.writeData
	}
	if err := write(ctx, h, &info, w); err != nil {
		return fmt.Errorf("layer %s: %w", k.Short(), s.diskError(err))
	}
	return nil
}

// writeData is WriteStream for a sealed layer whose data is its stream.
func (s *Store) writeData(ctx context.Context, h *Layer, info *LayerInfo, w io.Writer) error {
	sum := sha256.New()
	out := io.MultiWriter(w, sum)
	r := h.data.reader(ctx)
	b := make([]byte, outBuffer)
	for off := int64(0); off < info.StreamSize; {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		n, err := r.ReadAt(b[:min(int64(len(b)), info.StreamSize-off)], off)
		if err != nil && (err != io.EOF || n == 0) {
			return err
		}
		if _, err := out.Write(b[:n]); err != nil {
			return err
		}
		off += int64(n)
	}
	now := func() id.DiffID { return id.DiffIDFrom([sha256.Size]byte(sum.Sum(nil))) }
	for n := 0; info.Kind == toc.Soci && now() != info.DiffID && n < padding; n++ {
		if _, err := out.Write(zeros[:erofs.BlockSize]); err != nil { // see proveStream
			return err
		}
	}
	if got := now(); got != info.DiffID {
		return fault.New(fault.Integrity, "its data on disk is that of %s", got)
	}
	return nil
}

// writePacked is WriteStream for a layer that is kept as payloads alone.
func (s *Store) writePacked(ctx context.Context, h *Layer, info *LayerInfo, w io.Writer) error {
	spec := Spec{DiffID: info.DiffID, Blob: info.Blob, Size: info.BlobSize, Open: func(ctx context.Context) (io.ReadCloser, error) {
		src, err := h.data.from.now(ctx)
		if err != nil {
			return nil, err
		}
		return src.Range(ctx, 0, info.BlobSize)
	}}
	_, err := s.run(ctx, spec, newFlight(want{}, info.BlobSize, nil), func(b []byte) error {
		_, err := w.Write(b)
		return err
	})
	return err
}

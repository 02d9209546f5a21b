package layerdb

import (
	"bufio"
	"context"
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/span"
)

// Packed is a layer made here: a blob in tmp/, to be brought in by a pass.
type Packed struct {
	DiffID id.DiffID
	Blob   id.Blob
	Size   int64 // bytes of the blob
	path   string
	forget func()
}

// Pack makes a blob of the tar that write writes, compressed by "gzip" or
// "zstd". The same tar gives the same blob. The caller ends with Close.
func (s *Store) Pack(ctx context.Context, how string, write func(io.Writer) error) (_ *Packed, err error) {
	dir, forget, err := s.tempDir("pack-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			forget()
			err = s.diskError(err)
		}
	}()
	p := &Packed{path: filepath.Join(dir, "blob"), forget: forget}
	f, err := os.OpenFile(p.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	blob, diff := sha256.New(), sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(f, blob), 256<<10)
	z, err := compressor(out, how)
	if err != nil {
		return nil, err
	}
	if err := write(contextWriter{ctx, io.MultiWriter(diff, z)}); err != nil {
		z.Close()
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	if err := out.Flush(); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	p.Size = st.Size()
	p.Blob, p.DiffID = id.BlobFrom([sha256.Size]byte(blob.Sum(nil))), id.DiffIDFrom([sha256.Size]byte(diff.Sum(nil)))
	return p, nil
}

// compressor returns a writer that compresses. One goroutine each: what it
// writes then depends on the tar alone.
func compressor(w io.Writer, how string) (io.WriteCloser, error) {
	switch how {
	case span.Gzip.String():
		return gzip.NewWriter(w), nil
	case span.Zstd.String():
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
	}
	return nil, fault.New(fault.Invalid, "compression %q: it is gzip or zstd", how)
}

// contextWriter ends writing when its context ends.
type contextWriter struct {
	ctx context.Context
	w   io.Writer
}

func (c contextWriter) Write(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.w.Write(p)
}

// Spec returns what brings the layer in.
func (p *Packed) Spec() Spec {
	return Spec{Blob: p.Blob, Size: p.Size, DiffID: p.DiffID, Open: func(context.Context) (io.ReadCloser, error) {
		return os.Open(p.path)
	}}
}

// Path returns the blob's file, which may be moved away.
func (p *Packed) Path() string { return p.path }

// Close removes the blob's file, if it is still there.
func (p *Packed) Close() { p.forget() }

package span

import (
	"bytes"
	"errors"
	"fmt"
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

// zstdDecoder is a decoder and its buffers.
type zstdDecoder struct {
	frames   *zstd.Decoder
	states   *zstd.Decoder // unpacks states
	state    []byte
	prologue []byte
}

func newZstdDecoder() (*zstdDecoder, error) {
	frames, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(1), // synchronous: nothing runs on after an error
		zstd.WithDecoderMaxWindow(maxZstdWindow),
		zstd.WithDecoderMaxMemory(maxStream),
		// A frame that was begun in its middle has another one. Whole ones
		// are proven by the span's digest.
		zstd.IgnoreChecksum(true),
	)
	if err != nil {
		return nil, err
	}
	states, err := newStateUnpacker()
	if err != nil {
		return nil, err
	}
	return &zstdDecoder{frames: frames, states: states}, nil
}

// decode fills parts from blob, and needs no more of it than they do.
func (d *zstdDecoders) decode(c checkpoint, blob []byte, parts []part) error {
	z, _ := d.pool.Get().(*zstdDecoder)
	if z == nil {
		var err error
		if z, err = newZstdDecoder(); err != nil {
			return err
		}
	}
	defer d.pool.Put(z)
	return z.decode(c, blob, parts)
}

func (z *zstdDecoder) decode(c checkpoint, blob []byte, parts []part) error {
	if len(c.state) == 0 {
		return z.resume(nil, blob, parts)
	}
	var err error
	if z.state, err = z.states.DecodeAll(c.state, z.state[:0]); err != nil {
		return fmt.Errorf("zstd checkpoint: %w", err)
	}
	state, err := parseZstdState(z.state)
	if err != nil {
		return err
	}
	return z.resume(state, blob, parts)
}

// resume fills parts from blob, at whose beginning a decoder has state; nil if
// a frame begins there.
func (z *zstdDecoder) resume(state *zstdState, blob []byte, parts []part) error {
	defer func() { _ = z.frames.Reset(nil) }() // lets go of blob
	var src io.Reader = bytes.NewReader(blob)
	var ahead int64
	if state != nil {
		z.prologue, ahead = state.prologue(z.prologue[:0])
		src = io.MultiReader(bytes.NewReader(z.prologue), src)
	}
	if err := z.frames.Reset(src); err != nil {
		return err
	}
	for _, p := range parts {
		if _, err := io.CopyN(io.Discard, z.frames, ahead+p.skip); err != nil {
			return err
		}
		if _, err := io.ReadFull(z.frames, p.dst); err != nil {
			return err
		}
		ahead = 0
	}
	// The state has the checksum of what it was made for: the whole span.
	if state != nil && len(parts) == 1 && parts[0].skip == 0 && checksum(parts[0].dst) != state.sum {
		return errors.New("zstd checkpoint: it leads to other bytes")
	}
	return nil
}

// newStatePacker and newStateUnpacker compress states.
func newStatePacker() (*zstd.Encoder, error) {
	return zstd.NewWriter(nil,
		zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderLevel(zstd.SpeedBetterCompression),
		zstd.WithEncoderCRC(false), // the table has a checksum
	)
}

func newStateUnpacker() (*zstd.Decoder, error) {
	return zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderMaxMemory(maxZstdWindow+maxZstdWindow/2),
	)
}

// passZstd decodes src, every frame of it, to w, and lets rec know of
// checkpoints.
func passZstd(src io.Reader, w io.Writer, rec *recording) (int64, error) {
	r, err := newZstdRecorder(rec)
	if err != nil {
		return 0, err
	}
	defer r.close()
	z, err := zstd.NewReader(&zstdInput{src: src, r: r},
		zstd.WithDecoderConcurrency(1), // the stages around it run beside it already
		zstd.WithDecoderMaxWindow(maxZstdWindow),
		zstd.WithDecoderMaxMemory(maxStream),
	)
	if err != nil {
		return 0, err
	}
	defer z.Close()
	n, err := z.WriteTo(&zstdOutput{w: w, r: r})
	if errors.Is(err, zstd.ErrWindowSizeExceeded) {
		return n, fault.New(fault.Invalid, "%w: more than %d MiB", err, maxZstdWindow>>20)
	}
	return n, err
}

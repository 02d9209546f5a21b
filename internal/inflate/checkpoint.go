package inflate

import (
	"fmt"
	"io"
)

// Checkpoint is a border in front of a block, at which decoding can begin.
type Checkpoint struct {
	Bit    int64  // of the input, from its start: where the block begins
	Out    int64  // bytes of output before it
	Window []byte // what was put out last, at most 32 KiB; only until the next call
	Reach  int    // of Window the last bytes which are the member's: the rest is never referred to
}

// Used tells which bytes of a checkpoint's window are referred to behind it.
// Bit i%64 of word i/64 stands for the byte 32 KiB - i before the checkpoint.
// It is complete when 32 KiB of output have been made.
type Used [windowSize / 64]uint64

// OnBorder has z call f at every border between the blocks to come, a member's
// first block included. If f returns other than nil, z adds to it, instead of
// what it was given before, which bytes of this window are used.
func (z *Reader) OnBorder(f func(Checkpoint) *Used) { z.border = f }

// Resume makes z read src, which begins with the byte in which a block begins:
// behind its first bits bits, 0 to 7. The window is what precedes. Members that
// follow are read too, but the checksum of this one is not known.
func (z *Reader) Resume(src io.Reader, bits uint, window []byte) {
	z.Reset(src)
	z.wr = copy(z.out[:windowSize], window)
	z.rd, z.sum, z.gone = z.wr, z.wr, -int64(z.wr)
	z.step, z.begun = atBlock, true
	if z.err = z.need(8); z.err == nil {
		z.bits(bits)
		if z.overrun() {
			z.err = fmt.Errorf("gzip: %w", io.ErrUnexpectedEOF)
		}
	}
}

// checkpoint tells of a border.
func (z *Reader) checkpoint() {
	used := z.border(Checkpoint{
		Bit:    8*(z.at+int64(z.pos)) - int64(z.nb),
		Out:    z.gone + int64(z.wr),
		Window: z.out[max(0, z.wr-windowSize):z.wr],
		Reach:  min(z.wr-z.base, windowSize),
	})
	if used != nil {
		z.used, z.low = used, z.wr
	}
}

// mark notes that a match refers to n bytes from out[src] on, of which those
// below low were there before the checkpoint. It costs nothing while that is
// not so: the symbol loop compares with low instead of base.
func (z *Reader) mark(src, n int) {
	for i := src - z.low + windowSize; n > 0 && i < windowSize; i, n = i+1, n-1 {
		z.used[i/64] |= 1 << (i % 64)
	}
}

// Consumed returns how many bytes of the input the output was made from; at
// the end of the stream it is where the last member ends.
func (z *Reader) Consumed() int64 { return z.at + int64(z.pos) - int64(z.nb>>3) }

package span

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"

	"github.com/imgfs/imgfs/internal/inflate"
)

// Zinfo reads a gzip blob and records checkpoints as SOCI's own builder does,
// byte for byte: not where spans are of the best size, and with whole windows.
type Zinfo struct {
	src     held
	spacing int64
	points  []ZinfoPoint
	sums    [][sha256.Size]byte
}

// maxEmpty limits the points before the first data.
const maxEmpty = 64

// ZinfoPoint is a checkpoint of SOCI.
type ZinfoPoint struct {
	In     int64 // first byte of the blob of which no bit was consumed
	Out    int64 // offset in the data
	Bits   uint8 // of byte In-1 that were not consumed, 0 to 7
	Window []byte
}

// From returns where in the blob the bytes begin that are read from p on.
func (p ZinfoPoint) From() int64 {
	if p.Bits > 0 {
		return p.In - 1
	}
	return p.In
}

// NewZinfo returns a Zinfo of the gzip blob src; SOCI's default for spacing is
// 4 MiB.
func NewZinfo(src io.Reader, spacing int64) *Zinfo {
	return &Zinfo{src: held{src: src, max: maxBlob}, spacing: spacing}
}

// WriteTo decodes the blob to w, and reads it to its end.
func (z *Zinfo) WriteTo(w io.Writer) (int64, error) {
	r := inflate.NewReader(&z.src)
	r.OnBorder(func(c inflate.Checkpoint) *inflate.Used {
		// The first member's header is followed by a border, so is every empty
		// block before the first data.
		if z.src.over || c.Out > 0 && c.Out-z.points[len(z.points)-1].Out <= z.spacing {
			return nil
		}
		if c.Out == 0 && len(z.points) == maxEmpty {
			z.src.drop() // nothing but a trap has so many
			return nil
		}
		p := ZinfoPoint{In: (c.Bit + 7) / 8, Out: c.Out, Bits: uint8(-c.Bit & 7), Window: make([]byte, Window)}
		copy(p.Window[Window-len(c.Window):], c.Window)
		z.end(p.In, p.From())
		z.points = append(z.points, p)
		return nil
	})
	n, err := r.WriteTo(w)
	if err != nil {
		return n, err
	}
	if _, err := io.Copy(io.Discard, &z.src); err != nil {
		return n, err
	}
	if z.src.over {
		return n, errors.New("gzip: blocks too long, or too many without data")
	}
	end := z.src.at + int64(len(z.src.b))
	z.end(end, end)
	return n, nil
}

// end ends the last point's span, if there is one, at blob offset to. The next
// one begins at from.
func (z *Zinfo) end(to, from int64) {
	b := z.src.cut(to, from, nil)
	if len(z.points) > 0 {
		z.sums = append(z.sums, sha256.Sum256(b))
	}
}

// Points returns the checkpoints.
func (z *Zinfo) Points() []ZinfoPoint { return z.points }

// Sums returns the SHA-256 of the blob bytes from each point on to where the
// next one's In is, or the blob ends.
func (z *Zinfo) Sums() [][sha256.Size]byte { return z.sums }

// Encode returns the checkpoints in SOCI's form, version 2.
func (z *Zinfo) Encode() []byte {
	b := make([]byte, 0, 4+8+len(z.points)*(8+8+1+Window))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(z.points)))
	b = binary.LittleEndian.AppendUint64(b, uint64(z.spacing))
	for _, p := range z.points {
		b = binary.LittleEndian.AppendUint64(b, uint64(p.In))
		b = binary.LittleEndian.AppendUint64(b, uint64(p.Out))
		b = append(b, p.Bits)
		b = append(b, p.Window...)
	}
	return b
}

package toc

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/imgfs/imgfs/internal/inflate"
)

// SociSpan is how many bytes of the stream lie between SOCI's checkpoints,
// unless somebody wants something else.
const SociSpan = 4 << 20

// BuildZtoc makes the zTOC of a layer, the very one that SOCI's own builder
// makes of it under the name tool in the time zone UTC. The blob, gzip or
// plain, is read twice. An error that wraps ErrNone says that SOCI has nothing
// for such a layer.
func BuildZtoc(ctx context.Context, blob io.ReaderAt, size, spanSize int64, tool string) ([]byte, error) {
	var magic [2]byte
	if n, err := blob.ReadAt(magic[:], 0); n < len(magic) {
		return nil, fmt.Errorf("%w: a layer of %d bytes: %w", ErrNone, size, err)
	}
	z := ztocWriter{spanSize: spanSize, blobSize: size}
	in := io.NewSectionReader(withContext{ctx, blob}, 0, size)
	var stream io.Reader = in
	if z.gzip = magic == [2]byte{0x1f, 0x8b}; z.gzip {
		r := inflate.NewReader(in)
		r.OnBorder(z.border)
		stream = r
	}
	if err := z.walk(stream); err != nil {
		return nil, err
	}
	if err := z.digest(in); err != nil {
		return nil, err
	}
	return z.encode(tool)
}

// withContext is a ReaderAt that ends with a context.
type withContext struct {
	ctx context.Context
	r   io.ReaderAt
}

func (c withContext) ReadAt(p []byte, off int64) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.ReadAt(p, off)
}

// ztocWriter collects what a zTOC says.
type ztocWriter struct {
	blobSize, size int64
	spanSize       int64
	gzip           bool
	files          []toldAt
	zinfo          []byte   // checkpoints as they are written, from the first on
	digests        []string // of spans
	last           int64    // out of the last checkpoint
}

type toldAt struct {
	told
	data int64
}

// border makes a checkpoint where one is due: behind more than a span of bytes,
// and as long as there was none at all. The end of a header is a border too.
func (z *ztocWriter) border(c inflate.Checkpoint) *inflate.Used {
	if c.Out != 0 && c.Out-z.last <= z.spanSize {
		return nil
	}
	z.last = c.Out
	z.zinfo = binary.LittleEndian.AppendUint64(z.zinfo, uint64((c.Bit+7)/8))
	z.zinfo = binary.LittleEndian.AppendUint64(z.zinfo, uint64(c.Out))
	z.zinfo = append(z.zinfo, byte(-c.Bit&7))
	z.zinfo = append(z.zinfo, make([]byte, zinfoWindow-len(c.Window))...)
	z.zinfo = append(z.zinfo, c.Window...)
	return nil
}

// walk reads the stream to its end.
func (z *ztocWriter) walk(stream io.Reader) error {
	in := &counter{r: stream}
	types := sociTypes()
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		} else if err != nil {
			return fmt.Errorf("zTOC: %w", err)
		}
		if h.Typeflag < '0' || int(h.Typeflag-'0') >= len(types) || hasSparse(h) {
			return fmt.Errorf("%w: SOCI cannot index %.200q, type %q", ErrNone, h.Name, h.Typeflag)
		}
		z.files = append(z.files, toldAt{*tells(h), in.n})
	}
	z.size = in.n // padding follows, with a checkpoint in it at times
	if _, err := io.Copy(io.Discard, stream); err != nil {
		return fmt.Errorf("zTOC: %w", err)
	}
	return nil
}

// counter counts what is read.
type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// digest sums up the blob bytes of each span.
func (z *ztocWriter) digest(blob io.ReaderAt) error {
	sum := func(from, to int64) error {
		h := sha256.New()
		if _, err := io.Copy(h, io.NewSectionReader(blob, from, to-from)); err != nil {
			return fmt.Errorf("zTOC: %w", err)
		}
		z.digests = append(z.digests, "sha256:"+hex.EncodeToString(h.Sum(nil)))
		return nil
	}
	if !z.gzip {
		for off := int64(0); off < z.blobSize; off += z.spanSize {
			if err := sum(off, min(off+z.spanSize, z.blobSize)); err != nil {
				return err
			}
		}
		return nil
	}
	for p := z.zinfo; len(p) > 0; p = p[zinfoPoint:] {
		from, to := int64(binary.LittleEndian.Uint64(p)), z.blobSize
		if p[16] != 0 {
			from--
		}
		if len(p) > zinfoPoint {
			to = int64(binary.LittleEndian.Uint64(p[zinfoPoint:]))
		}
		if err := sum(from, to); err != nil {
			return err
		}
	}
	return nil
}

// points returns the checkpoints as a zTOC has them.
func (z *ztocWriter) points() []byte {
	if z.gzip {
		b := binary.LittleEndian.AppendUint32(nil, uint32(len(z.digests)))
		b = binary.LittleEndian.AppendUint64(b, uint64(z.spanSize))
		return append(b, z.zinfo...)
	}
	var w fbWriter
	w.begin(tarInfoFields)
	w.i32(tarVersion, 2)
	w.i64(tarSpan, z.spanSize)
	w.i64(tarSize, z.blobSize)
	return w.finish(w.end())
}

// encode writes everything in the order in which SOCI does.
func (z *ztocWriter) encode(tool string) ([]byte, error) {
	var w fbWriter
	version, by := w.str("0.9"), w.str(tool)
	refs := make([]uint32, len(z.files))
	for i := len(z.files) - 1; i >= 0; i-- {
		if refs[i] = z.files[i].encode(&w); w.offset() > maxZtoc {
			return nil, errZtocSize
		}
	}
	files := w.vector(refs)
	w.begin(tocFields)
	w.ref(tocFiles, files)
	contents := w.end()

	points := z.points()
	if len(points) > maxZtoc {
		return nil, errZtocSize
	}
	checkpoints := w.bytes(points)
	refs = refs[:0]
	for _, d := range z.digests {
		refs = append(refs, w.str(d))
	}
	digests := w.vector(refs)
	codec := int8(sociGzip)
	if !z.gzip {
		codec = sociPlain
	}
	w.begin(infoFields)
	w.i32(infoMaxSpan, int32(len(z.digests)-1))
	w.ref(infoDigests, digests)
	w.ref(infoPoints, checkpoints)
	w.i8(infoCodec, codec, sociGzip)
	info := w.end()

	w.begin(ztocFields)
	w.ref(ztocVersion, version)
	w.ref(ztocTool, by)
	w.ref(ztocTOC, contents)
	w.i64(ztocBlobSize, z.blobSize)
	w.i64(ztocSize, z.size)
	w.ref(ztocInfo, info)
	return w.finish(w.end()), nil
}

var errZtocSize = errors.New("zTOC: larger than is sensible; a larger span size makes it smaller")

// encode writes an entry.
func (e *toldAt) encode(w *fbWriter) uint32 {
	when, err := e.time.UTC().MarshalText()
	if err != nil { // a year of five digits: SOCI too leaves it out
		when = nil
	}
	name, typ, link := w.str(e.name), w.str(sociTypes()[e.typ-'0']), w.str(e.link)
	uname, gname, mtime := w.str(e.uname), w.str(e.gname), w.str(string(when))
	refs := make([]uint32, 0, len(e.pax))
	for _, p := range e.pax {
		key, value := w.str(p.key), w.str(p.value)
		w.begin(paxFields)
		w.ref(paxKey, key)
		w.ref(paxValue, value)
		refs = append(refs, w.end())
	}
	records := w.vector(refs)
	w.begin(fileFields)
	w.ref(fileName, name)
	w.ref(fileType, typ)
	w.i64(fileOff, e.data)
	w.i64(fileSize, e.size)
	w.ref(fileLink, link)
	w.i64(fileMode, e.mode)
	w.i32(fileUID, int32(e.uid))
	w.i32(fileGID, int32(e.gid))
	w.ref(fileUname, uname)
	w.ref(fileGname, gname)
	w.ref(fileTime, mtime)
	w.i64(fileMajor, e.major)
	w.i64(fileMinor, e.minor)
	w.ref(filePAX, records)
	return w.end()
}

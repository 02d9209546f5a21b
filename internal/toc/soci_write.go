package toc

import (
	"archive/tar"
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/imgfs/imgfs/internal/span"
)

// BuildZtoc makes the zTOC of a layer, the very one that SOCI's own builder
// makes of it under the name tool in the time zone UTC. Its checkpoints are at
// least spanSize bytes of the stream apart, 4 MiB by SOCI's default. The blob,
// gzip or plain, is read to its end. An error that wraps ErrNone says that SOCI has
// nothing for such a layer.
func BuildZtoc(blob io.Reader, spanSize int64, tool string) ([]byte, error) {
	in := &counter{r: blob}
	src := bufio.NewReader(in)
	magic, err := src.Peek(4)
	if err == io.EOF {
		err = fmt.Errorf("%w: a layer of %d bytes", ErrNone, in.n)
	}
	if err != nil {
		return nil, fmt.Errorf("zTOC: %w", err)
	}
	z := ztocWriter{spanSize: spanSize}
	switch {
	case string(magic[:2]) == "\x1f\x8b":
		err = z.gzip(src)
	case string(magic) == "\x28\xb5\x2f\xfd":
		err = fmt.Errorf("%w: SOCI has no zstd", ErrNone)
	default:
		err = z.plain(src)
	}
	if err != nil {
		return nil, fmt.Errorf("zTOC: %w", err)
	}
	z.blobSize = in.n
	return z.encode(tool)
}

// ztocWriter collects what a zTOC says.
type ztocWriter struct {
	blobSize, size int64
	spanSize       int64
	files          []toldAt
	zinfo          *span.Zinfo // nil: the layer is plain
	digests        [][sha256.Size]byte
}

type toldAt struct {
	told
	data int64
}

// gzip reads a compressed layer.
func (z *ztocWriter) gzip(src io.Reader) error {
	z.zinfo = span.NewZinfo(src, z.spanSize)
	r, w := io.Pipe()
	inflated := make(chan error, 1)
	go func() {
		_, err := z.zinfo.WriteTo(w)
		w.CloseWithError(err)
		inflated <- err
	}()
	err := z.walk(r)
	r.CloseWithError(err)
	if inflateErr := <-inflated; err == nil {
		err = inflateErr
	}
	z.digests = z.zinfo.Sums()
	return err
}

// plain reads a layer that is not compressed.
func (z *ztocWriter) plain(src io.Reader) error {
	s := &spanSums{size: z.spanSize, h: sha256.New()}
	if err := z.walk(io.TeeReader(src, s)); err != nil {
		return err
	}
	z.digests = s.end()
	return nil
}

// spanSums sums up what is written, size bytes at a time.
type spanSums struct {
	size, n int64 // n: bytes in h
	h       hash.Hash
	sums    [][sha256.Size]byte
}

func (s *spanSums) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		k := min(s.size-s.n, int64(len(rest)))
		s.h.Write(rest[:k])
		rest = rest[k:]
		if s.n += k; s.n == s.size {
			s.end()
		}
	}
	return len(p), nil
}

func (s *spanSums) end() [][sha256.Size]byte {
	if s.n > 0 {
		s.sums = append(s.sums, [sha256.Size]byte(s.h.Sum(nil)))
		s.h.Reset()
		s.n = 0
	}
	return s.sums
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
			return err
		}
		if h.Typeflag < '0' || int(h.Typeflag-'0') >= len(types) || hasSparse(h) {
			return fmt.Errorf("%w: SOCI has nothing for %.200q, type %q", ErrNone, h.Name, h.Typeflag)
		}
		z.files = append(z.files, toldAt{*tells(h), in.n})
	}
	z.size = in.n // padding follows, and checkpoints in it at times
	_, err := io.Copy(io.Discard, stream)
	return err
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

// points returns the checkpoints as a zTOC has them.
func (z *ztocWriter) points() []byte {
	if z.zinfo != nil {
		return z.zinfo.Encode()
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
		refs = append(refs, w.str("sha256:"+hex.EncodeToString(d[:])))
	}
	digests := w.vector(refs)
	codec := int8(sociGzip)
	if z.zinfo == nil {
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

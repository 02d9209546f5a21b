package span

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"

	"github.com/imgfs/imgfs/internal/fault"
)

// Options say how a Reader makes its table. The zero value is the default.
type Options struct {
	// Spacing is about how much data there is between two checkpoints; 0 is
	// 1 MiB for uncompressed blobs, and for others what the windows make worth
	// while.
	Spacing int64
	// Step is about how much data a step has, for gzip; 0 is 128 KiB, as much
	// as Spacing means that there are none.
	Step int64
}

// Reader decodes a blob from its start and makes its Table by the way. It is
// not safe for concurrent use.
type Reader struct {
	src  *bufio.Reader
	kind Codec
	rec  recording
	done bool
}

// recording is what a codec's pass tells of the spans it saw.
type recording struct {
	Options
	b    *Builder
	err  error  // why there will be no table; nil so far
	test []byte // buffer
}

// giveUp says why the stream cannot be indexed. It can still be read.
func (r *recording) giveUp(err error) {
	if r.err == nil {
		r.err = err
	}
}

// NewReader returns a Reader of src, whose compression is told by its first
// bytes.
func NewReader(src io.Reader, o Options) *Reader {
	return &Reader{src: bufio.NewReader(src), rec: recording{Options: o}}
}

// WriteTo writes the blob's data to w, in pieces which w may use until it
// returns. Bytes behind the last gzip member are left unread: gzip(1) ignores
// them, containerd does so or not depending on which program unpacks for it,
// and what was read is proven by the diffID either way.
func (r *Reader) WriteTo(w io.Writer) (n int64, err error) {
	head, err := r.src.Peek(peek)
	if err != nil && err != io.EOF {
		return 0, err
	}
	if r.kind, err = detect(head); err != nil {
		return 0, err
	}
	r.rec.b = NewBuilder(r.kind, maxOffset)
	switch r.kind {
	case Gzip:
		n, err = passGzip(r.src, w, &r.rec)
	case Zstd:
		n, err = passZstd(r.src, w, &r.rec)
	case Bzip2:
		n, err = passUnindexed(bzip2.NewReader(r.src), w, &r.rec)
	case Xz:
		n, err = passXz(r.src, w, &r.rec)
	default:
		n, err = passPlain(r.src, w, &r.rec)
	}
	if err != nil {
		return n, fmt.Errorf("%s: %w", r.kind, err)
	}
	r.done = true
	return n, nil
}

// Kind returns how the blob is compressed, once WriteTo was called.
func (r *Reader) Kind() Codec { return r.kind }

// Table returns the table of the blob, which turned out to have blobSize
// bytes. The error says why there is none; nothing is wrong with the stream
// then if WriteTo had no error.
func (r *Reader) Table(blobSize int64) (*Table, error) {
	switch {
	case !r.done:
		return nil, errors.New("span: the stream was not read to its end")
	case r.rec.err != nil:
		return nil, fmt.Errorf("span: stream cannot be indexed: %w", r.rec.err)
	}
	r.rec.b.t.blobSize = blobSize
	return r.rec.b.Table()
}

// peek is how many first bytes detect is given: a tar header.
const peek = 512

// detect tells a blob's compression by its first bytes, of which there may be
// fewer than any magic has. What has no magic is taken for a tar; media types
// are not asked, they are often wrong.
func detect(head []byte) (Codec, error) {
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return Gzip, nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return Zstd, nil
	case len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18}):
		return Zstd, nil // a skippable frame
	}
	// A tar begins with a name, which could be "BZh": it is told by the magic
	// of its header, which no compressed stream has there.
	if isTar(head) {
		return Plain, nil
	}
	switch {
	case bytes.HasPrefix(head, []byte("BZh")):
		return Bzip2, nil
	case bytes.HasPrefix(head, []byte(xzMagic)):
		return Xz, nil
	}
	for _, no := range []struct {
		name  string
		magic []byte
	}{
		{"lz4", []byte{0x04, 0x22, 0x4d, 0x18}},
		{"zip", []byte("PK\x03\x04")},
	} {
		if bytes.HasPrefix(head, no.magic) {
			return 0, fault.New(fault.Invalid, "%s compression is not supported (gzip, zstd, bzip2, xz and none are)", no.name)
		}
	}
	return Plain, nil
}

func isTar(head []byte) bool { return len(head) >= 262 && string(head[257:262]) == "ustar" }

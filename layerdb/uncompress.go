package layerdb

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/inflate"
)

// maxWindow is the largest zstd window accepted, the limit of zstd(1) itself
// (--long=27): a frame header may ask for terabytes.
const maxWindow = 128 << 20

// compression is what a blob is compressed with, by its first bytes.
type compression string

const (
	plain     compression = "none"
	gzipped   compression = "gzip"
	zstandard compression = "zstd"
)

var (
	gzipMagic = []byte{0x1f, 0x8b}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// detect tells a blob's compression by its first bytes, of which there may be
// fewer than any magic has. What has no magic is taken for a tar; media types
// are not asked, they are often wrong.
func detect(head []byte) (compression, error) {
	switch {
	case bytes.HasPrefix(head, gzipMagic):
		return gzipped, nil
	case bytes.HasPrefix(head, zstdMagic):
		return zstandard, nil
	case len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18}):
		return zstandard, nil // a skippable frame
	}
	for _, no := range []struct {
		name  string
		magic []byte
	}{
		{"bzip2", []byte("BZh")},
		{"xz", []byte("\xfd7zXZ\x00")},
		{"lz4", []byte{0x04, 0x22, 0x4d, 0x18}},
		{"zip", []byte("PK\x03\x04")},
	} {
		// A tar begins with a name, which could be "BZh": it is told by the
		// magic of its header, which no compressed stream has there.
		if bytes.HasPrefix(head, no.magic) && !isTar(head) {
			return "", fault.New(fault.Invalid, "%s compression is not supported (gzip, zstd and none are)", no.name)
		}
	}
	return plain, nil
}

// peek is how many first bytes detect is given: a tar header.
const peek = 512

func isTar(head []byte) bool { return len(head) >= 262 && string(head[257:262]) == "ustar" }

// uncompress writes the uncompressed stream to w. It returns how the blob was
// compressed. Bytes behind the last gzip member are left unread: gzip(1)
// ignores them, containerd does so or not depending on which program unpacks
// for it, and what was read is proven by the diffID either way.
func uncompress(w io.Writer, r io.Reader) (compression, error) {
	br := bufio.NewReader(r)
	head, err := br.Peek(peek)
	if err != nil && err != io.EOF {
		return "", err
	}
	c, err := detect(head)
	if err != nil {
		return "", err
	}
	switch c {
	case gzipped:
		_, err = inflate.NewReader(br).WriteTo(w)
	case zstandard:
		err = unzstd(w, br)
	default:
		_, err = br.WriteTo(w)
	}
	if err != nil {
		return c, fmt.Errorf("%s: %w", c, err)
	}
	return c, nil
}

// unzstd decodes every frame of a zstd stream and skips the skippable ones.
func unzstd(w io.Writer, br *bufio.Reader) error {
	z, err := zstd.NewReader(br,
		zstd.WithDecoderConcurrency(1), // the stages around it run beside it already
		zstd.WithDecoderMaxWindow(maxWindow),
		zstd.WithDecoderMaxMemory(MaxStream),
	)
	if err != nil {
		return err
	}
	defer z.Close()
	_, err = z.WriteTo(w)
	if errors.Is(err, zstd.ErrWindowSizeExceeded) {
		return fault.New(fault.Invalid, "%w: more than %d MiB", err, maxWindow>>20)
	}
	return err
}

package toc

import (
	"compress/gzip"
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"strconv"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/imgfs/imgfs/internal/id"
)

// Media types of what is written.
const (
	typeGzip = "application/vnd.oci.image.layer.v1.tar+gzip"
	typeZstd = "application/vnd.oci.image.layer.v1.tar+zstd"
)

// Written describes a layer that was written, as a manifest has to.
type Written struct {
	Blob        id.Blob
	Size        int64     // bytes of the blob
	DiffID      id.DiffID // of the tar stream inside
	MediaType   string
	Annotations map[string]string
}

// WriteEstargz writes the uncompressed tar as an eStargz layer to w. The files
// of prefetch, in their order, come before all others and are marked as what a
// mount fetches at once; one that is not in the tar is ignored. The tar inside
// is another one than before: in another order, with the table of contents and
// a landmark as further files.
func WriteEstargz(ctx context.Context, w io.Writer, tar *io.SectionReader, prefetch []string) (*Written, error) {
	if tar.Size() == 0 { // not even an end of archive: the module would take it for gzip
		return nil, fmt.Errorf("%s: an empty layer has no table of contents", Estargz)
	}
	var missed []string
	blob, err := estargz.Build(tar, estargz.WithContext(ctx), estargz.WithCompressionLevel(gzip.DefaultCompression),
		estargz.WithPrioritizedFiles(prefetch), estargz.WithAllowPrioritizeNotFound(&missed))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", Estargz, err)
	}
	out := newOutput(w)
	_, err = io.Copy(out, blob)
	if e := blob.Close(); err == nil {
		err = e
	}
	var size int64
	if err == nil {
		size, err = blob.UncompressedSize()
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", Estargz, err)
	}
	return out.written(id.DiffID(blob.DiffID()), typeGzip, map[string]string{
		noteTOCDigest: blob.TOCDigest().String(),
		noteTarSize:   strconv.FormatInt(size, 10),
	}), nil
}

// output counts and hashes a blob on its way.
type output struct {
	w io.Writer
	h hash.Hash
	n int64
}

func newOutput(w io.Writer) *output { return &output{w: w, h: sha256.New()} }

func (o *output) Write(p []byte) (int, error) {
	n, err := o.w.Write(p)
	o.h.Write(p[:n])
	o.n += int64(n)
	return n, err
}

func (o *output) written(d id.DiffID, mediaType string, notes map[string]string) *Written {
	return &Written{Blob: id.BlobFrom([sha256.Size]byte(o.h.Sum(nil))), Size: o.n, DiffID: d, MediaType: mediaType, Annotations: notes}
}

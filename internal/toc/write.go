package toc

import (
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"strconv"
	"strings"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/vbatts/tar-split/archive/tar"
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

// ErrUnfit says that a layer has what a table of contents cannot express: it
// would lie, and its readers would not notice or refuse it. The layer can be
// left as it is.
var ErrUnfit = errors.New("the format cannot express this layer")

// errTwice: readers of a table of contents disagree on which one counts.
var errTwice = fmt.Errorf("%w: the tar has it twice", ErrUnfit)

// WriteEstargz writes the uncompressed tar as an eStargz layer to w. The files
// of prefetch, in their order, come before all others and are marked as what a
// mount fetches at once; one that is not in the tar is ignored. The tar inside
// is another one than before: in another order, with the table of contents and
// a landmark as further files.
func WriteEstargz(ctx context.Context, w io.Writer, stream *io.SectionReader, prefetch []string) (*Written, error) {
	if err := fit(stream); err != nil {
		return nil, fmt.Errorf("%s: %w", Estargz, err)
	}
	var missed []string
	// The module's own way to be stopped leaves files in the temporary directory.
	stream = io.NewSectionReader(stoppable{ctx, stream}, 0, stream.Size())
	blob, err := estargz.Build(stream, estargz.WithCompressionLevel(gzip.DefaultCompression),
		estargz.WithPrioritizedFiles(prefetch), estargz.WithAllowPrioritizeNotFound(&missed))
	if err != nil {
		if ctx.Err() != nil { // which the module does not always wrap
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("%s: %w", Estargz, err)
	}
	out := newOutput(w)
	_, err = io.Copy(out, blob)
	if err != nil {
		io.Copy(io.Discard, blob) // else what feeds it waits for ever
	}
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

// stoppable reads until the context ends.
type stoppable struct {
	ctx context.Context
	r   io.ReaderAt
}

func (s stoppable) ReadAt(p []byte, off int64) (int, error) {
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	return s.r.ReadAt(p, off)
}

// fit says why a table of contents cannot express a tar, if it cannot.
func fit(stream *io.SectionReader) error {
	if stream.Size() == 0 {
		return fmt.Errorf("%w: there is nothing in it", ErrUnfit)
	}
	r := tar.NewReader(io.NewSectionReader(stream, 0, stream.Size())) // seeks over payload
	seen := map[string]bool{}
	for {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		regular := h.Typeflag == tar.TypeReg
		name := path.Clean("/" + h.Name)
		_, err = newMetadata(h)
		switch {
		case err != nil:
		case seen[name]:
			err = errTwice
		case regular && strings.HasSuffix(h.Name, "/") || !regular && h.Size != 0:
			err = fmt.Errorf("%w: a header of type %q that has the name or data of another", ErrUnfit, h.Typeflag)
		}
		if err != nil {
			return fmt.Errorf("%.200q: %w", h.Name, err)
		}
		seen[name] = true
	}
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

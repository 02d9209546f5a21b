package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// files gives the files of a local source by slash-separated name. What open
// returns ends at size bytes; fs.ErrNotExist if there is no such file.
type files interface {
	open(name string) (r io.ReadCloser, size int64, err error)
	io.Closer
}

func openLocal(ref Reference) (files, error) {
	var f files
	var err error
	if ref.source == SourceLayout {
		f, err = openDir(ref.path)
	} else {
		f, err = openTar(ref.path)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fault.WithHint(fault.New(fault.NotFound, "%s: no such file or directory", ref.Name()), "paths are taken from the working directory")
	case errors.Is(err, fs.ErrPermission):
		return nil, fault.New(fault.Denied, "%s: permission denied", ref.Name())
	case err != nil:
		return nil, fmt.Errorf("%s: %w", ref.Name(), err)
	}
	return f, nil
}

func headLocal(ctx context.Context, ref Reference) (id.Blob, error) {
	f, err := openLocal(ref)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if ref.source == SourceDockerArchive {
		img, err := resolveDockerArchive(ctx, f, ref)
		if err != nil {
			return "", fmt.Errorf("%s: %w", ref.Name(), err)
		}
		return img.Digest, nil
	}
	d, err := layoutEntry(f, ref, Platform{})
	if err != nil {
		return "", fmt.Errorf("%s: %w", ref.Name(), err)
	}
	return id.Blob(d.Digest.String()), nil
}

func resolveLocal(ctx context.Context, ref Reference, p Platform) (*Image, error) {
	f, err := openLocal(ref)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var img *Image
	if ref.source == SourceDockerArchive {
		img, err = resolveDockerArchive(ctx, f, ref)
	} else {
		img, err = resolveLayout(f, ref, p)
	}
	if err == nil {
		err = checkPlatform(img, p)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ref.Name(), err)
	}
	return img, nil
}

// readFile reads a whole file of at most limit bytes.
func readFile(f files, name string, limit int64) ([]byte, error) {
	r, size, err := f.open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if size > limit {
		return nil, fault.New(fault.Integrity, "%s: %d bytes, more than %d", name, size, limit)
	}
	b, err := io.ReadAll(io.LimitReader(r, size))
	if err == nil && int64(len(b)) != size {
		err = fault.New(fault.Integrity, "%s: truncated: %d bytes of %d", name, len(b), size)
	}
	return b, err
}

func blobName(b id.Blob) string { return "blobs/sha256/" + b.Hex() }

// readBlob reads and verifies a blob of a layout.
func readBlob(f files, d v1.Descriptor, limit int64) ([]byte, error) {
	b, err := id.ParseBlob(d.Digest.String())
	if err != nil {
		return nil, fault.New(fault.Integrity, "%w", err)
	}
	body, err := readFile(f, blobName(b), limit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "blob %s is not in the layout", b)
	}
	if err == nil && id.BlobOf(body) != b {
		err = fault.New(fault.Integrity, "blob %s: its bytes have another digest", b)
	}
	return body, err
}

// layoutIndex reads a layout's index.json; fs.ErrNotExist if there is none.
func layoutIndex(f files) (*v1.IndexManifest, error) {
	body, err := readFile(f, "index.json", maxManifest)
	if err != nil {
		return nil, err
	}
	doc, err := parseManifest(body, "")
	if err != nil {
		return nil, fmt.Errorf("index.json: %w", err)
	}
	if doc.index == nil {
		return nil, fault.New(fault.Integrity, "index.json: not an index")
	}
	return doc.index, nil
}

// What a layout calls its manifests.
const (
	refName  = "org.opencontainers.image.ref.name" // a tag, or a full name
	fullName = "io.containerd.image.name"
)

// layoutEntry finds what ref names in a layout's index.json. Without a tag
// there must be one image, maybe for several platforms.
func layoutEntry(f files, ref Reference, p Platform) (v1.Descriptor, error) {
	x, err := layoutIndex(f)
	if errors.Is(err, fs.ErrNotExist) {
		return v1.Descriptor{}, fault.WithHint(fault.New(fault.Invalid, "not an OCI image layout: no index.json"),
			"for what docker save writes, use docker-archive:FILE")
	}
	if err != nil {
		return v1.Descriptor{}, err
	}
	var tags []string
	var match []v1.Descriptor
	for _, d := range x.Manifests {
		tag, tagged := d.Annotations[refName]
		if tagged && !slices.Contains(tags, tag) {
			tags = append(tags, tag)
		}
		if ref.tag == "" || tag == ref.tag || d.Annotations[fullName] == ref.tag {
			match = append(match, d)
		}
	}
	there := "there are: " + strings.Join(tags, ", ")
	if len(tags) == 0 {
		there = "it names no tags"
	}
	switch {
	case len(match) == 0 && ref.tag != "":
		return v1.Descriptor{}, fault.WithHint(fault.New(fault.NotFound, "tag %s not found", ref.tag), "%s", there)
	case len(match) == 0:
		return v1.Descriptor{}, fault.New(fault.NotFound, "holds no image")
	case ref.tag == "" && len(tags) > 1:
		return v1.Descriptor{}, fault.WithHint(fault.New(fault.Invalid, "holds several images"), "add :TAG; %s", there)
	case len(match) == 1 && runnable(match[0]):
		return match[0], nil
	}
	return choose(&v1.IndexManifest{Manifests: match}, p)
}

func resolveLayout(f files, ref Reference, p Platform) (*Image, error) {
	d, err := layoutEntry(f, ref, p)
	if err != nil {
		return nil, err
	}
	img, err := layoutImage(f, d, p)
	if err != nil {
		return nil, err
	}
	img.Reference = ref
	img.blobs = newBlobs(img.Layers, func(l Layer) *Blob {
		return &Blob{ref: ref, layer: l, local: func() (io.ReadCloser, error) { return openLocalLayer(ref, l, blobName(l.Blob)) }}
	})
	return img, nil
}

// layoutImage returns the image that d means for platform p, without its blobs.
func layoutImage(f files, d v1.Descriptor, p Platform) (*Image, error) {
	get := func(d v1.Descriptor) (*response, error) {
		body, err := readBlob(f, d, maxManifest)
		return &response{body: body, contentType: string(d.MediaType), digest: id.BlobOf(body)}, err
	}
	got, err := get(d)
	if err != nil {
		return nil, err
	}
	img := &Image{Digest: got.digest}
	doc, err := img.descend(got, p, get)
	if err != nil {
		return nil, err
	}
	m := doc.image
	if m == nil {
		return nil, fault.New(fault.Invalid, "manifest: Docker schema 1 in an OCI layout is not supported")
	}
	conf, err := readBlob(f, m.Config, maxConfig)
	if err != nil {
		return nil, fmt.Errorf("image config: %w", err)
	}
	return img, describe(img, m, conf)
}

// openLocalBlob opens a layer of a local source by its digest alone.
func openLocalBlob(ref Reference, l Layer) (io.ReadCloser, error) {
	if ref.source != SourceDockerArchive {
		return openLocalLayer(ref, l, blobName(l.Blob))
	}
	// Only its manifest knows what its files are called.
	img, err := resolveLocal(context.Background(), ref, Platform{})
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(img.Layers, func(have Layer) bool { return have.Blob == l.Blob })
	if i < 0 {
		return nil, fault.New(fault.NotFound, "%s: layer %s: not there", ref.Name(), l.Blob.Short())
	}
	return img.Blob(i).local()
}

// localLayer is an open layer of a local source, a plain file or a part of one.
type localLayer struct {
	io.ReadCloser
	f files
}

func (l *localLayer) Close() error { return errors.Join(l.ReadCloser.Close(), l.f.Close()) }

// openLocalLayer opens a layer that is the file name of a local source.
func openLocalLayer(ref Reference, l Layer, name string) (io.ReadCloser, error) {
	f, err := openLocal(ref)
	if err != nil {
		return nil, err
	}
	r, size, err := f.open(name)
	if err == nil && size != l.Size {
		r.Close()
		err = fault.New(fault.Integrity, "%d bytes, the manifest says %d", size, l.Size)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = fault.New(fault.NotFound, "not there")
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: layer %s: %w", ref.Name(), l.Blob.Short(), err)
	}
	return &localLayer{r, f}, nil
}

// readLocal reads a range of a layer of a local source.
func (b *Blob) readLocal(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	r, err := b.local()
	if err != nil {
		return nil, err
	}
	if off > 0 {
		if s, ok := r.(*localLayer).ReadCloser.(io.Seeker); ok {
			_, err = s.Seek(off, io.SeekStart)
		} else {
			_, err = io.CopyN(io.Discard, r, off)
		}
		if err != nil {
			r.Close()
			return nil, fmt.Errorf("%s: layer %s: %w", b.ref.Name(), b.layer.Blob.Short(), err)
		}
	}
	return &localReader{ctx: ctx, r: r, left: n, bounded: off+n < b.layer.Size}, nil
}

// localReader reads a part of a layer of a local source: exactly its size, or
// an error.
type localReader struct {
	ctx     context.Context
	r       io.ReadCloser
	left    int64
	bounded bool // the layer goes on behind the part
}

func (l *localReader) Read(p []byte) (int, error) {
	if err := l.ctx.Err(); err != nil {
		return 0, err
	}
	if l.bounded {
		if l.left == 0 {
			return 0, io.EOF
		}
		p = p[:min(int64(len(p)), l.left)]
	}
	n, err := l.r.Read(p)
	l.left -= int64(n)
	switch {
	case l.left < 0:
		return 0, fault.New(fault.Integrity, "layer grew while it was read")
	case err == io.EOF && l.left > 0:
		err = fault.New(fault.Integrity, "layer is truncated: %d bytes are missing", l.left)
	}
	return n, err
}

func (l *localReader) Close() error { return l.r.Close() }

// dir is a layout in a directory. An os.Root keeps symlinks inside it.
type dir struct{ root *os.Root }

func openDir(path string) (files, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	return dir{root}, nil
}

func (d dir) open(name string) (io.ReadCloser, int64, error) {
	f, err := d.root.OpenFile(name, os.O_RDONLY|nonblock, 0)
	if err != nil {
		return nil, 0, err
	}
	size, err := regular(f)
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, size, nil
}

func (d dir) Close() error { return d.root.Close() }

// regular returns the size of f, which must be a regular file.
func regular(f *os.File) (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if !st.Mode().IsRegular() {
		return 0, fault.New(fault.Invalid, "%s: not a regular file", st.Name())
	}
	return st.Size(), nil
}

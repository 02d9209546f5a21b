package fetch

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

const (
	nonblock   = syscall.O_NONBLOCK // opening a FIFO must not wait
	maxEntries = 1 << 17            // files in an archive
	maxNames   = 32 << 20           // bytes of their names
	maxLinks   = 8                  // links from name to name within it
	maxSaved   = 16 << 20           // bytes of a list of images
)

// archive is a tar file read in place: an index of where its files' bytes
// are. Names are keys, never paths of the host; a name that occurs twice
// means its last occurrence, as for tar.
type archive struct {
	io.Closer
	r       *io.SectionReader
	entries map[string]entry
	headers int // read
	names   int // bytes of the names in them
}

// entry is a file of an archive, or a link to another name in it.
type entry struct {
	off, size int64
	link      string // "" = a file
	taken     bool   // its bytes are not in r (see ReadArchive)
}

func openTar(name string) (files, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|nonblock, 0)
	if err != nil {
		return nil, err
	}
	size, err := regular(f)
	var a *archive
	if err == nil {
		a, err = newArchive(io.NewSectionReader(f, 0, size))
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	a.Closer = f
	return a, nil
}

// newArchive reads the headers. archive/tar seeks over the contents, and reads
// no further than a header's last block, so that the position is where the
// content begins.
func newArchive(r *io.SectionReader) (*archive, error) {
	a := &archive{r: r, entries: map[string]entry{}}
	return a, a.scan()
}

func (a *archive) scan() error {
	var magic [6]byte
	n, err := a.r.ReadAt(magic[:], 0)
	if err != nil && err != io.EOF {
		return err
	}
	if c := Compression(magic[:n]); c != "" {
		return fault.WithHint(fault.New(fault.Invalid, "the archive is compressed (%s)", c),
			"archives are read in place: unpack it to a plain tar file first, or load all of it: imgfs load -i FILE")
	}
	tr := tar.NewReader(a.r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fault.New(fault.Invalid, "not a tar file: %w", err)
		}
		name, file, err := a.note(h)
		if err != nil {
			return err
		}
		if !file {
			continue
		}
		off, err := a.r.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		if h.Size > a.r.Size()-off {
			return fault.New(fault.Integrity, "%q: truncated", name)
		}
		a.entries[name] = entry{off: off, size: h.Size}
	}
}

// note takes down what a header says, unless it is that of a file with bytes,
// which is the caller's to enter under name.
func (a *archive) note(h *tar.Header) (name string, file bool, err error) {
	a.headers++
	a.names += len(h.Name) + len(h.Linkname)
	switch {
	case a.headers > maxEntries:
		return "", false, fault.New(fault.Integrity, "more than %d files", maxEntries)
	case a.names > maxNames:
		return "", false, fault.New(fault.Integrity, "names of more than %d bytes", maxNames)
	}
	name = cleanName(h.Name)
	switch h.Typeflag {
	case tar.TypeReg:
		if sparse(h) {
			return "", false, fault.New(fault.Invalid, "%q: sparse files in archives are not supported", name)
		}
		if h.Size < 0 {
			return "", false, fault.New(fault.Integrity, "%q: truncated", name)
		}
		return name, true, nil
	case tar.TypeSymlink:
		a.entries[name] = entry{link: cleanName(path.Join(path.Dir(name), h.Linkname))}
	case tar.TypeLink:
		a.entries[name] = entry{link: cleanName(h.Linkname)}
	default:
		delete(a.entries, name)
	}
	return name, false, nil
}

func sparse(h *tar.Header) bool {
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// cleanName brings names to one form: no leading slash, no "..".
func cleanName(s string) string { return strings.TrimPrefix(path.Clean("/"+s), "/") }

// find returns the file that name stands for, and its own name.
func (a *archive) find(name string) (entry, string, error) {
	name = cleanName(name)
	for range maxLinks {
		e, ok := a.entries[name]
		if !ok {
			return entry{}, "", fs.ErrNotExist
		}
		if e.link == "" {
			return e, name, nil
		}
		name = e.link
	}
	return entry{}, "", fault.New(fault.Integrity, "%q: too many links", name)
}

// open reads through the archive's own descriptor; closing what it returns
// does not close that.
func (a *archive) open(name string) (io.ReadCloser, int64, error) {
	e, name, err := a.find(name)
	if err != nil {
		return nil, 0, err
	}
	if e.taken {
		return nil, 0, fault.New(fault.Integrity, "%q: is a layer", name)
	}
	return section{io.NewSectionReader(a.r, e.off, e.size)}, e.size, nil
}

// section is a file of an archive.
type section struct{ *io.SectionReader }

func (section) Close() error { return nil }

// Compression names the compression that b, the first bytes of a stream, says it
// has: gzip, zstd, bzip2 or xz; "" for none.
func Compression(b []byte) string {
	switch {
	case bytes.HasPrefix(b, []byte{0x1f, 0x8b}):
		return "gzip"
	case bytes.HasPrefix(b, []byte{0x28, 0xb5, 0x2f, 0xfd}),
		len(b) >= 4 && b[0]>>4 == 5 && b[1] == 0x2a && b[2] == 0x4d && b[3] == 0x18:
		return "zstd"
	case bytes.HasPrefix(b, []byte("BZh")):
		return "bzip2"
	case bytes.HasPrefix(b, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return "xz"
	}
	return ""
}

// savedImage is an element of a docker archive's manifest.json.
type savedImage struct {
	Config   string
	RepoTags []string
	Layers   []string
	Parent   string // ID of an image, "" if there is none
}

var hexName = regexp.MustCompile(`(?:^|/)([0-9a-f]{64})(?:\.json)?$`)

// resolveDockerArchive makes an image of what docker save wrote. It has no
// manifest of the usual form, so one is made of what the archive says.
func resolveDockerArchive(ctx context.Context, f files, ref Reference) (*Image, error) {
	saved, err := chooseSaved(f, ref.tag)
	if err != nil {
		return nil, err
	}
	conf, c, err := saved.config(f)
	if err != nil {
		return nil, err
	}
	m := &v1.Manifest{SchemaVersion: 2, MediaType: types.DockerManifestSchema2,
		Config: v1.Descriptor{MediaType: types.DockerConfigJSON, Size: int64(len(conf)), Digest: hashOf(id.BlobOf(conf))},
		Layers: []v1.Descriptor{}}
	names := map[id.Blob]string{}
	for i, name := range saved.Layers {
		d, err := savedLayer(ctx, f, name, c.RootFS.DiffIDs[i])
		if err != nil {
			return nil, fmt.Errorf("layer %q: %w", name, err)
		}
		m.Layers = append(m.Layers, d)
		names[id.Blob(d.Digest.String())] = name
	}
	if err := checkManifest(m); err != nil {
		return nil, err
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	img := &Image{Reference: ref, Digest: id.BlobOf(raw), ManifestDigest: id.BlobOf(raw), Manifest: raw, MediaType: typeSchema2}
	if err := describe(img, m, conf); err != nil {
		return nil, err
	}
	img.blobs = newBlobs(img.Layers, func(l Layer) *Blob {
		return &Blob{ref: ref, layer: l, local: func() (io.ReadCloser, error) { return openLocalLayer(ref, l, names[l.Blob]) }}
	})
	return img, nil
}

// config reads the image's config.
func (s *savedImage) config(f files) ([]byte, config, error) {
	var c config
	conf, err := readFile(f, s.Config, maxConfig)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, c, fault.New(fault.Integrity, "image config %q is not in the archive", s.Config)
	}
	if err != nil {
		return nil, c, err
	}
	if m := hexName.FindStringSubmatch(s.Config); m != nil && m[1] != id.BlobOf(conf).Hex() {
		return nil, c, fault.New(fault.Integrity, "image config verification failed for digest sha256:%s", m[1])
	}
	if n := len(s.Layers); n > maxLayers {
		return nil, c, fault.New(fault.Integrity, "manifest.json: %d layers, more than %d", n, maxLayers)
	}
	if err := json.Unmarshal(conf, &c); err != nil {
		return nil, c, fault.New(fault.Integrity, "image config: %w", err)
	}
	if c.RootFS == nil || len(c.RootFS.DiffIDs) != len(s.Layers) {
		return nil, c, fault.New(fault.Integrity, "layers from manifest don't match image configuration")
	}
	return conf, c, nil
}

// chooseSaved returns the image with the tag, or the only one.
func chooseSaved(f files, tag string) (savedImage, error) {
	all, err := savedImages(f)
	if errors.Is(err, fs.ErrNotExist) {
		return savedImage{}, fault.WithHint(fault.New(fault.Invalid, "not a docker archive: no manifest.json"),
			"for an OCI image layout in a tar file, use oci-archive:FILE")
	}
	if err != nil {
		return savedImage{}, err
	}
	var tags []string
	for _, s := range all {
		tags = append(tags, s.RepoTags...)
	}
	there := "there are: " + strings.Join(tags, ", ")
	switch {
	case len(all) == 0:
		return savedImage{}, fault.New(fault.NotFound, "holds no image")
	case tag == "" && len(all) > 1:
		return savedImage{}, fault.WithHint(fault.New(fault.Invalid, "holds several images"), "add :NAME:TAG; %s", there)
	case tag == "":
		return all[0], nil
	}
	want, err := ParseReference(tag)
	if err != nil {
		return savedImage{}, err
	}
	for _, s := range all {
		if slices.ContainsFunc(s.RepoTags, func(t string) bool {
			r, err := ParseReference(t)
			return err == nil && (r == want || r.tag == tag)
		}) {
			return s, nil
		}
	}
	return savedImage{}, fault.WithHint(fault.New(fault.NotFound, "tag %s not found", tag), "%s", there)
}

// savedImages reads manifest.json; fs.ErrNotExist if there is none.
func savedImages(f files) ([]savedImage, error) {
	raw, err := readFile(f, "manifest.json", maxSaved)
	if err != nil {
		return nil, err
	}
	var all []savedImage
	if err := json.Unmarshal(raw, &all); err != nil {
		var kind *json.UnmarshalTypeError
		if errors.As(err, &kind) { // its text is for Go programmers
			err = fmt.Errorf("not a list of images: %s at byte %d", kind.Value, kind.Offset)
		}
		return nil, fault.New(fault.Integrity, "manifest.json: %w", err)
	}
	return all, nil
}

// savedLayer describes a layer of a docker archive. Plain tar is its own
// diffID; of a compressed one, the digest stands in its name or is computed.
func savedLayer(ctx context.Context, f files, name string, diff id.DiffID) (v1.Descriptor, error) {
	r, size, err := f.open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return v1.Descriptor{}, fault.New(fault.Integrity, "not in the archive")
	}
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer r.Close()
	head := make([]byte, 6)
	n, err := io.ReadFull(r, head)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return v1.Descriptor{}, err
	}
	head = head[:n]
	d := v1.Descriptor{MediaType: types.DockerUncompressedLayer, Size: size}
	if Compression(head) == "" {
		d.Digest = hashOf(id.Blob(diff))
		return d, nil
	}
	d.MediaType = types.DockerLayer
	if m := hexName.FindStringSubmatch(name); m != nil && strings.HasPrefix(name, "blobs/sha256/") {
		d.Digest = v1.Hash{Algorithm: "sha256", Hex: m[1]}
		return d, nil
	}
	h := sha256.New()
	h.Write(head)
	if _, err := io.CopyBuffer(h, &localReader{ctx: ctx, r: r, left: size - int64(n)}, make([]byte, 1<<20)); err != nil {
		return v1.Descriptor{}, err
	}
	d.Digest = hashOf(id.BlobFrom([sha256.Size]byte(h.Sum(nil))))
	return d, nil
}

func hashOf(b id.Blob) v1.Hash { return v1.Hash{Algorithm: "sha256", Hex: b.Hex()} }

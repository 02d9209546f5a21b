package fetch

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

const (
	maxImages  = 1 << 14   // of an archive
	maxStacked = 1 << 17   // layers of all its images together
	maxTagged  = 1 << 14   // names of all its images
	maxTold    = 256 << 20 // bytes that are read of lists, manifests and configs, each as often as it is asked for
)

// Archive is an archive of images that came as a stream.
type Archive struct{ a *archive }

// Spool is where the files of an archive are kept while it is read.
type Spool interface {
	io.Writer
	io.ReaderAt
}

// ArchiveFile is a file of an archive as it passes.
type ArchiveFile struct {
	Name string // in one form: no leading slash, no ".."
	Size int64  // bytes
	Hex  string // the sha256 that its name states, in hexadecimal; "" if it states none
	Body *bufio.Reader
}

// digestName is a name that states a digest: of a blob of a layout, or of a
// layer as podman and skopeo call it.
var digestName = regexp.MustCompile(`^(?:blobs/sha256/([0-9a-f]{64})|([0-9a-f]{64})\.tar)$`)

// ReadArchive reads an archive to its end, once: a plain tar. Each file is
// offered to take; what that does not take, and has not read from, is written
// to spool. Nothing is looked at yet: that is [Archive.Images]'s.
//
// Errors are Invalid if it is no tar, Integrity if it is cut short, and what
// take, r or spool said.
func ReadArchive(r io.Reader, spool Spool, take func(*ArchiveFile) (taken bool, err error)) (*Archive, error) {
	a := &archive{entries: map[string]entry{}}
	src := &sourceReader{r: r}
	tr := tar.NewReader(bufio.NewReaderSize(src, 64<<10))
	body := bufio.NewReaderSize(nil, 256<<10)
	buf := make([]byte, 256<<10)
	end := int64(0) // of spool
	for {
		h, err := tr.Next()
		if err == io.EOF {
			a.r = io.NewSectionReader(spool, 0, end)
			return &Archive{a}, nil
		}
		if err != nil {
			return nil, src.error(err, a.headers)
		}
		name, file, err := a.note(h)
		if err != nil {
			return nil, err
		}
		if !file {
			continue
		}
		body.Reset(&tarBody{tr, src, name})
		f := &ArchiveFile{Name: name, Size: h.Size, Body: body}
		if m := digestName.FindStringSubmatch(name); m != nil {
			f.Hex = m[1] + m[2]
		}
		taken, err := take(f)
		if err != nil {
			return nil, err
		}
		e := entry{off: end, size: h.Size, taken: taken}
		if !taken {
			n, err := io.CopyBuffer(struct{ io.Writer }{spool}, struct{ io.Reader }{body}, buf)
			if err != nil {
				return nil, err
			}
			end += n
		}
		a.entries[name] = e
	}
}

// sourceReader remembers that it was the source that failed.
type sourceReader struct {
	r   io.Reader
	err error
}

func (s *sourceReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// error says what an error of the tar reader means, after some headers.
func (s *sourceReader) error(err error, headers int) error {
	switch {
	case s.err != nil:
		return s.err
	case headers == 0:
		return fault.New(fault.Invalid, "not a tar file: %w", err)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fault.New(fault.Integrity, "the archive is cut short")
	}
	return fault.New(fault.Integrity, "the archive is damaged: %w", err)
}

// tarBody is the bytes of one file of a tar.
type tarBody struct {
	r    *tar.Reader
	src  *sourceReader
	name string
}

func (b *tarBody) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("%q: %w", b.name, b.src.error(err, 1))
	}
	return n, err
}

// ArchiveImage is an image of an archive.
type ArchiveImage struct {
	// Image is the image; its layers have no blobs to open. Of docker's
	// archives its Manifest is nil, and a layer's Blob "". Of those from before
	// docker 1.10 DiffIDs are "" and Config is nil: see [ArchiveImage.ConfigOf].
	*Image
	Tags   []Reference // sorted
	Files  []string    // what its layers are called, lowest first: see [Archive.Open]
	Name   string      // what the archive calls it
	Parent string      // what it calls the image that this one was made of; "" if it does not say

	v1 *imageV1 // nil: not one from before docker 1.10
}

// Open returns the bytes of a file that was not taken; fault.NotFound if there
// is none.
func (a *Archive) Open(file string) (r *io.SectionReader, err error) {
	f, _, err := a.a.open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "%q is not in the archive", file)
	}
	if err != nil {
		return nil, err
	}
	return f.(section).SectionReader, nil
}

// Images returns the archive's images, parents before what was made of them.
// Of an image for several platforms it is that for p; of single images for
// other platforms than p, if that is not zero, nothing is said.
//
// Errors are NotFound if there is no image, or none for p; Invalid if it is an
// archive of something else; Integrity if it contradicts itself, or parts are
// missing.
func (a *Archive) Images(p Platform) ([]*ArchiveImage, error) {
	g := gathering{a: a.a, p: p, byID: map[id.ImageID]*ArchiveImage{}}
	_, _, isLayout := a.a.find("index.json")
	err := g.docker()
	switch {
	case errors.Is(err, fs.ErrNotExist) && isLayout == nil:
		err = g.layout()
	case errors.Is(err, fs.ErrNotExist):
		err = g.legacy()
	case err == nil && len(g.list) == 0 && isLayout == nil:
		err = g.layout() // manifest.json knows one platform alone
	}
	if err != nil {
		return nil, err
	}
	if len(g.list) == 0 {
		if len(g.others) > 0 {
			return nil, fault.WithHint(fault.New(fault.NotFound, "no image for the specified platform (%s)", p), "there are: %s", strings.Join(g.others, ", "))
		}
		return nil, fault.New(fault.NotFound, "the archive holds no image")
	}
	for _, img := range g.list {
		slices.SortFunc(img.Tags, func(a, b Reference) int { return strings.Compare(a.String(), b.String()) })
		img.Tags = slices.Compact(img.Tags)
	}
	return g.list, nil
}

// gathering collects the images of an archive.
type gathering struct {
	a       *archive
	p       Platform
	list    []*ArchiveImage
	byID    map[id.ImageID]*ArchiveImage
	others  []string // platforms that were not asked for
	stacked int      // layers
	tagged  int      // names
	told    int64    // bytes
}

// open implements files, for all that is read whole.
func (g *gathering) open(name string) (io.ReadCloser, int64, error) {
	r, size, err := g.a.open(name)
	if err != nil {
		return nil, 0, err
	}
	if g.told += size; g.told > maxTold {
		return nil, 0, fault.New(fault.Integrity, "lists, manifests and configs of more than %d bytes", maxTold)
	}
	return r, size, nil
}

// Close implements files.
func (g *gathering) Close() error { return nil }

// add takes an image, unless it is for another platform. One that was there
// before gets its tags.
func (g *gathering) add(img *ArchiveImage) error {
	if g.p != (Platform{}) && g.p.rank(img.Platform) == 0 {
		if s := img.Platform.String(); !slices.Contains(g.others, s) {
			g.others = append(g.others, s)
		}
		return nil
	}
	if old := g.byID[img.ID]; img.ID != "" && old != nil {
		old.Tags = append(old.Tags, img.Tags...)
		return nil
	}
	g.stacked += len(img.Layers)
	switch {
	case len(g.list) == maxImages:
		return fault.New(fault.Integrity, "more than %d images", maxImages)
	case g.stacked > maxStacked:
		return fault.New(fault.Integrity, "images of more than %d layers", maxStacked)
	}
	g.list = append(g.list, img)
	if img.ID != "" {
		g.byID[img.ID] = img
	}
	return nil
}

// file returns a layer's own name, and its size.
func (g *gathering) file(name string) (string, int64, error) {
	e, own, err := g.a.find(name)
	if errors.Is(err, fs.ErrNotExist) {
		err = fault.New(fault.Integrity, "layer %q is not in the archive", name)
	}
	return own, e.size, err
}

// docker gathers what manifest.json lists; fs.ErrNotExist if there is none.
func (g *gathering) docker() error {
	all, err := savedImages(g)
	if err != nil {
		return err
	}
	for _, s := range all {
		img, err := g.saved(&s)
		if err == nil {
			err = g.add(img)
		}
		if err != nil {
			return err
		}
	}
	// An image may stand before its parent.
	depths := map[id.ImageID]int{}
	for _, img := range g.list {
		var path []*ArchiveImage // to the first whose depth is known
		for at := img; at != nil && depths[at.ID] == 0; at = g.byID[id.ImageID(at.Parent)] {
			if path = append(path, at); len(path) > len(g.list) {
				return fault.New(fault.Integrity, "manifest.json: image %s is its own ancestor", img.ID)
			}
		}
		for _, at := range slices.Backward(path) {
			depths[at.ID] = 1
			if up := g.byID[id.ImageID(at.Parent)]; up != nil {
				depths[at.ID] = depths[up.ID] + 1
			}
		}
	}
	slices.SortStableFunc(g.list, func(a, b *ArchiveImage) int { return depths[a.ID] - depths[b.ID] })
	return nil
}

// saved returns an image that manifest.json lists.
func (g *gathering) saved(s *savedImage) (*ArchiveImage, error) {
	conf, c, err := s.config(g)
	if err != nil {
		return nil, err
	}
	img := &ArchiveImage{Image: &Image{
		Config: conf, ID: id.ImageIDOf(conf), Platform: Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant},
	}}
	img.Name, img.Parent = string(img.ID), s.Parent
	for _, t := range s.RepoTags {
		ref, err := g.tag(t)
		if err != nil {
			return nil, err
		}
		img.Tags = append(img.Tags, ref)
	}
	for i, name := range s.Layers {
		own, size, err := g.file(name)
		if err != nil {
			return nil, err
		}
		if c.RootFS.DiffIDs[i] == "" {
			return nil, fault.New(fault.Integrity, "layer %q: diffID is empty", name)
		}
		img.Files = append(img.Files, own)
		img.Layers = append(img.Layers, Layer{DiffID: c.RootFS.DiffIDs[i], Size: size})
	}
	return img, nil
}

// tag reads a name that an archive gives an image.
func (g *gathering) tag(s string) (Reference, error) {
	if g.tagged++; g.tagged > maxTagged {
		return Reference{}, fault.New(fault.Integrity, "images of more than %d names", maxTagged)
	}
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return Reference{}, fault.New(fault.Integrity, "invalid tag %q: %w", s, err)
	}
	t, ok := named.(reference.NamedTagged)
	if _, digest := named.(reference.Digested); !ok || digest {
		return Reference{}, fault.New(fault.Integrity, "invalid tag %q", s)
	}
	if reference.FamiliarName(t) == "sha256" {
		return Reference{}, fault.New(fault.Integrity, "invalid tag %q: sha256 is no name, but begins an ID", s)
	}
	return Reference{source: SourceRegistry, domain: reference.Domain(t), path: reference.Path(t), tag: t.Tag()}, nil
}

// layout gathers what index.json lists. Manifests that say what platform they
// are for, and are called the same or have no name, are one image.
func (g *gathering) layout() error {
	x, err := layoutIndex(g)
	if err != nil {
		return err
	}
	if len(x.Manifests) > maxImages {
		return fault.New(fault.Integrity, "more than %d images", maxImages)
	}
	var order []string
	several := map[string][]v1.Descriptor{} // by what they are called
	for _, d := range x.Manifests {
		called := d.Annotations[fullName] + " " + d.Annotations[refName]
		switch {
		case !runnable(d):
			continue
		case d.Platform == nil:
			called = strconv.Itoa(len(order))
		}
		if several[called] == nil {
			order = append(order, called)
		}
		several[called] = append(several[called], d)
	}
	for _, called := range order {
		d, err := g.chooseOf(several[called])
		if err == nil {
			err = g.layoutImage(d, layoutName(d))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// chooseOf returns the manifest for the platform that is wanted; if that is any,
// the only one will do.
func (g *gathering) chooseOf(list []v1.Descriptor) (v1.Descriptor, error) {
	if len(list) == 1 && g.p == (Platform{}) {
		return list[0], nil
	}
	return choose(&v1.IndexManifest{Manifests: list}, g.p)
}

// layoutName returns the full name that a manifest has in a layout, "" if it
// has none: a tag alone names nothing here.
func layoutName(d v1.Descriptor) string {
	for _, key := range []string{fullName, refName} {
		if s := d.Annotations[key]; strings.ContainsAny(s, "/:") {
			return s
		}
	}
	return ""
}

// layoutImage gathers the image that d means.
func (g *gathering) layoutImage(d v1.Descriptor, name string) error {
	p := g.p
	if p == (Platform{}) {
		p = g.only(d)
	}
	made, err := layoutImage(g, d, p)
	if err != nil {
		if name != "" {
			return fmt.Errorf("%s: %w", name, err)
		}
		return err
	}
	img := &ArchiveImage{Image: made, Name: string(made.ID)}
	if name != "" {
		ref, err := g.tag(name)
		if err != nil {
			return err
		}
		img.Tags = []Reference{ref}
	}
	for _, l := range made.Layers {
		own, size, err := g.file(blobName(l.Blob))
		if err == nil && size != l.Size {
			err = fault.New(fault.Integrity, "layer %s: %d bytes, the manifest says %d", l.Blob.Short(), size, l.Size)
		}
		if err != nil {
			return err
		}
		img.Files = append(img.Files, own)
	}
	return g.add(img)
}

// only returns the platform that an index is for, if it is a single one.
func (g *gathering) only(d v1.Descriptor) Platform {
	body, err := readBlob(g, d, maxManifest)
	if err != nil {
		return Platform{} // said by who reads it next
	}
	doc, err := parseManifest(body, string(d.MediaType))
	if err != nil || doc.index == nil {
		return Platform{}
	}
	found := map[Platform]bool{}
	for _, m := range doc.index.Manifests {
		if runnable(m) && m.Platform != nil {
			found[platformOf(m.Platform).normal()] = true
		}
	}
	for p := range maps.Keys(found) {
		if len(found) == 1 {
			return p
		}
	}
	return Platform{}
}

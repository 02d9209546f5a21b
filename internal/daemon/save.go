package daemon

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/imgfs/imgfs/fetch"
	"github.com/imgfs/imgfs/imagedb"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/toc"
)

// What save writes is docker's form since version 25, an OCI layout and an
// archive of docker's at once, which all of docker, podman, skopeo and umoci
// read:
//
//	oci-layout, index.json          of the layout
//	manifest.json, repositories     of docker's archive
//	blobs/sha256/HEX                manifests and configs
//	blobs/sha256/HEX                layers: the plain tar, called by its diffID
//
// The lists come first, so that who reads it as a stream knows what is to come.
// The same images give the same archive.

const (
	ociIndex  = "application/vnd.oci.image.index.v1+json"
	refName   = "org.opencontainers.image.ref.name"
	imageName = "io.containerd.image.name"
	blobsDir  = "blobs/sha256/"
)

// savedImage is an element of manifest.json.
type savedImage struct {
	Config   string
	RepoTags []string
	Layers   []string
	Parent   id.ImageID `json:",omitempty"` // only if it is in the archive
}

// saving is an archive on its way out.
type saving struct {
	e      *engine
	w      io.Writer
	order  []id.ImageID
	images map[id.ImageID]*imagedb.Image
	tags   map[id.ImageID][]fetch.Reference
	keys   map[id.ImageID][]id.LayerKey
	layers []*outgoing // each once, in the order of images
	byDiff map[id.DiffID]*outgoing
}

// outgoing is a layer of an archive.
type outgoing struct {
	diff id.DiffID
	key  id.LayerKey
	size int64    // bytes of its stream
	file *os.File // the stream, if it is not kept as such; nil: the layer's data
}

// Save implements engineapi.Archives.
func (e *engine) Save(ctx context.Context, req engineapi.SaveRequest, w io.Writer) error {
	want, err := fetch.ParsePlatform(req.Platform)
	if err != nil {
		return err
	}
	if err := e.beginWork(); err != nil {
		return err
	}
	defer e.endWork()
	s := &saving{
		e: e, w: w, images: map[id.ImageID]*imagedb.Image{},
		tags: map[id.ImageID][]fetch.Reference{}, keys: map[id.ImageID][]id.LayerKey{},
		byDiff: map[id.DiffID]*outgoing{},
	}
	for _, name := range req.Names {
		if err := s.choose(name, want); err != nil {
			return err
		}
	}
	free, err := e.holdLayers("save", slices.Concat(slices.Collect(maps.Values(s.keys))...))
	if err != nil {
		return err
	}
	defer free()
	defer s.close()
	for _, i := range s.order {
		if err := s.prepare(ctx, i); err != nil {
			return err
		}
	}
	if err := s.write(ctx); err != nil {
		return err
	}
	for _, i := range s.order {
		e.event(imageEvents, "save", string(i), "name", string(i))
	}
	return nil
}

// choose adds what a name means: an image with that tag, one without a name, or
// all tags of a repository.
func (s *saving) choose(name string, want fetch.Platform) error {
	found := 0
	if ref, err := fetch.ParseReference(name); err == nil && !ref.Local() && !tagged(name) {
		all := s.e.images.Names()
		for _, n := range slices.Sorted(maps.Keys(all)) {
			if tag, err := fetch.ParseReference(n); err == nil && tag.Name() == ref.Name() && tag.Tag() != "" {
				if err := s.add(all[n], tag, want); err != nil {
					return err
				}
				found++
			}
		}
	}
	if found > 0 {
		return nil
	}
	img, ref, err := s.e.lookup(name)
	if err != nil {
		return err
	}
	return s.add(img.ID, ref, want)
}

// add adds an image, and its name if that is a tag.
func (s *saving) add(i id.ImageID, ref fetch.Reference, want fetch.Platform) error {
	img, err := s.e.images.Get(i)
	if err != nil {
		return err
	}
	if img, err = s.e.forPlatform(img, ref, want); err != nil {
		return err
	}
	if i = img.ID; s.images[i] == nil {
		keys := s.e.keysOf(&img)
		if !s.e.hasAll(keys) {
			shown := shownAs(&img, ref)
			return fault.WithHint(fault.New(fault.NotFound, "layers of image %s are missing from the store", shown), "imgfs pull %s", fault.Word(shown))
		}
		s.order = append(s.order, i)
		s.images[i], s.keys[i] = &img, keys
	}
	if ref.Tag() != "" && !slices.Contains(s.tags[i], ref) {
		s.tags[i] = append(s.tags[i], ref)
	}
	return nil
}

// prepare brings in what is missing of an image's layers and finds out how long
// they are.
func (s *saving) prepare(ctx context.Context, i id.ImageID) error {
	img, keys := s.images[i], s.keys[i]
	if _, err := s.e.finishAll(ctx, keys, func(engineapi.Progress) {}); err != nil {
		return err
	}
	for n, l := range img.Layers {
		if s.byDiff[l.DiffID] != nil {
			continue
		}
		o := &outgoing{diff: l.DiffID, key: keys[n]}
		info, err := s.e.layers.Info(o.key)
		if err != nil {
			return err
		}
		if info.DiffID != o.diff {
			return fault.New(fault.Integrity, "layer %s: the image config says %s, the content is %s", o.key.Short(), o.diff, info.DiffID)
		}
		if o.size = info.StreamSize; info.Form != toc.Stream || info.Kind == toc.Soci {
			// Its length is not known before it has been through.
			err = s.e.spoolError(s.spool(ctx, o))
		}
		if err != nil {
			return err
		}
		s.layers = append(s.layers, o)
		s.byDiff[o.diff] = o
	}
	return nil
}

// spool writes a layer's stream to a file.
func (s *saving) spool(ctx context.Context, o *outgoing) error {
	f, err := tempFile(s.e.paths.Root)
	if err != nil {
		return err
	}
	o.file = f
	err = s.e.layers.WriteStream(ctx, o.key, f)
	if err == nil {
		o.size, err = f.Seek(0, io.SeekCurrent)
	}
	if err != nil {
		f.Close()
	}
	return err
}

func (s *saving) close() {
	for _, o := range s.layers {
		if o.file != nil {
			o.file.Close()
		}
	}
}

// write writes the archive.
func (s *saving) write(ctx context.Context) error {
	saved := []savedImage{}
	repos := map[string]map[string]string{}
	var index []descriptor
	blobs := map[string][]byte{} // manifests and configs, by name
	for _, i := range s.order {
		img := s.images[i]
		layers := []descriptor{}
		item := savedImage{Config: blobsDir + i.Hex(), Layers: []string{}}
		for _, l := range img.Layers {
			item.Layers = append(item.Layers, blobsDir+l.DiffID.Hex())
			layers = append(layers, descriptor{MediaType: ociLayer, Digest: id.Blob(l.DiffID), Size: s.byDiff[l.DiffID].size})
		}
		manifest, err := ociManifestOf(img.Config, layers)
		if err != nil {
			return err
		}
		d := descriptor{MediaType: ociManifest, Digest: id.BlobOf(manifest), Size: int64(len(manifest))}
		blobs[blobsDir+i.Hex()], blobs[blobsDir+d.Digest.Hex()] = img.Config, manifest
		top := i.Hex()
		if n := len(img.Layers); n > 0 {
			top = img.Layers[n-1].DiffID.Hex()
		}
		for _, t := range s.tags[i] {
			item.RepoTags = append(item.RepoTags, t.Familiar())
			if repos[t.FamiliarName()] == nil {
				repos[t.FamiliarName()] = map[string]string{}
			}
			repos[t.FamiliarName()][t.Tag()] = top
			d.Annotations = map[string]string{imageName: t.String(), refName: t.Tag()}
			index = append(index, d)
		}
		if len(s.tags[i]) == 0 {
			index = append(index, d)
		}
		if s.images[img.Parent] != nil {
			item.Parent = img.Parent
		}
		saved = append(saved, item)
	}
	lists := []struct {
		name string
		v    any
	}{
		{"oci-layout", map[string]string{"imageLayoutVersion": "1.0.0"}},
		{"index.json", struct {
			SchemaVersion int          `json:"schemaVersion"`
			MediaType     string       `json:"mediaType"`
			Manifests     []descriptor `json:"manifests"`
		}{2, ociIndex, index}},
		{"manifest.json", saved},
		{"repositories", repos},
	}
	for _, l := range lists {
		b, err := json.Marshal(l.v)
		if err == nil {
			err = s.file(ctx, l.name, bytes.NewReader(b), int64(len(b)))
		}
		if err != nil {
			return err
		}
	}
	for _, dir := range []string{"blobs/", blobsDir} {
		if err := s.header(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(blobs)) {
		if err := s.file(ctx, name, bytes.NewReader(blobs[name]), int64(len(blobs[name]))); err != nil {
			return err
		}
	}
	for _, o := range s.layers {
		if err := s.layer(ctx, o); err != nil {
			return err
		}
	}
	_, err := s.w.Write(make([]byte, 2*tarBlock))
	return err
}

// layer writes a layer, straight from its data.
func (s *saving) layer(ctx context.Context, o *outgoing) error {
	name := blobsDir + o.diff.Hex()
	if o.file != nil {
		return s.file(ctx, name, io.NewSectionReader(o.file, 0, o.size), o.size)
	}
	h, err := s.e.layers.Layer(o.key)
	if err != nil {
		return err
	}
	defer h.Release()
	f, err := h.Data().Fill(ctx, 0, o.size, o.size) // evicted meanwhile, perhaps
	if err != nil {
		return err
	}
	return s.file(ctx, name, io.NewSectionReader(f, 0, o.size), o.size)
}

const tarBlock = 512

// file writes a file of the archive.
func (s *saving) file(ctx context.Context, name string, r io.Reader, size int64) error {
	if err := s.header(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size}); err != nil {
		return err
	}
	buf := make([]byte, min(1<<20, max(size, 1)))
	n, err := io.CopyBuffer(s.w, contextReader{ctx, r}, buf)
	if err == nil && n != size {
		err = fault.New(fault.Integrity, "%s: %d bytes of %d", name, n, size)
	}
	if err == nil {
		_, err = s.w.Write(make([]byte, -size&(tarBlock-1)))
	}
	return err
}

// header writes a header as it is for everybody and at any time.
func (s *saving) header(h *tar.Header) error {
	h.ModTime = time.Unix(0, 0)
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(h); err != nil {
		return err
	}
	_, err := s.w.Write(b.Bytes())
	return err
}

// contextReader ends reading when its context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

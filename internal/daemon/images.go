package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/imgfs/imgfs/fetch"
	"github.com/imgfs/imgfs/imagedb"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/layerdb"
)

// config is the part of an image's config that the API shows.
type config struct {
	Created       *time.Time      `json:"created"`
	Author        string          `json:"author"`
	Comment       string          `json:"comment"`
	DockerVersion string          `json:"docker_version"`
	Architecture  string          `json:"architecture"`
	Variant       string          `json:"variant"`
	Os            string          `json:"os"`
	Config        json.RawMessage `json:"config"`
}

// Images implements engineapi.Images. A broken image is listed too, so that it
// can be removed.
func (e *engine) Images(_ context.Context, o engineapi.ListOptions) ([]engineapi.ImageSummary, error) {
	list := e.images.List()
	mounts := e.mountIDs()
	var users map[id.LayerKey]int // images by layer
	if o.SharedSize {
		users = map[id.LayerKey]int{}
		for i := range list {
			countOnce(users, e.keysOf(&list[i]))
		}
	}
	out := make([]engineapi.ImageSummary, 0, len(list))
	for i := range list {
		img := &list[i]
		f := e.layers.FiguresOf(e.keysOf(img), o.Cached)
		s := engineapi.ImageSummary{
			ID: img.ID, ParentID: string(img.Parent), Size: f.Content, SharedSize: -1,
			Containers: int64(len(mounts[img.ID])), Labels: img.Labels, Broken: img.Broken,
		}
		s.RepoTags, s.RepoDigests = familiarNames(img.Names)
		if !o.All && len(s.RepoTags)+len(s.RepoDigests) == 0 && len(e.images.Children(img.ID)) > 0 {
			continue
		}
		if !img.Created.IsZero() {
			s.Created = img.Created.Unix()
		}
		if o.SharedSize {
			s.SharedSize = e.sharedSize(img, users)
		}
		if o.Cached {
			f.Data -= f.Present
			s.Cached, s.Lazy = &f.Present, &f.Data
		}
		if o.Manifests {
			s.Descriptor, s.Manifests = e.manifests(img.ID, mounts[img.ID])
		}
		out = append(out, s)
	}
	if len(out) > manyImages {
		e.mu.Lock()
		e.tidyLater()
		e.mu.Unlock()
	}
	return out, nil
}

// manyImages is how many leave so much garbage when they are listed that it is
// to be returned.
const manyImages = 1000

// sharedSize returns the bytes of an image's layers that users says others have
// as well.
func (e *engine) sharedSize(img *imagedb.Image, users map[id.LayerKey]int) int64 {
	var sum int64
	for _, k := range e.keysOf(img) {
		if users[k] > 1 {
			n, _ := e.layers.Size(k) // of one that is missing, nothing is shared
			sum += n
		}
	}
	return sum
}

// manifests describes what an image's names point to, if that is known, and
// its manifest; nil of a broken image. An image that came without a manifest is
// described by its config.
func (e *engine) manifests(imageID id.ImageID, mounts []string) (*engineapi.Descriptor, []engineapi.ManifestSummary) {
	img, err := e.images.Get(imageID)
	if err != nil {
		return nil, nil
	}
	p, _ := fetch.ParsePlatform(img.Platform) // "": shown as none
	platform := engineapi.Platform{Architecture: p.Architecture, OS: p.OS, Variant: p.Variant}
	d := engineapi.Descriptor{MediaType: ociConfig, Digest: string(img.ID), Size: int64(len(img.Config))}
	if img.Manifest != nil {
		var m struct {
			MediaType string `json:"mediaType"`
		}
		_ = json.Unmarshal(img.Manifest, &m) // it was read when it came
		d = engineapi.Descriptor{MediaType: cmp.Or(m.MediaType, ociManifest), Digest: string(img.ManifestDigest), Size: int64(len(img.Manifest))}
	}
	var target *engineapi.Descriptor
	if img.Manifest != nil && img.Digest == img.ManifestDigest {
		t := d
		target = &t
	}
	d.Platform = &platform
	cached, lazy := e.presence(e.keysOf(&img))
	s := engineapi.ManifestSummary{
		ID: d.Digest, Descriptor: d, Kind: "image",
		Available: e.hasAll(e.keysOf(&img)),
		Size:      engineapi.ManifestSize{Content: cached, Total: cached + lazy},
		ImageData: &engineapi.ManifestImageData{Platform: platform, Containers: append([]string{}, mounts...)},
	}
	s.ImageData.Size.Unpacked = e.size(img)
	return target, []engineapi.ManifestSummary{s}
}

// Inspect implements engineapi.Images.
func (e *engine) Inspect(_ context.Context, name string, o engineapi.InspectOptions) (engineapi.ImageInspect, error) {
	img, _, err := e.findFor(name, o.Platform)
	if err == nil {
		img, err = e.images.Get(img.ID)
	}
	if err != nil {
		return engineapi.ImageInspect{}, err
	}
	var c config
	if err := json.Unmarshal(img.Config, &c); err != nil {
		return engineapi.ImageInspect{}, fault.New(fault.Integrity, "image %s: config: %w", img.ID.Short(), err)
	}
	if len(c.Config) == 0 {
		c.Config = json.RawMessage("{}")
	}
	cached, lazy := e.presence(e.keysOf(&img))
	i := engineapi.ImageInspect{
		ID: img.ID, Parent: string(img.Parent), Comment: c.Comment,
		DockerVersion: c.DockerVersion, Author: c.Author, Config: c.Config,
		Architecture: c.Architecture, Variant: c.Variant, Os: c.Os, Size: e.size(img),
		GraphDriver: engineapi.GraphDriver{Name: "imgfs", Data: map[string]string{
			"ChainID":     string(id.Chain(img.DiffIDs())),
			"CachedBytes": strconv.FormatInt(cached, 10),
			"LazyBytes":   strconv.FormatInt(lazy, 10),
		}},
		RootFS:   engineapi.RootFS{Type: "layers", Layers: img.DiffIDs()},
		Metadata: engineapi.ImageMetadata{LastTagTime: img.Tagged},
	}
	if c.Created != nil {
		i.Created = c.Created.Format(time.RFC3339Nano)
	}
	i.RepoTags, i.RepoDigests = e.familiar(img.ID)
	if at := e.usedBy(img.ID); len(at) > 0 {
		i.GraphDriver.Data["MountPoint"] = strings.Join(at, ",")
	}
	target, list := e.manifests(img.ID, e.mountIDs()[img.ID])
	i.Descriptor = target
	if o.Manifests {
		i.Manifests = list
	}
	return i, nil
}

// familiar returns an image's names as docker shows them.
func (e *engine) familiar(imageID id.ImageID) (tags, digests []string) {
	return familiarNames(e.images.References(imageID))
}

func familiarNames(names []string) (tags, digests []string) {
	tags, digests = make([]string, 0, len(names)), []string{}
	for _, n := range names {
		if strings.Contains(n, "@") {
			digests = append(digests, imagedb.Familiar(n))
		} else {
			tags = append(tags, imagedb.Familiar(n))
		}
	}
	return tags, digests
}

// size returns the bytes of the layers' regular files, as docker counts them;
// a missing layer counts nothing.
func (e *engine) size(img imagedb.Image) int64 {
	return e.layers.FiguresOf(e.keysOf(&img), false).Content
}

// usedBy returns where an image is mounted, sorted.
func (e *engine) usedBy(imageID id.ImageID) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var at []string
	for _, m := range e.mounts {
		if m.rec.ImageID == imageID {
			at = append(at, m.rec.Target)
		}
	}
	slices.Sort(at)
	return at
}

// mountIDs returns the IDs of the mounts of each image, sorted.
func (e *engine) mountIDs() map[id.ImageID][]string {
	e.mu.Lock()
	defer e.mu.Unlock()
	ids := map[id.ImageID][]string{}
	for _, m := range e.mounts {
		ids[m.rec.ImageID] = append(ids[m.rec.ImageID], m.rec.ID)
	}
	for _, list := range ids {
		slices.Sort(list)
	}
	return ids
}

// sweepRecords forgets where blobs are to be had from of which nothing is left,
// and what was read of chains that nobody holds.
//
// Preconditions: no request is served yet.
func (e *engine) sweepRecords() error {
	// Most blobs are those of proven layers, and found there.
	others := sync.OnceValue(func() map[id.Blob]bool {
		blobs := map[id.Blob]bool{}
		e.layers.Each(func(l *layerdb.LayerInfo) { blobs[l.Blob] = true })
		e.images.Each(func(img *imagedb.Image) {
			for _, l := range img.Layers { // one that is missing is to come from there
				blobs[l.Blob] = true
			}
		})
		return blobs
	})
	diffs := sync.OnceValue(func() map[id.DiffID]bool {
		diffs := map[id.DiffID]bool{}
		e.layers.Each(func(l *layerdb.LayerInfo) { diffs[l.DiffID] = true })
		return diffs
	})
	packed := map[id.Blob]bool{}
	if err := sweepPacked(e.db, func(d id.DiffID) bool { return diffs()[d] }, packed); err != nil {
		return err
	}
	keep := func(b id.Blob) bool { return e.layers.ByBlob(b) != "" || packed[b] || others()[b] }
	return errors.Join(e.origins.sweep(keep), sweepTraces(e.db, e.layers.HeldStacks))
}

package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/imgfs/imgfs/fetch"
	"github.com/imgfs/imgfs/imagedb"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
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

// labels returns config.config.Labels, nil if there are none.
func (c *config) labels() map[string]string {
	var l struct{ Labels map[string]string }
	if len(c.Config) == 0 || json.Unmarshal(c.Config, &l) != nil {
		return nil
	}
	return l.Labels
}

// created returns when the image was made; the zero time if it does not say.
func (c *config) created() time.Time {
	if c.Created == nil {
		return time.Time{}
	}
	return *c.Created
}

// Images implements engineapi.Images.
func (e *engine) Images(_ context.Context, o engineapi.ListOptions) ([]engineapi.ImageSummary, error) {
	list := e.images.List()
	out := make([]engineapi.ImageSummary, 0, len(list))
	for _, img := range list {
		// A broken image is listed too, so that it can be removed.
		var c config
		if whole, err := e.images.Get(img.ID); err == nil {
			err = json.Unmarshal(whole.Config, &c)
			if err != nil {
				e.log.Warn("image config", "image", img.ID, "err", err)
			}
		}
		s := engineapi.ImageSummary{
			ID: img.ID, Size: e.size(img), SharedSize: -1, Containers: -1, Labels: c.labels(),
		}
		if t := c.created(); !t.IsZero() {
			s.Created = t.Unix()
		}
		s.RepoTags, s.RepoDigests = e.familiar(img.ID)
		out = append(out, s)
	}
	return out, nil
}

// Inspect implements engineapi.Images.
func (e *engine) Inspect(_ context.Context, name string, o engineapi.InspectOptions) (engineapi.ImageInspect, error) {
	img, _, err := e.lookup(name)
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
	i := engineapi.ImageInspect{
		ID: img.ID, Comment: c.Comment, Created: c.created().Format(time.RFC3339Nano),
		DockerVersion: c.DockerVersion, Author: c.Author, Config: c.Config,
		Architecture: c.Architecture, Variant: c.Variant, Os: c.Os, Size: e.size(img),
		GraphDriver: engineapi.GraphDriver{Name: "imgfs", Data: map[string]string{"ChainID": string(id.Chain(img.DiffIDs()))}},
		RootFS:      engineapi.RootFS{Type: "layers", Layers: img.DiffIDs()},
		Metadata:    engineapi.ImageMetadata{LastTagTime: img.Tagged},
	}
	i.RepoTags, i.RepoDigests = e.familiar(img.ID)
	if at := e.usedBy(img.ID); len(at) > 0 {
		i.GraphDriver.Data["MountPoint"] = strings.Join(at, ",")
	}
	return i, nil
}

// familiar returns an image's names as docker shows them.
func (e *engine) familiar(imageID id.ImageID) (tags, digests []string) {
	tags, digests = []string{}, []string{}
	for _, n := range e.images.References(imageID) {
		ref, err := fetch.ParseReference(n)
		switch {
		case err != nil:
		case ref.Digest() != "":
			digests = append(digests, ref.Familiar())
		default:
			tags = append(tags, ref.Familiar())
		}
	}
	return tags, digests
}

// size returns the bytes of the layers' regular files, as docker counts them;
// a missing layer counts nothing.
func (e *engine) size(img imagedb.Image) int64 {
	var sum int64
	for _, k := range e.keysOf(&img) {
		n, err := e.layers.Size(k)
		if err == nil {
			sum += n
		}
	}
	return sum
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

// Remove implements engineapi.Images with docker's rules: by name, that name
// goes, and with the last one the image; by ID, all names go if they are of
// one repository or force is set. A mount counts as a stopped container does:
// it stands in the way of the last name, unless force is set, and keeps its
// layers either way.
func (e *engine) Remove(_ context.Context, name string, o engineapi.RemoveOptions) ([]engineapi.DeleteItem, error) {
	e.names.Lock()
	defer e.names.Unlock()
	img, ref, err := e.lookup(name)
	if err != nil {
		return nil, err
	}
	refs := e.images.References(img.ID)
	going := refs
	if ref != (fetch.Reference{}) {
		going = withDigests(refs, ref)
	} else if !o.Force && repositories(refs) > 1 {
		return nil, conflict(img.ID, "image is referenced in multiple repositories")
	}
	last := len(going) == len(refs)
	if at := e.usedBy(img.ID); last && !o.Force && len(at) > 0 {
		return nil, fault.WithHint(conflict(img.ID, "image is being used by mount "+at[0]), "imgfs umount %s", at[0])
	}
	items := []engineapi.DeleteItem{}
	var gone []string
	if last {
		gone, err = e.images.Delete(img.ID)
	} else {
		gone, err = e.images.Untag(ref.String())
	}
	for _, n := range gone {
		if r, err := fetch.ParseReference(n); err == nil {
			n = r.Familiar()
		}
		items = append(items, engineapi.DeleteItem{Untagged: n})
	}
	if err != nil || !last {
		return items, err
	}
	items = append(items, engineapi.DeleteItem{Deleted: string(img.ID)})
	called := map[id.LayerKey]id.DiffID{} // by the image, proven or not
	for i, k := range e.keysOf(&img) {
		called[k] = img.Layers[i].DiffID
	}
	freed, err := e.layers.Release(imageOwner + string(img.ID))
	if err != nil {
		return items, err
	}
	for _, k := range freed {
		items = append(items, engineapi.DeleteItem{Deleted: string(called[k])})
	}
	e.log.Info("removed", "image", img.ID, "layers", len(freed))
	return items, nil
}

func conflict(imageID id.ImageID, reason string) error {
	return fault.New(fault.Conflict, "conflict: unable to delete %s (must be forced) - %s", imageID.Short(), reason)
}

// withDigests returns ref's name and, if it is the last tag of its repository
// in refs, the repository's digests.
func withDigests(refs []string, ref fetch.Reference) []string {
	going := []string{ref.String()}
	var digests []string
	for _, n := range refs {
		r, err := fetch.ParseReference(n)
		if err != nil || r.Name() != ref.Name() || n == ref.String() {
			continue
		}
		if r.Digest() == "" {
			return going // another tag
		}
		digests = append(digests, n)
	}
	if ref.Digest() != "" {
		return going
	}
	return append(going, digests...)
}

// repositories counts the repositories that refs are of.
func repositories(refs []string) int {
	seen := map[string]bool{}
	for _, n := range refs {
		if r, err := fetch.ParseReference(n); err == nil {
			seen[r.Name()] = true
		}
	}
	return len(seen)
}

// staleOwners returns the owners of layers that a kill has left: its pulls,
// and images and uppers that are no more.
//
// Preconditions: nothing is pulled yet.
func (e *engine) staleOwners() []string {
	stale := append(e.layers.Owners(pullOwner), e.staleUppers()...)
	for _, o := range e.layers.Owners(imageOwner) {
		_, err := e.images.Get(id.ImageID(strings.TrimPrefix(o, imageOwner)))
		if fault.KindOf(err) == fault.NotFound {
			stale = append(stale, o)
		}
	}
	return stale
}

// sweepRecords forgets where blobs are to be had from of which nothing is left,
// and what was read of chains that nobody holds.
//
// Preconditions: no request is served yet.
func (e *engine) sweepRecords() error {
	layers, err := e.layers.Layers()
	if err != nil {
		return err
	}
	blobs := map[id.Blob]bool{}
	for _, l := range layers {
		blobs[l.Blob] = true
	}
	chains := map[id.ChainKey]bool{}
	for _, o := range e.layers.Owners("") {
		chains[id.Stack(e.layers.Held(o))] = true
	}
	return errors.Join(e.origins.sweep(blobs), sweepTraces(e.db, chains))
}

// dropOwners ends what owners hold.
func (e *engine) dropOwners(owners []string) error {
	for _, o := range owners {
		if _, err := e.layers.Release(o); err != nil {
			return fmt.Errorf("owner %s: %w", o, err)
		}
	}
	return nil
}

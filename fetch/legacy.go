package fetch

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// Archives from before docker 1.10: each layer is an image of its own, in a
// directory called by its ID, which says nothing of its content:
//
//	ID/VERSION     1.0
//	ID/json        its config, with the ID of its parent
//	ID/layer.tar
//	repositories   {"NAME": {"TAG": "ID"}}
//
// What they become is what docker has made of them since: configs are the old
// ones with rootfs and history, so that images have the same IDs everywhere.

const maxVersion1 = 1 << 20 // bytes of a config

var legacyJSON = regexp.MustCompile(`^([0-9a-f]{64})/json$`)

// imageV1 is what an old config says of its image.
type imageV1 struct {
	Parent       string
	OS           string
	Architecture string
	Variant      string

	raw     json.RawMessage
	history []json.RawMessage // its parents' first
}

// historyV1 is an entry of a config's history as docker writes it.
type historyV1 struct {
	Created   *time.Time `json:"created,omitempty"`
	Author    string     `json:"author,omitempty"`
	CreatedBy string     `json:"created_by,omitempty"`
	Comment   string     `json:"comment,omitempty"`
}

// ConfigOf returns the config of an image from before docker 1.10, whose layers
// have the given diffIDs, lowest first. Its digest is the image's ID.
func (img *ArchiveImage) ConfigOf(diffs []id.DiffID) ([]byte, error) {
	if img.v1 == nil || len(diffs) != len(img.Layers) {
		return nil, fault.New(fault.Invalid, "layers don't match image configuration (%d, %d)", len(img.Layers), len(diffs))
	}
	var c map[string]json.RawMessage
	if err := json.Unmarshal(img.v1.raw, &c); err != nil {
		return nil, fault.New(fault.Integrity, "image %s: %w", img.Name, err)
	}
	for _, k := range []string{"id", "parent", "Size", "parent_id", "layer_id", "throwaway"} {
		delete(c, k)
	}
	rootfs, err := json.Marshal(struct {
		Type    string      `json:"type"`
		DiffIDs []id.DiffID `json:"diff_ids"`
	}{"layers", diffs})
	if err != nil {
		return nil, err
	}
	history, err := json.Marshal(img.v1.history)
	if err != nil {
		return nil, err
	}
	c["rootfs"], c["history"] = rootfs, history
	return json.Marshal(c)
}

// Legacy reports whether ConfigOf is to be asked for the config.
func (img *ArchiveImage) Legacy() bool { return img.v1 != nil }

// legacy gathers the images of an archive without manifest.json.
func (g *gathering) legacy() error {
	var names []string
	for name := range g.a.entries {
		if m := legacyJSON.FindStringSubmatch(name); m != nil {
			names = append(names, m[1])
		}
	}
	slices.Sort(names)
	if len(names) == 0 {
		return fault.WithHint(fault.New(fault.Invalid, "not an archive of images: it has neither manifest.json nor index.json"),
			"for the tar of a file system, use imgfs import")
	}
	byName := map[string]*ArchiveImage{}
	for _, name := range names {
		if err := g.version1(name, byName); err != nil {
			return err
		}
	}
	return g.repositories(byName)
}

// version1 gathers an image whose directory is called name, after its parents.
func (g *gathering) version1(name string, byName map[string]*ArchiveImage) error {
	var up []*imageV1 // from it to the first whose parent is known, or that has none
	var path []string
	for at := name; at != "" && byName[at] == nil; {
		if len(up) == maxLayers || slices.Contains(path, at) {
			return fault.New(fault.Integrity, "image %s: too many parents", name)
		}
		v, err := g.readV1(at)
		if err != nil {
			return err
		}
		up, path = append(up, v), append(path, at)
		at = v.Parent
	}
	for i, v := range slices.Backward(up) {
		img := &ArchiveImage{Name: path[i], Parent: v.Parent, v1: v}
		img.Image = &Image{Platform: Platform{OS: firstOf(v.OS, "linux"), Architecture: v.Architecture, Variant: v.Variant}}
		own, size, err := g.file(path[i] + "/layer.tar")
		if err != nil {
			return err
		}
		if p := byName[v.Parent]; p != nil {
			if len(p.Layers) == maxLayers {
				return fault.New(fault.Integrity, "image %s: more than %d layers", name, maxLayers)
			}
			img.Layers, img.Files = slices.Clone(p.Layers), slices.Clone(p.Files)
			v.history = append(slices.Clone(p.v1.history), v.history...)
		}
		img.Layers, img.Files = append(img.Layers, Layer{Size: size}), append(img.Files, own)
		byName[path[i]] = img
		if err := g.add(img); err != nil {
			return err
		}
	}
	return nil
}

// readV1 reads an old config.
func (g *gathering) readV1(name string) (*imageV1, error) {
	raw, err := readFile(g, name+"/json", maxVersion1)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Integrity, "parent %s is not in the archive", name)
	}
	if err != nil {
		return nil, err
	}
	v := &imageV1{raw: raw}
	var c struct {
		ID              string
		Created         *time.Time
		Author          string
		Comment         string
		ContainerConfig struct{ Cmd []string } `json:"container_config"`
	}
	if err = json.Unmarshal(raw, v); err == nil {
		err = json.Unmarshal(raw, &c)
	}
	switch {
	case err != nil:
		return nil, fault.New(fault.Integrity, "image %s: %w", name, err)
	case c.ID != "" && c.ID != name:
		return nil, fault.New(fault.Integrity, "image %s: calls itself %.64q", name, c.ID)
	case v.Parent != "" && !hexID.MatchString(v.Parent):
		return nil, fault.New(fault.Integrity, "image %s: parent %.64q is no ID", name, v.Parent)
	}
	h, err := json.Marshal(historyV1{c.Created, c.Author, strings.Join(c.ContainerConfig.Cmd, " "), c.Comment})
	v.history = []json.RawMessage{h}
	return v, err
}

// repositories gives images the names that the archive has for them.
func (g *gathering) repositories(byName map[string]*ArchiveImage) error {
	raw, err := readFile(g, "repositories", maxSaved)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // images without a name
	}
	if err != nil {
		return err
	}
	var repos map[string]map[string]string
	if err := json.Unmarshal(raw, &repos); err != nil {
		return fault.New(fault.Integrity, "repositories: %w", err)
	}
	for repo, tags := range repos {
		for tag, to := range tags {
			img := byName[to]
			if img == nil {
				return fault.New(fault.Integrity, "repositories: invalid target ID: %.64s", to)
			}
			ref, err := g.tag(repo + ":" + tag)
			if err != nil {
				return fmt.Errorf("repositories: %w", err)
			}
			img.Tags = append(img.Tags, ref)
		}
	}
	return nil
}

package imagedb

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// Image is an image and how it came here. What List, Map and Heads return
// shares Layers, Labels and Names with the store: they are not to be changed.
type Image struct {
	ID             id.ImageID `json:"id"`
	Config         []byte     `json:"-"`                        // byte for byte; nil from List
	Manifest       []byte     `json:"-"`                        // nil from List, and if there was none (docker-archive)
	ManifestDigest id.Blob    `json:"manifestDigest,omitempty"` // "" if there was none
	Digest         id.Blob    `json:"digest,omitempty"`         // of what the name pointed to: manifest or index
	Platform       string     `json:"platform"`                 // os/architecture[/variant]
	Layers         []Layer    `json:"layers"`                   // lowest first
	Put            time.Time  `json:"put"`                      // when it first came; set by Create
	Tagged         time.Time  `json:"tagged,omitzero"`          // when a name last came to point to it
	Parent         id.ImageID `json:"-"`                        // the image it was made of here, or ""; see SetParent
	Broken         string     `json:"-"`                        // why its files cannot be used, or ""
	Names          []string   `json:"-"`                        // that point to it, in full, sorted; nil but from List

	// Of the config, filled by Create: what a listing shows.
	Created time.Time         `json:"-"` // zero: it does not say
	Labels  map[string]string `json:"-"` // nil: none
}

// DiffIDs returns the image's layers, lowest first.
func (i *Image) DiffIDs() []id.DiffID {
	list := make([]id.DiffID, len(i.Layers))
	for n, l := range i.Layers {
		list[n] = l.DiffID
	}
	return list
}

// Layer is one layer of an image.
type Layer struct {
	DiffID id.DiffID `json:"diffID"`
	Blob   id.Blob   `json:"blob,omitempty"`
	Size   int64     `json:"size"` // bytes of the blob; 0 if unknown
}

// config is what the store reads of an image's config.
type config struct {
	Created *time.Time `json:"created"`
	Config  struct {
		Labels map[string]string
	} `json:"config"`
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant"`
	RootFS       *struct {
		DiffIDs []id.DiffID `json:"diff_ids"`
	} `json:"rootfs"`
	History []struct {
		Empty bool `json:"empty_layer"`
	} `json:"history"`
}

// prove checks that the parts of an image are one image, and fills in what is
// known from its config; got is the config's digest.
func (i *Image) prove(got id.ImageID) error {
	if i.ID != got {
		return fault.New(fault.Integrity, "image config verification failed for digest %s: what arrived is %s", i.ID, got)
	}
	if i.Manifest != nil {
		if m := id.BlobOf(i.Manifest); m != i.ManifestDigest {
			return fault.New(fault.Integrity, "manifest verification failed for digest %s: what arrived is %s", i.ManifestDigest, m)
		}
	}
	c, err := i.parseConfig()
	if err != nil {
		return err
	}
	if !slices.Equal(c.RootFS.DiffIDs, i.DiffIDs()) {
		return fault.New(fault.Integrity, "image %s: layers from manifest don't match image configuration", i.ID.Short())
	}
	return nil
}

// parseConfig reads the config, and fills in the summary.
func (i *Image) parseConfig() (*config, error) {
	var c config
	if err := json.Unmarshal(i.Config, &c); err != nil {
		return nil, fault.New(fault.Integrity, "image %s: config: %w", i.ID.Short(), err)
	}
	if c.RootFS == nil {
		return nil, fault.New(fault.Integrity, "image %s: invalid rootfs in image configuration", i.ID.Short())
	}
	full := 0
	for _, h := range c.History {
		if !h.Empty {
			full++
		}
	}
	if full > len(c.RootFS.DiffIDs) {
		return nil, fault.New(fault.Integrity, "image %s: too many non-empty layers in History section", i.ID.Short())
	}
	i.Created, i.Labels = time.Time{}, nil
	if c.Created != nil {
		i.Created = c.Created.UTC()
	}
	if len(c.Config.Labels) > 0 {
		i.Labels = c.Config.Labels
	}
	return &c, nil
}

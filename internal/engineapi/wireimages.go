package engineapi

import (
	"context"
	"time"

	"github.com/imgfs/imgfs/internal/id"
)

// Images is what the routes need that list, show, name and remove images.
// A name is a reference, an image ID or a prefix of one, in docker's order.
type Images interface {
	// Images returns images, in any order. Filters are the server's.
	Images(ctx context.Context, o ListOptions) ([]ImageSummary, error)
	// Inspect returns one image.
	Inspect(ctx context.Context, name string, o InspectOptions) (ImageInspect, error)
	// History returns how an image was made, newest first.
	History(ctx context.Context, name, platform string) ([]HistoryItem, error)
	// Tag gives the image called source one more name. A tag that names
	// another image moves, unless noClobber is set (fault.Conflict).
	Tag(ctx context.Context, source, target string, noClobber bool) error
	// Untag removes a name; the image stays.
	Untag(ctx context.Context, name string) ([]DeleteItem, error)
	// Remove removes a name and, with its last, the image.
	Remove(ctx context.Context, name string, o RemoveOptions) ([]DeleteItem, error)
	// Prune removes images that nobody has a name for, or that nothing uses.
	Prune(ctx context.Context, o PruneOptions) (PruneReport, error)
	// Graph returns images, layers, mounts, and what of these lies on what.
	Graph(ctx context.Context) (Graph, error)
}

// ListOptions say what of images is listed.
type ListOptions struct {
	All        bool // parents without a name too
	SharedSize bool // compute SharedSize and Containers
	Manifests  bool // with Descriptor and Manifests
	Cached     bool // with Cached and Lazy
	Brief      bool // without Labels, which are most of a long list,
	Digests    bool // but, if it is brief, with the digests of repositories that have a tag
}

// InspectOptions say what of an image is shown.
type InspectOptions struct {
	Platform  string // which the image must be for; "": any
	Manifests bool   // with Descriptor and Manifests
}

// RemoveOptions say how an image is removed.
type RemoveOptions struct {
	Force     bool     // although several repositories name it, or a mount uses it
	NoPrune   bool     // parents without a name stay
	Platforms []string // only if it is for one of these; none: whatever it is for
}

// PruneOptions say which images go.
type PruneOptions struct {
	All      bool      // also those with a name that no mount uses; else only those without
	Until    time.Time // only those made before; zero: whenever
	Labels   []string  // KEY or KEY=VALUE, all of which an image must have
	NoLabels []string  // of which it must have none
}

// PruneReport is the reply of POST /images/prune.
type PruneReport struct {
	ImagesDeleted  []DeleteItem
	SpaceReclaimed int64 // bytes on disk
}

// HistoryItem is one element of GET /images/{name}/history.
type HistoryItem struct {
	ID        string   `json:"Id"` // "<missing>" but of the newest
	Created   int64    `json:"Created"`
	CreatedBy string   `json:"CreatedBy"`
	Tags      []string `json:"Tags"` // null if there are none
	Size      int64    `json:"Size"`
	Comment   string   `json:"Comment"`
}

// Descriptor refers to content in a registry (OCI image-spec, descriptor.md).
type Descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	URLs        []string          `json:"urls,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    *Platform         `json:"platform,omitempty"`
}

// Platform is OCI's.
type Platform struct {
	Architecture string   `json:"architecture"`
	OS           string   `json:"os"`
	OSVersion    string   `json:"os.version,omitempty"`
	OSFeatures   []string `json:"os.features,omitempty"`
	Variant      string   `json:"variant,omitempty"`
}

// ManifestSummary is what an image has for one platform (API 1.47).
type ManifestSummary struct {
	ID         string              `json:"ID"`
	Descriptor Descriptor          `json:"Descriptor"`
	Available  bool                `json:"Available"`
	Kind       string              `json:"Kind"` // image, attestation or unknown
	Size       ManifestSize        `json:"Size"`
	ImageData  *ManifestImageData  `json:"ImageData,omitempty"`
	Attests    *ManifestAttestData `json:"AttestationData,omitempty"`
}

// ManifestSize counts bytes: Content those that are here.
type ManifestSize struct {
	Content int64 `json:"Content"`
	Total   int64 `json:"Total"`
}

// ManifestImageData is of a manifest of kind image.
type ManifestImageData struct {
	Platform Platform `json:"Platform"`
	Size     struct {
		Unpacked int64 `json:"Unpacked"`
	} `json:"Size"`
	Containers []string `json:"Containers"` // IDs of the mounts
}

// ManifestAttestData is of a manifest of kind attestation.
type ManifestAttestData struct {
	For string `json:"For"`
}

// Graph is the reply of GET /imgfs/v1/graph.
type Graph struct {
	Images []GraphImage `json:"images"`
	Layers []GraphLayer `json:"layers"`
	Mounts []GraphMount `json:"mounts"`
}

// GraphImage is an image.
type GraphImage struct {
	ID     id.ImageID    `json:"id"`
	Parent id.ImageID    `json:"parent,omitempty"`
	Names  []string      `json:"names,omitempty"` // familiar, tags before digests
	Layers []id.LayerKey `json:"layers"`          // lowest first
	Size   int64         `json:"size"`            // bytes of its layers' files
}

// GraphLayer is a layer; Images counts those that have it.
type GraphLayer struct {
	ID      id.LayerKey `json:"id"`
	DiffID  id.DiffID   `json:"diffID,omitempty"`
	Size    int64       `json:"size"`    // bytes of data
	Present int64       `json:"present"` // of these, what is here
	Images  int         `json:"images"`
}

// GraphMount is a live mount.
type GraphMount struct {
	ID     string     `json:"id"`
	Target string     `json:"target"`
	Image  id.ImageID `json:"image,omitempty"`
	Mode   string     `json:"mode"`
}

// Refs is what the routes of the references as a whole need.
type Refs interface {
	// ExportRefs returns all names and what they point to.
	ExportRefs(ctx context.Context) (Repositories, error)
	// ImportRefs adds names, in the form of any docker since 1.0. One that
	// points elsewhere here stays, unless force is set.
	ImportRefs(ctx context.Context, r Repositories, force bool) (RefsReport, error)
}

// Repositories is docker's repositories.json, byte for byte the form of 1.10
// and later when written; 1.x's, whose inner keys are tags, is read as well.
type Repositories struct {
	Repositories map[string]map[string]string // familiar name -> familiar reference -> image ID
}

// RefsReport says what became of imported names.
type RefsReport struct {
	Added   []string      `json:"added"`
	Skipped []SkippedName `json:"skipped"`
}

// SkippedName is a name that was not imported.
type SkippedName struct {
	Name string `json:"name"`
	Why  string `json:"why"`
}

// Fsck is what the route of the store's check needs.
type Fsck interface {
	// Fsck looks for damage in images, names, layers and chains, and with
	// Repair mends what can be fetched or made again.
	Fsck(ctx context.Context, req FsckRequest, report func(Progress)) (FsckReport, error)
}

// FsckRequest is the body of POST /imgfs/v1/fsck.
type FsckRequest struct {
	Repair   bool            `json:"repair"`
	Registry RegistryOptions `json:"registry,omitzero"` // to fetch with
}

// FsckReport is what was looked at and what was found.
type FsckReport struct {
	Images   int           `json:"images"`
	Names    int           `json:"names"`
	Layers   int           `json:"layers"`
	Chains   int           `json:"chains"`
	Problems []FsckProblem `json:"problems"`
}

// FsckProblem is one thing that is damaged.
type FsckProblem struct {
	Kind     string `json:"kind"` // image, name, layer, chain or record
	ID       string `json:"id"`   // in full
	What     string `json:"what"`
	Repaired bool   `json:"repaired"`
	Hint     string `json:"hint,omitempty"` // of one that is not
}

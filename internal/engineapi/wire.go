package engineapi

import (
	"encoding/json"
	"time"

	"github.com/imgfs/imgfs/internal/id"
)

// Protocol is the value of the Upgrade header of POST /imgfs/v1/mounts.
const Protocol = "imgfs-mount"

// VersionHeader carries the daemon's build version on every reply.
const VersionHeader = "Imgfs-Version"

// RegistryHeader carries base64url(JSON [RegistryOptions]) on POST
// /images/create. Its presence says that fromImage is a whole reference as
// typed, to be parsed by the daemon, and not docker's name without the tag.
const RegistryHeader = "Imgfs-Registry"

// APIVersion and MinAPIVersion bound the Docker Engine API versions served.
const (
	APIVersion    = "1.52"
	MinAPIVersion = "1.24"
)

// RegistryOptions say how to reach and how to authenticate to a registry.
// The CLI forwards what its own environment and flags say, so that a daemon
// started from another shell behaves as the user who asks expects.
type RegistryOptions struct {
	Insecure     bool   `json:"insecure,omitempty"`     // plain http and unverified TLS allowed
	AuthFile     string `json:"authFile,omitempty"`     // --authfile or $REGISTRY_AUTH_FILE
	DockerConfig string `json:"dockerConfig,omitempty"` // $DOCKER_CONFIG (a directory)
	CertsDir     string `json:"certsDir,omitempty"`     // $IMGFS_CERTS_DIR
	Username     string `json:"username,omitempty"`     // --creds USER:PASS
	Password     string `json:"password,omitempty"`
	Token        string `json:"token,omitempty"` // --registry-token, sent as Bearer unchanged

	IdentityToken string `json:"identityToken,omitempty"` // of an OAuth2 login, exchanged for access tokens

	// NoHostFiles has no file of the daemon's host read for the request: no
	// credentials, and no image in files. The server sets it for clients that
	// are not trusted.
	NoHostFiles bool `json:"noHostFiles,omitempty"`
}

// MountRequest is the body of POST /imgfs/v1/mounts. The reply is 101; from
// then on both sides write one JSON object per line: the daemon MountEvents,
// the CLI one MountReply to each Ready, with the FUSE descriptor, where it has
// one to give, as SCM_RIGHTS beside it.
type MountRequest struct {
	Image    string          `json:"image,omitempty"`    // reference, image ID or prefix, or oci: / oci-archive: / docker-archive: source
	Layout   bool            `json:"layout,omitempty"`   // the layout view instead of an image
	Target   string          `json:"target"`             // absolute, symlinks resolved
	Driver   string          `json:"driver"`             // fuse, overlay, erofs
	Mode     string          `json:"mode,omitempty"`     // ro (default) or rw
	Upper    string          `json:"upper,omitempty"`    // rw: name of one that is there; the image may then be left out
	UpperDir string          `json:"upperDir,omitempty"` // rw: absolute, an upper anywhere, made if it is not there
	UpperAt  string          `json:"upperAt,omitempty"`  // "dev:ino" of UpperDir as the CLI sees it
	Tmp      bool            `json:"tmp,omitempty"`      // rw: drop the changes at the end
	Force    bool            `json:"force,omitempty"`    // take an upper of another image
	Squash   bool            `json:"squash,omitempty"`   // the CLI's user stands for root in the tree
	Platform string          `json:"platform,omitempty"`
	Pull     string          `json:"pull,omitempty"`     // missing (default), always, never
	Prefetch string          `json:"prefetch,omitempty"` // none, trace (default), all
	OnError  string          `json:"onError,omitempty"`  // eio or retry=DURATION; "" is DefaultPatience
	Verify   string          `json:"verify,omitempty"`   // sealed: no layer is shown before all of it is proven
	Suid     bool            `json:"suid,omitempty"`
	Dev      bool            `json:"dev,omitempty"`
	MountNS  string          `json:"mountNS"` // readlink of /proc/self/ns/mnt of the CLI
	UserNS   string          `json:"userNS"`
	Registry RegistryOptions `json:"registry"`

	Provenance bool `json:"provenance,omitempty"` // files say what layer they are of, in attributes that are not listed
}

// MountEvent is one line from the daemon: exactly one field is set.
type MountEvent struct {
	Progress *Progress   `json:"progress,omitempty"`
	Ready    *MountReady `json:"ready,omitempty"` // the CLI now mounts and answers with a MountReply; twice for driver overlay
	Done     *Mount      `json:"done,omitempty"`  // last
	Error    *Error      `json:"error,omitempty"` // last
}

// MountReady tells the CLI what to mount:
//
//	driver, mode      first Ready                       second
//	fuse              FUSE at the target
//	erofs, ro         Index at the target
//	erofs, rw         Overlay on Index at the target
//	overlay           FUSE, detached (Lower)            Overlay on that at the target
type MountReady struct {
	ID      string   `json:"id"`                // of the mount, 12 hex digits
	Source  string   `json:"source"`            // fsname: first column of /proc/mounts
	Index   string   `json:"index,omitempty"`   // erofs: path of the chain index
	Devices []string `json:"devices,omitempty"` // erofs: data files in device order
	Lower   bool     `json:"lower,omitempty"`   // overlay: what is mounted now is to lie below
	Overlay *Overlay `json:"overlay,omitempty"` // kernel overlayfs, on what was mounted before or is named here
}

// Overlay is what a kernel overlayfs is to have above its lower.
type Overlay struct {
	Upper string `json:"upper"`          // absolute: the directory that holds diff/ and work/
	User  bool   `json:"user,omitempty"` // overlayfs' attributes are user.overlay.*, not trusted.overlay.*
}

// MountReply is the CLI's answer to a Ready. With Error nil, the descriptor of
// the mounted /dev/fuse comes with it if it was FUSE that was to be mounted.
type MountReply struct {
	Error *Error `json:"error,omitempty"`
	Dev   string `json:"dev,omitempty"` // erofs, Overlay: "major:minor" of the mount at the target
}

// Progress is one step of a pull.
type Progress struct {
	ID      string `json:"id,omitempty"` // short digest of the layer, or "" for the whole
	Status  string `json:"status"`       // docker's words: Pulling fs layer, Downloading, Pull complete, Already exists, ...
	Current int64  `json:"current,omitempty"`
	Total   int64  `json:"total,omitempty"`
}

// PullRequest says what to pull.
type PullRequest struct {
	Reference string // as typed: ubuntu:14.04, name@sha256:…, oci:DIR[:TAG], …
	Platform  string // os/arch[/variant]; "" is the host's
	AllTags   bool   // Reference names a repository, of which every tag is pulled
	Registry  RegistryOptions
}

// PullResult is what a pull came to; in the stream it is the aux object of
// the last line.
type PullResult struct {
	Reference string     `json:"reference"` // familiar form: ubuntu:14.04
	Digest    id.Blob    `json:"digest"`    // of what the reference names: index or manifest
	ImageID   id.ImageID `json:"imageID"`
	UpToDate  bool       `json:"upToDate"` // nothing was new
}

// Error is an error on the wire. Docker's clients read Message alone.
type Error struct {
	Message string `json:"message"`
	Kind    string `json:"kind,omitempty"` // fault.Kind
	Hint    string `json:"hint,omitempty"`
}

// Mount is a live mount.
type Mount struct {
	ID       string      `json:"id"`
	Target   string      `json:"target"`
	Image    string      `json:"image,omitempty"` // as asked for, familiar form
	ImageID  id.ImageID  `json:"imageID,omitempty"`
	ChainID  id.ChainKey `json:"chainID,omitempty"`
	Driver   string      `json:"driver"`
	Mode     string      `json:"mode"`               // ro, rw
	Upper    string      `json:"upper,omitempty"`    // name of the store's upper
	UpperDir string      `json:"upperDir,omitempty"` // directory of an upper of the user's
	Tmp      bool        `json:"tmp,omitempty"`      // changes are dropped at the end
	Foreign  bool        `json:"foreign,omitempty"`  // the upper was made on another image
	Layout   bool        `json:"layout,omitempty"`
	Created  time.Time   `json:"created"`
	Stats    MountStats  `json:"stats"`
}

// MountStats counts FUSE requests since the mount.
type MountStats struct {
	Lookups     uint64 `json:"lookups"`
	Getattrs    uint64 `json:"getattrs"`
	Readdirs    uint64 `json:"readdirs"` // READDIR and READDIRPLUS
	Opens       uint64 `json:"opens"`    // OPEN and OPENDIR
	Reads       uint64 `json:"reads"`
	ReadBytes   uint64 `json:"readBytes"`
	Writes      uint64 `json:"writes,omitempty"`
	WriteBytes  uint64 `json:"writeBytes,omitempty"`
	Changes     uint64 `json:"changes,omitempty"` // of names and attributes
	Others      uint64 `json:"others"`            // the rest: attributes, FORGET, STATFS and so on
	ErrorsTotal uint64 `json:"errors"`
	LastError   string `json:"lastError,omitempty"`

	// Of the layers' data; drivers overlay and fuse count what is fetched.
	Waits        uint64        `json:"waits,omitempty"`        // reads that waited for bytes to be fetched
	Waited       time.Duration `json:"waited,omitempty"`       // nanoseconds that they did so in all
	FetchedBytes uint64        `json:"fetchedBytes,omitempty"` // of what they read, that was not here
	CachedBytes  int64         `json:"cachedBytes"`            // here now, of all layers
	LazyBytes    int64         `json:"lazyBytes"`              // and not yet
}

// Upper is one element of GET /imgfs/v1/uppers: the changes that one writable
// mount made, or is making.
type Upper struct {
	Name     string        `json:"name"`
	Path     string        `json:"path"`            // of the directory that holds diff/ and upper.json
	Image    string        `json:"image,omitempty"` // as it was asked for
	ImageID  id.ImageID    `json:"imageID,omitempty"`
	ChainID  id.ChainKey   `json:"chainID,omitempty"`
	Layers   []id.LayerKey `json:"layers,omitempty"` // lowest first; they are kept for it
	Created  time.Time     `json:"created"`
	Size     int64         `json:"size"`               // bytes allocated on disk
	Xattrs   string        `json:"xattrs,omitempty"`   // trusted or user: the names of overlayfs' attributes
	Override bool          `json:"override,omitempty"` // owners and modes stand in an attribute
	MountID  string        `json:"mountID,omitempty"`  // of the mount that uses it
	Target   string        `json:"target,omitempty"`   // where that is
	Tmp      bool          `json:"tmp,omitempty"`      // goes with its mount
	Problem  string        `json:"problem,omitempty"`  // why nothing is known of it

	Problems []UpperProblem `json:"problems,omitempty"` // what CheckUpper found
}

// UpperProblem is an element of the reply of GET /imgfs/v1/uppers/{name}/check:
// something that breaks an upper's format.
type UpperProblem struct {
	Path string `json:"path"` // in the tree: "/a/b"
	What string `json:"what"`
}

// ConvertRequest is the body of POST /imgfs/v1/uppers/{name}/convert.
type ConvertRequest struct {
	Xattrs string `json:"xattrs"` // trusted or user; "" is what this user's kernel overlayfs reads
}

// Status is the reply of GET /imgfs/v1/status.
type Status struct {
	Version   string    `json:"version"`
	PID       int       `json:"pid"`
	Root      string    `json:"root"`
	Socket    string    `json:"socket"`
	Started   time.Time `json:"started"`
	Images    int       `json:"images"`
	Layers    int       `json:"layers"`
	Mounts    int       `json:"mounts"`
	DiskBytes int64     `json:"diskBytes"`
	RssAnon   int64     `json:"rssAnonBytes"`
	Passes    []string  `json:"passes,omitempty"`    // layers being pulled
	Transfers []string  `json:"transfers,omitempty"` // pulls and pushes under way: "pull ubuntu:14.04"
	Problems  []string  `json:"problems,omitempty"`  // what reconciliation could not restore

	Faults []ReadFault `json:"faults,omitempty"` // why reads of live mounts failed, oldest first
}

// ReadFault is a reason for which reads of a mount failed.
type ReadFault struct {
	Mount  string      `json:"mount"` // ID
	Target string      `json:"target"`
	Layer  id.LayerKey `json:"layer"`
	Reason string      `json:"reason"`
	Count  int         `json:"count"`
	Last   time.Time   `json:"last"`
}

// GCReport is the reply of POST /imgfs/v1/gc.
type GCReport struct {
	Layers    []id.LayerKey `json:"layers"`
	Chains    []id.ChainKey `json:"chains"`
	Reclaimed int64         `json:"reclaimed"` // bytes
}

// Version is the reply of GET /version.
type Version struct {
	Version       string `json:"Version"`
	APIVersion    string `json:"ApiVersion"`
	MinAPIVersion string `json:"MinAPIVersion"`
	GitCommit     string `json:"GitCommit"`
	GoVersion     string `json:"GoVersion"`
	Os            string `json:"Os"`
	Arch          string `json:"Arch"`
	KernelVersion string `json:"KernelVersion,omitempty"`
	BuildTime     string `json:"BuildTime,omitempty"`

	Platform   struct{ Name string } `json:"Platform"`
	Components []Component           `json:"Components"`
}

// Component is a part of the server; there is one, which docker's client shows
// as the engine.
type Component struct {
	Name    string            `json:"Name"`
	Version string            `json:"Version"`
	Details map[string]string `json:"Details"`
}

// ImageSummary is one element of GET /images/json.
type ImageSummary struct {
	ID          id.ImageID        `json:"Id"`
	ParentID    string            `json:"ParentId"`
	RepoTags    []string          `json:"RepoTags"`
	RepoDigests []string          `json:"RepoDigests"`
	Created     int64             `json:"Created"`
	Size        int64             `json:"Size"`
	VirtualSize *int64            `json:"VirtualSize,omitempty"` // the same, below API 1.44
	SharedSize  int64             `json:"SharedSize"`
	Containers  int64             `json:"Containers"`
	Labels      map[string]string `json:"Labels"`

	Descriptor *Descriptor       `json:"Descriptor,omitempty"` // of what the names point to; asked for only
	Manifests  []ManifestSummary `json:"Manifests,omitempty"`  // asked for only

	Cached *int64 `json:"Cached,omitempty"` // bytes of its layers' data that are here; asked for only
	Lazy   *int64 `json:"Lazy,omitempty"`   // and those that are not yet
	Broken string `json:"Broken,omitempty"` // why its files cannot be used
}

// ImageInspect is the reply of GET /images/{name}/json.
type ImageInspect struct {
	ID            id.ImageID      `json:"Id"`
	RepoTags      []string        `json:"RepoTags"`
	RepoDigests   []string        `json:"RepoDigests"`
	Parent        string          `json:"Parent,omitempty"`
	Comment       string          `json:"Comment,omitempty"`
	Created       string          `json:"Created,omitempty"`
	DockerVersion string          `json:"DockerVersion,omitempty"`
	Author        string          `json:"Author,omitempty"`
	Config        json.RawMessage `json:"Config"`
	Architecture  string          `json:"Architecture"`
	Variant       string          `json:"Variant,omitempty"`
	Os            string          `json:"Os"`
	Size          int64           `json:"Size"`
	GraphDriver   GraphDriver     `json:"GraphDriver"`
	RootFS        RootFS          `json:"RootFS"`
	Metadata      ImageMetadata   `json:"Metadata"`

	Descriptor *Descriptor       `json:"Descriptor,omitempty"` // of what the names point to
	Manifests  []ManifestSummary `json:"Manifests,omitempty"`  // asked for only
}

// GraphDriver names imgfs as the driver; Data holds the chain ID and mounts.
type GraphDriver struct {
	Name string            `json:"Name"`
	Data map[string]string `json:"Data"`
}

// RootFS lists the diffIDs, lowest first.
type RootFS struct {
	Type   string      `json:"Type"`
	Layers []id.DiffID `json:"Layers"`
}

// ImageMetadata is local knowledge about an image.
type ImageMetadata struct {
	LastTagTime time.Time `json:"LastTagTime"`
}

// DeleteItem is one element of the reply of DELETE /images/{name}.
type DeleteItem struct {
	Untagged string `json:"Untagged,omitempty"`
	Deleted  string `json:"Deleted,omitempty"`
}

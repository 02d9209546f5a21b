package engineapi

import (
	"context"

	"github.com/imgfs/imgfs/internal/id"
)

// Registries is what the routes need that talk to registries, but for pulls.
type Registries interface {
	// Push stores an image, or all tags of a repository, in its registry.
	// report is as for Puller.
	Push(ctx context.Context, req PushRequest, report func(Progress)) ([]PushedTag, error)
	// Search looks for repositories.
	Search(ctx context.Context, req SearchRequest) ([]SearchResult, error)
	// Tags lists the tags of a repository in its registry, in its order.
	Tags(ctx context.Context, repository string, r RegistryOptions) ([]string, error)
	// Login finds out whether a registry takes credentials; nothing is kept.
	Login(ctx context.Context, req LoginRequest) (LoginResult, error)
	// Manifest returns what a name stands for in its registry.
	Manifest(ctx context.Context, name string, r RegistryOptions) (RegistryManifest, error)
	// Configured returns the registries that this host's configuration names,
	// and Docker Hub.
	Configured(ctx context.Context) []InfoIndex
}

// PushRequest says what to push.
type PushRequest struct {
	Reference   string          `json:"reference"`             // the name of an image that is here, and where it goes
	AllTags     bool            `json:"allTags,omitempty"`     // Reference names a repository
	Platform    string          `json:"platform,omitempty"`    // which the image must be for; "": any
	Format      string          `json:"format,omitempty"`      // "" as it is, or ToEstargz or ToZstdChunked
	Compression string          `json:"compression,omitempty"` // of layers whose blob is nowhere: gzip (default) or zstd
	Registry    RegistryOptions `json:"registry,omitzero"`
}

// PushedTag is one tag that was pushed; docker's aux object.
type PushedTag struct {
	Tag    string
	Digest id.Blob // of the manifest
	Size   int64   // of it, in bytes
}

// SearchRequest says what to look for.
type SearchRequest struct {
	Term     string          `json:"term"`               // may begin with a registry's host
	Limit    int             `json:"limit,omitempty"`    // 0: the registry's default; at most 100
	Official *bool           `json:"official,omitempty"` // only those that are, or are not
	Stars    int             `json:"stars,omitempty"`    // at least
	Registry RegistryOptions `json:"registry,omitzero"`
}

// SearchResult is one element of GET /images/search.
type SearchResult struct {
	Name        string `json:"name"`
	Description string `json:"description"`
	StarCount   int    `json:"star_count"`
	IsOfficial  bool   `json:"is_official"`
	IsAutomated bool   `json:"is_automated"` // deprecated, always false
}

// LoginRequest is the body of POST /auth, docker's.
type LoginRequest struct {
	Username      string          `json:"username,omitempty"`
	Password      string          `json:"password,omitempty"`
	ServerAddress string          `json:"serveraddress,omitempty"` // "" and Docker Hub's old URL: Docker Hub
	IdentityToken string          `json:"identitytoken,omitempty"`
	Registry      RegistryOptions `json:"-"` // how to reach it
}

// LoginResult is the reply of POST /auth.
type LoginResult struct {
	Status        string `json:"Status"` // Login Succeeded
	IdentityToken string `json:"IdentityToken"`
}

// RegistryManifest is what a name stands for in its registry.
type RegistryManifest struct {
	Reference string     `json:"reference"` // familiar
	MediaType string     `json:"mediaType"`
	Digest    id.Blob    `json:"digest"`
	Raw       []byte     `json:"raw"`       // its bytes, an index or a manifest
	Platforms []Platform `json:"platforms"` // of an index, those of its manifests; else the image's
}

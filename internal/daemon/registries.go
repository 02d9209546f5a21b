package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"strings"

	"github.com/imgfs/imgfs/fetch"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// searchLimit is how much a search finds that does not say, as with docker.
const searchLimit = 25

// Search implements engineapi.Registries.
func (e *engine) Search(ctx context.Context, req engineapi.SearchRequest) ([]engineapi.SearchResult, error) {
	found, err := e.origins.client(req.Registry).Search(ctx, req.Term, cmp.Or(req.Limit, searchLimit))
	if err != nil {
		return nil, advise(err)
	}
	list := []engineapi.SearchResult{}
	for _, f := range found {
		if f.Stars < req.Stars || req.Official != nil && f.Official != *req.Official {
			continue
		}
		list = append(list, engineapi.SearchResult{Name: f.Name, Description: f.Description, StarCount: f.Stars, IsOfficial: f.Official})
	}
	return list, nil
}

// Tags implements engineapi.Registries.
func (e *engine) Tags(ctx context.Context, repository string, r engineapi.RegistryOptions) ([]string, error) {
	ref, err := inRegistry(repository)
	if err != nil {
		return nil, err
	}
	if tagged(repository) {
		return nil, fault.New(fault.Invalid, "%s has a tag: it is a repository whose tags are listed", repository)
	}
	tags, err := e.origins.client(r).Tags(ctx, ref)
	return tags, advise(err)
}

// inRegistry parses the name of something in a registry.
func inRegistry(name string) (fetch.Reference, error) {
	ref, err := fetch.ParseReference(name)
	if err == nil && ref.Local() {
		err = fault.New(fault.Invalid, "%s is not in a registry", name)
	}
	return ref, err
}

// Login implements engineapi.Registries. The registry is asked by a client of
// its own: what others have logged in with must not speak for this one.
func (e *engine) Login(ctx context.Context, req engineapi.LoginRequest) (engineapi.LoginResult, error) {
	domain, err := loginDomain(req.ServerAddress)
	if err != nil {
		return engineapi.LoginResult{}, err
	}
	o := req.Registry
	o.Username, o.Password, o.IdentityToken, o.Token = req.Username, req.Password, req.IdentityToken, ""
	if o.Username == "" && o.IdentityToken == "" {
		return engineapi.LoginResult{}, fault.New(fault.Denied, "no credentials: neither a user name nor a token")
	}
	c := fetch.New(e.fetchOptions(o))
	defer c.Close()
	if err := c.Login(ctx, domain); err != nil {
		return engineapi.LoginResult{}, advise(err)
	}
	return engineapi.LoginResult{Status: "Login Succeeded"}, nil
}

// loginDomain returns the registry of an address as docker writes one: a host,
// or a URL of which only the host counts; "" is Docker Hub.
func loginDomain(address string) (string, error) {
	host := address
	for _, scheme := range []string{"https://", "http://"} {
		host = strings.TrimPrefix(host, scheme)
	}
	host, _, _ = strings.Cut(host, "/")
	switch host {
	case "", "index.docker.io", "registry-1.docker.io", "docker.io":
		return "docker.io", nil
	}
	// What has neither dot nor port is a host here, but not in a name.
	if ref, err := fetch.ParseReference(host + "/x"); err == nil && ref.Domain() == host {
		return host, nil
	}
	if ref, err := fetch.ParseReference(host + ":443/x"); err == nil && ref.Domain() == host+":443" {
		return host, nil
	}
	return "", fault.New(fault.Invalid, "invalid registry address %q", address)
}

// Manifest implements engineapi.Registries.
func (e *engine) Manifest(ctx context.Context, name string, r engineapi.RegistryOptions) (engineapi.RegistryManifest, error) {
	ref, err := inRegistry(name)
	if err != nil {
		return engineapi.RegistryManifest{}, err
	}
	c := e.origins.client(r)
	m := engineapi.RegistryManifest{Reference: ref.Familiar(), Platforms: []engineapi.Platform{}}
	if m.Raw, m.MediaType, m.Digest, err = c.Get(ctx, ref); err != nil {
		return engineapi.RegistryManifest{}, advise(err)
	}
	var doc struct {
		Manifests []struct {
			Platform *engineapi.Platform `json:"platform"`
		} `json:"manifests"`
		Config *descriptor `json:"config"`
	}
	if json.Unmarshal(m.Raw, &doc) != nil {
		return m, nil // an artifact of some other kind
	}
	for _, entry := range doc.Manifests {
		if entry.Platform != nil {
			m.Platforms = append(m.Platforms, *entry.Platform)
		}
	}
	if doc.Config == nil || len(doc.Manifests) > 0 {
		return m, nil
	}
	if _, err := id.ParseBlob(string(doc.Config.Digest)); err != nil || doc.Config.Size > maxConfig {
		return m, nil
	}
	body, err := c.FetchBlob(ctx, ref, doc.Config.Digest, doc.Config.Size)
	if err != nil {
		return m, advise(err)
	}
	var of engineapi.Platform
	if json.Unmarshal(body, &of) == nil && of.OS != "" {
		m.Platforms = append(m.Platforms, of)
	}
	return m, nil
}

// maxConfig is the longest config that is read, in bytes.
const maxConfig = 8 << 20

package fetch

import (
	"path/filepath"
	"strings"

	"github.com/distribution/reference"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// The sources a reference may name, as [Reference.Source] returns them.
const (
	SourceRegistry      = "registry"
	SourceLayout        = "oci"            // an OCI image layout directory
	SourceArchive       = "oci-archive"    // such a layout in a tar file
	SourceDockerArchive = "docker-archive" // what docker save writes
)

// Reference names an image. It is comparable; the zero value names nothing.
// Make one with [ParseReference].
type Reference struct {
	source string  // one of the Source constants
	domain string  // registry: host[:port], "docker.io" for Docker Hub
	path   string  // registry: repository; else the directory or file
	tag    string  // "" when a digest is given; local sources: "" = the only image
	digest id.Blob // registry only; "" = none
}

// ParseReference reads s by Docker's grammar and defaults (ubuntu is
// docker.io/library/ubuntu:latest; with a tag and a digest the digest wins),
// or as docker://NAME, oci:DIR[:TAG], oci-archive:FILE[:TAG] or
// docker-archive:FILE[:NAME:TAG]. Errors are of kind Invalid with Docker's
// texts. What skopeo calls containers-storage: and docker-daemon: is refused,
// with a hint at the archive to take.
func ParseReference(s string) (Reference, error) {
	for _, source := range []string{SourceLayout, SourceArchive, SourceDockerArchive} {
		if rest, ok := strings.CutPrefix(s, source+":"); ok {
			return parseLocal(source, rest)
		}
	}
	for store, program := range map[string]string{"containers-storage": "podman", "docker-daemon": "docker"} {
		if name, ok := strings.CutPrefix(s, store+":"); ok {
			return Reference{}, fault.WithHint(fault.New(fault.Invalid, "%s: the stores of other programs are not read", store),
				"%s save %s | imgfs load", program, fault.Word(name))
		}
	}
	s = strings.TrimPrefix(s, "docker://")
	named, err := reference.ParseDockerRef(s)
	if err != nil {
		return Reference{}, fault.New(fault.Invalid, "%w", err)
	}
	r := Reference{source: SourceRegistry, domain: reference.Domain(named), path: reference.Path(named)}
	if t, ok := named.(reference.Tagged); ok {
		r.tag = t.Tag()
	}
	if d, ok := named.(reference.Digested); ok {
		if r.digest, err = id.ParseBlob(d.Digest().String()); err != nil {
			return Reference{}, fault.New(fault.Invalid, "%w", err)
		}
	}
	return r, nil
}

// parseLocal splits at the first colon, as skopeo does: a path with a colon
// in it cannot be named.
func parseLocal(source, s string) (Reference, error) {
	path, tag, tagged := strings.Cut(s, ":")
	if path == "" || strings.ContainsRune(s, 0) {
		return Reference{}, fault.New(fault.Invalid, "invalid reference format: %s: needs a path", source)
	}
	if tagged && tag == "" {
		return Reference{}, fault.New(fault.Invalid, "invalid tag format: %s:%s", source, s)
	}
	return Reference{source: source, path: filepath.Clean(path), tag: tag}, nil
}

// String returns the canonical form: docker.io/library/ubuntu:14.04,
// docker.io/library/ubuntu@sha256:…, oci:/dir:tag. Parsing it gives the same
// Reference.
func (r Reference) String() string { return r.suffix(r.Name()) }

// Familiar returns the form users type: ubuntu:14.04.
func (r Reference) Familiar() string { return r.suffix(r.FamiliarName()) }

func (r Reference) suffix(name string) string {
	switch {
	case r.digest != "":
		return name + "@" + string(r.digest)
	case r.tag != "":
		return name + ":" + r.tag
	}
	return name
}

// Name returns the canonical name without tag or digest:
// docker.io/library/ubuntu, oci:/dir.
func (r Reference) Name() string {
	switch r.source {
	case "":
		return ""
	case SourceRegistry:
		return r.domain + "/" + r.path
	}
	return r.source + ":" + r.path
}

// FamiliarName returns the name as users type it: ubuntu.
func (r Reference) FamiliarName() string {
	if r.source != SourceRegistry {
		return r.Name()
	}
	named, err := reference.WithName(r.Name())
	if err != nil { // cannot happen: Name was parsed
		return r.Name()
	}
	return reference.FamiliarName(named)
}

// Tag returns the tag, "" if there is none.
func (r Reference) Tag() string { return r.tag }

// Digest returns the digest, "" if there is none.
func (r Reference) Digest() id.Blob { return r.digest }

// Domain returns the registry's host[:port], docker.io for Docker Hub; "" for
// local sources.
func (r Reference) Domain() string { return r.domain }

// Path returns the repository within the registry (library/ubuntu), or the
// directory or file of a local source.
func (r Reference) Path() string { return r.path }

// Source returns one of the Source constants, "" for the zero Reference.
func (r Reference) Source() string { return r.source }

// Local reports whether r names a directory or file of this host.
func (r Reference) Local() bool { return r.source != SourceRegistry && r.source != "" }

// At returns what has the digest in r's repository.
func (r Reference) At(d id.Blob) Reference {
	r.tag, r.digest = "", d
	return r
}

// In returns r with a relative path of a local source taken from dir, so that
// a program with another working directory can read it.
func (r Reference) In(dir string) Reference {
	if r.Local() && !filepath.IsAbs(r.path) {
		r.path = filepath.Join(dir, r.path)
	}
	return r
}

package engineapi

import (
	"cmp"
	"net/http"
	"strings"
)

// olderThan reports whether r asks for a version of the API below 1.minor.
func olderThan(r *http.Request, minor int) bool {
	s, ok := strings.CutPrefix(r.URL.Path, "/v")
	if !ok {
		return false
	}
	v, _, _ := strings.Cut(s, "/")
	major, n, ok := parseVersion(v)
	return ok && major == 1 && n < minor
}

// asListed changes list to what r's version of the API has.
func asListed(r *http.Request, list []ImageSummary) []ImageSummary {
	if !olderThan(r, 51) {
		return list
	}
	nones, sizes, bare := olderThan(r, 43), olderThan(r, 44), olderThan(r, 48)
	for i := range list {
		l := &list[i]
		l.Containers = -1
		if bare {
			l.Descriptor = nil
		}
		if sizes {
			l.VirtualSize = &l.Size
		}
		if nones && len(l.RepoTags) == 0 && len(l.RepoDigests) == 0 {
			l.RepoTags, l.RepoDigests = []string{"<none>:<none>"}, []string{"<none>@<none>"}
		}
	}
	return list
}

// noDate is what a Go program says of an image that does not say when it was
// made; below 1.44 the API said it too.
const noDate = "0001-01-01T00:00:00Z"

// legacyInspect is what GET /images/{name}/json had below 1.52, and below 1.45
// and 1.44 in addition.
type legacyInspect struct {
	ImageInspect
	Parent          string
	Comment         string
	Created         string `json:",omitempty"`
	DockerVersion   string
	Author          string
	Container       *string      `json:",omitempty"` // below 1.45
	ContainerConfig *imageConfig `json:",omitempty"`
	VirtualSize     *int64       `json:",omitempty"` // below 1.44
}

// asInspected returns img as r's version of the API has it.
func asInspected(r *http.Request, img ImageInspect) any {
	img.Config = configOf(r, img.Config)
	if !olderThan(r, 52) {
		return img
	}
	if olderThan(r, 48) {
		img.Descriptor = nil
	}
	old := legacyInspect{
		ImageInspect: img, Parent: img.Parent, Comment: img.Comment, Created: img.Created,
		DockerVersion: img.DockerVersion, Author: img.Author,
	}
	if olderThan(r, 45) {
		none := configOf(r, nil)
		old.Container, old.ContainerConfig = new(string), (*imageConfig)(&none)
	}
	if olderThan(r, 44) {
		old.VirtualSize, old.Created = &img.Size, cmp.Or(img.Created, noDate)
	}
	return old
}

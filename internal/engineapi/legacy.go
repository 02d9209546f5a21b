package engineapi

import (
	"net/http"
	"slices"
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

// asListed returns list as r's version of the API has it: below 1.44 with
// VirtualSize, below 1.43 with names for what has none.
func asListed(r *http.Request, list []ImageSummary) []ImageSummary {
	if !olderThan(r, 44) {
		return list
	}
	list = slices.Clone(list)
	for i := range list {
		l := &list[i]
		l.VirtualSize = &l.Size
		if olderThan(r, 43) && len(l.RepoTags) == 0 && len(l.RepoDigests) == 0 {
			l.RepoTags, l.RepoDigests = []string{"<none>:<none>"}, []string{"<none>@<none>"}
		}
	}
	return list
}

// asInspected returns img as r's version of the API has it.
func asInspected(r *http.Request, img ImageInspect) ImageInspect {
	if olderThan(r, 44) {
		img.VirtualSize = &img.Size
	}
	return img
}

package engineapi

import (
	"cmp"
	"encoding/json"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// filters are docker's list filters: by key, the values of which one must
// match (all of them for label). nil keeps everything.
type filters map[string][]string

// maxFilters bounds the number of values of a request.
const maxFilters = 1000

// parseFilters reads {"key":{"value":true}} or the old {"key":["value"]}.
func parseFilters(s string) (filters, error) {
	if s == "" {
		return nil, nil
	}
	f := filters{}
	var sets map[string]map[string]bool
	if err := json.Unmarshal([]byte(s), &sets); err == nil {
		for k, set := range sets {
			for v, on := range set {
				if on {
					f[k] = append(f[k], v)
				}
			}
			slices.Sort(f[k])
		}
	} else if err := json.Unmarshal([]byte(s), &f); err != nil {
		return nil, fault.New(fault.Invalid, "invalid filters: %w", err)
	}
	n := 0
	for k, vs := range f {
		switch k {
		case "dangling", "reference", "label", "before", "since", "until":
		default:
			return nil, fault.New(fault.Invalid, "invalid filter '%s'", k)
		}
		if n += len(vs); n > maxFilters {
			return nil, fault.New(fault.Invalid, "invalid filters: more than %d values", maxFilters)
		}
	}
	return f, nil
}

// apply returns the images of list that f keeps, newest first. Of an image
// kept by reference only the names that matched are left. created returns
// the creation time of the image called name.
func (f filters) apply(list []ImageSummary, created func(name string) (int64, error)) ([]ImageSummary, error) {
	out := make([]ImageSummary, 0, len(list))
	for _, img := range list {
		keep, err := f.keeps(&img, created)
		if err != nil {
			return nil, err
		}
		if keep {
			out = append(out, img)
		}
	}
	slices.SortFunc(out, func(a, b ImageSummary) int {
		return cmp.Or(cmp.Compare(b.Created, a.Created), cmp.Compare(a.ID, b.ID))
	})
	return out, nil
}

func (f filters) keeps(img *ImageSummary, created func(string) (int64, error)) (bool, error) {
	if vs := f["dangling"]; len(vs) > 0 {
		want, err := strconv.ParseBool(vs[0])
		if err != nil || len(vs) > 1 {
			return false, fault.New(fault.Invalid, "invalid filter 'dangling=%s'", strings.Join(vs, ","))
		}
		if want != (len(img.RepoTags) == 0) {
			return false, nil
		}
	}
	for _, l := range f["label"] {
		k, v, hasValue := strings.Cut(l, "=")
		if have, ok := img.Labels[k]; !ok || hasValue && have != v {
			return false, nil
		}
	}
	for _, name := range f["before"] {
		if t, err := created(name); err != nil || img.Created >= t {
			return false, err
		}
	}
	for _, name := range f["since"] {
		if t, err := created(name); err != nil || img.Created <= t {
			return false, err
		}
	}
	for _, v := range f["until"] {
		t, err := parseTime(v)
		if err != nil || img.Created >= t.Unix() {
			return false, err
		}
	}
	if patterns := f["reference"]; len(patterns) > 0 {
		var err error
		if img.RepoTags, err = matching(img.RepoTags, patterns); err != nil {
			return false, err
		}
		if img.RepoDigests, err = matching(img.RepoDigests, patterns); err != nil {
			return false, err
		}
		return len(img.RepoTags)+len(img.RepoDigests) > 0, nil
	}
	return true, nil
}

// matching returns the names that a pattern matches, with or without the tag.
func matching(names, patterns []string) ([]string, error) {
	out := []string{}
	for _, n := range names {
		for _, p := range patterns {
			a, err := path.Match(p, n)
			if err != nil {
				return nil, fault.New(fault.Invalid, "invalid filter 'reference=%s': %w", p, err)
			}
			b, _ := path.Match(p, withoutTag(n)) // the pattern is good
			if a || b {
				out = append(out, n)
				break
			}
		}
	}
	return out, nil
}

func withoutTag(name string) string {
	if n, _, ok := strings.Cut(name, "@"); ok {
		return n
	}
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		return name[:i]
	}
	return name
}

// parseTime reads a time of day, seconds since 1970, or how long ago.
func parseTime(s string) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil {
		return time.Now().Add(-d), nil
	}
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		return time.Unix(n, 0), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fault.New(fault.Invalid, "invalid filter 'until=%s'", s)
}

func createdOf(list []ImageSummary, want id.ImageID) int64 {
	for i := range list {
		if list[i].ID == want {
			return list[i].Created
		}
	}
	return 0
}

package engineapi

import (
	"cmp"
	"encoding/json"
	"maps"
	"math"
	"path"
	"slices"
	"strings"

	"github.com/imgfs/imgfs/internal/fault"
)

// filters are docker's list filters: by key, the values of which one must
// match (all of them for label). nil keeps everything.
type filters map[string][]string

// maxFilters bounds the number of values of a request.
const maxFilters = 1000

// listFilters are those of GET /images/json; the last two are ours.
var listFilters = []string{"dangling", "reference", "label", "label!", "before", "since", "until", "mounted", "cached"}

// parseFilters reads {"key":{"value":true}} or the old {"key":["value"]}. Keys
// other than these are refused; none: any will do.
func parseFilters(s string, keys ...string) (filters, error) {
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
		return nil, fault.New(fault.Invalid, "invalid filter: %w", err)
	}
	n := 0
	for _, k := range slices.Sorted(maps.Keys(f)) {
		if len(keys) > 0 && !slices.Contains(keys, k) {
			return nil, fault.New(fault.Invalid, "invalid filter '%s'", k)
		}
		if n += len(f[k]); n > maxFilters {
			return nil, fault.New(fault.Invalid, "invalid filter: more than %d values", maxFilters)
		}
	}
	return f, nil
}

// flag reads a filter that is true or false; nil if it is not there.
func (f filters) flag(key string) (*bool, error) {
	vs := f[key]
	if len(vs) == 0 {
		return nil, nil
	}
	on := slices.Contains([]string{"1", "true"}, vs[0])
	if len(vs) > 1 || !on && !slices.Contains([]string{"0", "false"}, vs[0]) {
		return nil, fault.New(fault.Invalid, "invalid filter '%s=%s'", key, strings.Join(vs, ","))
	}
	return &on, nil
}

// selection is what filters of a list of images ask for.
type selection struct {
	is              []is
	labels, without []string
	before, since   int64 // seconds since 1970
	references      []string
}

// is is a filter that is true or false.
type is struct {
	want bool
	of   func(*ImageSummary) bool
}

// selection reads the filters of a list of images. created returns when the
// image called name was made, in seconds since 1970.
func (f filters) selection(created func(name string) (int64, error)) (*selection, error) {
	s := &selection{
		labels: f["label"], without: f["label!"], references: f["reference"],
		before: math.MaxInt64, since: math.MinInt64,
	}
	for key, of := range map[string]func(*ImageSummary) bool{
		"dangling": func(i *ImageSummary) bool { return len(i.RepoTags) == 0 },
		"mounted":  func(i *ImageSummary) bool { return i.Containers > 0 },
		"cached":   func(i *ImageSummary) bool { return i.Lazy != nil && *i.Lazy == 0 },
	} {
		want, err := f.flag(key)
		if err != nil {
			return nil, err
		}
		if want != nil {
			s.is = append(s.is, is{*want, of})
		}
	}
	for _, name := range f["before"] {
		t, err := created(name)
		if err != nil {
			return nil, err
		}
		s.before = min(s.before, t)
	}
	for _, name := range f["since"] {
		t, err := created(name)
		if err != nil {
			return nil, err
		}
		s.since = max(s.since, t)
	}
	for _, v := range f["until"] {
		t, err := parseTime(v)
		if err != nil {
			return nil, err
		}
		s.before = min(s.before, t.Unix())
	}
	for _, p := range s.references {
		if _, err := path.Match(p, ""); err != nil {
			return nil, fault.New(fault.Invalid, "invalid filter 'reference=%s': %w", p, err)
		}
	}
	return s, nil
}

// apply returns the images of list that s keeps, newest first. Of an image kept
// by reference only the names that matched are left.
func (s *selection) apply(list []ImageSummary) []ImageSummary {
	type place struct { // a summary is large to be moved often, and far to be looked at
		created int64
		img     *ImageSummary
	}
	var order []place
	for i := range list {
		img := &list[i]
		if !s.keeps(img) {
			continue
		}
		if len(s.references) > 0 {
			some := *img
			img = &some
			img.RepoTags = matching(img.RepoTags, s.references)
			img.RepoDigests = matching(img.RepoDigests, s.references)
			if len(img.RepoTags)+len(img.RepoDigests) == 0 {
				continue
			}
		}
		order = append(order, place{img.Created, img})
	}
	slices.SortFunc(order, func(a, b place) int {
		if a.created != b.created {
			return cmp.Compare(b.created, a.created)
		}
		return cmp.Compare(a.img.ID, b.img.ID)
	})
	sorted := make([]ImageSummary, len(order))
	for i := range order {
		sorted[i] = *order[i].img
	}
	return sorted
}

func (s *selection) keeps(img *ImageSummary) bool {
	for _, is := range s.is {
		if is.of(img) != is.want {
			return false
		}
	}
	return hasLabels(img.Labels, s.labels) &&
		(len(s.without) == 0 || !hasLabels(img.Labels, s.without)) &&
		img.Created < s.before && img.Created > s.since
}

// hasLabels reports whether labels have all that is wanted, KEY or KEY=VALUE.
func hasLabels(labels map[string]string, want []string) bool {
	for _, l := range want {
		k, v, hasValue := strings.Cut(l, "=")
		if have, ok := labels[k]; !ok || hasValue && have != v {
			return false
		}
	}
	return true
}

// matching returns the names that a pattern matches, with or without the tag.
//
// Preconditions: the patterns are good.
func matching(names, patterns []string) []string {
	out := []string{}
	for _, n := range names {
		if slices.ContainsFunc(patterns, func(p string) bool {
			a, _ := path.Match(p, n)
			b, _ := path.Match(p, withoutTag(n))
			return a || b
		}) {
			out = append(out, n)
		}
	}
	return out
}

func withoutTag(name string) string {
	name, _, _ = strings.Cut(name, "@")
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		return name[:i]
	}
	return name
}

package daemon

import (
	"fmt"
	"slices"
	"testing"

	"github.com/imgfs/imgfs/internal/fault"
)

// TestPrune is docker's image prune, filter by filter.
func TestPrune(t *testing.T) {
	t.Parallel()
	images := []seed{
		{called: "tagged", names: []string{"tagged:1", "tagged:2"}, created: day(1), labels: map[string]string{"keep": "yes"}, layers: []string{"file a 1"}},
		{called: "digest", names: []string{"digest@"}, manifest: true, created: day(2), labels: map[string]string{"keep": "no"}},
		{called: "none", created: day(3), labels: map[string]string{"a": "1", "b": "2"}, layers: []string{"file a 1", "file b 1"}},
		{called: "ageless"},
		{called: "parent", created: day(1)},
		{called: "named", names: []string{"named:1"}, parent: "parent", created: day(4)},
		{called: "child", parent: "named", created: day(5)},
	}
	all := []string{"ageless", "child", "digest", "named", "none", "parent", "tagged"}
	const dangling = "dangling"
	for _, tt := range []struct {
		what    string
		filters map[string][]string
		left    []string
		err     string
	}{
		{"what has no tag", nil, []string{"named", "parent", "tagged"}, ""},
		{"the same", map[string][]string{dangling: {"true"}}, []string{"named", "parent", "tagged"}, ""},
		{"all", map[string][]string{dangling: {"false"}}, nil, ""},
		{"all until", map[string][]string{dangling: {"0"}, "until": {day(2).Format("2006-01-02T15:04:05Z07:00")}}, []string{"ageless", "child", "named", "none", "parent"}, ""},
		{"until", map[string][]string{"until": {"2024-01-04"}}, []string{"ageless", "child", "named", "parent", "tagged"}, ""},
		{"until seconds", map[string][]string{"until": {fmt.Sprint(day(3).Unix())}}, []string{"ageless", "child", "named", "parent", "tagged"}, ""},
		{"until long ago", map[string][]string{"until": {"500000h"}}, all, ""},
		{"label", map[string][]string{"label": {"keep"}}, []string{"ageless", "child", "named", "none", "parent", "tagged"}, ""},
		{"label and value", map[string][]string{dangling: {"false"}, "label": {"keep=yes"}}, []string{"ageless", "child", "digest", "named", "none", "parent"}, ""},
		{"labels, all of them", map[string][]string{"label": {"a", "b=2"}}, []string{"ageless", "child", "digest", "named", "parent", "tagged"}, ""},
		{"labels, one of which is missing", map[string][]string{"label": {"a", "b=3"}}, all, ""},
		{"not label", map[string][]string{"label!": {"a"}}, []string{"named", "none", "parent", "tagged"}, ""},
		{"not label and value", map[string][]string{"label!": {"keep=no", "x"}}, []string{"digest", "named", "parent", "tagged"}, ""},
		{"label and not label", map[string][]string{"label": {"a"}, "label!": {"b"}}, all, ""},
		{"unknown", map[string][]string{"reference": {"x"}}, all, "invalid filter 'reference'"},
		{"no truth", map[string][]string{dangling: {"maybe"}}, all, "invalid filter 'dangling=maybe'"},
		{"two truths", map[string][]string{"until": {"1h", "2h"}}, all, "more than one until filter specified"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			t.Parallel()
			d, ids := seeded(t, images...)
			r, err := d.client.Prune(testContext(t), tt.filters)
			if got := fmt.Sprint(err); tt.err != "" && (got != tt.err || fault.KindOf(err) != fault.Invalid) || tt.err == "" && err != nil {
				t.Errorf("got %v, want %q", err, tt.err)
			}
			var left []string
			for _, i := range listed(t, d) {
				left = append(left, called(ids, string(i.ID)))
			}
			slices.Sort(left)
			if !slices.Equal(left, tt.left) {
				t.Errorf("left: got %q, want %q", left, tt.left)
			}
			deleted := 0
			for _, i := range r.ImagesDeleted {
				if slices.Contains(all, called(ids, i.Deleted)) {
					deleted++
				}
			}
			if deleted != len(all)-len(left) {
				t.Errorf("%d images deleted, %d are gone", deleted, len(all)-len(left))
			}
			if layers, _ := d.client.DiskUsage(testContext(t)); (r.SpaceReclaimed > 0) != (len(layers.Layers) < 2) {
				t.Errorf("%d bytes reclaimed, %d layers left", r.SpaceReclaimed, len(layers.Layers))
			}
		})
	}
}

// TestPruneInUse keeps what is mounted, with all its names, and what an upper
// lies on.
func TestPruneInUse(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	d, ids := seeded(t,
		seed{called: "mounted", names: []string{"mounted:1", "mounted:2"}, layers: []string{"file a 1"}},
		seed{called: "written", names: []string{"written:1"}, layers: []string{"file b 1"}},
		seed{called: "idle", names: []string{"idle:1"}, layers: []string{"file c 1"}},
	)
	ctx := testContext(t)
	one, two := mountDir(t), mountDir(t)
	if _, err := mountAs(ctx, d.client, "mounted:1", one); err != nil {
		t.Fatal(err)
	}
	m, err := mountAs(ctx, d.client, "written:1", two, writable)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, two+"/new", "1")
	unmounted(t, d.client, m)
	r, err := d.client.Prune(ctx, map[string][]string{"dangling": {"false"}})
	if err != nil || len(r.ImagesDeleted) != 3 || r.SpaceReclaimed == 0 {
		t.Errorf("%s %v", asJSON(t, r), err)
	}
	var left []string
	for _, i := range listed(t, d) {
		left = append(left, fmt.Sprint(called(ids, string(i.ID)), i.RepoTags, i.Containers))
	}
	slices.Sort(left)
	if fmt.Sprint(left) != "[mounted[mounted:1 mounted:2] 1 written[written:1] 0]" {
		t.Errorf("left: %v", left)
	}
}

package imagedb

import (
	"maps"
	"slices"
	"testing"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// TestParents goes through SetParent, GetParent, Children, Map and Heads with
// docker's semantics and texts.
func TestParents(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	base, mid, leaf, alone := p.put(image(1, 1)), p.put(image(2, 1)), p.put(image(3, 1)), p.put(image(4, 1))
	set := func(i, parent id.ImageID) {
		t.Helper()
		if err := p.SetParent(i, parent); err != nil {
			t.Fatal(err)
		}
	}
	set(mid, base)
	set(leaf, mid)
	set(leaf, mid)
	want := func(when string, heads []id.ImageID, parents map[id.ImageID]id.ImageID) {
		t.Helper()
		if got := p.Heads(); len(got) != len(heads) || slices.ContainsFunc(heads, func(i id.ImageID) bool { return got[i].ID != i }) {
			t.Errorf("%s: heads %v, want %v", when, slices.Collect(maps.Keys(got)), heads)
		}
		all := p.Map()
		for i := range all {
			parent, err := p.GetParent(i)
			if err != nil || parent != parents[i] || all[i].Parent != parent {
				t.Errorf("%s: parent of %s: %q, %q (%v), want %q", when, i.Short(), parent, all[i].Parent, err, parents[i])
			}
			if parent != "" && !slices.Contains(p.Children(parent), i) {
				t.Errorf("%s: children of %s: %v", when, parent.Short(), p.Children(parent))
			}
		}
	}
	for _, when := range []string{"at once", "after a restart"} {
		want(when, []id.ImageID{leaf, alone}, map[id.ImageID]id.ImageID{mid: base, leaf: mid})
		p.reopen()
	}
	absent := id.ImageIDOf([]byte("absent"))
	for _, tt := range []struct {
		name      string
		i, parent id.ImageID
		kind      fault.Kind
		text      string
	}{
		{"no such parent", leaf, absent, fault.NotFound, "unknown parent image ID " + string(absent)},
		{"no such image", absent, leaf, fault.NotFound, "No such image: " + string(absent)},
		{"itself", leaf, leaf, fault.Invalid, "cannot be its own ancestor"},
		{"a circle", base, leaf, fault.Invalid, "cannot be its own ancestor"},
	} {
		wantError(t, tt.name, p.SetParent(tt.i, tt.parent), tt.kind, tt.text)
	}
	_, err := p.GetParent(absent)
	wantError(t, "parent", err, fault.NotFound, "No such image: "+string(absent))

	again := image(3, 1) // comes anew: its parent stays
	p.put(again)
	want("put again", []id.ImageID{leaf, alone}, map[id.ImageID]id.ImageID{mid: base, leaf: mid})
	set(leaf, base) // two children
	want("moved", []id.ImageID{mid, leaf, alone}, map[id.ImageID]id.ImageID{mid: base, leaf: base})
	if _, err := p.Delete(mid); err != nil {
		t.Fatal(err)
	}
	want("a child deleted", []id.ImageID{leaf, alone}, map[id.ImageID]id.ImageID{leaf: base})
	if _, err := p.Delete(base); err != nil {
		t.Fatal(err)
	}
	for _, when := range []string{"the parent deleted", "the parent deleted, after a restart"} {
		want(when, []id.ImageID{leaf, alone}, nil)
		p.reopen()
	}
	made := image(5, 1)
	made.Parent = absent
	_, err = p.Create(made)
	wantError(t, "made of none", err, fault.NotFound, "unknown parent image ID "+string(absent))
	made.Parent = leaf
	i := p.put(made)
	want("made", []id.ImageID{alone, i}, map[id.ImageID]id.ImageID{i: leaf})
	set(i, "")
	want("cleared", []id.ImageID{leaf, alone, i}, nil)
}

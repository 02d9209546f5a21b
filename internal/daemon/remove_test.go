package daemon

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// TestRemoveTable is docker's rules of docker rmi, one by one.
func TestRemoveTable(t *testing.T) {
	t.Parallel()
	const top = "file top 1"
	digest := func(s string) string { return s + "@" }
	family := []seed{ // grandparent <- parent <- child, each with a layer of its own
		{called: "grandparent", layers: []string{"file a 1"}},
		{called: "parent", parent: "grandparent", layers: []string{"file a 1", "file b 2"}},
		{called: "child", parent: "parent", names: []string{"child:1"}, layers: []string{"file a 1", "file b 2", "file c 3"}},
	}
	named := func(list []seed, called string, names ...string) []seed {
		list = slices.Clone(list)
		for i := range list {
			if list[i].called == called {
				list[i].names = names
			}
		}
		return list
	}
	for _, tt := range []struct {
		what   string
		have   []seed
		remove string // a name, or "#CALLED" for an ID
		o      engineapi.RemoveOptions
		want   []string // "-NAME" untagged, "#CALLED" deleted, "+N" the chain of so many of the layers of the image before
		err    string   // with <id> for the short ID of CALLED
		left   []string // images
	}{
		{"the only name", []seed{{called: "x", names: []string{"a:1"}, layers: []string{top}}}, "a:1", engineapi.RemoveOptions{},
			[]string{"-a:1", "#x", "+1"}, "", nil},
		{"no tag is latest", []seed{{called: "x", names: []string{"a:latest"}, layers: []string{top}}}, "a", engineapi.RemoveOptions{},
			[]string{"-a:latest", "#x", "+1"}, "", nil},
		{"one of two names", []seed{{called: "x", names: []string{"a:1", "a:2"}}}, "a:1", engineapi.RemoveOptions{},
			[]string{"-a:1"}, "", []string{"x"}},
		{"one of two names, forced", []seed{{called: "x", names: []string{"a:1", "a:2"}}}, "a:1", engineapi.RemoveOptions{Force: true},
			[]string{"-a:1"}, "", []string{"x"}},
		{"the last tag takes the digest", []seed{{called: "x", names: []string{"a:1", digest("a")}, manifest: true}}, "a:1", engineapi.RemoveOptions{},
			[]string{"-a:1", "-a@", "#x"}, "", nil},
		{"the last tag of one repository", []seed{{called: "x", names: []string{"a:1", digest("a"), "b:1"}, manifest: true}}, "a:1", engineapi.RemoveOptions{},
			[]string{"-a:1", "-a@"}, "", []string{"x"}},
		{"a digest leaves the tag", []seed{{called: "x", names: []string{"a:1", digest("a")}, manifest: true}}, digest("a"), engineapi.RemoveOptions{},
			[]string{"-a@"}, "", []string{"x"}},
		{"the only name is a digest", []seed{{called: "x", names: []string{digest("a")}, manifest: true}}, digest("a"), engineapi.RemoveOptions{},
			[]string{"-a@", "#x"}, "", nil},
		{"ID with one name", []seed{{called: "x", names: []string{"a:1"}}}, "#x", engineapi.RemoveOptions{},
			[]string{"-a:1", "#x"}, "", nil},
		{"ID with tag and digest", []seed{{called: "x", names: []string{"a:1", digest("a")}, manifest: true}}, "#x", engineapi.RemoveOptions{},
			[]string{"-a:1", "-a@", "#x"}, "", nil},
		{"ID without a name", []seed{{called: "x"}}, "#x", engineapi.RemoveOptions{}, []string{"#x"}, "", nil},
		{"ID, several repositories", []seed{{called: "x", names: []string{"a:1", "b:1"}}}, "#x", engineapi.RemoveOptions{},
			nil, "conflict: unable to delete <x> (must be forced) - image is referenced in multiple repositories", []string{"x"}},
		{"ID, several tags", []seed{{called: "x", names: []string{"a:1", "a:2"}}}, "#x", engineapi.RemoveOptions{},
			nil, "conflict: unable to delete <x> (must be forced) - image is referenced in multiple repositories", []string{"x"}},
		{"ID, a tag here and a digest there", []seed{{called: "x", names: []string{"a:1", digest("b")}, manifest: true}}, "#x", engineapi.RemoveOptions{},
			nil, "conflict: unable to delete <x> (must be forced) - image is referenced in multiple repositories", []string{"x"}},
		{"ID, several repositories, forced", []seed{{called: "x", names: []string{"a:1", "b:1", digest("b")}, manifest: true}}, "#x", engineapi.RemoveOptions{Force: true},
			[]string{"-a:1", "-b:1", "-b@", "#x"}, "", nil},
		{"registries with a port", []seed{{called: "x", names: []string{"localhost:5000/a:1", "localhost:5000/a:2"}}}, "localhost:5000/a:2", engineapi.RemoveOptions{},
			[]string{"-localhost:5000/a:2"}, "", []string{"x"}},

		{"ancestors without a name go too", family, "child:1", engineapi.RemoveOptions{},
			[]string{"-child:1", "#child", "+3", "#parent", "+2", "#grandparent", "+1"}, "", nil},
		{"by ID as well", family, "#child", engineapi.RemoveOptions{},
			[]string{"-child:1", "#child", "+3", "#parent", "+2", "#grandparent", "+1"}, "", nil},
		{"unless they are to stay", family, "child:1", engineapi.RemoveOptions{NoPrune: true},
			[]string{"-child:1", "#child", "+3"}, "", []string{"grandparent", "parent"}},
		{"up to the first with a name", named(family, "parent", "parent:1"), "child:1", engineapi.RemoveOptions{},
			[]string{"-child:1", "#child", "+3"}, "", []string{"grandparent", "parent"}},
		{"force is not for ancestors", named(family, "grandparent", "g:1", "h:1"), "child:1", engineapi.RemoveOptions{Force: true},
			[]string{"-child:1", "#child", "+3", "#parent", "+2"}, "", []string{"grandparent"}},
		{"up to the first with another child", append(slices.Clone(family), seed{called: "sister", parent: "parent"}), "child:1", engineapi.RemoveOptions{},
			[]string{"-child:1", "#child", "+3"}, "", []string{"grandparent", "parent", "sister"}},
		{"children, by ID", family, "#parent", engineapi.RemoveOptions{},
			nil, "conflict: unable to delete <parent> (cannot be forced) - image has dependent child images", []string{"child", "grandparent", "parent"}},
		{"children, by ID, forced", family, "#parent", engineapi.RemoveOptions{Force: true},
			nil, "conflict: unable to delete <parent> (cannot be forced) - image has dependent child images", []string{"child", "grandparent", "parent"}},
		{"children, by ID with a name", named(family, "parent", "parent:1"), "#parent", engineapi.RemoveOptions{},
			nil, "conflict: unable to delete <parent> (cannot be forced) - image has dependent child images", []string{"child", "grandparent", "parent"}},
		{"children, by name: only that goes", named(family, "parent", "parent:1"), "parent:1", engineapi.RemoveOptions{},
			[]string{"-parent:1"}, "", []string{"child", "grandparent", "parent"}},
		{"children, by name, forced", named(family, "parent", "parent:1"), "parent:1", engineapi.RemoveOptions{Force: true},
			[]string{"-parent:1"}, "", []string{"child", "grandparent", "parent"}},

		{"its platform", []seed{{called: "x", names: []string{"a:1"}, platform: "arm64"}}, "a:1", engineapi.RemoveOptions{Platforms: []string{"linux/amd64", "linux/arm64"}},
			[]string{"-a:1", "#x"}, "", nil},
		{"another platform", []seed{{called: "x", names: []string{"a:1"}, platform: "arm64"}}, "a:1", engineapi.RemoveOptions{Platforms: []string{"linux/amd64"}},
			nil, "image with reference a:1 was found but its platform (linux/arm64) does not match the specified platform (linux/amd64)", []string{"x"}},
		{"one of an index", []seed{
			{called: "x", names: []string{"a:1"}, manifest: true, index: "sha256:" + id.Blob(strings.Repeat("1", 64))},
			{called: "y", names: []string{digest("a")}, platform: "arm64", manifest: true, index: "sha256:" + id.Blob(strings.Repeat("1", 64))},
		}, "a:1", engineapi.RemoveOptions{Platforms: []string{"linux/arm64"}}, []string{"-a@", "#y"}, "", []string{"x"}},

		{"no such image", nil, "nosuch", engineapi.RemoveOptions{}, nil, "No such image: nosuch:latest", nil},
		{"no such tag", []seed{{called: "x", names: []string{"a:1"}}}, "a:2", engineapi.RemoveOptions{Force: true}, nil, "No such image: a:2", []string{"x"}},
		{"the start of its ID is no tag", []seed{{called: "x", names: []string{"a:1"}}}, "a:<x>", engineapi.RemoveOptions{Force: true}, nil, "No such image: a:<x>", []string{"x"}},
		{"no name", []seed{{called: "x", names: []string{"a:1"}}}, "A:1", engineapi.RemoveOptions{}, nil, "No such image: A:1", []string{"x"}},
	} {
		t.Run(tt.what, func(t *testing.T) {
			t.Parallel()
			d, ids := seeded(t, tt.have...)
			manifests := map[string]string{} // digests to @
			for _, img := range listed(t, d) {
				for _, n := range img.RepoDigests {
					repo, _, _ := strings.Cut(n, "@")
					manifests[n] = repo + "@"
				}
			}
			name := tt.remove
			if called, ok := strings.CutPrefix(name, "#"); ok {
				name = ids[called].Short()
			}
			name = strings.ReplaceAll(name, "<x>", ids["x"].Short())
			for n, short := range manifests {
				if name == short {
					name = n
				}
			}
			items, err := d.client.Remove(testContext(t), name, tt.o)
			want := tt.err
			for called, imageID := range ids {
				want = strings.ReplaceAll(want, "<"+called+">", imageID.Short())
			}
			if got := fmt.Sprint(err); want != "" && got != want || want == "" && err != nil {
				t.Fatalf("got %v, want %q", err, want)
			}
			if strings.HasPrefix(want, "conflict") && fault.KindOf(err) != fault.Conflict {
				t.Errorf("%v is no conflict", err)
			}
			chains := map[string]string{} // of the layers of each image before, by ID
			for _, s := range tt.have {
				var c id.ChainID
				for n, text := range s.layers {
					c = c.Append(tarDiff(t, text))
					chains[string(c)] = fmt.Sprintf("+%d", n+1)
				}
			}
			var got []string
			for _, i := range items {
				switch {
				case manifests[i.Untagged] != "":
					got = append(got, "-"+manifests[i.Untagged])
				case i.Untagged != "":
					got = append(got, "-"+i.Untagged)
				case chains[i.Deleted] != "":
					got = append(got, chains[i.Deleted])
				default:
					got = append(got, "#"+called(ids, i.Deleted))
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("items: got %q, want %q", got, tt.want)
			}
			var left []string
			for _, img := range listed(t, d) {
				left = append(left, called(ids, string(img.ID)))
			}
			slices.Sort(left)
			if !slices.Equal(left, tt.left) {
				t.Errorf("left: got %q, want %q", left, tt.left)
			}
		})
	}
}

// called returns what a test calls an image.
func called(ids map[string]id.ImageID, imageID string) string {
	for c, i := range ids {
		if string(i) == imageID {
			return c
		}
	}
	return imageID
}

// listed returns all images, parents too.
func listed(t testing.TB, d *running) []engineapi.ImageSummary {
	t.Helper()
	list, err := d.client.Images(testContext(t), nil, engineapi.ListOptions{All: true})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestRemoveInUse is the part of the table that needs mounts.
func TestRemoveInUse(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	d, ids := seeded(t,
		seed{called: "base", names: []string{"base:1"}, layers: []string{"file a 1"}},
		seed{called: "made", names: []string{"made:1"}, parent: "base", layers: []string{"file a 1", "file b 2"}},
		seed{called: "two", names: []string{"two:1", "two:2"}, layers: []string{"file c 3"}},
	)
	ctx := testContext(t)
	at := map[string]string{}
	for _, name := range []string{"base:1", "two:1"} {
		at[name] = mountDir(t)
		if _, err := mountAs(ctx, d.client, name, at[name]); err != nil {
			t.Fatal(err)
		}
	}
	inUse := func(called, name string) string {
		return fmt.Sprintf("conflict: unable to delete %s (must be forced) - image is being used by mount %s", ids[called].Short(), at[name])
	}
	byName := func(called, name, mounted string) string {
		return fmt.Sprintf("conflict: unable to remove repository reference %q (must force) - mount %s is using its referenced image %s", name, at[mounted], ids[called].Short())
	}
	for _, tt := range []struct {
		what   string
		remove string
		o      engineapi.RemoveOptions
		err    string
		items  int
	}{
		{"by its only name", "base:1", engineapi.RemoveOptions{}, byName("base", "base:1", "base:1"), 0},
		{"by ID, children count first", string(ids["base"]), engineapi.RemoveOptions{}, fmt.Sprintf("conflict: unable to delete %s (cannot be forced) - image has dependent child images", ids["base"].Short()), 0},
		{"by ID, names count first", string(ids["two"]), engineapi.RemoveOptions{}, fmt.Sprintf("conflict: unable to delete %s (must be forced) - image is referenced in multiple repositories", ids["two"].Short()), 0},
		{"one of two names", "two:2", engineapi.RemoveOptions{}, "", 1},
		{"by ID", string(ids["two"]), engineapi.RemoveOptions{}, inUse("two", "two:1"), 0},
		{"the last name", "two:1", engineapi.RemoveOptions{}, byName("two", "two:1", "two:1"), 0},
		{"the last name, forced", "two:1", engineapi.RemoveOptions{Force: true}, "", 2}, // the mount keeps the layer
		{"a child of what is mounted", "made:1", engineapi.RemoveOptions{}, "", 3},
		{"by its only name still", "base:1", engineapi.RemoveOptions{}, byName("base", "base:1", "base:1"), 0},
		{"by ID, forced", ids["base"].Short(), engineapi.RemoveOptions{Force: true}, "", 2},
	} {
		items, err := d.client.Remove(ctx, tt.remove, tt.o)
		if got := fmt.Sprint(err); tt.err != "" && got != tt.err || tt.err == "" && err != nil {
			t.Errorf("%s: got %v, want %q", tt.what, err, tt.err)
		}
		if len(items) != tt.items {
			t.Errorf("%s: got %v, want %d items", tt.what, items, tt.items)
		}
	}
	wantFile(t, at["two:1"]+"/c", "3")
	wantFile(t, at["base:1"]+"/a", "1")
}

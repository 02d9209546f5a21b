package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// day returns a day of January 2024.
func day(n int) time.Time { return time.Date(2024, 1, n, 12, 0, 0, 0, time.UTC) }

// TestHistory shows what docker history does of the same configs.
func TestHistory(t *testing.T) {
	t.Parallel()
	at := func(n int) *time.Time { d := day(n); return &d }
	d, ids := seeded(t,
		seed{called: "base", names: []string{"base:1", "base:2", "base@"}, manifest: true, layers: []string{"file a 12345"}, history: []past{
			{Created: at(1), CreatedBy: "/bin/sh -c #(nop) ADD file:abc in / "},
			{Created: at(1), CreatedBy: `/bin/sh -c #(nop)  CMD ["bash"]`, Empty: true},
		}},
		seed{called: "mid", parent: "base", layers: []string{"file a 12345", "file b 123\nfile c 1234"}, history: []past{
			{Created: at(1), CreatedBy: "/bin/sh -c #(nop) ADD file:abc in / "},
			{Created: at(1), CreatedBy: `/bin/sh -c #(nop)  CMD ["bash"]`, Empty: true},
			{CreatedBy: "RUN make", Comment: "buildkit.dockerfile.v0"},
		}},
		seed{called: "top", parent: "mid", names: []string{"top:latest", "localhost:5000/top:x"}, layers: []string{"file a 12345", "file b 123\nfile c 1234", ""}, history: []past{
			{Created: at(1), CreatedBy: "/bin/sh -c #(nop) ADD file:abc in / "},
			{Created: at(1), CreatedBy: `/bin/sh -c #(nop)  CMD ["bash"]`, Empty: true},
			{CreatedBy: "RUN make", Comment: "buildkit.dockerfile.v0"},
			{Created: at(3), CreatedBy: "imgfs commit"},
		}},
		seed{called: "imported", names: []string{"imported:1"}, layers: []string{"file a 1"}, history: []past{{Created: at(2), Comment: "Imported from -"}}},
		seed{called: "silent", names: []string{"silent:1"}, layers: []string{"file a 1"}},
		seed{called: "brief", names: []string{"brief:1"}, layers: []string{"file a 12", "file b 1"}, history: []past{{CreatedBy: "one"}}},
		seed{called: "empty", names: []string{"empty:1"}, history: []past{{CreatedBy: "ENV a=b", Empty: true}}},
		seed{called: "arm", names: []string{"arm:1"}, platform: "arm64", history: []past{{CreatedBy: "ENV", Empty: true}}},
	)
	unix := func(n int) string { return fmt.Sprint(day(n).Unix()) }
	for _, tt := range []struct {
		name, platform string
		want           []string // ID created size tags | created by | comment
		err            string
	}{
		{"base:1", "", []string{
			"base " + unix(1) + ` 0 base:1,base:2 | /bin/sh -c #(nop)  CMD ["bash"] | `,
			"<missing> " + unix(1) + " 5  | /bin/sh -c #(nop) ADD file:abc in /  | ",
		}, ""},
		{"top", "", []string{ // each ancestor's ID stands beside one entry, as docker counts them
			"top " + unix(3) + " 0 top:latest,localhost:5000/top:x | imgfs commit | ",
			"mid 0 7  | RUN make | buildkit.dockerfile.v0",
			"base " + unix(1) + ` 0 base:1,base:2 | /bin/sh -c #(nop)  CMD ["bash"] | `,
			"<missing> " + unix(1) + " 5  | /bin/sh -c #(nop) ADD file:abc in /  | ",
		}, ""},
		{"imported:1", "linux/amd64", []string{"imported " + unix(2) + " 1 imported:1 |  | Imported from -"}, ""},
		{"silent:1", "", nil, ""},
		{"brief:1", "", []string{"brief 0 2 brief:1 | one | "}, ""},
		{"empty:1", "", []string{"empty 0 0 empty:1 | ENV a=b | "}, ""},
		{ids["empty"].Short(), "", []string{"empty 0 0 empty:1 | ENV a=b | "}, ""},
		{"arm:1", "linux/arm64/v8", []string{"arm 0 0 arm:1 | ENV | "}, ""},
		{"arm:1", "linux/amd64", nil, "image with reference arm:1 was found but its platform (linux/arm64) does not match the specified platform (linux/amd64)"},
		{"nosuch", "", nil, "No such image: nosuch:latest"},
	} {
		items, err := d.client.History(testContext(t), tt.name, tt.platform)
		if got := fmt.Sprint(err); tt.err != "" && got != tt.err || tt.err == "" && err != nil {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.err)
		}
		var got []string
		for _, i := range items {
			got = append(got, fmt.Sprintf("%s %d %d %s | %s | %s", called(ids, i.ID), i.Created, i.Size, strings.Join(i.Tags, ","), i.CreatedBy, i.Comment))
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s:\ngot  %q\nwant %q", tt.name, got, tt.want)
		}
		if len(items) > 1 && items[1].ID == missing && items[1].Tags != nil {
			t.Errorf("%s: tags of a missing image: %q", tt.name, items[1].Tags)
		}
	}
}

// TestTag names images, or is refused in docker's words.
func TestTag(t *testing.T) {
	t.Parallel()
	d, ids := seeded(t,
		seed{called: "x", names: []string{"a:1", "a@"}, manifest: true},
		seed{called: "y", names: []string{"b:1"}},
	)
	digest := listed(t, d)[slices.IndexFunc(listed(t, d), func(i engineapi.ImageSummary) bool { return i.ID == ids["x"] })].RepoDigests[0]
	for _, tt := range []struct {
		source, target string
		noClobber      bool
		err            string
		kind           fault.Kind
		is             string // what target names then
	}{
		{"a:1", "c", false, "", 0, "x"},
		{"a:1", "c:latest", true, "", 0, "x"}, // it is that already
		{digest, "localhost:5000/d:1", false, "", 0, "x"},
		{ids["y"].Short(), "e:1", false, "", 0, "y"},
		{string(ids["y"]), "docker.io/library/f:1", false, "", 0, "y"},
		{"a:" + ids["x"].Short(), "g:1", false, "", 0, "x"},
		{"b:1", "c", true, "Conflict: Tag c:latest is already set to image " + string(ids["x"]) + ", if you want to replace it, please use -f option", fault.Conflict, "x"},
		{"b:1", "c", false, "", 0, "y"},
		{"nosuch", "c", false, "No such image: nosuch:latest", fault.NotFound, "y"},
		{"a:1", "A", false, "invalid reference format: repository name (library/A) must be lowercase", fault.Invalid, ""},
		{"a:1", "scratch", false, "'scratch' is a reserved name", fault.Invalid, ""},
		{"a:1", "sha256:1", false, "refusing to create an ambiguous tag using digest algorithm as name", fault.Invalid, ""},
		{"a:1", strings.Repeat("0123456789abcdef", 4), false, "invalid repository name (" + strings.Repeat("0123456789abcdef", 4) + "), cannot specify 64-byte hexadecimal strings", fault.Invalid, ""},
	} {
		err := d.client.Tag(testContext(t), tt.source, tt.target, tt.noClobber)
		if got := fmt.Sprint(err); tt.err != "" && (got != tt.err || fault.KindOf(err) != tt.kind) || tt.err == "" && err != nil {
			t.Errorf("tag %s %s: got %v (%v), want %q", tt.source, tt.target, err, fault.KindOf(err), tt.err)
		}
		if tt.is == "" {
			continue
		}
		if i, err := d.client.Inspect(testContext(t), tt.target, engineapi.InspectOptions{}); err != nil || i.ID != ids[tt.is] {
			t.Errorf("tag %s %s: it is %s now, %v; want %s", tt.source, tt.target, called(ids, string(i.ID)), err, tt.is)
		}
	}
	for _, target := range []string{"a:x@" + strings.TrimPrefix(digest, "a@"), digest, ""} {
		if err := d.client.Tag(testContext(t), "b:1", target, false); err == nil {
			t.Errorf("an image is called %q", target)
		}
	}
}

// TestUntag takes names away; images stay.
func TestUntag(t *testing.T) {
	t.Parallel()
	d, ids := seeded(t,
		seed{called: "x", names: []string{"a:1", "a:2", "a@", "b:1"}, manifest: true},
	)
	digest := listed(t, d)[0].RepoDigests[0]
	for _, tt := range []struct {
		name string
		want []string
		err  string
	}{
		{"a:3", nil, "No such tag: a:3"},
		{"c:1", nil, "No such repository: c"},
		{"localhost:5000/c", nil, "No such repository: localhost:5000/c"},
		{"b@" + strings.TrimPrefix(digest, "a@"), nil, "No such digest: b@" + strings.TrimPrefix(digest, "a@")},
		{ids["x"].Short(), nil, ids["x"].Short() + " is no name of image " + ids["x"].Short()},
		{"a:1", []string{"a:1"}, ""},
		{"a:1", nil, "No such tag: a:1"},
		{"a:2", []string{"a:2", digest}, ""},
		{"docker.io/library/b:1", []string{"b:1"}, ""},
		{"b:1", nil, "No such repository: b"},
	} {
		items, err := d.client.Untag(testContext(t), tt.name)
		if got := fmt.Sprint(err); tt.err != "" && got != tt.err || tt.err == "" && err != nil {
			t.Errorf("untag %s: got %v, want %q", tt.name, err, tt.err)
		}
		var got []string
		for _, i := range items {
			got = append(got, i.Untagged)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("untag %s: got %q, want %q", tt.name, got, tt.want)
		}
	}
	if list := listed(t, d); len(list) != 1 || len(list[0].RepoTags)+len(list[0].RepoDigests) != 0 {
		t.Errorf("images: %v, want one without a name", list)
	}
}

// TestList says what of images is listed.
func TestList(t *testing.T) {
	t.Parallel()
	index := "sha256:" + id.Blob(strings.Repeat("1", 64))
	d, ids := seeded(t,
		seed{called: "parent", layers: []string{"file a 12345"}},
		seed{called: "child", parent: "parent", names: []string{"child:1", "child@"}, manifest: true, layers: []string{"file a 12345", "file b 123"}, created: day(1), labels: map[string]string{"k": "v"}},
		seed{called: "dangling", layers: []string{"file d 1", "file d 1", "file b 123"}, created: day(2)},
		seed{called: "multi", names: []string{"multi:1"}, manifest: true, index: index, platform: "arm64"},
	)
	show := func(o engineapi.ListOptions) (lines []string) {
		list, err := d.client.Images(testContext(t), nil, o)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range list {
			line := fmt.Sprintf("%s parent=%s tags=%s digests=%d created=%d size=%d shared=%d mounts=%d labels=%v",
				called(ids, string(i.ID)), called(ids, i.ParentID), strings.Join(i.RepoTags, ","), len(i.RepoDigests), i.Created, i.Size, i.SharedSize, i.Containers, i.Labels)
			lines = append(lines, line)
		}
		slices.Sort(lines)
		return lines
	}
	child := fmt.Sprintf("child parent=parent tags=child:1 digests=1 created=%d size=8 shared=%%d mounts=0 labels=map[k:v]", day(1).Unix())
	dangling := fmt.Sprintf("dangling parent= tags= digests=0 created=%d size=5 shared=%%d mounts=0 labels=map[]", day(2).Unix())
	multi := "multi parent= tags=multi:1 digests=0 created=0 size=0 shared=%d mounts=0 labels=map[]"
	parent := "parent parent= tags= digests=0 created=0 size=5 shared=%d mounts=0 labels=map[]"
	unshared := func(lines ...string) (out []string) {
		for _, l := range lines {
			out = append(out, fmt.Sprintf(l, -1))
		}
		return out
	}
	if got, want := show(engineapi.ListOptions{}), unshared(child, dangling, multi); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if got, want := show(engineapi.ListOptions{All: true}), unshared(child, dangling, multi, parent); !slices.Equal(got, want) {
		t.Errorf("all: got  %q\nwant %q", got, want)
	}
	want := []string{fmt.Sprintf(child, 8), fmt.Sprintf(dangling, 3), fmt.Sprintf(multi, 0), fmt.Sprintf(parent, 5)}
	if got := show(engineapi.ListOptions{All: true, SharedSize: true}); !slices.Equal(got, want) {
		t.Errorf("shared: got  %q\nwant %q", got, want)
	}

	list, err := d.client.Images(testContext(t), map[string][]string{"reference": {"child", "multi"}}, engineapi.ListOptions{Manifests: true})
	if err != nil || len(list) != 2 {
		t.Fatalf("%v %v", list, err)
	}
	for _, i := range list {
		if len(i.Manifests) != 1 {
			t.Fatalf("%s: manifests %s", i.RepoTags, asJSON(t, i.Manifests))
		}
		m := i.Manifests[0]
		p := m.ImageData.Platform
		if !m.Available || m.Kind != "image" || p.OS != "linux" || m.Descriptor.MediaType != manifestType || m.Descriptor.Digest != m.ID || m.Descriptor.Size == 0 || m.ImageData.Containers == nil {
			t.Errorf("%s: manifest %s", i.RepoTags, asJSON(t, m))
		}
		switch i.ID {
		case ids["child"]:
			if i.Descriptor == nil || i.Descriptor.Digest != m.ID || p.Architecture != "amd64" || m.ImageData.Size.Unpacked != 8 || m.Size.Content != m.Size.Total || m.Size.Total < 8 {
				t.Errorf("child: %s", asJSON(t, i))
			}
		case ids["multi"]: // the index is not kept
			if i.Descriptor != nil || p.Architecture != "arm64" {
				t.Errorf("multi: %s", asJSON(t, i))
			}
		}
	}
}

// TestBroken has an image whose config is lost: it is listed, can be tagged and
// removed, and does not stop the others.
func TestBroken(t *testing.T) {
	t.Parallel()
	d, ids := seeded(t,
		seed{called: "broken", names: []string{"broken:1"}, layers: []string{"file a 1"}},
		seed{called: "whole", names: []string{"whole:1"}, layers: []string{"file b 1"}},
	)
	if err := os.Remove(filepath.Join(d.Root, "blobs/sha256", ids["broken"].Hex())); err != nil {
		t.Fatal(err)
	}
	ctx := testContext(t)
	for _, i := range listed(t, d) {
		if (i.Broken != "") != (i.ID == ids["broken"]) {
			t.Errorf("%s: broken: %q", i.RepoTags, i.Broken)
		}
	}
	if _, err := d.client.Inspect(ctx, "broken:1", engineapi.InspectOptions{}); fault.KindOf(err) != fault.Integrity {
		t.Errorf("inspect: %v", err)
	}
	if _, err := d.client.History(ctx, "broken:1", ""); fault.KindOf(err) != fault.Integrity {
		t.Errorf("history: %v", err)
	}
	if err := d.client.Tag(ctx, "broken:1", "broken:2", false); err != nil {
		t.Error(err)
	}
	if _, err := d.client.Graph(ctx); err != nil {
		t.Error(err)
	}
	if items, err := d.client.Remove(ctx, "broken:1", engineapi.RemoveOptions{}); err != nil || len(items) != 1 {
		t.Errorf("rmi: %v %v", items, err)
	}
	if items, err := d.client.Remove(ctx, "broken:2", engineapi.RemoveOptions{}); err != nil || len(items) != 3 {
		t.Errorf("rmi: %v %v", items, err)
	}
	if list := listed(t, d); len(list) != 1 || list[0].ID != ids["whole"] {
		t.Errorf("left: %s", asJSON(t, list))
	}
}

// TestInspectDetails looks at what Inspect says beside the config.
func TestInspectDetails(t *testing.T) {
	t.Parallel()
	d, ids := seeded(t,
		seed{called: "parent", names: []string{"parent:1"}, layers: []string{"file a 12345"}},
		seed{called: "child", parent: "parent", names: []string{"child:1", "child@"}, manifest: true, layers: []string{"file a 12345", "file b 123"}, created: day(1)},
	)
	ctx := testContext(t)
	i, err := d.client.Inspect(ctx, "child:1", engineapi.InspectOptions{Manifests: true})
	if err != nil {
		t.Fatal(err)
	}
	data := i.GraphDriver.Data
	if i.Parent != string(ids["parent"]) || i.Created != "2024-01-01T12:00:00Z" || i.Size != 8 || i.Author != "child" ||
		i.Descriptor == nil || len(i.Manifests) != 1 || i.Descriptor.Digest != i.Manifests[0].ID ||
		data["LazyBytes"] != "0" || data["CachedBytes"] == "" || data["CachedBytes"] == "0" || data["ChainID"] == "" || i.Metadata.LastTagTime.IsZero() {
		t.Errorf("child: %s", asJSON(t, i))
	}
	if i, err = d.client.Inspect(ctx, "parent:1", engineapi.InspectOptions{}); err != nil || i.Parent != "" || i.Descriptor != nil || i.Manifests != nil {
		t.Errorf("parent: %s %v", asJSON(t, i), err)
	}
	if _, err := d.client.Inspect(ctx, "child:1", engineapi.InspectOptions{Platform: "linux/s390x"}); fault.KindOf(err) != fault.NotFound ||
		err.Error() != "image with reference child:1 was found but its platform (linux/amd64) does not match the specified platform (linux/s390x)" {
		t.Errorf("other platform: %v", err)
	}
}

// TestGraph shows what lies on what.
func TestGraph(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	d, ids := seeded(t,
		seed{called: "parent", names: []string{"parent:1"}, layers: []string{"file a 12345"}},
		seed{called: "child", parent: "parent", names: []string{"child:1", "child@"}, manifest: true, layers: []string{"file a 12345", "file b 123"}},
	)
	dir := mountDir(t)
	m, err := mountAs(testContext(t), d.client, "child:1", dir)
	if err != nil {
		t.Fatal(err)
	}
	g, err := d.client.Graph(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, i := range g.Images {
		got = append(got, fmt.Sprintf("%s on %s: %d names, %d layers, %d bytes", called(ids, string(i.ID)), called(ids, string(i.Parent)), len(i.Names), len(i.Layers), i.Size))
	}
	for _, l := range g.Layers {
		if l.Present != l.Size || l.DiffID.Key() != l.ID {
			t.Errorf("layer %+v", l)
		}
		got = append(got, fmt.Sprintf("%s: %d images", l.ID, l.Images))
	}
	for _, m := range g.Mounts {
		got = append(got, fmt.Sprintf("%s at %s: %s %s", m.ID, m.Target, called(ids, string(m.Image)), m.Mode))
	}
	slices.Sort(got)
	want := []string{
		"parent on : 1 names, 1 layers, 5 bytes", "child on parent: 2 names, 2 layers, 8 bytes",
		string(tarDiff(t, "file a 12345")) + ": 2 images", string(tarDiff(t, "file b 123")) + ": 1 images",
		fmt.Sprintf("%s at %s: child ro", m.ID, dir),
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

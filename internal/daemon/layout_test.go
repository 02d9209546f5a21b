package daemon

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/id"
)

// TestLayout looks at a store through the layout view: what is there, what is
// pulled meanwhile, what is fetched by being looked at; and after a kill -9.
func TestLayout(t *testing.T) {
	needFUSE(t)
	reg := newRegistry(t)
	ref, _ := reg.push(t, "lib/one:1", "file a one\nfile b base", "file b top\nfile .wh.a")
	other, _ := reg.push(t, "lib/other:2", "file c three")
	p := newStore(t)
	c := spawned(t, p)
	ctx := testContext(t)
	dir := mountDir(t)
	asLayout := func(r *engineapi.MountRequest) { r.Image, r.Layout = "", true }
	if _, err := mountAs(ctx, c, "", dir, asLayout); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Pull(ctx, engineapi.PullRequest{Reference: ref}, nil); err != nil {
		t.Fatal(err)
	}
	img, err := c.Inspect(ctx, ref, engineapi.InspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	low := id.Chain(img.RootFS.Layers[:1]).Hex()
	top := id.Chain(img.RootFS.Layers).Hex()

	look := func() {
		t.Helper()
		wantFile(t, filepath.Join(dir, "layers", top), low+"\n")
		wantFile(t, filepath.Join(dir, "layers", low), "")
		wantFile(t, filepath.Join(dir, "mnt", low, "b"), "base")
		wantFile(t, filepath.Join(dir, "mnt", top, "b"), "top")
		wantFile(t, filepath.Join(dir, "images", ref, "b"), "top")
		if names := namesIn(t, filepath.Join(dir, "diff", top)); !slices.Equal(names, []string{".wh.a", "b"}) {
			t.Errorf("diff: %v", names)
		}
		if names := namesIn(t, filepath.Join(dir, "mnt", top)); !slices.Equal(names, []string{"b"}) {
			t.Errorf("mnt: %v", names)
		}
	}
	look()
	// A name that nobody has pulled: known to the registry, or not.
	wantFile(t, filepath.Join(dir, "images", other, "c"), "three")
	if _, err := os.Stat(filepath.Join(dir, "images", reg.host(), "lib/nosuch:1")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such name: %v", err)
	}
	if list, err := c.Images(ctx, nil, engineapi.ListOptions{}); err != nil || len(list) != 2 {
		t.Errorf("images: %v %v", list, err)
	}

	killDaemon(t, p)
	reg.Close()
	if _, err := c.Ping(ctx); err != nil {
		t.Fatal(err)
	}
	look()
}

func namesIn(t testing.TB, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Error(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

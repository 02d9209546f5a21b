package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/fetch"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

// TestRemoveMounted removes the image under a mount: refused, then forced,
// and the mount goes on, also in the next daemon.
func TestRemoveMounted(t *testing.T) {
	needFUSE(t)
	reg := newRegistry(t)
	ref, imageID := reg.push(t, "used", "file a one")
	p := newStore(t)
	c := spawned(t, p)
	ctx := testContext(t)
	dir := mountDir(t)
	m, err := mountAs(ctx, c, ref, dir)
	if err != nil {
		t.Fatal(err)
	}
	inUse := "conflict: unable to delete " + imageID.Short() + " (must be forced) - image is being used by mount " + dir
	for name, want := range map[string]string{
		string(imageID): inUse, imageID.Short(): inUse,
		ref: fmt.Sprintf("conflict: unable to remove repository reference %q (must force) - mount %s is using its referenced image %s", ref, dir, imageID.Short()),
	} {
		if _, err := c.Remove(ctx, name, engineapi.RemoveOptions{}); err == nil || err.Error() != want || fault.KindOf(err) != fault.Conflict {
			t.Errorf("rmi %s: got %v, want %s", name, err, want)
		}
	}
	items, err := c.Remove(ctx, ref, engineapi.RemoveOptions{Force: true})
	if err != nil || len(items) < 2 || items[0].Untagged != ref {
		t.Fatalf("rmi -f: %v %v", items, err)
	}
	if r, err := c.GC(ctx); err != nil || len(r.Layers) != 0 {
		t.Errorf("gc took layers of a mount: %v %v", r, err)
	}
	killDaemon(t, p)
	if _, err := c.Ping(ctx); err != nil {
		t.Fatal(err)
	}
	wantFile(t, filepath.Join(dir, "a"), "one")
	if err := fsUnmount(dir); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitGone(ctx, m.ID); err != nil {
		t.Fatal(err)
	}
	if r, err := c.GC(ctx); err != nil || len(r.Layers) != 1 {
		t.Errorf("gc after the unmount: %v %v", r, err)
	}
}

// TestRemove is docker's rmi, rule by rule.
func TestRemove(t *testing.T) {
	reg := newRegistry(t)
	one, imageID := reg.push(t, "a/one:1", "file a one")
	for _, n := range []string{"a/one:2", "b/two:1"} {
		reg.manifests[n] = reg.manifests["a/one:1"]
	}
	three := reg.host() + "/b/two:1"
	two := strings.TrimSuffix(one, ":1") + ":2"
	d := runDaemon(t, Options{})
	ctx := testContext(t)
	for _, ref := range []string{one, two, three} {
		if _, err := d.client.Pull(ctx, engineapi.PullRequest{Reference: ref}, nil); err != nil {
			t.Fatal(err)
		}
	}
	_, err := d.client.Remove(ctx, string(imageID), engineapi.RemoveOptions{})
	if want := "conflict: unable to delete " + imageID.Short() + " (must be forced) - image is referenced in multiple repositories"; err == nil || err.Error() != want {
		t.Errorf("by ID: got %v, want %s", err, want)
	}
	for _, tt := range []struct {
		name string
		want []string // what is untagged, without digests; and whether it is deleted
	}{
		{one, []string{one}},
		{two, []string{two, "@"}}, // the last tag of its repository takes the digest along
		{imageID.Short(), []string{three, "@", "deleted"}},
	} {
		items, err := d.client.Remove(ctx, tt.name, engineapi.RemoveOptions{})
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]bool{}
		for _, i := range items {
			switch {
			case strings.Contains(i.Untagged, "@"):
				got["@"] = true
			case i.Untagged != "":
				got[i.Untagged] = true
			case i.Deleted == string(imageID):
				got["deleted"] = true
			}
		}
		if len(got) != len(tt.want) {
			t.Errorf("rmi %s: got %v, want %v", tt.name, items, tt.want)
		}
		for _, w := range tt.want {
			if !got[w] {
				t.Errorf("rmi %s: %v lacks %s", tt.name, items, w)
			}
		}
	}
	if list, err := os.ReadDir(filepath.Join(d.Root, "layers")); err != nil || len(list) != 0 {
		t.Errorf("layers left: %v %v", list, err)
	}
}

// TestPlatform says which stored image serves which request.
func TestPlatform(t *testing.T) {
	for _, tt := range []struct {
		have, want string
		ok         bool
	}{
		{"linux/amd64", "linux/amd64", true},
		{"linux/amd64", "linux/arm64", false},
		{"linux/arm/v7", "linux/arm/v7", true},
		{"linux/arm/v6", "linux/arm/v7", false},
		{"linux/arm64", "linux/arm64/v8", true},
		{"", "linux/s390x", false},
	} {
		want, err := fetch.ParsePlatform(tt.want)
		if err != nil {
			t.Fatal(err)
		}
		if got := satisfies(tt.have, want); got != tt.ok {
			t.Errorf("%q for %q: %v", tt.have, tt.want, got)
		}
	}
}

package daemon

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/fs"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// drivers are the ways to mount, for tests that try all of them.
var drivers = []struct {
	name  string
	mount func(t testing.TB, ctx context.Context, c *engineapi.Client, image, target string) (engineapi.Mount, error)
}{
	{"fuse", func(_ testing.TB, ctx context.Context, c *engineapi.Client, image, target string) (engineapi.Mount, error) {
		return mountAs(ctx, c, image, target)
	}},
	{"erofs", func(t testing.TB, _ context.Context, c *engineapi.Client, image, target string) (engineapi.Mount, error) {
		return mountErofs(t, c, image, target)
	}},
}

// TestCorpus pulls and mounts the odd and hostile layers of testdata. The
// kernel shows the tree that the case wants, with both drivers; what is to be
// refused is refused in a line that says why, and leaves nothing but the
// daemon.
func TestCorpus(t *testing.T) {
	needFUSE(t)
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	p := newStore(t)
	c := spawned(t, p)
	ctx := testContext(t)
	before := holder(p)
	dir := mountDir(t)
	for _, tt := range imgtest.Cases(t, "../../testdata") {
		name := strings.ToLower(tt.Name)
		pushLayers(t, "corpus/"+name, "1", tt.Layers, reg)
		ref := reg.Host + "/corpus/" + name + ":1"
		for _, driver := range drivers {
			m, err := driver.mount(t, ctx, c, ref, dir)
			if tt.Error != "" {
				if err == nil || fault.KindOf(err) != fault.Integrity || !strings.Contains(err.Error(), tt.Error) || strings.Contains(err.Error(), "\n") {
					t.Errorf("%s, %s: error %v (%v), want %q", tt.Name, driver.name, err, fault.KindOf(err), tt.Error)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s, %s: %v", tt.Name, driver.name, err)
				continue
			}
			if got := listDir(t, dir); got != tt.Want {
				t.Errorf("%s, %s: %s\ngot:\n%swant:\n%s", tt.Name, driver.name, tt.About, got, tt.Want)
			}
			if err := fs.Unmount(dir, false); err != nil {
				t.Fatal(err)
			}
			if err := c.WaitGone(ctx, m.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	if isMounted(t, dir) {
		t.Error("a mount is left")
	}
	if list, err := c.Mounts(ctx); err != nil || len(list) > 0 {
		t.Errorf("mounts: %v %v", list, err)
	}
	if left, err := os.ReadDir(filepath.Join(p.Root, "tmp")); err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}
	if now := holder(p); now != before {
		t.Errorf("the daemon was %s, is %s", before, now)
	}
}

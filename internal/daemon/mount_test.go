package daemon

import (
	"path/filepath"
	"testing"

	"github.com/imgfs/imgfs/fs"
)

func TestMount(t *testing.T) {
	needFUSE(t)
	reg := newRegistry(t)
	ref, imageID := reg.push(t, "lib/one:1", "file a one\nfile b base", "file b top\nfile .wh.a")
	d := runDaemon(t, Options{})
	ctx := testContext(t)
	dir := mountDir(t)

	m, err := mountAs(ctx, d.client, ref, dir)
	if err != nil {
		t.Fatal(err)
	}
	if m.ImageID != imageID || m.Target != dir || m.Image != ref || m.Driver != "fuse" || m.Mode != "ro" {
		t.Errorf("mount is %+v", m)
	}
	wantFile(t, filepath.Join(dir, "b"), "top")

	list, err := d.client.Mounts(ctx)
	if err != nil || len(list) != 1 || list[0].ID != m.ID {
		t.Errorf("mounts: %v %v", list, err)
	}
	// The umount of any tool ends it.
	if err := fs.Unmount(dir, false); err != nil {
		t.Fatal(err)
	}
	if err := d.client.WaitGone(ctx, m.ID); err != nil {
		t.Fatal(err)
	}
	if list, err := d.client.Mounts(ctx); err != nil || len(list) != 0 {
		t.Errorf("mounts: %v %v", list, err)
	}

	// Known now: no network.
	before := reg.requests.Load()
	if _, err := mountAs(ctx, d.client, ref, dir); err != nil {
		t.Fatal(err)
	}
	if n := reg.requests.Load() - before; n != 0 {
		t.Errorf("%d requests for a known image", n)
	}
}

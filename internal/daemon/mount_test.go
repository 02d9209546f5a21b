package daemon

import (
	"path/filepath"
	"testing"

	"github.com/imgfs/imgfs/fs"
	"github.com/imgfs/imgfs/internal/engineapi"
	"golang.org/x/sys/unix"
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

// TestMountAgain: a place is free as soon as umount(8) has returned, also
// before the daemon has heard of it.
func TestMountAgain(t *testing.T) {
	needFUSE(t)
	reg := newRegistry(t)
	ref, _ := reg.push(t, "lib/again:1", "file a one")
	d := runDaemon(t, Options{})
	ctx := testContext(t)
	dir := mountDir(t)
	for _, driver := range []struct {
		name  string
		mount func() (engineapi.Mount, error)
	}{
		{"fuse", func() (engineapi.Mount, error) { return mountAs(ctx, d.client, ref, dir) }},
		{"erofs", func() (engineapi.Mount, error) { return mountErofs(t, d.client, ref, dir) }},
	} {
		if driver.name == "erofs" && !Privileged() {
			t.Log("erofs needs root")
			continue
		}
		var last engineapi.Mount
		for range 20 {
			m, err := driver.mount()
			if err != nil {
				t.Fatalf("%s: %v", driver.name, err)
			}
			last = m
			if err := unix.Unmount(dir, 0); err != nil {
				t.Fatalf("%s: %v", driver.name, err)
			}
		}
		if err := d.client.WaitGone(ctx, last.ID); err != nil {
			t.Fatal(err)
		}
		if list, err := d.client.Mounts(ctx); err != nil || len(list) != 0 {
			t.Errorf("%s: %d mounts on record, %v", driver.name, len(list), err)
		}
	}
}

// TestMountCountsAll: every request is in one of the counts that users see.
func TestMountCountsAll(t *testing.T) {
	needFUSE(t)
	reg := newRegistry(t)
	ref, _ := reg.push(t, "lib/counted:1", "file a one")
	d := runDaemon(t, Options{})
	ctx := testContext(t)
	dir := mountDir(t)
	if _, err := mountAs(ctx, d.client, ref, dir); err != nil {
		t.Fatal(err)
	}
	others := func() uint64 {
		list, err := d.client.Mounts(ctx)
		if err != nil || len(list) != 1 {
			t.Fatal(list, err)
		}
		return list[0].Stats.Others
	}
	before := others()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	if n := others() - before; n != 1 {
		t.Errorf("a STATFS counts as %d requests", n)
	}
}

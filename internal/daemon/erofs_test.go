package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/imgfs/imgfs/fs"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

// mountErofs does what the CLI does with --driver erofs.
func mountErofs(t testing.TB, c *engineapi.Client, image, target string) (engineapi.Mount, error) {
	t.Helper()
	req := engineapi.MountRequest{Image: image, Target: target, Driver: "erofs"}
	req.MountNS, req.UserNS = namespaces(t)
	return c.Mount(testContext(t), req, nil, func(r engineapi.MountReady) (int, engineapi.MountReply, error) {
		if err := fs.MountErofs(target, r.Index, r.Devices, fs.MountFlags{}); err != nil {
			return -1, engineapi.MountReply{}, err
		}
		top, err := fs.MountAt(target)
		if err != nil {
			return -1, engineapi.MountReply{}, err
		}
		if top == nil {
			return -1, engineapi.MountReply{}, fmt.Errorf("%s is not in the mount table", target)
		}
		return -1, engineapi.MountReply{Dev: top.Dev}, nil
	})
}

// TestErofs has the kernel mount, notices that somebody unmounts, and finds
// the mounts again after a kill -9, which they survive.
func TestErofs(t *testing.T) {
	needFUSE(t)
	reg := newRegistry(t)
	ref, imageID := reg.push(t, "erofs", "file a one", "file b two")
	p := newStore(t)
	c := spawned(t, p)
	ctx := testContext(t)
	kept, gone, late := mountDir(t), mountDir(t), mountDir(t)
	ids := map[string]string{}
	for _, dir := range []string{kept, gone, late} {
		m, err := mountErofs(t, c, ref, dir)
		if fault.KindOf(err) == fault.Unavailable && os.Getenv("IMGFS_REQUIRE_FUSE") != "1" {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		ids[dir] = m.ID
		wantFile(t, filepath.Join(dir, "b"), "two")
	}
	if err := fs.Unmount(gone, false); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitGone(ctx, ids[gone]); err != nil {
		t.Fatal(err)
	}

	killDaemon(t, p)
	wantFile(t, filepath.Join(kept, "a"), "one") // the kernel does not need it
	if err := fs.Unmount(late, false); err != nil {
		t.Fatal(err)
	}
	list, err := c.Mounts(ctx)
	if err != nil || len(list) != 1 || list[0].ID != ids[kept] || list[0].ImageID != imageID {
		t.Fatalf("mounts after the kill: %+v %v", list, err)
	}
	if _, err := c.Remove(ctx, ref, engineapi.RemoveOptions{}); fault.KindOf(err) != fault.Conflict {
		t.Errorf("image of a mount removed: %v", err)
	}
	if err := fs.Unmount(kept, false); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitGone(ctx, ids[kept]); err != nil {
		t.Fatal(err)
	}
	if list, err := c.Mounts(ctx); err != nil || len(list) != 0 {
		t.Errorf("mounts at the end: %v %v", list, err)
	}
}

package daemon

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/imgfs/imgfs/fs"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

// TestTwentyMounts mounts an image nobody has yet twenty times at once, from
// twenty clients that find no daemon.
func TestTwentyMounts(t *testing.T) {
	needFUSE(t)
	reg := newRegistry(t)
	layers := make([]string, 8)
	for i := range layers {
		layers[i] = fmt.Sprintf("file f%d %d", i, i)
	}
	ref, _ := reg.push(t, "lib/many", layers...)
	p := newStore(t)
	spawned(t, p) // cleans up
	if err := engineapi.New(p.Socket).Shutdown(testContext(t), false); err != nil {
		t.Fatal(err)
	}
	ctx := testContext(t)
	var wg sync.WaitGroup
	dirs := make([]string, 20)
	for i := range dirs {
		dirs[i] = mountDir(t)
		wg.Go(func() {
			c := Connect(p)
			defer c.Close()
			if _, err := mountAs(ctx, c, ref, dirs[i]); err != nil {
				t.Errorf("mount %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	for _, dir := range dirs {
		for i := range layers {
			wantFile(t, filepath.Join(dir, fmt.Sprintf("f%d", i)), fmt.Sprint(i))
		}
	}
	blobs := 0
	for path, n := range reg.got() {
		if strings.Contains(path, "/blobs/") {
			blobs++
			// Twenty clients resolve, each with the config; a layer is fetched once.
			if n > 1 && !strings.Contains(path, reg.config(t, "lib/many:latest")) {
				t.Errorf("%s was fetched %d times", path, n)
			}
		}
	}
	if blobs != len(layers)+1 {
		t.Errorf("%d blobs were fetched, want %d", blobs, len(layers)+1)
	}
	st, err := engineapi.New(p.Socket).Status(ctx)
	if err != nil || st.Mounts != len(dirs) || st.Images != 1 || st.Layers != len(layers) {
		t.Errorf("status: %+v %v", st, err)
	}
}

func TestSameTarget(t *testing.T) {
	needFUSE(t)
	reg := newRegistry(t)
	ref, _ := reg.push(t, "same", "file a one")
	d := runDaemon(t, Options{})
	ctx := testContext(t)
	dir := mountDir(t)
	errs := make([]error, 5)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { _, errs[i] = mountAs(ctx, d.client, ref, dir) })
	}
	wg.Wait()
	good := 0
	for _, err := range errs {
		switch {
		case err == nil:
			good++
		case fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), dir+" is mounted already"):
			t.Errorf("got %v", err)
		}
	}
	if good != 1 {
		t.Errorf("%d of %d mounts at one target succeeded", good, len(errs))
	}
	wantFile(t, filepath.Join(dir, "a"), "one")
	// The place is free again afterwards.
	if err := d.client.WaitGone(ctx, unmountAt(t, d, dir)); err != nil {
		t.Fatal(err)
	}
	if _, err := mountAs(ctx, d.client, ref, dir); err != nil {
		t.Error(err)
	}
}

// unmountAt unmounts and returns the ID of the mount at dir.
func unmountAt(t testing.TB, d *running, dir string) string {
	t.Helper()
	list, err := d.client.Mounts(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := fs.Unmount(dir, false); err != nil {
		t.Fatal(err)
	}
	for _, m := range list {
		if m.Target == dir {
			return m.ID
		}
	}
	t.Fatalf("no mount at %s in %v", dir, list)
	return ""
}

// TestClientDies has the client go at each step of a mount: nothing is left.
func TestClientDies(t *testing.T) {
	needFUSE(t)
	reg := newRegistry(t)
	ref, _ := reg.push(t, "dies", "file a one")
	d := runDaemon(t, Options{})
	ctx := testContext(t)
	for _, step := range []string{"before the mount", "after the mount"} {
		dir := mountDir(t)
		dying, die := context.WithCancel(ctx)
		req := engineapi.MountRequest{Image: ref, Target: dir, Driver: "fuse"}
		req.MountNS, req.UserNS = namespaces(t)
		_, err := d.client.Mount(dying, req, nil, func(r engineapi.MountReady) (int, engineapi.MountReply, error) {
			fd := -1
			if step == "after the mount" {
				var err error
				if fd, err = fs.Mount(dir, r.Source, fs.MountFlags{}); err != nil {
					t.Error(err)
				}
			}
			die() // closes the connection; the descriptor is then closed unsent
			return fd, engineapi.MountReply{}, nil
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", step, err)
		}
		// The daemon notices by itself; a mount at the same place waits for
		// nothing but says so if it was too early.
		d.end(t)
		if isMounted(t, dir) {
			t.Errorf("%s: a dead mount is left", step)
		}
		d = runDaemon(t, Options{Paths: d.Paths})
		if list, err := d.client.Mounts(ctx); err != nil || len(list) != 0 {
			t.Errorf("%s: mounts %v %v", step, list, err)
		}
		if st, err := d.client.Status(ctx); err != nil || len(st.Problems) != 0 {
			t.Errorf("%s: problems %v %v", step, st.Problems, err)
		}
	}
}

// TestNotFuse hands over descriptors that are not what they should be.
func TestNotFuse(t *testing.T) {
	needFUSE(t)
	reg := newRegistry(t)
	ref, _ := reg.push(t, "notfuse", "file a one")
	d := runDaemon(t, Options{})
	for _, tt := range []struct{ path, want string }{
		{"", "no descriptor"},
		{"/dev/null", "not /dev/fuse"},
		{"/proc/self/mountinfo", "not /dev/fuse"},
		{"/dev/fuse", "fuse server: "}, // nothing is mounted on it
	} {
		req := engineapi.MountRequest{Image: ref, Target: t.TempDir(), Driver: "fuse"}
		req.MountNS, req.UserNS = namespaces(t)
		_, err := d.client.Mount(testContext(t), req, nil, func(engineapi.MountReady) (int, engineapi.MountReply, error) {
			if tt.path == "" {
				return -1, engineapi.MountReply{}, nil
			}
			fd, err := openFile(tt.path)
			return fd, engineapi.MountReply{}, err
		})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: got %v, want %s", tt.path, err, tt.want)
		}
	}
	if list, err := d.client.Mounts(testContext(t)); err != nil || len(list) != 0 {
		t.Errorf("mounts: %v %v", list, err)
	}
}

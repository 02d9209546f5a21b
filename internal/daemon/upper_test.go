package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/fs"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/upperdir"
)

// writable makes a request one for a writable mount.
func writable(req *engineapi.MountRequest) { req.Mode = "rw" }

// over is writable with an upper that is there.
func over(name string) func(*engineapi.MountRequest) {
	return func(req *engineapi.MountRequest) { req.Mode, req.Upper = "rw", name }
}

// writeFile writes a file of a mount; see openFile.
func writeFile(t testing.TB, path, content string) {
	t.Helper()
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0o644)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	defer unix.Close(fd)
	if n, err := unix.Write(fd, []byte(content)); n != len(content) || err != nil {
		t.Fatalf("%s: %d %v", path, n, err)
	}
}

// unmounted unmounts and waits until the daemon has forgotten the mount.
func unmounted(t testing.TB, c *engineapi.Client, m engineapi.Mount) {
	t.Helper()
	if err := fs.Unmount(m.Target, false); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitGone(testContext(t), m.ID); err != nil {
		t.Fatal(err)
	}
}

// wantUppers compares the names of a store's uppers, and that these and no
// others retain layers.
func wantUppers(t testing.TB, r *running, want ...string) {
	t.Helper()
	list, err := r.client.Uppers(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, u := range list {
		got = append(got, u.Name)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("uppers %q, want %q", got, want)
	}
	onDisk, err := os.ReadDir(r.uppers())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if len(onDisk) != len(want) {
		t.Errorf("in %s: %v, want %q", r.uppers(), onDisk, want)
	}
}

func TestUpperNames(t *testing.T) {
	t.Parallel()
	for image, want := range map[string]string{
		"ubuntu:14.04":             "ubuntu",
		"docker.io/library/Ubuntu": "ubuntu",
		"quay.io/org/name@sha256:" + strings.Repeat("a", 64): "name",
		"127.0.0.1:5000/x/y.z_w:1":                           "y.z_w",
		"515ae707f091":                                       "515ae707f091",
		"oci:/some/dir:v1":                                   "dir",
		"oci:/some/My Dir":                                   "my-dir",
		"docker-archive:/tmp/image.tar":                      "image.tar",
		"oci:/":                                              "upper",
		"":                                                   "upper",
		"x/" + strings.Repeat("long", 30):                    strings.Repeat("long", 10),
	} {
		name := newUpperName(image)
		if !upperName.MatchString(name) {
			t.Errorf("%q: %q is not a name", image, name)
		}
		if ok, _ := regexp.MatchString("^"+regexp.QuoteMeta(want)+"-[0-9a-f]{6}$", name); !ok {
			t.Errorf("%q: %q, want %s-...", image, name, want)
		}
	}
	for _, bad := range []string{"", ".", "..", "../x", "a/b", ".dead-1", "-x", "A", "a\n", strings.Repeat("a", 129)} {
		if fault.KindOf(checkUpperName(bad)) != fault.NotFound {
			t.Errorf("%q passes for a name", bad)
		}
	}
}

// TestUpperInUse has many want the same upper at once: one gets it, the others
// are told who has it.
func TestUpperInUse(t *testing.T) {
	needFUSE(t)
	reg := newRegistry(t)
	ref, _ := reg.push(t, "one", "file a one")
	r := runDaemon(t, Options{})
	first, err := mountAs(testContext(t), r.client, ref, mountDir(t), writable)
	if err != nil {
		t.Fatal(err)
	}
	if first.Mode != "rw" || first.Upper == "" {
		t.Fatalf("mount: %+v", first)
	}
	writeFile(t, filepath.Join(first.Target, "b"), "two")
	unmounted(t, r.client, first)
	wantUppers(t, r, first.Upper)

	const clients = 6
	var mu sync.Mutex
	var got []engineapi.Mount
	var wg sync.WaitGroup
	for range clients {
		dir := mountDir(t)
		wg.Go(func() {
			m, err := mountAs(context.Background(), r.client, "", dir, over(first.Upper))
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				got = append(got, m)
			} else if fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "upper "+first.Upper+" is in use by the mount on ") {
				t.Errorf("refused by %v", err)
			}
		})
	}
	wg.Wait()
	if len(got) != 1 {
		t.Fatalf("%d of %d have the upper", len(got), clients)
	}
	wantFile(t, filepath.Join(got[0].Target, "b"), "two")
	if err := r.client.RemoveUpper(testContext(t), first.Upper); fault.KindOf(err) != fault.Conflict || fault.HintOf(err) != "imgfs umount "+got[0].Target {
		t.Errorf("removed in use: %v, %s", err, fault.HintOf(err))
	}
	u, err := r.client.Upper(testContext(t), first.Upper)
	if err != nil || u.Target != got[0].Target || u.MountID != got[0].ID || u.Image != first.Image || u.Size == 0 {
		t.Errorf("upper: %+v %v", u, err)
	}
	// Nor does another process get it.
	if _, err := upperdir.Open(u.Path); fault.KindOf(err) != fault.Conflict {
		t.Errorf("opened elsewhere: %v", err)
	}
	unmounted(t, r.client, got[0])
	if err := r.client.RemoveUpper(testContext(t), first.Upper); err != nil {
		t.Error(err)
	}
	wantUppers(t, r)
}

// TestUpperOfFailed has the mount fail after the upper was made: it goes.
func TestUpperOfFailed(t *testing.T) {
	needFUSE(t)
	reg := newRegistry(t)
	ref, _ := reg.push(t, "one", "file a one")
	r := runDaemon(t, Options{})
	for _, driver := range []string{"fuse", "overlay", "erofs"} {
		ctx, cancel := context.WithCancel(testContext(t))
		req := engineapi.MountRequest{Image: ref, Target: mountDir(t), Driver: driver, Mode: "rw"}
		req.MountNS, req.UserNS = namespaces(t)
		seen := ""
		_, err := r.client.Mount(ctx, req, nil, func(engineapi.MountReady) (int, engineapi.MountReply, error) {
			list, err := os.ReadDir(r.uppers())
			list = slices.DeleteFunc(list, func(d os.DirEntry) bool { return strings.HasPrefix(d.Name(), grave) }) // on its way out
			if err != nil || len(list) != 1 {
				t.Errorf("%s: at the mount there are %v %v", driver, list, err)
			}
			seen = fmt.Sprint(list)
			return -1, engineapi.MountReply{}, fault.New(fault.Denied, "not allowed")
		})
		if fault.KindOf(err) != fault.Denied || seen == "" {
			t.Errorf("%s: %v", driver, err)
		}
		// The client dies instead.
		_, err = r.client.Mount(ctx, req, nil, func(engineapi.MountReady) (int, engineapi.MountReply, error) {
			cancel()
			return -1, engineapi.MountReply{}, ctx.Err()
		})
		if err == nil {
			t.Errorf("%s: mounted by a dead client", driver)
		}
		cancel()
	}
	r.end(t)
	if list, err := os.ReadDir(r.uppers()); err != nil || len(list) != 0 {
		t.Errorf("left: %v %v", list, err)
	}
}

// TestUpperFull makes mounts in a store without room: an error that says so,
// and nothing half made.
func TestUpperFull(t *testing.T) {
	needFUSE(t)
	reg := newRegistry(t)
	ref, _ := reg.push(t, "one", "file a one")
	r := runDaemon(t, Options{})
	small := t.TempDir()
	if err := unix.Mount("imgtest", small, "tmpfs", 0, "size=256k,nr_inodes=6"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(small, unix.MNT_DETACH) })
	if err := os.Symlink(small, r.uppers()); err != nil {
		t.Fatal(err)
	}
	_, err := mountAs(testContext(t), r.client, ref, mountDir(t), writable)
	if !strings.Contains(fmt.Sprint(err), "no space left") || !strings.Contains(fault.HintOf(err), "--upper-dir") {
		t.Errorf("mount: %v; hint: %s", err, fault.HintOf(err))
	}
	if list, err := os.ReadDir(small); err != nil || len(list) != 0 {
		t.Errorf("left: %v %v", list, err)
	}
}

// TestUpperForeign lays an upper over another image: refused, with both names,
// unless forced; and its own image finds it as it was.
func TestUpperForeign(t *testing.T) {
	needFUSE(t)
	reg := newRegistry(t)
	one, _ := reg.push(t, "one", "file a one", "file c three")
	two, _ := reg.push(t, "two", "file x other", "file b other", "file c other")
	r := runDaemon(t, Options{})
	ctx, dir := testContext(t), mountDir(t)
	m, err := mountAs(ctx, r.client, one, dir, writable)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "new"), "new")
	if err := unix.Chmod(filepath.Join(dir, "c"), 0o600); err != nil {
		t.Fatal(err)
	}
	unmounted(t, r.client, m)
	_, err = mountAs(ctx, r.client, two, dir, over(m.Upper))
	if fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), one) || !strings.Contains(err.Error(), two) || !strings.Contains(fault.HintOf(err), "--force") {
		t.Errorf("not forced: %v; hint: %s", err, fault.HintOf(err))
	}
	forced := func(req *engineapi.MountRequest) { req.Mode, req.Upper, req.Force = "rw", m.Upper, true }
	f, err := mountAs(ctx, r.client, two, dir, forced)
	if err != nil {
		t.Fatal(err)
	}
	if !f.Foreign {
		t.Errorf("forced mount: %+v", f)
	}
	wantFile(t, filepath.Join(dir, "new"), "new")
	wantFile(t, filepath.Join(dir, "b"), "other")
	if err := unix.Chmod(filepath.Join(dir, "b"), 0o600); err != nil {
		t.Fatal(err)
	}
	unmounted(t, r.client, f)
	if f, err = mountAs(ctx, r.client, "", dir, over(m.Upper)); err != nil {
		t.Fatal(err)
	}
	if f.Foreign || f.ImageID != m.ImageID {
		t.Errorf("on its own image: %+v", f)
	}
	wantFile(t, filepath.Join(dir, "a"), "one")
	wantFile(t, filepath.Join(dir, "c"), "three")
	unmounted(t, r.client, f)
}

// TestUpperLeft ends the daemon under a mount, as a supervisor does: nothing is
// dropped, be it empty or made to be dropped, for the next serves it again.
func TestUpperLeft(t *testing.T) {
	needFUSE(t)
	reg := newRegistry(t)
	ref, _ := reg.push(t, "one", "file a one")
	r := runDaemon(t, Options{})
	ctx := testContext(t)
	tmp := func(req *engineapi.MountRequest) { req.Mode, req.Tmp = "rw", true }
	changed, err := mountAs(ctx, r.client, ref, mountDir(t), tmp)
	if err != nil {
		t.Fatal(err)
	}
	empty, err := mountAs(ctx, r.client, ref, mountDir(t), writable)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(changed.Target, "b"), "two")
	wantUppers(t, r, changed.Upper, empty.Upper)
	r.stop()
	r.wait(t)

	next := runDaemon(t, Options{Paths: r.Paths})
	wantUppers(t, next, changed.Upper, empty.Upper)
	wantFile(t, filepath.Join(changed.Target, "b"), "two")
	wantFile(t, filepath.Join(empty.Target, "a"), "one")
	unmounted(t, next.client, changed)
	unmounted(t, next.client, empty)
	wantUppers(t, next)
}

// TestUpperWrittenBack ends the daemon while a file is open that was written
// through the page cache: nothing of it is lost.
func TestUpperWrittenBack(t *testing.T) {
	needFUSE(t)
	reg := newRegistry(t)
	ref, _ := reg.push(t, "one", "file a one")
	for _, force := range []bool{false, true} {
		r := runDaemon(t, Options{})
		m, err := mountAs(testContext(t), r.client, ref, mountDir(t), writable)
		if err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Open(filepath.Join(m.Target, "b"), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Write(fd, []byte("two")); err != nil {
			t.Fatal(err)
		}
		if force {
			err = r.client.Shutdown(testContext(t), true)
		} else {
			r.stop()
		}
		r.wait(t)
		unix.Close(fd)
		if err != nil {
			t.Error(err)
		}
		b, err := os.ReadFile(filepath.Join(r.Upper(m.Upper), "diff/b"))
		if err != nil || string(b) != "two" {
			t.Errorf("force %v: %q %v", force, b, err)
		}
	}
}

// TestUpperRetains removes the image under an upper, with a kill in between.
func TestUpperRetains(t *testing.T) {
	needFUSE(t)
	reg := newRegistry(t)
	ref, _ := reg.push(t, "one", "file a one")
	r := runDaemon(t, Options{})
	ctx, dir := testContext(t), mountDir(t)
	m, err := mountAs(ctx, r.client, ref, dir, writable)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "b"), "two")
	unmounted(t, r.client, m)
	if _, err := r.client.Remove(ctx, ref, engineapi.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.client.GC(ctx); err != nil {
		t.Fatal(err)
	}
	r.end(t)
	reg.Close()
	next := runDaemon(t, Options{Paths: r.Paths})
	for _, image := range []string{"", ref} {
		m, err = mountAs(ctx, next.client, image, dir, over(m.Upper))
		if err != nil {
			t.Fatalf("image %q: %v", image, err)
		}
		wantFile(t, filepath.Join(dir, "a"), "one")
		wantFile(t, filepath.Join(dir, "b"), "two")
		unmounted(t, next.client, m)
	}
	if err := next.client.RemoveUpper(ctx, m.Upper); err != nil {
		t.Fatal(err)
	}
	st, err := next.client.Status(ctx)
	if err != nil || st.Layers != 0 {
		t.Errorf("%d layers are left: %v", st.Layers, err)
	}
}

// TestUpperDescriptors mounts, changes and unmounts many times: no descriptor
// stays open.
func TestUpperDescriptors(t *testing.T) {
	needFUSE(t)
	reg := newRegistry(t)
	ref, _ := reg.push(t, "one", "dir d", "file d/a one")
	r := runDaemon(t, Options{})
	ctx, dir := testContext(t), mountDir(t)
	round := func() {
		tmp := func(req *engineapi.MountRequest) { req.Mode, req.Tmp = "rw", true }
		m, err := mountAs(ctx, r.client, ref, dir, tmp)
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(dir, "d/b"), "two")
		writeFile(t, filepath.Join(dir, "d/a"), "two")
		if err := unix.Unlink(filepath.Join(dir, "d/b")); err != nil {
			t.Fatal(err)
		}
		unmounted(t, r.client, m)
	}
	round()
	before := openFiles(t)
	for range 20 {
		round()
	}
	if after := openFiles(t); after > before+5 {
		t.Errorf("%d descriptors, before 20 mounts %d", after, before)
	}
}

func openFiles(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestRaiseFiles(t *testing.T) {
	needFUSE(t)
	if err := raiseFiles(); err != nil {
		t.Fatal(err)
	}
	var have unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &have); err != nil || have.Cur < min(have.Max, maxFiles) {
		t.Errorf("limit %+v %v", have, err)
	}
}

package daemon

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/fs"
	"github.com/imgfs/imgfs/imagedb"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/metadb"
)

func fsUnmount(dir string) error { return fs.Unmount(dir, true) }

// TestKill kills the daemon under several mounts, takes the registry away,
// and has the next daemon bring them back.
func TestKill(t *testing.T) {
	needFUSE(t)
	reg := newRegistry(t)
	one, _ := reg.push(t, "one", "file a one", "file b two")
	two, _ := reg.push(t, "two", "file a three")
	p := newStore(t)
	c := spawned(t, p)
	ctx := testContext(t)

	type at struct {
		dir, file, want string
		open            *os.File
	}
	var live []at
	for _, m := range []struct{ ref, file, want string }{{one, "b", "two"}, {one, "a", "one"}, {two, "a", "three"}} {
		dir := mountDir(t)
		if _, err := mountAs(ctx, c, m.ref, dir); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(filepath.Join(dir, m.file))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		live = append(live, at{dir, m.file, m.want, f})
	}
	unmounted, removed := mountDir(t), mountDir(t)
	for _, dir := range []string{unmounted, removed} {
		if _, err := mountAs(ctx, c, two, dir); err != nil {
			t.Fatal(err)
		}
	}
	before, err := c.Mounts(ctx)
	if err != nil {
		t.Fatal(err)
	}

	killDaemon(t, p)
	reg.Close()
	if !dead(live[0].dir) {
		t.Fatal("the mount survived its server: the kill missed")
	}
	for _, dir := range []string{unmounted, removed} {
		if err := fsUnmount(dir); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(removed); err != nil {
		t.Fatal(err)
	}

	after, err := c.Mounts(ctx) // starts the next daemon
	if err != nil {
		t.Fatal(err)
	}
	if len(after) != len(live) {
		t.Fatalf("%d mounts came back, want %d", len(after), len(live))
	}
	for i, m := range after {
		m.Stats, before[i].Stats = engineapi.MountStats{}, engineapi.MountStats{}
		m.Created, before[i].Created = m.Created.UTC(), before[i].Created.UTC()
		if !m.Created.Equal(before[i].Created) {
			t.Errorf("created %v, was %v", m.Created, before[i].Created)
		}
		m.Created = before[i].Created
		if m != before[i] {
			t.Errorf("mount came back as %+v, was %+v", m, before[i])
		}
	}
	for _, m := range live {
		wantFile(t, filepath.Join(m.dir, m.file), m.want)
	}
	st, err := c.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{unmounted, removed} {
		if !strings.Contains(strings.Join(st.Problems, "\n"), dir) {
			t.Errorf("problems do not name %s: %q", dir, st.Problems)
		}
	}
	// And they end as others do.
	for i, m := range live {
		m.open.Close()
		if err := fs.Unmount(m.dir, false); err != nil {
			t.Fatal(err)
		}
		if err := c.WaitGone(ctx, after[i].ID); err != nil {
			t.Fatal(err)
		}
	}
	if list, err := c.Mounts(ctx); err != nil || len(list) != 0 {
		t.Errorf("mounts at the end: %v %v", list, err)
	}
}

// TestKillTwice has a mount survive one daemon after another.
func TestKillTwice(t *testing.T) {
	needFUSE(t)
	reg := newRegistry(t)
	ref, _ := reg.push(t, "one", "file a one")
	p := newStore(t)
	c := spawned(t, p)
	dir := mountDir(t)
	if _, err := mountAs(testContext(t), c, ref, dir); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		killDaemon(t, p)
		if _, err := c.Ping(testContext(t)); err != nil {
			t.Fatal(err)
		}
		wantFile(t, filepath.Join(dir, "a"), "one")
	}
}

// TestForeignMount leaves alone what somebody else has mounted since.
func TestForeignMount(t *testing.T) {
	needFUSE(t)
	reg := newRegistry(t)
	ref, _ := reg.push(t, "one", "file a one")
	other, _ := reg.push(t, "other", "file a other")
	p := newStore(t)
	c := spawned(t, p)
	dir := mountDir(t)
	if _, err := mountAs(testContext(t), c, ref, dir); err != nil {
		t.Fatal(err)
	}
	killDaemon(t, p)
	if err := fsUnmount(dir); err != nil {
		t.Fatal(err)
	}
	d := runDaemon(t, Options{})
	if _, err := mountAs(testContext(t), d.client, other, dir); err != nil {
		t.Fatal(err)
	}
	list, err := c.Mounts(testContext(t))
	if err != nil || len(list) != 0 {
		t.Errorf("mounts: %v %v", list, err)
	}
	wantFile(t, filepath.Join(dir, "a"), "other")
}

// TestKillRemoved kills the daemon between the removal of an image's record
// and that of its layers, which a mount still shows.
func TestKillRemoved(t *testing.T) {
	needFUSE(t)
	reg := newRegistry(t)
	ref, imageID := reg.push(t, "one", "file a one")
	p := newStore(t)
	c := spawned(t, p)
	dir := mountDir(t)
	if _, err := mountAs(testContext(t), c, ref, dir); err != nil {
		t.Fatal(err)
	}
	killDaemon(t, p)
	reg.Close()
	db, err := metadb.Open(filepath.Join(p.Root, "db"))
	if err != nil {
		t.Fatal(err)
	}
	images, err := imagedb.Open(p.Root, db, imagedb.Options{})
	if err == nil {
		_, err = images.Delete(imageID)
	}
	if err := errors.Join(err, metadb.Close(db)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Ping(testContext(t)); err != nil {
		t.Fatal(err)
	}
	wantFile(t, filepath.Join(dir, "a"), "one")
}

// TestKillDetached has two records of one place and one name: of a mount that
// was detached while in use, and of the newer image that is mounted there now.
func TestKillDetached(t *testing.T) {
	needFUSE(t)
	reg := newRegistry(t)
	ref, _ := reg.push(t, "moving", "file a old")
	p := newStore(t)
	c := spawned(t, p)
	dir := mountDir(t)
	if _, err := mountAs(testContext(t), c, ref, dir); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(dir, "a"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := fs.Unmount(dir, true); err != nil {
		t.Fatal(err)
	}
	reg.push(t, "moving", "file a new")
	_, err = mountAs(testContext(t), c, ref, dir, func(r *engineapi.MountRequest) { r.Pull = "always" })
	if err != nil {
		t.Fatal(err)
	}
	wantFile(t, filepath.Join(dir, "a"), "new")
	killDaemon(t, p)
	if list, err := c.Mounts(testContext(t)); err != nil || len(list) != 1 {
		t.Errorf("mounts: %v %v, want the newer", list, err)
	}
	wantFile(t, filepath.Join(dir, "a"), "new")
}

package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/imgtest"
	"github.com/imgfs/imgfs/internal/metadb"
)

// TestDamagedRecord is regression 48: one record of the database is damaged;
// what it was is reported, the rest works, and the next start is clean.
func TestDamagedRecord(t *testing.T) {
	needFUSE(t)
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	pushTo(t, "x", "1", []string{"file a one"}, reg)
	p := newStore(t)
	c := spawned(t, p)
	ctx := testContext(t)
	kept, lost := mountDir(t), mountDir(t)
	ids := map[string]string{}
	for _, dir := range []string{kept, lost} {
		m, err := mountAs(ctx, c, reg.Host+"/x:1", dir)
		if err != nil {
			t.Fatal(err)
		}
		ids[dir] = m.ID
	}
	killDaemon(t, p)
	db, err := metadb.Open(filepath.Join(p.Root, "db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := metadb.Update(db, map[string][]byte{mountKey + ids[lost]: []byte(`{"id":"`)}); err != nil {
		t.Fatal(err)
	}
	if err := metadb.Close(db); err != nil {
		t.Fatal(err)
	}

	list, err := c.Mounts(ctx)
	if err != nil || len(list) != 1 || list[0].ID != ids[kept] {
		t.Errorf("mounts: %+v %v", list, err)
	}
	wantFile(t, filepath.Join(kept, "a"), "one")
	st, err := c.Status(ctx)
	if err != nil || !strings.Contains(strings.Join(st.Problems, "\n"), ids[lost]) {
		t.Errorf("problems %q do not name %s: %v", st.Problems, ids[lost], err)
	}
	killDaemon(t, p)
	if st, err := c.Status(ctx); err != nil || len(st.Problems) != 0 || st.Mounts != 1 {
		t.Errorf("the next start: %+v %v", st, err)
	}
}

// TestMissingLayer is regression 49: a layer has gone from the disk, or its
// data is not what it was. Other images are served, a mount of the image
// fetches the layer again, and says so where it may not. Data alone is fetched
// again when it is read.
func TestMissingLayer(t *testing.T) {
	needFUSE(t)
	for _, tt := range []struct {
		name   string
		damage func(layer string) error
		blobs  int  // fetched again: the config, and the layer unless its index is made of its data
		lazily bool // by who reads it
	}{
		{"directory gone", os.RemoveAll, 2, false},
		{"data gone", func(layer string) error { return os.Remove(filepath.Join(layer, "data")) }, 1, true},
		{"index gone", func(layer string) error { return os.Remove(filepath.Join(layer, "index")) }, 1, false},
		{"data cut", func(layer string) error { return os.Truncate(filepath.Join(layer, "data"), 512) }, 1, true},
		{"a byte of the data changed", func(layer string) error {
			f, err := os.OpenFile(filepath.Join(layer, "data"), os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt([]byte{1}, 600)
			return err
		}, 1, true},
		{"index cut", func(layer string) error { return os.Truncate(filepath.Join(layer, "index"), 512) }, 1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
			img := pushTo(t, "x", "1", []string{"file a one", "file b size=5000"}, reg)
			pushTo(t, "y", "1", []string{"file a one"}, reg)
			p := newStore(t)
			c := spawned(t, p)
			ctx := testContext(t)
			broken, other := reg.Host+"/x:1", reg.Host+"/y:1"
			for _, ref := range []string{broken, other} {
				if _, err := c.Pull(ctx, engineapi.PullRequest{Reference: ref}, nil); err != nil {
					t.Fatal(err)
				}
			}
			killDaemon(t, p)
			if err := tt.damage(filepath.Join(p.Root, "layers", strings.TrimPrefix(img.DiffIDs[1], "sha256:"))); err != nil {
				t.Fatal(err)
			}
			reg.Forget()

			dir := mountDir(t)
			never := func(r *engineapi.MountRequest) { r.Pull = "never" }
			if _, err := mountAs(ctx, c, other, dir, never); err != nil {
				t.Fatalf("the other image: %v", err)
			}
			wantFile(t, filepath.Join(dir, "a"), "one")
			again := mountDir(t)
			_, err := mountAs(ctx, c, broken, again, never)
			if err != nil && fault.KindOf(err) != fault.NotFound || (err == nil) != tt.lazily {
				t.Errorf("without a pull: %v", err)
			}
			if reg.Count() != 0 {
				t.Errorf("%d requests without a pull", reg.Count())
			}
			if err != nil {
				if _, err = mountAs(ctx, c, broken, again); err != nil {
					t.Fatalf("with a pull: %v", err)
				}
			}
			wantFile(t, filepath.Join(again, "a"), "one")
			want, err := imgtest.Tar("file b size=5000")
			if err != nil {
				t.Fatal(err)
			}
			wantFile(t, filepath.Join(again, "b"), string(want[512:512+5000]))
			if n := reg.Count(imgtest.KindBlob); n != tt.blobs {
				t.Errorf("%d blobs fetched, want %d", n, tt.blobs)
			}
		})
	}
}

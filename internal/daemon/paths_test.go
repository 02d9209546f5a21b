package daemon

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/fault"
)

// TestLocate: a store has one socket, whatever it is called by: that of its
// real path, which begins with 16 digits of the path's sha256.
func TestLocate(t *testing.T) {
	t.Setenv("IMGFS_ROOT", "")
	run := runtimeDir(Privileged())
	of := func(root string) string {
		return filepath.Join(run, fmt.Sprintf("%x", sha256.Sum256([]byte(root)))[:16]+".sock")
	}
	dir := t.TempDir()
	store := filepath.Join(dir, "store")
	for _, name := range []string{"store", "not/yet/there"} {
		if err := os.Symlink(filepath.Join(dir, name), filepath.Join(dir, "link-to-"+filepath.Base(name))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(store, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	for _, root := range []string{store, store + "/", "store", "./store/../store", "link-to-store", dir + "/link-to-store"} {
		p, err := Locate(root)
		if err != nil || p.Root != store || p.Socket != of(store) || p.Runtime != run {
			t.Errorf("%s: %+v, %v", root, p, err)
		}
	}
	below := filepath.Join(store, "not/yet")
	if p, err := Locate("link-to-store/not/yet"); err != nil || p.Root != below || p.Socket != of(below) {
		t.Errorf("what is not there yet: %+v, %v", p, err)
	}

	def, err := Locate("")
	if err != nil || def.Socket != filepath.Join(run, "imgfs.sock") {
		t.Errorf("the default: %+v, %v", def, err)
	}
	if p, err := Locate(def.Root); err != nil || p != def {
		t.Errorf("the default by its path: %+v, %v", p, err)
	}
	t.Setenv("IMGFS_ROOT", store)
	if p, err := Locate(""); err != nil || p.Root != store {
		t.Errorf("by IMGFS_ROOT: %+v, %v", p, err)
	}
	if p, err := Locate(dir); err != nil || p.Root != dir {
		t.Errorf("the flag counts more: %+v, %v", p, err)
	}
}

// TestPrivate: a runtime directory that others can write to is not used.
func TestPrivate(t *testing.T) {
	dir := t.TempDir()
	p := Paths{Runtime: filepath.Join(dir, "run")}
	if err := p.makeRuntime(); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(p.Runtime); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if err := os.Chmod(p.Runtime, 0o770); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"writable for the group": p.makeRuntime(),
		"a symlink":              func() error { os.Symlink(dir, dir+"/l"); return Paths{Runtime: dir + "/l"}.makeRuntime() }(),
		"a file":                 func() error { os.WriteFile(dir+"/f", nil, 0o600); return Paths{Runtime: dir + "/f"}.makeRuntime() }(),
		"a writable store":       Paths{Root: p.Runtime}.makeRoot(),
	} {
		if fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

package daemon

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestUpperUnchanged has directories copied up and nothing changed in them, or
// an attribute of the root alone: the one is no change, the other is.
func TestUpperUnchanged(t *testing.T) {
	needFUSE(t)
	reg := newRegistry(t)
	ref, _ := reg.push(t, "one", "dir d", "dir d/e", "file d/e/a one")
	r := runDaemon(t, Options{})
	ctx, dir := testContext(t), mountDir(t)
	copyUp := func() {
		t.Helper()
		for _, mode := range []uint32{0o700, 0o755} {
			if err := unix.Chmod(filepath.Join(dir, "d/e"), mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	m, err := mountAs(ctx, r.client, ref, dir, writable)
	if err != nil {
		t.Fatal(err)
	}
	copyUp()
	unmounted(t, r.client, m)
	wantUppers(t, r)

	m, err = mountAs(ctx, r.client, ref, dir, writable)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(dir, "user.x", []byte("y"), 0); err != nil {
		t.Fatal(err)
	}
	unmounted(t, r.client, m)
	wantUppers(t, r, m.Upper)
	if err := r.client.RemoveUpper(ctx, m.Upper); err != nil {
		t.Fatal(err)
	}

	// Unmounted while there was no daemon.
	kept, err := mountAs(ctx, r.client, ref, mountDir(t), writable)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(kept.Target, "d/e/a"), "two")
	m, err = mountAs(ctx, r.client, ref, dir, writable)
	if err != nil {
		t.Fatal(err)
	}
	copyUp()
	wantUppers(t, r, kept.Upper, m.Upper)
	r.stop()
	r.wait(t)
	for _, target := range []string{kept.Target, m.Target} {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
	}
	next := runDaemon(t, Options{Paths: r.Paths})
	wantUppers(t, next, kept.Upper)
}

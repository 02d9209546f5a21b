package upperdir

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// A conversion that finds no room changes nothing and keeps none; with room it
// goes on.
func TestConvertFull(t *testing.T) {
	low := base(t)
	dir := t.TempDir()
	if err := unix.Mount("imgtest", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("tmpfs: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	d, err := Create(dir+"/u", Info{Xattrs: Trusted})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	want := overlayMount(t, d, low, "mv usr/lib l; chmod 700 l/libc.so; mv etc/conf.d x; touch -d @7 . x l usr etc")
	used := func() uint64 {
		t.Helper()
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks - st.Bfree
	}
	before := used()
	for range 2 {
		if err := d.Convert(t.Context(), low, User); !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("Convert: %v", err)
		}
		if got := unpacked(t, exportOf(t, d, low)); got != want {
			t.Errorf("the tree has changed:\n%s", lineDiff(want, got))
		}
	}
	// A page or two may have gone into directories and attributes.
	if after := used(); after > before+20 {
		t.Errorf("%d pages are in use, %d were before", after, before)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=8m"); err != nil {
		t.Fatal(err)
	}
	if err := d.Convert(t.Context(), low, User); err != nil {
		t.Fatal(err)
	}
	if err := d.KernelReads(t.Context()); err != nil {
		t.Error(err)
	}
	if got := unpacked(t, exportOf(t, d, low)); got != want {
		t.Errorf("after the conversion:\n%s", lineDiff(want, got))
	}
}

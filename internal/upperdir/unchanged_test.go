package upperdir

import (
	"errors"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// What was only copied up, or put back, is no change; anything that Changes
// lists is one, and so are attributes of the root, which it does not list.
func TestUnchanged(t *testing.T) {
	for _, tt := range []struct {
		name, script string
		want         bool
	}{
		{"nothing", ":", true},
		{"only copied up", "chmod 700 etc/conf.d; chmod 755 etc/conf.d", true},
		{"time of the root", "touch x; rm x", true},
		{"mode of the root", "chmod 700 .", false},
		{"attribute of the root", "setfattr -n user.x -v y .", false},
		{"mode of a directory", "chmod 700 etc/conf.d", false},
		{"time of a directory", "touch -d @77 etc/conf.d", false},
		{"attribute of a directory", "setfattr -n user.x -v y etc", false},
		{"new file", "touch etc/conf.d/new", false},
		{"new directory", "mkdir etc/conf.d/new", false},
		{"removed", "rm etc/passwd", false},
		{"removed deep and time put back", "touch -r etc/conf.d t; rm etc/conf.d/a; touch -r t etc/conf.d; rm t", false},
		{"replaced by an empty directory", "touch -r etc/conf.d t; rm -r etc/conf.d; mkdir etc/conf.d; touch -r t etc/conf.d; rm t", false},
		{"mode of a file", "chmod 600 etc/passwd", false},
		{"renamed", "mv etc e", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			low := base(t)
			d := newDir(t, Info{})
			overlayMount(t, d, low, tt.script)
			if got, err := d.Unchanged(t.Context(), low); got != tt.want || err != nil {
				t.Errorf("Unchanged() = %v, %v; want %v; changes:\n%s", got, err, tt.want, changesOf(t, d, low))
			}
		})
	}
}

// One that was made, and never mounted, has a root that is not the image's.
func TestUnchangedUnmounted(t *testing.T) {
	d := newDir(t, Info{})
	if err := unix.Fchmod(d.root, 0o700); err != nil {
		t.Fatal(err)
	}
	if same, err := d.Unchanged(t.Context(), base(t)); !same || err != nil {
		t.Errorf("Unchanged() = %v, %v", same, err)
	}
}

// An upper that cannot be read has not been found unchanged.
func TestUnchangedDamaged(t *testing.T) {
	low := base(t)
	d := newDir(t, Info{})
	overlayMount(t, d, low, "chmod 700 etc/conf.d; chmod 755 etc/conf.d")
	dir := filepath.Join(d.Path(), "diff/etc")
	if err := unix.Setxattr(dir, d.format.Prefix+"redirect", []byte("/../../etc"), 0); err != nil {
		t.Fatal(err)
	}
	if same, err := d.Unchanged(t.Context(), low); same || !errors.Is(err, ErrDamaged) {
		t.Errorf("Unchanged() = %v, %v", same, err)
	}
}

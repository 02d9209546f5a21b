package imgtest

import (
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// Need skips the test if something it takes is not there, and fails it where
// IMGFS_REQUIRE_FUSE says that everything must be.
func Need(t testing.TB, ok bool, why string) {
	t.Helper()
	switch {
	case ok:
	case os.Getenv("IMGFS_REQUIRE_FUSE") == "1":
		t.Fatal("needs " + why)
	default:
		t.Skip("needs " + why)
	}
}

// Program returns the path of a program that the test needs.
func Program(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	Need(t, err == nil, name)
	return path
}

// Tmpfs mounts a file system of a size, as mount(8) writes it, until the test
// ends.
func Tmpfs(t testing.TB, dir, size string) {
	t.Helper()
	Need(t, os.Geteuid() == 0, "root, to mount a tmpfs")
	err := unix.Mount("imgtest", dir, "tmpfs", 0, "size="+size)
	Need(t, err == nil, "a tmpfs")
	t.Cleanup(func() {
		if t.Failed() {
			unix.Unmount(dir, unix.MNT_DETACH)
		} else if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
}

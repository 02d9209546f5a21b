package imgtest

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Main runs m's tests, and fails the run if it leaves a FUSE mount of imgfs or
// an EROFS mount behind. A package that mounts has
//
//	func TestMain(m *testing.M) { os.Exit(imgtest.Main(m)) }
//
// Packages are tested side by side, so the run gets a temporary directory of
// its own ($TMPDIR, readable by all for tests that change their user), and the
// mounts below it are the run's.
func Main(m interface{ Run() int }) int {
	dir, err := os.MkdirTemp("", "imgtest-")
	if err == nil {
		if dir, err = filepath.EvalSymlinks(dir); err == nil {
			err = os.Chmod(dir, 0o755)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "imgtest:", err)
		return 1
	}
	os.Setenv("TMPDIR", dir)
	code := m.Run()
	left, err := mountsBelow(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, "imgtest:", err)
		code = 1
	}
	for _, line := range left {
		fmt.Fprintln(os.Stderr, "imgtest: mount left behind:", line)
		unix.Unmount(strings.Fields(line)[4], unix.MNT_DETACH)
		code = 1
	}
	if err := os.RemoveAll(dir); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, "imgtest:", err)
		code = 1
	}
	return code
}

// mountsBelow returns the lines of mountinfo of imgfs and erofs mounts below
// dir, the last mounted first.
func mountsBelow(dir string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var found []string
	s := bufio.NewScanner(f)
	for s.Scan() {
		before, after, _ := strings.Cut(s.Text(), " - ")
		if !strings.HasPrefix(after, "fuse.imgfs ") && !strings.HasPrefix(after, "erofs ") {
			continue
		}
		if at := strings.Fields(before)[4]; strings.HasPrefix(at, dir+"/") {
			found = append([]string{s.Text()}, found...)
		}
	}
	return found, s.Err()
}

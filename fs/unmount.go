package fs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/imgfs/imgfs/internal/fault"
	"golang.org/x/sys/unix"
)

// Unmount unmounts the uppermost mount at target, FUSE or EROFS, in the
// caller's namespaces; a dead one as well. Lazy detaches it from the tree of
// directories at once, whoever uses it. A busy one fails with
// [fault.Conflict] and names those who hold it.
func Unmount(target string, lazy bool) error {
	path, err := realParent(target)
	if err != nil {
		return err
	}
	at, err := MountAt(path)
	if err != nil {
		return err
	}
	if at == nil {
		return fault.WithHint(fault.New(fault.NotFound, "%s is not a mountpoint", target), "imgfs mounts")
	}
	flags := unix.UMOUNT_NOFOLLOW
	if lazy {
		flags |= unix.MNT_DETACH
	}
	switch err := unix.Unmount(path, flags); {
	case err == nil:
		return nil
	case err == unix.EBUSY:
		return busy(path)
	case err != unix.EPERM:
		return fmt.Errorf("unmount %s: %w", path, err)
	case !strings.HasPrefix(at.Type, "fuse"):
		return fault.WithHint(fault.New(fault.Denied, "unmount %s: %w", path, err), "run as root")
	}
	bin, err := findFusermount()
	if err != nil {
		return err
	}
	args := []string{"-u", "--", path}
	if lazy {
		args = []string{"-u", "-z", "--", path}
	}
	cmd := exec.Command(bin, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		err = fusermountError("unmount", path, stderr.String(), err)
		if fault.KindOf(err) == fault.Conflict {
			return busy(path)
		}
		return err
	}
	return nil
}

const maxLinks = 40 // symlinks on the way to a mountpoint, as the kernel follows

// realParent resolves target without touching its last component, which may
// be the root of a file system that does not answer.
func realParent(target string) (string, error) {
	path, err := filepath.Abs(target)
	if err != nil {
		return "", fmt.Errorf("unmount: %w", err)
	}
	if at, err := MountAt(path); err == nil && at != nil {
		return path, nil
	}
	// target may be a symlink to the mountpoint, or to another symlink.
	for range maxLinks {
		to, err := os.Readlink(path)
		if err != nil {
			break
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(path), to)
		}
		path = filepath.Clean(to)
		if at, err := MountAt(path); err == nil && at != nil {
			return path, nil
		}
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if errors.Is(err, os.ErrNotExist) {
		return "", fault.WithHint(fault.New(fault.NotFound, "%s does not exist", target), "imgfs mounts")
	}
	if err != nil {
		return "", fmt.Errorf("unmount: %w", err)
	}
	return filepath.Join(dir, filepath.Base(path)), nil
}

func busy(path string) error {
	err := fault.New(fault.Conflict, "%s is busy", path)
	if holders, e := Holders(path); e == nil && len(holders) > 0 {
		const most = 3
		var who []string
		for _, h := range holders[:min(most, len(holders))] {
			who = append(who, h.String())
		}
		if n := len(holders) - most; n > 0 {
			who = append(who, fmt.Sprintf("and %d more", n))
		}
		err = fault.New(fault.Conflict, "%s is busy: held by %s", path, strings.Join(who, "; "))
	}
	return fault.WithHint(err, "imgfs umount --lazy %s", fault.Word(path))
}

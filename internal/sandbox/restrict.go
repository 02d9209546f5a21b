package sandbox

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// restrict hides and write-protects the paths that docker does.
//
// Preconditions: /proc, /sys and /dev are mounted.
func (t *tree) restrict() error {
	top := map[string]int{"proc": t.proc, "sys": t.sys}
	each := func(paths []string, do func(at int) error) error {
		for _, p := range paths {
			dir, name, _ := strings.Cut(strings.TrimPrefix(p, "/"), "/")
			at, err := unix.Openat(top[dir], name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if absent(err) || err == unix.EACCES {
				continue
			}
			if err == nil {
				err = do(at)
				unix.Close(at)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", p, err)
			}
		}
		return nil
	}
	// Read-only first: hiding needs no place in what is copied for it.
	return errors.Join(each(ReadonlyPaths(), writeProtect), each(MaskedPaths(), t.mask))
}

func writeProtect(at int) error {
	fd, _, err := cloneTree(at, "", true)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return attach(fd, at)
}

// mask covers a directory with an empty one, a file with /dev/null.
func (t *tree) mask(at int) error {
	var st unix.Stat_t
	if err := unix.Fstat(at, &st); err != nil {
		return err
	}
	var fd int
	var err error
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		fd, err = fresh("tmpfs", inert|unix.MOUNT_ATTR_RDONLY)
	} else {
		fd, _, err = cloneTree(t.dev, "null", false)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return attach(fd, at)
}

// dropCapabilities limits what the calling thread and its children can ever
// have to docker's set. What the thread has now it keeps until it executes.
func dropCapabilities() error {
	keep := map[int]bool{}
	for _, c := range capabilities {
		keep[c] = true
	}
	for c := 0; ; c++ {
		if keep[c] {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
		if err == unix.EINVAL { // beyond the last one
			return nil
		}
		if err != nil {
			return fmt.Errorf("capabilities: %w", err)
		}
	}
}

// dropInheritable empties the calling thread's inheritable capabilities,
// which the caller may have left there, and the ambient ones with them.
func dropInheritable() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	data[0].Inheritable, data[1].Inheritable = 0, 0
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	return nil
}

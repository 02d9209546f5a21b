package sandbox

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// nodes are the devices of /dev: those of every container.
var nodes = [...]struct {
	name         string
	major, minor uint32
}{
	{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0},
}

// devices mounts /dev: a tmpfs with the nodes that every program expects, and
// the file systems below it.
func (t *tree) devices() error {
	dev, err := fresh("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_STRICTATIME, "mode", "755", "size", "64m")
	if err != nil {
		return err
	}
	if err := t.special("dev", dev); err != nil {
		return err
	}
	t.dev = dev
	old := unix.Umask(0)
	defer unix.Umask(old)
	for _, n := range nodes {
		err := unix.Mknodat(dev, n.name, unix.S_IFCHR|0o666, int(unix.Mkdev(n.major, n.minor)))
		if err == unix.EPERM { // in a user namespace
			err = bindNode(dev, n.name, "/dev/"+n.name)
		}
		if err != nil && !absent(err) {
			return fmt.Errorf("/dev/%s: %w", n.name, err)
		}
	}
	for _, l := range [...][2]string{
		{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"}, {"/proc/self/fd/2", "stderr"},
		{"pts/ptmx", "ptmx"},
	} {
		if err := unix.Symlinkat(l[0], dev, l[1]); err != nil {
			return fmt.Errorf("/dev/%s: %w", l[1], err)
		}
	}
	if name := terminalName(); name != "" {
		if err := bindNode(dev, "console", name); err != nil {
			return fmt.Errorf("/dev/console: %w", err)
		}
	}
	if err := subordinateFS(dev, "pts", "devpts", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, "ptmxmode", "0666", "mode", "0620", "gid", "5"); errors.Is(err, unix.EINVAL) {
		// Group 5, tty, does not exist in every user namespace.
		err = subordinateFS(dev, "pts", "devpts", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, "ptmxmode", "0666", "mode", "0620")
		if err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	if err := subordinateFS(dev, "shm", "tmpfs", inert, "mode", "1777"); err != nil {
		return err
	}
	if err := subordinateFS(dev, "mqueue", "mqueue", inert); err != nil && !absent(err) {
		return err
	}
	return nil
}

// terminalName returns the path of the terminal on standard input; "" for none.
// As /dev/console, tty(1) and the like can name it, while it is not of the new
// devpts.
func terminalName() string {
	if _, err := unix.IoctlGetTermios(0, unix.TCGETS); err != nil {
		return ""
	}
	// The link itself leads to a mount of the caller's namespace.
	name, err := os.Readlink("/proc/self/fd/0")
	if err != nil {
		return ""
	}
	var open, there unix.Stat_t
	if unix.Fstat(0, &open) != nil || unix.Stat(name, &there) != nil || open.Dev != there.Dev || open.Ino != there.Ino {
		return "" // opened in another namespace yet
	}
	return name
}

// subordinateFS mounts a new file system on a new directory of /dev.
func subordinateFS(dev int, name, fstype string, attrs int, options ...string) error {
	fd, err := fresh(fstype, attrs, options...)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Mkdirat(dev, name, 0o755); err != nil {
		return fmt.Errorf("/dev/%s: %w", name, err)
	}
	if err := attachIn(fd, dev, name); err != nil {
		return fmt.Errorf("/dev/%s: %w", name, err)
	}
	return nil
}

// bindNode mounts a device of the host on a new file of /dev.
func bindNode(dev int, name, host string) error {
	src, _, err := cloneTree(unix.AT_FDCWD, host, false)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	fd, err := unix.Openat(dev, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o666)
	if err != nil {
		return err
	}
	unix.Close(fd)
	return attachIn(src, dev, name)
}

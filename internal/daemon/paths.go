package daemon

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/fs"
	"github.com/imgfs/imgfs/internal/fault"
)

// Paths says where a store and its daemon's socket are. All are absolute.
type Paths struct {
	Root    string // state directory, symlinks resolved as far as it exists
	Runtime string // directory of the socket, mode 0700
	Socket  string
}

// Locate returns the paths of the store at root: "" is $IMGFS_ROOT, and where
// that is empty too the default, /var/lib/imgfs for root and
// $XDG_DATA_HOME/imgfs for others. It creates nothing.
func Locate(root string) (Paths, error) {
	priv := Privileged()
	def, err := defaultRoot(priv)
	if err != nil {
		return Paths{}, err
	}
	if root == "" {
		root = os.Getenv("IMGFS_ROOT")
	}
	if root == "" {
		root = def
	}
	if root, err = realPath(root); err != nil {
		return Paths{}, fault.New(fault.Invalid, "store: %w", err)
	}
	if def, err = realPath(def); err != nil {
		return Paths{}, fault.New(fault.Invalid, "store: %w", err)
	}
	p := Paths{Root: root, Runtime: runtimeDir(priv)}
	name := "imgfs.sock"
	if root != def {
		sum := sha256.Sum256([]byte(root))
		name = hex.EncodeToString(sum[:8]) + ".sock"
	}
	p.Socket = filepath.Join(p.Runtime, name)
	if len(p.Socket) >= len(syscall.RawSockaddrUnix{}.Path) {
		return Paths{}, fault.WithHint(
			fault.New(fault.Invalid, "socket path %s is longer than the %d bytes a socket may have", p.Socket, len(syscall.RawSockaddrUnix{}.Path)-1),
			"set XDG_RUNTIME_DIR to a shorter directory")
	}
	return p, nil
}

// Privileged reports whether this process is root as imgfs means it: it has
// CAP_SYS_ADMIN in the initial user namespace.
func Privileged() bool {
	return fs.InInitialUserNamespace() && hasSysAdmin()
}

func hasSysAdmin() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&hdr, &data[0]) != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0
}

func defaultRoot(priv bool) (string, error) {
	if priv {
		return "/var/lib/imgfs", nil
	}
	if d := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, "imgfs"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil || !filepath.IsAbs(home) {
		return "", fault.WithHint(fault.New(fault.Invalid, "no home directory for the store"), "set HOME or IMGFS_ROOT")
	}
	return filepath.Join(home, ".local/share/imgfs"), nil
}

func runtimeDir(priv bool) string {
	if priv {
		return "/run/imgfs"
	}
	uid := outerUID()
	if d := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(d) && private(d) == nil {
		return filepath.Join(d, "imgfs")
	}
	return filepath.Join(os.TempDir(), "imgfs-"+strconv.Itoa(uid))
}

// outerUID returns the effective uid as the parent user namespace sees it, so
// that the fallback name is the same inside `unshare -Ur` and outside.
func outerUID() int {
	uid := os.Geteuid()
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return uid
	}
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		var in, out, n int
		if _, err := fmt.Sscan(sc.Text(), &in, &out, &n); err == nil && uid >= in && uid-in < n {
			return out + uid - in
		}
	}
	return uid
}

// realPath resolves the symlinks of the part of p that exists.
func realPath(p string) (string, error) {
	p, err := filepath.Abs(p)
	if err != nil {
		return "", err
	}
	rest := ""
	for {
		real, err := filepath.EvalSymlinks(p)
		if err == nil {
			return filepath.Join(real, rest), nil
		}
		if !os.IsNotExist(err) || p == "/" {
			return "", err
		}
		rest = filepath.Join(filepath.Base(p), rest)
		p = filepath.Dir(p)
	}
}

// private returns nil if dir is a directory (no symlink) that only this user
// can write to.
func private(dir string) error {
	st, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || !st.IsDir() || int(sys.Uid) != os.Geteuid() || st.Mode().Perm()&0o022 != 0 {
		return fault.WithHint(
			fault.New(fault.Denied, "%s is not a directory that only this user can write to", dir),
			"remove it, or set XDG_RUNTIME_DIR to a directory of your own")
	}
	return nil
}

// makeRuntime creates the runtime directory and checks that it is ours.
func (p Paths) makeRuntime() error {
	if err := os.Mkdir(p.Runtime, 0o700); err != nil && !os.IsExist(err) {
		return fmt.Errorf("runtime directory: %w", err)
	}
	if err := private(p.Runtime); err != nil {
		return fmt.Errorf("runtime directory: %w", err)
	}
	return nil
}

// makeRoot creates the state directory and checks that others cannot write
// to it.
func (p Paths) makeRoot() error {
	err := os.MkdirAll(p.Root, 0o700)
	if errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.EROFS) {
		return fault.WithHint(fault.New(fault.Denied, "store: %w", err), "--root or IMGFS_ROOT takes a directory of your own")
	}
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	st, err := os.Stat(p.Root)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); !ok || int(sys.Uid) != os.Geteuid() {
		return fault.New(fault.Denied, "store: %s belongs to another user", p.Root)
	}
	if st.Mode().Perm()&0o022 != 0 {
		return fault.WithHint(fault.New(fault.Denied, "store: others may write to %s", p.Root), "chmod go-w %s", p.Root)
	}
	return nil
}

// Files of the state directory.
func (p Paths) lockFile() string  { return filepath.Join(p.Root, "lock") }
func (p Paths) startLock() string { return filepath.Join(p.Root, "start.lock") }
func (p Paths) logFile() string   { return filepath.Join(p.Root, "daemon.log") }
func (p Paths) uppers() string    { return filepath.Join(p.Root, "uppers") }

// Upper returns the directory of the upper called name.
func (p Paths) Upper(name string) string { return filepath.Join(p.uppers(), name) }

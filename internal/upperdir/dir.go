package upperdir

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/fault"
)

// Dir is an open upper. Nobody else has it open.
type Dir struct {
	path   string
	top    int // the upper itself
	lock   int
	root   int // diff/
	stage  int // stage/
	format Format

	mu   sync.Mutex // guards info
	info Info
}

const dirFlags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC

// openDir opens a directory by a name that is not followed.
func openDir(dirfd int, name string) (int, error) {
	return unix.Openat(dirfd, name, dirFlags|unix.O_NOFOLLOW, 0)
}

// openRegular opens what must be a regular file, and does not wait should it
// be something else.
func openRegular(dirfd int, name string, flags int) (int, error) {
	fd, err := unix.Openat(dirfd, name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		if err == nil {
			err = unix.EINVAL
		}
		return -1, err
	}
	return fd, nil
}

// Create makes a new upper at path, which must be absent or an empty
// directory, and opens it. It chooses i.Xattrs, and with it i.Override, if that
// is "": by what the process may do. The error names what the file system
// lacks, if it cannot hold an upper.
func Create(path string, i Info) (d *Dir, err error) {
	made, err := makeEmpty(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			unmake(path, made)
		}
	}()
	top, err := unix.Open(path, dirFlags, 0)
	if err != nil {
		return nil, fmt.Errorf("upper: %w", &os.PathError{Op: "open", Path: path, Err: err})
	}
	defer unix.Close(top)
	for _, sub := range []string{"work", "stage", "diff"} {
		mode := uint32(0o700)
		if sub == "diff" {
			mode = 0o755
		}
		if err := unix.Mkdirat(top, sub, mode); err != nil {
			return nil, fmt.Errorf("upper: %w", &os.PathError{Op: "mkdir", Path: path + "/" + sub, Err: err})
		}
	}
	if i.Xattrs == "" {
		i.Xattrs = chooseXattrs(top)
		i.Override = i.Xattrs == User
	}
	f, err := formatOf(top, i)
	if err != nil {
		return nil, fmt.Errorf("upper %s: %w", path, err)
	}
	if err := probe(path, top, f); err != nil {
		return nil, err
	}
	i.Version = infoVersion
	if i.Created.IsZero() {
		i.Created = time.Now().UTC()
	}
	if err := writeInfo(top, i); err != nil {
		return nil, fmt.Errorf("upper %s: %w", path, err)
	}
	return Open(path)
}

// makeEmpty makes path a directory, or finds that it is an empty one.
func makeEmpty(path string) (made bool, err error) {
	err = os.Mkdir(path, 0o700)
	if err == nil || !errors.Is(err, os.ErrExist) {
		if err != nil {
			err = fmt.Errorf("upper: %w", err)
		}
		return err == nil, err
	}
	list, err := os.ReadDir(path)
	if err != nil {
		return false, fmt.Errorf("upper: %w", err)
	}
	if len(list) > 0 {
		return false, fault.New(fault.Conflict, "%s is neither an upper nor an empty directory", path)
	}
	return false, nil
}

// unmake removes what a Create that failed has made.
func unmake(path string, made bool) {
	if made {
		os.RemoveAll(path)
		return
	}
	for _, sub := range []string{"work", "stage", "diff", infoName, infoName + ".new", "lock"} {
		os.RemoveAll(path + "/" + sub)
	}
}

// Load reads what an upper says of itself, in use or not.
func Load(path string) (Info, error) {
	top, err := unix.Open(path, dirFlags, 0)
	if err != nil {
		return Info{}, notOpened(path, err)
	}
	defer unix.Close(top)
	i, err := readInfo(top)
	if err != nil {
		return Info{}, fmt.Errorf("upper %s: %w", path, err)
	}
	return i, nil
}

func notOpened(path string, err error) error {
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return fault.New(fault.NotFound, "no upper at %s", path)
	}
	return fmt.Errorf("upper: %w", &os.PathError{Op: "open", Path: path, Err: err})
}

// Open opens the upper at path for the caller alone. It is a fault.Conflict if
// somebody has it open, and it empties stage/.
func Open(path string) (d *Dir, err error) {
	d = &Dir{path: path, top: -1, lock: -1, root: -1, stage: -1}
	defer func() {
		if err != nil {
			d.Close()
			d = nil
		}
	}()
	if d.top, err = unix.Open(path, dirFlags, 0); err != nil {
		return d, notOpened(path, err)
	}
	if d.info, err = readInfo(d.top); err != nil {
		return d, fmt.Errorf("upper %s: %w", path, err)
	}
	if d.format, err = formatOf(d.top, d.info); err != nil {
		return d, fmt.Errorf("upper %s: %w", path, err)
	}
	if err = d.takeLock(); err != nil {
		return d, err
	}
	if d.root, err = openDir(d.top, "diff"); err != nil {
		return d, fmt.Errorf("upper %s: %w: diff: %w", path, ErrDamaged, err)
	}
	for _, sub := range []string{"work", "stage"} {
		if err = unix.Mkdirat(d.top, sub, 0o700); err != nil && err != unix.EEXIST {
			return d, fmt.Errorf("upper %s: %s: %w", path, sub, err)
		}
	}
	if d.stage, err = openDir(d.top, "stage"); err != nil {
		return d, fmt.Errorf("upper %s: %w: stage: %w", path, ErrDamaged, err)
	}
	if err = emptyDir(d.stage); err != nil {
		return d, fmt.Errorf("upper %s: stage: %w", path, err)
	}
	return d, nil
}

// takeLock takes the upper's lock, and writes into it who did.
func (d *Dir) takeLock() error {
	var err error
	d.lock, err = unix.Openat(d.top, "lock", unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("upper %s: lock: %w", d.path, err)
	}
	buf := make([]byte, 32)
	if err := unix.Flock(d.lock, unix.LOCK_EX|unix.LOCK_NB); err == unix.EWOULDBLOCK {
		n, _ := unix.Pread(d.lock, buf, 0)
		who := ""
		if pid, err := strconv.Atoi(strings.TrimSpace(string(buf[:max(n, 0)]))); err == nil {
			who = fmt.Sprintf(" by process %d", pid)
		}
		return fault.New(fault.Conflict, "upper %s is in use%s", d.name(), who)
	} else if err != nil {
		return fmt.Errorf("upper %s: lock: %w", d.path, err)
	}
	if err := unix.Ftruncate(d.lock, 0); err != nil {
		return fmt.Errorf("upper %s: lock: %w", d.path, err)
	}
	if _, err := unix.Pwrite(d.lock, fmt.Appendf(nil, "%d\n", os.Getpid()), 0); err != nil {
		return fmt.Errorf("upper %s: lock: %w", d.path, err)
	}
	return nil
}

// name is what to call the upper.
func (d *Dir) name() string {
	if n := d.Info().Name; n != "" {
		return n
	}
	return d.path
}

// Close ends the use of the upper.
func (d *Dir) Close() error {
	for _, fd := range []*int{&d.root, &d.stage, &d.lock, &d.top} {
		if *fd >= 0 {
			unix.Close(*fd) // nothing was written by it that Close could lose
			*fd = -1
		}
	}
	return nil
}

// Path returns where the upper is.
func (d *Dir) Path() string { return d.path }

// Root returns a descriptor of diff/, open for reading until Close.
func (d *Dir) Root() int { return d.root }

// Stage returns a descriptor of stage/, open for reading until Close.
func (d *Dir) Stage() int { return d.stage }

// Format returns how the tree is written.
func (d *Dir) Format() Format { return d.format }

// Info returns what the upper says of itself.
func (d *Dir) Info() Info {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.info
}

// formatOf returns the format of the upper open as top. With an override, the
// owner of that directory stands for 0:0: who made the upper.
func formatOf(top int, i Info) (Format, error) {
	f := Format{Prefix: trustedPrefix, Override: i.Override}
	if i.Xattrs == User {
		f.Prefix = userPrefix
	}
	var st unix.Stat_t
	err := unix.Fstat(top, &st)
	f.UID, f.GID = st.Uid, st.Gid
	return f, err
}

// readNames returns the names in a directory, sorted as the kernel gives them.
// It reads through a descriptor of its own, from the beginning.
func readNames(dirfd int) ([]string, error) {
	fd, err := openDir(dirfd, ".")
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "")
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err == io.EOF {
		err = nil
	}
	return names, err
}

// emptyDir removes what is in a directory.
func emptyDir(dirfd int) error {
	names, err := readNames(dirfd)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := removeAll(dirfd, name); err != nil {
			return err
		}
	}
	return nil
}

// removeAll removes an entry with all below it.
func removeAll(dirfd int, name string) error {
	err := unix.Unlinkat(dirfd, name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR && err != unix.EPERM { // POSIX says EPERM of a directory
		return err
	}
	fd, oerr := openDir(dirfd, name)
	if oerr == unix.EACCES { // ours, and without its bits
		if unix.Fchmodat(dirfd, name, 0o700, 0) == nil {
			fd, oerr = openDir(dirfd, name)
		}
	}
	if oerr != nil {
		return err
	}
	defer unix.Close(fd)
	if err := emptyDir(fd); err != nil {
		return err
	}
	return unix.Unlinkat(dirfd, name, unix.AT_REMOVEDIR)
}

package sandbox

import (
	"bytes"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/fault"
)

// Identity is who a command runs as.
type Identity struct {
	UID, GID uint32
	Groups   []uint32 // supplementary ones
	Home     string
}

// Identify finds user, NAME|UID[:NAME|GID], in the databases of the tree at
// root, without following its symlinks out of it.
func Identify(root, user string) (Identity, error) {
	t, err := openTree(root)
	if err != nil {
		return Identity{}, err
	}
	defer unix.Close(t.root)
	return t.identify(user)
}

// Has reports whether the tree at root has a file name.
func Has(root, name string) bool {
	t, err := openTree(root)
	if err != nil {
		return false
	}
	defer unix.Close(t.root)
	fd, err := t.open(name, unix.O_PATH, 0)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// maxDatabase bounds what is read of /etc/passwd and /etc/group.
const maxDatabase = 4 << 20

// readFile returns the content of a regular file of the tree, nothing if
// there is no such file. A named pipe of the image's is not waited for.
func (t *tree) readFile(name string) ([]byte, error) {
	fd, err := t.open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil // it need not be there
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(f, maxDatabase))
}

// identify finds user, NAME|UID[:NAME|GID], in the tree's databases as docker
// does: a name goes before a number, and a number need not be known.
func (t *tree) identify(user string) (Identity, error) {
	passwd, err := t.readFile("etc/passwd")
	if err != nil {
		return Identity{}, err
	}
	group, err := t.readFile("etc/group")
	if err != nil {
		return Identity{}, err
	}
	return identify(user, passwd, group)
}

func identify(user string, passwd, group []byte) (Identity, error) {
	name, groupName, withGroup := strings.Cut(user, ":")
	if name == "" {
		name = "0"
	}
	who := Identity{Home: "/"}
	number, numeric := parseID(name)
	known := lookUp(passwd, 7, func(f []string) bool { return f[0] == name })
	if known == nil && numeric {
		known = lookUp(passwd, 7, func(f []string) bool { n, ok := parseID(f[2]); return ok && n == number })
	}
	switch {
	case known != nil:
		uid, ok1 := parseID(known[2])
		gid, ok2 := parseID(known[3])
		if !ok1 || !ok2 {
			return who, fault.New(fault.Invalid, "user %q: malformed line in the tree's /etc/passwd", name)
		}
		name, who.UID, who.GID = known[0], uid, gid
		if strings.HasPrefix(known[5], "/") {
			who.Home = known[5]
		}
	case numeric:
		who.UID = number
	default:
		return who, fault.New(fault.Invalid, "user %q: not in the tree's /etc/passwd", name)
	}
	if withGroup && groupName != "" {
		gid, numeric := parseID(groupName)
		if f := lookUp(group, 3, func(f []string) bool { return f[0] == groupName }); f != nil {
			gid, numeric = parseID(f[2])
		}
		if !numeric {
			return who, fault.New(fault.Invalid, "group %q: not in the tree's /etc/group", groupName)
		}
		who.GID = gid
		return who, nil
	}
	if known != nil {
		eachLine(group, 4, func(f []string) bool {
			if gid, ok := parseID(f[2]); ok && slices.Contains(strings.Split(f[3], ","), name) {
				who.Groups = append(who.Groups, gid)
			}
			return len(who.Groups) < maxGroups
		})
	}
	return who, nil
}

// maxGroups is NGROUPS_MAX.
const maxGroups = 65536

// parseID takes what the kernel takes: -1 means none.
func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n < 1<<32-1
}

// lookUp returns the first line of at least n fields that is wanted, or nil.
func lookUp(db []byte, n int, wanted func([]string) bool) (found []string) {
	eachLine(db, n, func(f []string) bool {
		if wanted(f) {
			found = f
		}
		return found == nil
	})
	return found
}

func eachLine(db []byte, n int, do func([]string) bool) {
	for line := range bytes.Lines(db) {
		f := strings.Split(strings.TrimSpace(string(line)), ":")
		if len(f) >= n && f[0] != "" && !do(f) {
			return
		}
	}
}

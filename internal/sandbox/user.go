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

// identity is who a command runs as.
type identity struct {
	uid, gid uint32
	groups   []uint32
	home     string
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
func (t *tree) identify(user string) (identity, error) {
	passwd, err := t.readFile("etc/passwd")
	if err != nil {
		return identity{}, err
	}
	group, err := t.readFile("etc/group")
	if err != nil {
		return identity{}, err
	}
	return identify(user, passwd, group)
}

func identify(user string, passwd, group []byte) (identity, error) {
	name, groupName, withGroup := strings.Cut(user, ":")
	if name == "" {
		name = "0"
	}
	who := identity{home: "/"}
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
		name, who.uid, who.gid = known[0], uid, gid
		if strings.HasPrefix(known[5], "/") {
			who.home = known[5]
		}
	case numeric:
		who.uid = number
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
		who.gid = gid
		return who, nil
	}
	if known != nil {
		eachLine(group, 4, func(f []string) bool {
			if gid, ok := parseID(f[2]); ok && slices.Contains(strings.Split(f[3], ","), name) {
				who.groups = append(who.groups, gid)
			}
			return len(who.groups) < maxGroups
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

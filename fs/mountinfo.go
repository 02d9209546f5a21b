package fs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// MountPoint is one line of mountinfo (proc_pid_mountinfo(5)).
type MountPoint struct {
	ID, Parent int
	Dev        string // "major:minor", the st_dev of its files
	Root       string // the directory of the file system that is mounted
	Target     string // where, seen from the process's root
	Options    string // of the mount: ro,nosuid,...
	Type       string // fuse.imgfs, erofs, ...
	Source     string
	Super      string // options of the file system
}

// Imgfs reports whether imgfs made the mount, for whatever store: it is a FUSE
// mount of ours, one that MountErofs made of a store's chain index, or one of
// MountOverlay.
func (m *MountPoint) Imgfs() bool {
	switch m.Type {
	case "fuse." + subtype:
		return true
	case erofsType:
		return isChainIndex(m.Source)
	case overlayType:
		return strings.HasPrefix(m.Source, overlaySource)
	}
	return false
}

// isChainIndex reports whether path ends as a store's chain indexes do, in
// /chains/<64 hexadecimal digits>/index.
func isChainIndex(path string) bool {
	path, ok := strings.CutSuffix(path, "/index")
	if !ok || len(path) < 64 {
		return false
	}
	dir, hex := path[:len(path)-64], path[len(path)-64:]
	return strings.HasSuffix(dir, "/chains/") && strings.Trim(hex, "0123456789abcdef") == ""
}

// Mounts lists the mounts that the process sees, in the order of mounting
// more or less: of two with one Target the later hides the earlier.
func Mounts() ([]MountPoint, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("mount table: %w", err)
	}
	m, err := parseMountinfo(b)
	if err != nil {
		return nil, fmt.Errorf("mount table: %w", err)
	}
	return m, nil
}

// MountAt returns the uppermost mount at exactly target, an absolute path free
// of symlinks; nil if there is none. It asks nothing of the mounted file
// system, which may not answer yet or any more.
func MountAt(target string) (*MountPoint, error) {
	all, err := Mounts()
	if err != nil {
		return nil, err
	}
	for i := len(all) - 1; i >= 0; i-- {
		if all[i].Target == target {
			return &all[i], nil
		}
	}
	return nil, nil
}

var errMountinfo = errors.New("not a mountinfo line")

// parseMountinfo parses the lines of mountinfo:
//
//	36 35 98:0 /root /mnt rw,noatime shared:1 - ext3 /dev/root rw,errors=continue
func parseMountinfo(b []byte) ([]MountPoint, error) {
	var all []MountPoint
	for line := range bytes.Lines(b) {
		f := strings.Split(strings.TrimSuffix(string(line), "\n"), " ")
		sep := -1 // any number of optional fields stand before it
		for i := 6; i < len(f); i++ {
			if f[i] == "-" {
				sep = i
				break
			}
		}
		// A source that is the empty string leaves an empty field.
		if sep < 0 || len(f) < sep+4 {
			return nil, fmt.Errorf("%w: %q", errMountinfo, line)
		}
		id, err1 := strconv.Atoi(f[0])
		parent, err2 := strconv.Atoi(f[1])
		if err1 != nil || err2 != nil || strings.Count(f[2], ":") != 1 {
			return nil, fmt.Errorf("%w: %q", errMountinfo, line)
		}
		all = append(all, MountPoint{
			ID: id, Parent: parent, Dev: f[2],
			Root: unescape(f[3]), Target: unescape(f[4]), Options: f[5],
			Type: unescape(f[sep+1]), Source: unescape(f[sep+2]),
			Super: unescape(strings.Join(f[sep+3:], " ")),
		})
	}
	return all, nil
}

// unescape undoes the kernel's mangling: a blank, tab, newline, backslash or
// number sign is a backslash and three octal digits.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out = append(out, byte(n))
				i += 3
				continue
			}
		}
		out = append(out, s[i])
	}
	return string(out)
}

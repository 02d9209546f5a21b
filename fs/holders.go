package fs

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/imgfs/imgfs/internal/fault"
)

// Holder is a process that keeps a mount busy, or a mount upon it.
type Holder struct {
	PID  int    // 0 for a mount
	Comm string // the process's name
	How  string // "working directory", "root directory", "program", "open file", "mapped file", "mount"
	Path string // what it holds, as the kernel names it
}

// String returns "pid 123 (bash): working directory /mnt/x".
func (h Holder) String() string {
	if h.PID == 0 {
		return h.How + " " + h.Path
	}
	return fmt.Sprintf("pid %d (%s): %s %s", h.PID, h.Comm, h.How, h.Path)
}

// Holders returns who keeps the uppermost mount at target busy: one way per
// process, those of other users only as far as the caller may look. It reads
// /proc alone, and so works when the file system does not answer.
func Holders(target string) ([]Holder, error) {
	all, err := Mounts()
	if err != nil {
		return nil, err
	}
	i := len(all) - 1
	for i >= 0 && all[i].Target != target {
		i--
	}
	if i < 0 {
		return nil, fault.New(fault.NotFound, "%s is not a mountpoint", target)
	}
	mount := all[i]
	var found []Holder
	for _, m := range all {
		if m.Parent == mount.ID {
			found = append(found, Holder{How: "mount", Path: m.Target})
		}
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("holders: %w", err)
	}
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		if h, ok := holder(pid, &mount); ok {
			found = append(found, h)
		}
	}
	return found, nil
}

// holder looks at one process.
func holder(pid int, m *MountPoint) (Holder, bool) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	h := Holder{PID: pid}
	under := func(link string) bool {
		path, err := os.Readlink(link)
		if err != nil || !within(path, m.Target) {
			return false
		}
		h.Path = path
		return true
	}
	for _, l := range []struct{ name, how string }{
		{"cwd", "working directory"}, {"root", "root directory"}, {"exe", "program"},
	} {
		// The root of all is within nothing but itself.
		if under(filepath.Join(dir, l.name)) {
			h.How = l.how
			break
		}
	}
	if h.How == "" {
		fds, _ := os.ReadDir(filepath.Join(dir, "fd"))
		slices.SortFunc(fds, func(a, b os.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
		for _, fd := range fds {
			// The mount's ID tells what a path cannot: files of another
			// mount that hides this one, or is hidden by it.
			if mountOf(filepath.Join(dir, "fdinfo", fd.Name())) == m.ID && under(filepath.Join(dir, "fd", fd.Name())) {
				h.How = "open file"
				break
			}
		}
	}
	if h.How == "" && !mapped(dir, m, &h) {
		return Holder{}, false
	}
	comm, _ := os.ReadFile(filepath.Join(dir, "comm"))
	h.Comm = strings.TrimSpace(string(comm))
	return h, true
}

func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// mountOf returns the mnt_id of a descriptor, -1 if it cannot be known.
func mountOf(fdinfo string) int {
	b, err := os.ReadFile(fdinfo)
	if err != nil {
		return -1
	}
	for line := range bytes.Lines(b) {
		if v, ok := bytes.CutPrefix(line, []byte("mnt_id:")); ok {
			if n, err := strconv.Atoi(string(bytes.TrimSpace(v))); err == nil {
				return n
			}
		}
	}
	return -1
}

// mapped looks for a mapping of one of the mount's files.
//
//	7f0c2a000000-7f0c2a021000 r-xp 00000000 00:2f 1234    /mnt/x/lib/libc.so.6
func mapped(dir string, m *MountPoint, h *Holder) bool {
	f, err := os.Open(filepath.Join(dir, "maps"))
	if err != nil {
		return false
	}
	defer f.Close()
	var major, minor uint64
	if _, err := fmt.Sscanf(m.Dev, "%d:%d", &major, &minor); err != nil {
		return false
	}
	dev := fmt.Sprintf("%02x:%02x", major, minor)
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) >= 6 && fields[3] == dev {
			h.How, h.Path = "mapped file", unescape(strings.Join(fields[5:], " "))
			return true
		}
	}
	return false
}

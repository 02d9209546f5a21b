package sandbox

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/fault"
)

// idRange is one line of an id map.
type idRange struct{ inside, outside, size int }

// Privileged reports whether the caller may make mount namespaces without a
// user namespace of its own.
func Privileged() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&hdr, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0
}

// mapIDs gives the user namespace of a process that has none yet its ids: the
// caller is root. With newuidmap(1), newgidmap(1) and ranges in /etc/subuid
// and /etc/subgid the ids from 1 up exist as well, otherwise root alone.
func mapIDs(pid int) error {
	uids, gids := subordinate("/etc/subuid", os.Getuid()), subordinate("/etc/subgid", os.Getuid())
	_, uerr := exec.LookPath("newuidmap")
	_, gerr := exec.LookPath("newgidmap")
	if len(uids) == 0 || len(gids) == 0 || uerr != nil || gerr != nil {
		return mapCaller(pid)
	}
	if err := newMap("newuidmap", pid, append([]idRange{{0, os.Geteuid(), 1}}, uids...)); err != nil {
		return err
	}
	return newMap("newgidmap", pid, append([]idRange{{0, os.Getegid(), 1}}, gids...))
}

// mapCaller maps root to the caller and nobody else.
func mapCaller(pid int) error {
	dir := fmt.Sprintf("/proc/%d/", pid)
	for _, f := range [...]struct{ name, text string }{
		{"setgroups", "deny"}, // or an unprivileged caller may not write the next
		{"gid_map", fmt.Sprintf("0 %d 1\n", os.Getegid())},
		{"uid_map", fmt.Sprintf("0 %d 1\n", os.Geteuid())},
	} {
		if err := os.WriteFile(dir+f.name, []byte(f.text), 0); err != nil {
			return fmt.Errorf("user namespace: %w", err)
		}
	}
	return nil
}

func newMap(program string, pid int, ranges []idRange) error {
	args := []string{strconv.Itoa(pid)}
	for _, r := range ranges {
		args = append(args, strconv.Itoa(r.inside), strconv.Itoa(r.outside), strconv.Itoa(r.size))
	}
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		text := strings.TrimSpace(string(out))
		if text == "" {
			text = err.Error()
		}
		return fault.WithHint(fault.New(fault.Denied, "user namespace: %s", text),
			"%s must be set-uid root, and /etc/subuid and /etc/subgid name ranges that are yours", program)
	}
	return nil
}

// subordinate returns the ranges that file, /etc/subuid or /etc/subgid, gives
// to a user, one behind the other from 1 up.
func subordinate(file string, uid int) []idRange {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	name := ""
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		name = u.Username
	}
	return parseSubordinate(b, name, uid)
}

func parseSubordinate(b []byte, name string, uid int) []idRange {
	var all []idRange
	next := 1
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		f := strings.Split(strings.TrimSpace(s.Text()), ":")
		if len(f) != 3 || f[0] == "" || f[0] != name && f[0] != strconv.Itoa(uid) {
			continue
		}
		start, err1 := strconv.ParseUint(f[1], 10, 31)
		size, err2 := strconv.ParseUint(f[2], 10, 31)
		if errors.Join(err1, err2) != nil || size == 0 {
			continue
		}
		all = append(all, idRange{next, int(start), int(size)})
		next += int(size)
	}
	return all
}

package sandbox

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/subid"
)

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
	uids, gids := subid.Ranges(os.Getuid())
	if len(uids) == 0 {
		return mapCaller(pid)
	}
	if err := newMap("newuidmap", pid, append([]subid.Range{{Inside: 0, Outside: os.Geteuid(), Size: 1}}, uids...)); err != nil {
		return err
	}
	return newMap("newgidmap", pid, append([]subid.Range{{Inside: 0, Outside: os.Getegid(), Size: 1}}, gids...))
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

func newMap(program string, pid int, ranges []subid.Range) error {
	args := []string{strconv.Itoa(pid)}
	for _, r := range ranges {
		args = append(args, strconv.Itoa(r.Inside), strconv.Itoa(r.Outside), strconv.Itoa(r.Size))
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

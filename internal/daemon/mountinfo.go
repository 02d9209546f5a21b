package daemon

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
)

// mountEntry is one line of mountinfo: proc_pid_mountinfo(5).
type mountEntry struct {
	ID     string // while the mount exists, unique on the machine
	Device string // major:minor
	Target string
	FSType string
	Source string
}

// mountTable returns the mounts of this mount namespace, in mounting order:
// of several at one target the last is the one seen.
func mountTable() ([]mountEntry, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseMounts(f)
}

func parseMounts(r io.Reader) ([]mountEntry, error) {
	var list []mountEntry
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		left, right, ok := strings.Cut(sc.Text(), " - ")
		l, rt := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 6 || len(rt) < 1 {
			return nil, fmt.Errorf("mountinfo: line %q", sc.Text())
		}
		e := mountEntry{ID: l[0], Device: l[2], Target: unescape(l[4]), FSType: unescape(rt[0])}
		if len(rt) > 1 {
			e.Source = unescape(rt[1])
		}
		list = append(list, e)
	}
	return list, sc.Err()
}

// unescape undoes the kernel's \040 for blanks, tabs, newlines, backslashes
// and number signs.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && octal(s[i+1:i+4]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func octal(s string) bool {
	return strings.Trim(s, "01234567") == "" && s[0] <= '3'
}

// topMount returns the mount that is seen at target, if something is mounted
// right there.
func topMount(list []mountEntry, target string) (mountEntry, bool) {
	for i := len(list) - 1; i >= 0; i-- {
		if list[i].Target == target {
			return list[i], true
		}
	}
	return mountEntry{}, false
}

// Package subid reads the ranges of subordinate IDs that /etc/subuid and
// /etc/subgid give to users (subuid(5)): by newuidmap(1) and newgidmap(1) they
// become the IDs from 1 up of a user namespace whose root is the user.
package subid

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
)

// Range is one line of an ID map: Size IDs from Inside up are those from
// Outside up.
type Range struct{ Inside, Outside, Size int }

// Ranges returns the subordinate users and groups of a user, one range behind
// the other from 1 up; none of both unless the programs that use them are there.
func Ranges(uid int) (users, groups []Range) {
	for _, program := range [...]string{"newuidmap", "newgidmap"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, nil
		}
	}
	users, groups = read("/etc/subuid", uid), read("/etc/subgid", uid)
	if len(users) == 0 || len(groups) == 0 {
		return nil, nil
	}
	return users, groups
}

func read(file string, uid int) []Range {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	name := ""
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		name = u.Username
	}
	return parse(b, name, uid)
}

func parse(b []byte, name string, uid int) []Range {
	var all []Range
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
		all = append(all, Range{next, int(start), int(size)})
		next += int(size)
	}
	return all
}

package sandbox

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/fault"
)

// startCommand starts the command of spec and returns its pid.
//
// Preconditions: the tree is the root directory.
func startCommand(spec *Spec, t *tree) (int, error) {
	who, err := t.identify(spec.User)
	if err != nil {
		return 0, err
	}
	if spec.Hostname != "" {
		if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
			return 0, fault.New(fault.Invalid, "hostname %q: %w", spec.Hostname, err)
		}
	}
	env := Environment(spec.Env, who.Home)
	unix.Umask(0o022)
	if err := t.changeDir(cmp.Or(spec.WorkDir, "/")); err != nil {
		return 0, err
	}
	args := spec.Args
	if len(args) == 0 {
		args = []string{"/bin/sh"}
		if _, err := findProgram("/bin/bash", ""); err == nil {
			args[0] = "/bin/bash"
		}
	}
	program, err := findProgram(args[0], variable(env, "PATH"))
	if err != nil {
		return 0, err
	}
	pid, err := startAs(program, args, env, who, t.grouped, spec.Confined)
	if err != nil {
		return 0, explain(args[0], who, err)
	}
	return pid, nil
}

// Environment returns env, of which the last of a name counts, with what
// every program expects.
func Environment(env []string, home string) []string {
	var out []string
	at := map[string]int{}
	for _, e := range append([]string{"PATH=" + DefaultPath, "HOME=" + home}, env...) {
		name, _, ok := strings.Cut(e, "=")
		if !ok || name == "" || strings.ContainsRune(e, 0) {
			continue // execve(2) would take it, but nobody can read it
		}
		if i, ok := at[name]; ok {
			out[i] = e
			continue
		}
		at[name] = len(out)
		out = append(out, e)
	}
	return out
}

// variable returns the value of one in env.
func variable(env []string, name string) string {
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			return v
		}
	}
	return ""
}

// changeDir goes to a directory of the tree, which is made where missing, as
// docker does. It is a directory of the tree even if the image has made the
// path a link into /proc.
func (t *tree) changeDir(dir string) error {
	if !path.IsAbs(dir) {
		return fault.New(fault.Invalid, "working directory %q: not an absolute path", dir)
	}
	before := len(t.made)
	fd, err := t.place(dir, true)
	t.made = t.made[:before] // it stays, being of the command's
	if err == nil {
		err = unix.Fchdir(fd)
		unix.Close(fd)
	}
	if err != nil {
		return fault.New(fault.Failed, "working directory %s: %w", dir, err)
	}
	return nil
}

// findProgram looks for a program as execvp(3) does.
func findProgram(name, search string) (string, error) {
	if name == "" {
		return "", &codeError{CodeNotFound, fault.New(fault.Invalid, "empty name of a command")}
	}
	if strings.Contains(name, "/") {
		if err := executable(name); err != nil {
			return "", notExecutable(name, err)
		}
		return name, nil
	}
	var denied error
	for dir := range strings.SplitSeq(search, ":") {
		p := path.Join(cmp.Or(dir, "."), name)
		if !strings.Contains(p, "/") {
			p = "./" + p
		}
		err := executable(p)
		if err == nil {
			return p, nil
		}
		if errors.Is(err, unix.EACCES) {
			denied = err
		}
	}
	if denied != nil {
		return "", notExecutable(name, denied)
	}
	return "", &codeError{CodeNotFound, fault.New(fault.NotFound, "%s: not found in %s", name, search)}
}

// executable returns nil if somebody may execute the file.
func executable(name string) error {
	st, err := os.Stat(name)
	switch {
	case err != nil:
		return errors.Unwrap(err)
	case st.IsDir():
		return unix.EISDIR
	case st.Mode()&0o111 == 0:
		return unix.EACCES
	}
	return nil
}

func notExecutable(name string, err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return &codeError{CodeNotFound, fault.New(fault.NotFound, "%s: %w", name, err)}
	}
	return &codeError{CodeNotExecutable, fault.New(fault.Failed, "%s: %w", name, err)}
}

// explain says what has kept a command that is there from starting.
func explain(name string, who Identity, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		return &codeError{CodeNotFound, fault.New(fault.NotFound, "%s: its interpreter or dynamic linker is missing", name)}
	case errors.Is(err, unix.ENOEXEC):
		return &codeError{CodeNotExecutable, fault.WithHint(fault.New(fault.Failed, "%s: %w", name, err),
			"a program of another architecture, or a script without #!")}
	case errors.Is(err, unix.EINVAL) && (who.UID != 0 || who.GID != 0):
		return fault.WithHint(fault.New(fault.Denied, "user %d:%d does not exist in this user namespace", who.UID, who.GID),
			"install newuidmap (package uidmap) and give yourself ranges: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER")
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return &codeError{CodeNotExecutable, fault.New(fault.Denied, "%s: %w", name, err)}
	}
	return &codeError{CodeNotExecutable, fmt.Errorf("%s: %w", name, err)}
}

// startAs forks and executes. What limits the command is set on a thread that
// does nothing else, from which the child inherits it.
func startAs(program string, args, env []string, who Identity, grouped, confined bool) (pid int, err error) {
	type result struct {
		pid int
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this
		pid, err := limited(program, args, env, who, grouped, confined)
		done <- result{pid, err}
	}()
	r := <-done
	return r.pid, r.err
}

func limited(program string, args, env []string, who Identity, grouped, confined bool) (int, error) {
	if err := dropInheritable(); err != nil {
		return 0, err
	}
	if confined {
		// The caller's session keyring is not for the command; without keys
		// in the kernel there is none.
		_, _ = unix.KeyctlJoinSessionKeyring("")
		if err := dropCapabilities(); err != nil {
			return 0, err
		}
	}
	if err := refuseTyping(); err != nil {
		return 0, err
	}
	return syscall.ForkExec(program, args, &syscall.ProcAttr{
		Env: env, Files: []uintptr{0, 1, 2},
		Sys: &syscall.SysProcAttr{Credential: &syscall.Credential{
			Uid: who.UID, Gid: who.GID, Groups: who.Groups, NoSetGroups: !grouped,
		}},
	})
}

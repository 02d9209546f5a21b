package sandbox

import (
	"os/signal"

	"golang.org/x/sys/unix"
)

// terminal is the caller's controlling terminal, if all that the command reads
// and writes is a terminal and the caller is in the foreground. Then the
// command gets a process group of its own, init's, which it can name, as shells
// want to, and that group the foreground. In a pipeline the terminal is for
// all of it: the command stays in the caller's group, and there is none here.
type terminal struct {
	fd  int // -1: none
	own int // the caller's process group
}

func openTerminal() *terminal {
	t := &terminal{fd: -1, own: unix.Getpgrp()}
	for fd := range 3 {
		if _, err := unix.IoctlGetTermios(fd, unix.TCGETS); err != nil {
			return t
		}
	}
	fd, err := unix.Open("/dev/tty", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return t
	}
	t.fd = fd
	if !t.held() {
		t.close()
	}
	return t
}

func (t *terminal) close() {
	if t.fd >= 0 {
		unix.Close(t.fd)
		t.fd = -1
	}
}

// held reports whether the caller's group has the foreground.
func (t *terminal) held() bool {
	now, err := unix.IoctlGetInt(t.fd, unix.TIOCGPGRP)
	return err == nil && now == t.own
}

// give makes group the foreground one if the caller's is.
func (t *terminal) give(group int) {
	if t.fd >= 0 && t.held() {
		_ = unix.IoctlSetPointerInt(t.fd, unix.TIOCSPGRP, group) // the terminal may be gone
	}
}

// take makes the caller's group the foreground one again.
func (t *terminal) take() {
	if t.fd < 0 || t.held() {
		return
	}
	if !signal.Ignored(unix.SIGTTOU) { // sent to a background process that does this
		signal.Ignore(unix.SIGTTOU)
		defer signal.Reset(unix.SIGTTOU)
	}
	_ = unix.IoctlSetPointerInt(t.fd, unix.TIOCSPGRP, t.own) // the terminal may be gone
}

// stop stops the caller's process group, as Ctrl-Z would if it had the
// foreground. It reports whether there is somebody to continue it: nobody
// watches the group of a session's leader.
func (t *terminal) stop() bool {
	t.take()
	if sid, err := unix.Getsid(0); err != nil || sid == t.own {
		return false
	}
	return unix.Kill(0, unix.SIGTSTP) == nil
}

// fromKeys reports whether the terminal sends a signal to the whole
// foreground group, of which the command is.
func (t *terminal) fromKeys(sig unix.Signal) bool {
	if t.fd >= 0 || sig != unix.SIGINT && sig != unix.SIGQUIT {
		return false
	}
	fd, err := unix.Open("/dev/tty", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	now, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	return err == nil && now == t.own
}

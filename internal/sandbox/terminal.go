package sandbox

import (
	"os/signal"

	"golang.org/x/sys/unix"
)

// terminal is the caller's controlling terminal.
type terminal struct {
	fd         int // -1: none
	foreground int // process group that had it in the beginning
}

func openTerminal() *terminal {
	t := &terminal{fd: -1}
	fd, err := unix.Open("/dev/tty", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return t
	}
	if t.foreground, err = unix.IoctlGetInt(fd, unix.TIOCGPGRP); err != nil {
		unix.Close(fd)
		return t
	}
	t.fd = fd
	return t
}

// sends reports whether a signal that has come was sent by the terminal to
// the whole foreground group, that is to the command as well.
func (t *terminal) sends(sig unix.Signal) bool {
	if t.fd < 0 || sig != unix.SIGINT && sig != unix.SIGQUIT {
		return false
	}
	now, err := unix.IoctlGetInt(t.fd, unix.TIOCGPGRP)
	return err == nil && now == unix.Getpgrp()
}

// restore makes the caller's process group the foreground one again if it
// was: a shell in the sandbox sets its own, and cannot name ours in the end.
func (t *terminal) restore() {
	if t.fd < 0 {
		return
	}
	defer unix.Close(t.fd)
	own := unix.Getpgrp()
	now, err := unix.IoctlGetInt(t.fd, unix.TIOCGPGRP)
	if err != nil || t.foreground != own || now == own {
		return
	}
	if !signal.Ignored(unix.SIGTTOU) { // sent to a background process that does this
		signal.Ignore(unix.SIGTTOU)
		defer signal.Reset(unix.SIGTTOU)
	}
	_ = unix.IoctlSetPointerInt(t.fd, unix.TIOCSPGRP, own) // the terminal may be gone
}

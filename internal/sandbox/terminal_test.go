package sandbox

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/imgtest"
)

// session is a shell of the host on a terminal of its own.
type session struct {
	t    *testing.T
	pty  *os.File
	seen string // what has been read and not yet waited for
}

func newSession(t *testing.T, env ...string) *session {
	t.Helper()
	box := imgtest.Program(t, "busybox")
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	s := &session{t: t, pty: os.NewFile(uintptr(master), "pty")}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	cmd := exec.Command(box, "sh", "-i")
	cmd.Env = append(append(os.Environ(), "PS1=host> "), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.pty.Close() // hangs up
		cmd.Wait()
	})
	s.wait("host> ")
	return s
}

// wait reads until text has come.
func (s *session) wait(text string) {
	s.t.Helper()
	buf := make([]byte, 4096)
	for !strings.Contains(s.seen, text) {
		n, err := s.pty.Read(buf)
		if err != nil {
			s.t.Fatalf("%v while waiting for %q after %q", err, text, s.seen)
		}
		s.seen += string(buf[:n])
	}
	_, s.seen, _ = strings.Cut(s.seen, text)
}

func (s *session) send(text string) {
	s.t.Helper()
	if _, err := s.pty.WriteString(text); err != nil {
		s.t.Fatal(err)
	}
}

// TestTerminal works with shells, one of them in the sandbox, as somebody at a
// terminal does.
func TestTerminal(t *testing.T) {
	t.Parallel()
	needRoot(t)
	dir := host(t)
	tree := root(t, dir)
	text := func(spec Spec) string {
		b, err := marshal(scene{Options: Options{Dir: tree, Staging: filepath.Join(dir, "staging")}, Spec: spec})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := newSession(t, "P="+exe,
		"SHELL_SCENE="+text(Spec{Args: []string{"sh", "-i"}, Env: []string{"PS1=inside> "}}),
		"LOOP_SCENE="+text(Spec{Args: []string{"sh", "-c", "echo loop; while read x; do echo got $x; done; echo end; exit 4"}}))

	// A shell inside has job control, and the terminal has a name.
	s.send("SCENE=$SHELL_SCENE $P sandbox-parent\n")
	s.wait("inside> ")
	s.send("tty\n")
	s.wait("/dev/console")
	s.send("sh -c 'echo be''gun; exec sleep 1000'\n")
	s.wait("begun")
	s.send("\x03")
	s.send("echo code $?\n")
	s.wait("code 130")
	s.send("sh -c 'echo be''gun; read x; echo got $x; exec sleep 1000'\n")
	s.wait("begun")
	s.send("\x1a")
	s.wait("Stopped")
	s.send("fg\n")
	s.send("on\n")
	s.wait("got on")
	s.send("\x03")
	s.wait("inside> ")
	s.send("exit 3\n")
	s.wait("host> ")
	s.send("echo code $?\n")
	s.wait("code 3")

	// A command inside is stopped and goes on with imgfs.
	s.send("SCENE=$LOOP_SCENE $P sandbox-parent\n")
	s.wait("loop")
	s.send("one\n")
	s.wait("got one")
	s.send("\x1a")
	s.wait("Stopped")
	s.send("echo here; fg\n")
	s.wait("here")
	s.send("two\n")
	s.wait("got two")
	s.send("\x04")
	s.wait("end")
	s.wait("host> ")
	s.send("echo code $?\n")
	s.wait("code 4")

	// Ctrl-C ends it.
	s.send("SCENE=$LOOP_SCENE $P sandbox-parent\n")
	s.wait("loop")
	s.send("\x03")
	s.wait("host> ")
	s.send("echo code $?\n")
	s.wait("code 130")

	// In a pipeline the terminal is for all of it, and for what comes after.
	s.send("SCENE=$LOOP_SCENE $P sandbox-parent | cat; read x; echo also $x\n")
	s.wait("loop")
	s.send("three\n")
	s.wait("got three")
	s.send("\x04")
	s.wait("end")
	s.send("four\n")
	s.wait("also four")
}

// TestTyping has the kernel refuse what would type into the terminal.
func TestTyping(t *testing.T) {
	t.Parallel()
	needRoot(t)
	if len(ioctlCalls()) == 0 {
		t.Skip("not on this architecture")
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // the thread ends with this, as its filter does not
		if err := refuseTyping(); err != nil {
			t.Error(err)
			return
		}
		for request, want := range map[uint]error{unix.TIOCSTI: unix.EPERM, unix.TIOCLINUX: unix.EPERM, unix.TIOCGPGRP: unix.ENOTTY} {
			if _, err := unix.IoctlGetInt(int(null.Fd()), request); err != want {
				t.Errorf("ioctl %#x: %v, want %v", request, err, want)
			}
		}
	}()
	<-done
}

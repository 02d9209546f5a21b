package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/fault"
)

// Options says where a sandbox is made, and what it takes from the host.
type Options struct {
	// Program is the argument vector with which the running program, executed
	// again, calls Init.
	Program []string
	// Staging is a directory that exists and that nothing is needed from
	// below: init covers it in its own mount namespace.
	Staging string

	Dir      string // the tree; "": what Mount is going to mount
	ReadOnly bool   // make Dir read-only for the command
	Inert    bool   // and its device nodes ineffective
	Binds    []Bind
}

// Sandbox is a set of namespaces with an init that waits for orders.
type Sandbox struct {
	cmd    *exec.Cmd
	socket *socket
	ready  ready
	term   *terminal // init's process group is its own if there is one
	once   sync.Once
	waited error // of cmd
}

// Start makes the namespaces: mount, pid, uts and ipc, and where the caller
// is not privileged a user namespace. [Sandbox.Close] is to be called.
func Start(o Options) (*Sandbox, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("sandbox: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "socket"), os.NewFile(uintptr(pair[1]), "socket")
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = append(append([]string{}, o.Program...), stageEnter)
	cmd.Env = []string{} // the caller's is not for what runs beside init
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{theirs} // socketFD
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig:  unix.SIGKILL,
	}
	term := openTerminal()
	cmd.SysProcAttr.Setpgid = term.fd >= 0
	rootless := !Privileged()
	if rootless {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
	}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		ours.Close()
		term.close()
		return nil, refused(err, rootless)
	}
	s := &Sandbox{cmd: cmd, term: term}
	if s.socket, err = newSocket(ours); err != nil {
		cmd.Process.Kill()
		cmd.Wait() // its error is not of interest
		term.close()
		return nil, fmt.Errorf("sandbox: %w", err)
	}
	if err := s.begin(o, rootless); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func refused(err error, rootless bool) error {
	err = fmt.Errorf("new namespaces: %w", errors.Unwrap(err))
	switch {
	case rootless && errors.Is(err, unix.ENOSPC):
		return fault.WithHint(err, "as root: sysctl user.max_user_namespaces=10000")
	case rootless && errors.Is(err, unix.EPERM):
		return fault.WithHint(fault.New(fault.Denied, "%w", err), "unprivileged user namespaces are switched off here: run as root")
	}
	return err
}

func (s *Sandbox) begin(o Options, rootless bool) error {
	if rootless {
		if err := mapIDs(s.cmd.Process.Pid); err != nil {
			return err
		}
	}
	if _, err := s.socket.conn.Write([]byte{1}); err != nil { // stageEnter goes on
		return fmt.Errorf("sandbox: %w", err)
	}
	b := &begin{
		Staging: o.Staging, Name: "run-" + strconv.Itoa(s.cmd.Process.Pid),
		Dir: o.Dir, ReadOnly: o.ReadOnly, Inert: o.Inert, Binds: o.Binds,
	}
	if err := s.socket.send(message{Begin: b}, -1); err != nil {
		return fmt.Errorf("sandbox: %w", err)
	}
	m, _, err := s.receive()
	if err != nil {
		return err
	}
	if m.Ready == nil {
		return errors.New("sandbox: unexpected message")
	}
	s.ready = *m.Ready
	return nil
}

// receive returns the next message that is no error.
func (s *Sandbox) receive() (message, int, error) {
	m, fd, err := s.socket.receive()
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
		return m, -1, fmt.Errorf("sandbox: its init has ended: %w", s.wait())
	case err != nil:
		return m, -1, fmt.Errorf("sandbox: %w", err)
	case m.Error != nil:
		return m, -1, m.Error.err()
	}
	return m, fd, nil
}

// MountNS returns the sandbox's mount namespace as /proc/self/ns/mnt names it.
func (s *Sandbox) MountNS() string { return s.ready.MountNS }

// UserNS returns its user namespace as /proc/self/ns/user names it.
func (s *Sandbox) UserNS() string { return s.ready.UserNS }

// Target returns the empty directory, in the sandbox's mount namespace, that
// the tree is to be mounted on.
func (s *Sandbox) Target() string { return s.ready.Target }

// Mount has init call the mount function given to [Init], with Target and
// data, and returns the descriptor that it returned, -1 for none.
func (s *Sandbox) Mount(data []byte) (int, error) {
	if err := s.socket.send(message{Mount: &mountOrder{data}}, -1); err != nil {
		return -1, fmt.Errorf("sandbox: %w", err)
	}
	m, fd, err := s.receive()
	if err != nil {
		return -1, err
	}
	if !m.Mounted {
		return -1, errors.New("sandbox: unexpected message")
	}
	return fd, nil
}

// Run enters the tree, runs the command and returns its exit code, 128+n for
// one that a signal n has ended. Signals that the caller receives meanwhile
// are passed on. An error is of something before the command; [CodeOf] gives
// its code.
func (s *Sandbox) Run(spec Spec) (int, error) {
	s.term.give(s.cmd.Process.Pid)
	defer s.term.take()
	signals := make(chan os.Signal, 16)
	var passed []os.Signal
	for _, sig := range []os.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGCONT} {
		if !signal.Ignored(sig) { // nohup
			passed = append(passed, sig)
		}
	}
	signal.Notify(signals, passed...)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(signals)
	defer signal.Stop(signals)
	if err := s.socket.send(message{Run: &spec}, -1); err != nil {
		return CodeFailed, fmt.Errorf("sandbox: %w", err)
	}
	wg.Go(func() {
		for sig := range signals {
			n, ok := sig.(syscall.Signal)
			if !ok || s.term.fromKeys(n) || n == unix.SIGCONT && s.term.fd < 0 {
				continue
			}
			if n == unix.SIGCONT { // by fg or bg of the caller's shell
				s.term.give(s.cmd.Process.Pid)
			}
			// An init that has ended needs no signal.
			_ = s.socket.send(message{Signal: int(n)}, -1)
		}
	})
	for {
		m, _, err := s.receive()
		if err != nil {
			return CodeOf(err), err
		}
		if m.Exited != nil {
			return *m.Exited, nil
		}
		if m.Stopped && s.term.fd >= 0 && !s.term.stop() {
			signals <- unix.SIGCONT
		}
	}
}

// Close ends whatever still runs in the sandbox, and with it its mounts.
func (s *Sandbox) Close() error {
	s.socket.Close()
	s.cmd.Process.Kill() // fails if it has been waited for
	s.wait()             // by SIGKILL: nothing to report
	s.term.close()
	return nil
}

func (s *Sandbox) wait() error {
	s.once.Do(func() {
		if err := s.cmd.Wait(); err != nil {
			s.waited = err
		} else {
			s.waited = errors.New("exit status 0")
		}
	})
	return s.waited
}

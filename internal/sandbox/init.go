package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/fault"
)

// The stages of init, the last argument of its command line.
const (
	stageEnter = "enter"
	stageInit  = "init"
)

// MountFunc mounts at target, in the namespaces it is called in, what data
// says. fd, if not -1, is handed to the parent and closed.
type MountFunc func(target string, data []byte) (fd int, err error)

// Init is the main function of a process started by [Start]. It returns the
// process's exit code.
func Init(mount MountFunc) int {
	if os.Args[len(os.Args)-1] == stageEnter {
		fmt.Fprintf(os.Stderr, "imgfs: sandbox: %v\n", enter())
		return CodeFailed
	}
	if err := serve(mount); err != nil {
		fmt.Fprintf(os.Stderr, "imgfs: sandbox: %v\n", err)
		return CodeFailed
	}
	return 0
}

// enter waits for the id maps and executes the program again, which makes it
// root with all capabilities of the user namespace. What it executes is a
// sealed copy. It returns on failure only.
func enter() error {
	// What the caller has left open must not come along.
	if err := unix.CloseRange(socketFD+1, 1<<31-1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fault.New(fault.Unavailable, "close_range: %w; this needs Linux 5.12", err)
	}
	for {
		n, err := unix.Read(socketFD, make([]byte, 1))
		if err == unix.EINTR {
			continue
		}
		if err != nil || n != 1 {
			return errors.New("the parent has ended")
		}
		break
	}
	exe, err := sealedCopy("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("copy of the program: %w", err)
	}
	args := slices.Clone(os.Args)
	args[len(args)-1] = stageInit
	return unix.Exec(fmt.Sprintf("/proc/self/fd/%d", exe), args, []string{})
}

// sealedCopy returns a descriptor of a copy of a file, in memory, that nobody
// can change.
func sealedCopy(name string) (int, error) {
	src, err := os.Open(name)
	if err != nil {
		return -1, err
	}
	defer src.Close()
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("imgfs", flags|unix.MFD_EXEC)
	if err == unix.EINVAL { // before Linux 6.3 there was no other kind
		fd, err = unix.MemfdCreate("imgfs", flags)
	}
	if err != nil {
		return -1, fmt.Errorf("memfd_create: %w", err)
	}
	for {
		n, err := unix.Sendfile(fd, int(src.Fd()), nil, 1<<30)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return -1, fmt.Errorf("sendfile: %w", err)
		}
		if n == 0 {
			break
		}
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return -1, fmt.Errorf("seals: %w", err)
	}
	return fd, nil
}

// serve does what the parent says until the command, or the parent, ends.
func serve(mount MountFunc) error {
	// Gaining capabilities has cleared it. Should the parent be gone already,
	// the socket says so.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("parent's death: %w", err)
	}
	// The terminal sends signals to all in the foreground group; the default
	// of Go's runtime is to end.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGPIPE)
	unix.CloseOnExec(socketFD)
	s, err := newSocket(os.NewFile(socketFD, "socket"))
	if err != nil {
		return err
	}
	defer s.Close()
	in := &initProcess{socket: s, mount: mount}
	if err := in.obey(); err != nil && !errors.Is(err, io.EOF) {
		return s.send(message{Error: problemOf(err)}, -1)
	}
	return nil
}

// initProcess is pid 1 of a sandbox.
type initProcess struct {
	socket  *socket
	mount   MountFunc
	outside *outside
}

// obey returns io.EOF when the parent has gone.
func (in *initProcess) obey() error {
	for {
		m, _, err := in.socket.receive()
		switch {
		case err != nil:
			return io.EOF
		case m.Begin != nil:
			if err := in.begin(m.Begin); err != nil {
				return err
			}
		case m.Mount != nil && in.outside != nil:
			if err := in.mountTree(m.Mount); err != nil {
				return err
			}
		case m.Run != nil && in.outside != nil:
			code, err := in.run(m.Run)
			if err != nil {
				return err
			}
			return in.socket.send(message{Exited: &code}, -1)
		}
	}
}

func (in *initProcess) begin(b *begin) (err error) {
	if in.outside, err = takeOutside(b); err != nil {
		return err
	}
	r := &ready{Target: in.outside.target}
	if r.MountNS, err = os.Readlink("/proc/self/ns/mnt"); err != nil {
		return err
	}
	if r.UserNS, err = os.Readlink("/proc/self/ns/user"); err != nil {
		return err
	}
	return in.socket.send(message{Ready: r}, -1)
}

func (in *initProcess) mountTree(o *mountOrder) error {
	fd, err := in.mount(in.outside.target, o.Data)
	if err != nil {
		return err
	}
	if fd >= 0 {
		defer unix.Close(fd)
	}
	return in.socket.send(message{Mounted: true}, fd)
}

// run builds the tree, enters it and sees the command to its end. It returns
// the exit code.
func (in *initProcess) run(spec *Spec) (int, error) {
	t, err := in.outside.open()
	if err != nil {
		return 0, err
	}
	// What is left in the tree by mistake does no harm.
	defer t.tidy()
	if err := in.outside.build(t, spec); err != nil {
		return 0, err
	}
	if err := t.enter(); err != nil {
		return 0, err
	}
	pid, err := startCommand(spec, t)
	if err != nil {
		return 0, err
	}
	ended := make(chan int, 1)
	go func() { ended <- in.reap(pid) }() // ends with the process at the latest
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		in.forward(pid)
	}()
	select {
	case code := <-ended:
		return code, nil
	case <-gone:
		return 0, io.EOF
	}
}

// forward passes signals on until the parent has gone.
func (in *initProcess) forward(pid int) {
	for {
		m, _, err := in.socket.receive()
		if err != nil {
			return
		}
		to := pid
		if m.Signal == int(unix.SIGCONT) {
			to = 0 // whatever the terminal has stopped is in our group
		}
		if m.Signal > 0 {
			_ = unix.Kill(to, unix.Signal(m.Signal)) // it may have ended just now
		}
	}
}

// reap waits for all children, adopted ones as well, until pid ends.
func (in *initProcess) reap(pid int) int {
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(-1, &ws, unix.WUNTRACED, nil)
		switch {
		case err == nil && got == pid && ws.Stopped():
			_ = in.socket.send(message{Stopped: true}, -1) // a parent that has ended needs no word
		case err == unix.EINTR || err == nil && got != pid:
		case err != nil:
			return CodeFailed // it cannot: pid is a child
		case ws.Signaled():
			return 128 + int(ws.Signal())
		default:
			return ws.ExitStatus()
		}
	}
}

// outside is what a sandbox has of the host, detached from where it was.
type outside struct {
	target  string // where the tree is mounted
	staging int    // a small tmpfs for Files
	binds   []source
}

// source is a mount that is attached nowhere yet.
type source struct {
	Bind
	fd  int
	dir bool
}

// takeOutside takes copies of the mounts that b names, then covers the
// staging directory with a tmpfs and makes the target there.
func takeOutside(b *begin) (*outside, error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		err = fault.New(fault.Denied, "mount namespace: %w", err)
		if _, serr := os.Stat("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"); serr == nil {
			err = fault.WithHint(err, "as root: sysctl kernel.apparmor_restrict_unprivileged_userns=0")
		}
		return nil, err
	}
	o := &outside{target: filepath.Join(b.Staging, b.Name)}
	tree := -1
	if b.Dir != "" {
		fd, dir, err := cloneTree(unix.AT_FDCWD, b.Dir, b.ReadOnly)
		if err != nil {
			return nil, fault.New(kindOf(err), "%s: %w", b.Dir, err)
		}
		if !dir {
			return nil, fault.New(fault.Invalid, "%s: not a directory", b.Dir)
		}
		tree = fd
		if b.Inert {
			if err := setAttr(tree, unix.MOUNT_ATTR_NODEV); err != nil {
				return nil, fmt.Errorf("%s: %w", b.Dir, err)
			}
		}
	}
	for _, bind := range b.Binds {
		fd, dir, err := cloneTree(unix.AT_FDCWD, bind.Source, bind.ReadOnly)
		if err != nil {
			return nil, fault.New(kindOf(err), "volume %s: %w", bind.Source, err)
		}
		o.binds = append(o.binds, source{bind, fd, dir})
	}
	if err := unix.Mount("imgfs", b.Staging, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=64m"); err != nil {
		return nil, fmt.Errorf("staging directory %s: %w", b.Staging, err)
	}
	if err := os.Mkdir(o.target, 0o755); err != nil {
		return nil, fmt.Errorf("staging directory: %w", err)
	}
	var err error
	if o.staging, err = unix.Open(b.Staging, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("staging directory: %w", err)
	}
	if tree < 0 {
		return o, nil
	}
	defer unix.Close(tree)
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, o.target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return nil, fmt.Errorf("%s: %w", b.Dir, err)
	}
	return o, nil
}

func kindOf(err error) fault.Kind {
	switch {
	case errors.Is(err, unix.ENOENT):
		return fault.NotFound
	case errors.Is(err, unix.EACCES):
		return fault.Denied
	}
	return fault.Failed
}

package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/fault"
)

// Beside its own socket, which is its user's and root's alone, a daemon may
// listen where others come: unix sockets for a group, tcp, and sockets that
// systemd holds. What these may do is less: see package engineapi, access.go.

// Listening says where else a daemon listens. The zero value is nowhere.
type Listening struct {
	// Hosts are unix://PATH, tcp://HOST:PORT, fd:// (all sockets that systemd
	// passed) and fd://NAME (those of that name, or the descriptor of that
	// number).
	Hosts []string
	// Group, a name or number, may use the unix sockets; "": root and the
	// daemon's user alone.
	Group string
	// TLS is spoken on every tcp socket if it names any file.
	TLS TLS
	// InsecureTCP allows tcp off loopback to clients that nobody has verified.
	InsecureTCP bool
}

// Host is a parsed address to listen on, or to connect to.
type Host struct {
	Proto string // unix, tcp or fd
	Addr  string // absolute path; HOST:PORT; name
}

// ParseHost reads PROTO://ADDR. Errors are docker's, of kind Invalid.
func ParseHost(s string) (Host, error) {
	proto, addr, ok := strings.Cut(s, "://")
	h := Host{proto, addr}
	switch {
	case !ok:
	case proto == "unix" && strings.HasPrefix(addr, "@"):
		return h, fault.WithHint(fault.New(fault.Invalid, "%s: an abstract socket has no mode: anybody may use it", s), "unix:///run/imgfs.sock")
	case proto == "unix" && addr != "" && !strings.ContainsRune(addr, 0):
		abs, err := filepath.Abs(addr)
		if err != nil {
			return h, fmt.Errorf("%s: %w", s, err)
		}
		if most := len(syscall.RawSockaddrUnix{}.Path) - 1; len(abs) > most {
			return h, fault.New(fault.Invalid, "%s: socket path is longer than %d bytes", s, most)
		}
		return Host{proto, abs}, nil
	case proto == "tcp":
		if _, port, err := net.SplitHostPort(addr); err != nil || port == "" {
			return h, fault.WithHint(fault.New(fault.Invalid, "%s: not tcp://HOST:PORT", s), "tcp://127.0.0.1:2375, or with TLS tcp://0.0.0.0:2376")
		}
		return h, nil
	case proto == "fd" && !strings.ContainsAny(addr, ":/"):
		return h, nil
	}
	return h, fault.WithHint(fault.New(fault.Invalid, "%s: Invalid protocol format.", s),
		"usage: imgfs daemon -H PROTO://ADDR [-H PROTO://ADDR ...], PROTO being unix, tcp or fd")
}

// String is the inverse of ParseHost.
func (h Host) String() string { return h.Proto + "://" + h.Addr }

// open returns the listeners of all hosts, which accept nothing yet.
func (o Listening) open(ctx context.Context, own string, act *activity, log *slog.Logger) (list []*listener, certs *tlsFiles, err error) {
	defer func() {
		if err != nil {
			closeAll(list)
			list = nil
		}
	}()
	if certs, err = o.TLS.load(); err != nil {
		return nil, nil, err
	}
	passed := activation.Files(true) // by a starter that means us; nobody inherits them
	defer func() {
		for _, f := range passed {
			f.Close()
		}
	}()
	for _, s := range o.Hosts {
		h, err := ParseHost(s)
		if err != nil {
			return list, certs, err
		}
		var opened []net.Listener
		switch h.Proto {
		case "unix":
			opened, err = one(o.listenUnix(h.Addr, own))
		case "tcp":
			opened, err = one(o.listenTCP(ctx, h.Addr))
		case "fd":
			opened, err = o.takePassed(h.Addr, passed)
		}
		for _, l := range opened {
			list = append(list, o.wrap(l, certs, act, log))
		}
		if err != nil {
			return list, certs, fmt.Errorf("%s: %w", s, err)
		}
	}
	return list, certs, nil
}

func one(l net.Listener, err error) ([]net.Listener, error) {
	if err != nil {
		return nil, err
	}
	return []net.Listener{l}, nil
}

func closeAll(list []*listener) {
	for _, l := range list {
		l.Close()
	}
}

// wrap makes a listener for clients of all kinds.
func (o Listening) wrap(l net.Listener, certs *tlsFiles, act *activity, log *slog.Logger) *listener {
	w := &listener{Listener: l, act: act, log: log, crowd: newCrowd(maxClientsOf, maxClientsPer)}
	if _, ok := l.Addr().(*net.TCPAddr); ok && certs != nil {
		w.tls = certs.config()
	}
	return w
}

// listenUnix makes a socket that nobody can connect to before its mode is
// what it is to be. One that a dead daemon left is replaced.
func (o Listening) listenUnix(path, own string) (net.Listener, error) {
	if path == own {
		return nil, fault.New(fault.Invalid, "that is the daemon's own socket, which is not for others")
	}
	gid, mode := -1, os.FileMode(0o600)
	if o.Group != "" {
		var err error
		if gid, err = groupID(o.Group); err != nil {
			return nil, err
		}
		mode = 0o660
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	// The socket's mode before it is bound is its file's.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0) }); cerr != nil {
			return cerr
		}
		return err
	}}
	l, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	if gid >= 0 {
		err = os.Lchown(path, -1, gid)
	}
	if err == nil {
		err = os.Chmod(path, mode)
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// groupID returns the number of a group, given by name or number.
func groupID(name string) (int, error) {
	if n, err := strconv.ParseUint(name, 10, 31); err == nil {
		return int(n), nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, fault.WithHint(fault.New(fault.NotFound, "group %s: %w", name, err), "groupadd --system %s", fault.Word(name))
	}
	return strconv.Atoi(g.Gid)
}

// removeStale removes a socket that nobody answers on, and nothing else.
func removeStale(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode().Type() != os.ModeSocket {
		return fault.New(fault.Conflict, "%s is there and is not a socket", path)
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fault.New(fault.Conflict, "%s: somebody listens there", path)
	}
	return os.Remove(path)
}

// listenTCP refuses addresses that others reach, unless clients are verified.
func (o Listening) listenTCP(ctx context.Context, addr string) (net.Listener, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%w", err)
	}
	var ip net.IP // of all addresses
	if host != "" {
		ips, err := net.DefaultResolver.LookupIPAddr(ctx, host)
		if err != nil {
			return nil, fault.New(fault.Invalid, "%w", err)
		}
		ip = ips[0].IP
	}
	if err := o.mayListen(ip); err != nil {
		return nil, err
	}
	listenOn := net.JoinHostPort("", port)
	if ip != nil {
		listenOn = net.JoinHostPort(ip.String(), port)
	}
	var lc net.ListenConfig
	return lc.Listen(ctx, "tcp", listenOn)
}

// mayListen returns nil if strangers do not reach ip, or have to show who they
// are, or if the user wants it so.
func (o Listening) mayListen(ip net.IP) error {
	if o.TLS.Verify || o.InsecureTCP || ip != nil && ip.IsLoopback() {
		return nil
	}
	return fault.WithHint(fault.New(fault.Invalid, "not a loopback address, and clients are not verified"),
		"--tlsverify with --tlscacert, --tlscert and --tlskey; or --insecure-tcp, which lets anybody in who reaches it")
}

// takePassed returns listeners for what systemd passed under a name, or under
// a number; all for "" and *.
func (o Listening) takePassed(name string, passed []*os.File) (list []net.Listener, err error) {
	for i, f := range passed {
		fd := firstPassed + i // not f.Fd(), which would make it block
		if name != "" && name != "*" && name != f.Name() && name != strconv.Itoa(fd) {
			continue
		}
		l, err := o.inherit(f, fd)
		if err != nil {
			return list, fmt.Errorf("descriptor %d: %w", fd, err)
		}
		list = append(list, l)
	}
	if len(list) == 0 {
		return nil, fault.WithHint(fault.New(fault.NotFound, "no socket was passed by systemd (sd_listen_fds)"),
			"start the daemon by imgfs.socket, or listen on unix:// or tcp://")
	}
	return list, nil
}

// firstPassed is the number of the first descriptor of sd_listen_fds(3).
const firstPassed = 3

// inherit makes a listener of a descriptor, which goes on after it.
func (o Listening) inherit(f *os.File, fd int) (net.Listener, error) {
	for _, want := range []struct{ option, value int }{{unix.SO_TYPE, unix.SOCK_STREAM}, {unix.SO_ACCEPTCONN, 1}} {
		if v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, want.option); err != nil || v != want.value {
			return nil, fault.New(fault.Invalid, "not a listening stream socket")
		}
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%w", err)
	}
	switch a := l.Addr().(type) {
	case *net.UnixAddr:
	case *net.TCPAddr:
		err = o.mayListen(a.IP)
	default:
		err = fault.New(fault.Invalid, "a socket of %s", a.Network())
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// warn says what the user may not know about where the daemon listens.
func (o Listening) warn(list []*listener, log *slog.Logger) {
	for _, l := range list {
		a, ok := l.Addr().(*net.TCPAddr)
		switch {
		case !ok || o.TLS.Verify:
		case !a.IP.IsLoopback():
			log.Warn(`/!\ DON'T BIND ON ANOTHER IP ADDRESS THAN 127.0.0.1 IF YOU DON'T KNOW WHAT YOU'RE DOING /!\`, "address", a.String())
		default:
			log.Warn("every user of this machine may use the images by this port", "address", a.String())
		}
	}
}

package sandbox

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/fault"
)

// socketFD is where init finds its end of the socket.
const socketFD = 3

// maxMessage bounds a message, of which a Spec is the longest: execve(2) takes
// no more of arguments and environment.
const maxMessage = 8 << 20

// message is what passes between parent and init: exactly one field is set.
type message struct {
	// parent to init
	Begin  *begin      `json:",omitempty"` // first
	Mount  *mountOrder `json:",omitempty"`
	Run    *Spec       `json:",omitempty"`
	Signal int         `json:",omitempty"`

	// init to parent
	Ready   *ready   `json:",omitempty"` // first
	Mounted bool     `json:",omitempty"` // with the descriptor, if there is one
	Stopped bool     `json:",omitempty"` // the command, by Ctrl-Z or the like
	Exited  *int     `json:",omitempty"` // last: the exit code
	Error   *problem `json:",omitempty"` // last
}

// begin has init make its place.
type begin struct {
	Staging, Name string
	Dir           string
	ReadOnly      bool
	Inert         bool
	Binds         []Bind
}

// mountOrder has init call its mount function.
type mountOrder struct{ Data []byte }

// ready tells that the namespaces are there.
type ready struct {
	MountNS, UserNS string // as readlink(2) of /proc/self/ns/* has them
	Target          string // where to mount
}

// problem is an error on the socket.
type problem struct {
	Text string
	Kind string `json:",omitempty"`
	Hint string `json:",omitempty"`
	Code int    `json:",omitempty"` // exit code; 0: CodeFailed
}

func problemOf(err error) *problem {
	p := &problem{Text: err.Error(), Kind: fault.KindOf(err).String(), Hint: fault.HintOf(err)}
	var c *codeError
	if errors.As(err, &c) {
		p.Code = c.code
	}
	return p
}

func (p *problem) err() error {
	err := fault.New(fault.ParseKind(p.Kind), "%s", p.Text)
	if p.Hint != "" {
		err = fault.WithHint(err, "%s", p.Hint)
	}
	if p.Code != 0 {
		err = &codeError{p.Code, err}
	}
	return err
}

// codeError is an error that has an exit code of its own.
type codeError struct {
	code int
	err  error
}

func (c *codeError) Error() string { return c.err.Error() }
func (c *codeError) Unwrap() error { return c.err }

// CodeOf returns the exit code that an error of this package stands for.
func CodeOf(err error) int {
	var c *codeError
	if errors.As(err, &c) {
		return c.code
	}
	return CodeFailed
}

// socket carries messages: four bytes of length, then JSON. One goroutine at
// a time may send, one receive.
type socket struct{ conn *net.UnixConn }

// newSocket takes over f.
func newSocket(f *os.File) (*socket, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("not a unix socket")
	}
	return &socket{u}, nil
}

func (s *socket) Close() error { return s.conn.Close() }

// send writes m with fd (-1: none) beside it.
func (s *socket) send(m message, fd int) error {
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(body) > maxMessage {
		return fault.New(fault.Invalid, "arguments and environment are longer than the kernel takes")
	}
	b := append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	n, _, err := s.conn.WriteMsgUnix(b, rights, nil)
	if err == nil && n < len(b) {
		_, err = s.conn.Write(b[n:])
	}
	return err
}

// receive returns the next message and the descriptor beside it, -1 if there
// is none. io.EOF: the other end is closed.
func (s *socket) receive() (m message, fd int, err error) {
	fd = -1
	var head [4]byte
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := s.conn.ReadMsgUnix(head[:], oob)
	if err != nil {
		return m, fd, err
	}
	if n == 0 {
		return m, fd, io.EOF
	}
	if fd, err = descriptorIn(oob[:oobn]); err != nil {
		return m, -1, err
	}
	defer func() {
		if err != nil && fd >= 0 {
			unix.Close(fd)
			fd = -1
		}
	}()
	if _, err = io.ReadFull(s.conn, head[n:]); err != nil {
		return m, fd, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > maxMessage {
		return m, fd, fmt.Errorf("message of %d bytes", size)
	}
	body := make([]byte, size)
	if _, err = io.ReadFull(s.conn, body); err != nil {
		return m, fd, err
	}
	err = json.Unmarshal(body, &m)
	return m, fd, err
}

func descriptorIn(oob []byte) (int, error) {
	if len(oob) == 0 {
		return -1, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return -1, err
	}
	var fds []int
	for i := range messages {
		got, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return -1, err
		}
		fds = append(fds, got...)
	}
	switch len(fds) {
	case 0:
		return -1, nil
	case 1:
		return fds[0], nil
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
	return -1, errors.New("several descriptors")
}

package engineapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/fault"
)

// maxReplyLine bounds a MountReply, in bytes.
const maxReplyLine = 16 << 10

// maxReplies is how many times a client answers for one mount.
const maxReplies = 2

// lastWord is how long a daemon that leaves tries to tell a client so.
const lastWord = time.Second

// mount serves POST /imgfs/v1/mounts.
func (s *server) mount(w http.ResponseWriter, r *http.Request) error {
	if !strings.EqualFold(r.Header.Get("Upgrade"), Protocol) {
		return fault.New(fault.Invalid, "a mount needs the header Upgrade: %s", Protocol)
	}
	var req MountRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		return fault.New(fault.Invalid, "mount request: %w", err)
	}
	if err := req.check(); err != nil {
		return err
	}
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return fmt.Errorf("connection: %w", err)
	}
	defer c.Close()
	uc := unixConn(c)
	if uc == nil {
		return errors.New("connection: not a unix socket")
	}
	_, err = fmt.Fprintf(uc, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n%s: %s\r\n\r\n",
		Protocol, VersionHeader, s.build)
	if err != nil {
		return nil // the client has gone
	}

	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	// A client that has been stopped reads nothing, and must not keep a daemon
	// that leaves.
	defer context.AfterFunc(r.Context(), func() { uc.SetWriteDeadline(time.Now().Add(lastWord)) })()
	x := &exchange{conn: uc, replies: make(chan cliReply, maxReplies)}
	var wg sync.WaitGroup
	wg.Go(func() {
		defer cancel() // the client's end ends the mount
		x.read()
	})
	m, err := s.engine.Mount(ctx, req, x.progress, func(r MountReady) (MountReply, *os.File, error) { return x.do(ctx, r) })
	if err != nil {
		s.log.Info("mount failed", "image", req.Image, "target", req.Target, "err", err)
		x.send(MountEvent{Error: WireError(err)})
	} else {
		x.send(MountEvent{Done: &m})
	}
	uc.CloseRead()
	wg.Wait()
	x.drop()
	return nil
}

// waitGone answers when there is no such mount any more.
func (s *server) waitGone(w http.ResponseWriter, r *http.Request) error {
	if err := s.engine.WaitGone(r.Context(), name(r)); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// unixConn returns the socket under c, which a listener may have wrapped in a
// type that has a method UnixConn; nil if there is none.
func unixConn(c net.Conn) *net.UnixConn {
	switch c := c.(type) {
	case *net.UnixConn:
		return c
	case interface{ UnixConn() *net.UnixConn }:
		return c.UnixConn()
	}
	return nil
}

// check refuses what no CLI sends.
func (r *MountRequest) check() error {
	switch {
	case r.Layout == (r.Image != "" || r.Upper != "" || r.UpperDir != ""):
		return fault.New(fault.Invalid, "mount request: either an image or the layout view")
	case !cleanPath(r.Target):
		return fault.New(fault.Invalid, "mount request: target %q is not a clean absolute path", r.Target)
	case !slices.Contains([]string{"fuse", "overlay", "erofs"}, r.Driver):
		return fault.New(fault.Invalid, "mount request: unknown driver %q", r.Driver)
	case !slices.Contains([]string{"", "missing", "always", "never"}, r.Pull):
		return fault.New(fault.Invalid, "mount request: unknown pull policy %q", r.Pull)
	case !slices.Contains([]string{"", "ro", "rw"}, r.Mode):
		return fault.New(fault.Invalid, "mount request: unknown mode %q", r.Mode)
	case !slices.Contains([]string{"", PrefetchNone, PrefetchTrace, PrefetchAll}, r.Prefetch):
		return fault.New(fault.Invalid, "mount request: unknown prefetch %q", r.Prefetch)
	case r.Provenance && r.Driver == "erofs":
		return fault.New(fault.Invalid, "mount request: the kernel knows of no layers with driver erofs")
	case !slices.Contains([]string{"", VerifySealed}, r.Verify):
		return fault.New(fault.Invalid, "mount request: unknown verification %q", r.Verify)
	}
	if _, err := ParseOnError(r.OnError); err != nil {
		return fmt.Errorf("mount request: %w", err)
	}
	return r.checkUpper()
}

// checkUpper refuses what cannot be said of an upper.
func (r *MountRequest) checkUpper() error {
	named := r.Upper != "" || r.UpperDir != ""
	switch {
	case r.Mode != "rw" && (named || r.Tmp || r.Force):
		return fault.New(fault.Invalid, "mount request: a read-only mount has no upper")
	case r.Mode != "rw" && r.Driver == "overlay":
		return fault.New(fault.Invalid, "mount request: driver overlay is for writable mounts")
	case r.Mode == "rw" && r.Layout:
		return fault.New(fault.Invalid, "mount request: the layout view is read-only")
	case r.Upper != "" && r.UpperDir != "", r.Tmp && named:
		return fault.New(fault.Invalid, "mount request: more than one upper")
	case r.UpperDir != "" && !cleanPath(r.UpperDir):
		return fault.New(fault.Invalid, "mount request: upper %q is not a clean absolute path", r.UpperDir)
	}
	return nil
}

func cleanPath(p string) bool {
	return filepath.IsAbs(p) && filepath.Clean(p) == p && !strings.ContainsRune(p, 0)
}

// exchange is the daemon's end of an upgraded connection.
type exchange struct {
	conn    *net.UnixConn
	replies chan cliReply // at most maxReplies, then closed
}

type cliReply struct {
	MountReply
	fd  *os.File
	err error
}

// read delivers the client's replies and returns when the client is gone.
func (x *exchange) read() {
	defer close(x.replies)
	for range maxReplies {
		rep, ok := x.readReply()
		if !ok {
			return
		}
		x.replies <- rep
	}
	x.conn.Read(make([]byte, 1)) // blocks until the end
}

// readReply reads one line and the descriptor beside it; not ok if the client
// went before it had sent one.
func (x *exchange) readReply() (rep cliReply, ok bool) {
	var line []byte
	defer func() {
		if !ok && rep.fd != nil {
			rep.fd.Close()
		}
	}()
	buf, oob := make([]byte, maxReplyLine), make([]byte, unix.CmsgSpace(16*4))
	for !bytes.HasSuffix(line, []byte("\n")) {
		n, oobn, flags, _, err := x.conn.ReadMsgUnix(buf, oob)
		fds := rights(oob[:oobn])
		for _, fd := range fds {
			if rep.fd != nil {
				syscall.Close(fd) // one is all that was asked for
				continue
			}
			rep.fd = os.NewFile(uintptr(fd), "fuse")
		}
		if err != nil || n == 0 {
			return rep, false
		}
		line = append(line, buf[:n]...)
		if len(line) > maxReplyLine || flags&unix.MSG_CTRUNC != 0 {
			rep.err = fault.New(fault.Invalid, "mount reply: too long")
			return rep, true
		}
	}
	if err := json.Unmarshal(line, &rep.MountReply); err != nil {
		rep.err = fault.New(fault.Invalid, "mount reply: %w", err)
	}
	return rep, true
}

// rights returns the descriptors in control messages; all are close-on-exec.
func rights(oob []byte) []int {
	msgs, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var fds []int
	for i := range msgs {
		got, err := syscall.ParseUnixRights(&msgs[i])
		if err == nil {
			fds = append(fds, got...)
		}
	}
	return fds
}

// do is the Exchange of this connection.
func (x *exchange) do(ctx context.Context, ready MountReady) (MountReply, *os.File, error) {
	if err := x.send(MountEvent{Ready: &ready}); err != nil {
		return MountReply{}, nil, fault.New(fault.Canceled, "client went away: %w", err)
	}
	var rep cliReply
	var ok bool
	select {
	case rep, ok = <-x.replies:
	case <-ctx.Done(): // the client has gone, or the daemon is leaving
		select {
		case rep, ok = <-x.replies: // it had answered before it went
		default:
			return MountReply{}, nil, ctx.Err()
		}
	}
	switch {
	case !ok:
		return MountReply{}, nil, fault.New(fault.Canceled, "client went away")
	case rep.err != nil || rep.Error != nil:
		if rep.fd != nil {
			rep.fd.Close()
		}
		if rep.err != nil {
			return MountReply{}, nil, rep.err
		}
		return MountReply{}, nil, rep.Error.Err()
	}
	return rep.MountReply, rep.fd, nil
}

// drop closes a descriptor that nobody asked for.
func (x *exchange) drop() {
	for rep := range x.replies {
		if rep.fd != nil {
			rep.fd.Close()
		}
	}
}

func (x *exchange) progress(p Progress) { x.send(MountEvent{Progress: &p}) }

// send writes one line. A client that has gone is noticed by read.
func (x *exchange) send(ev MountEvent) error {
	b, err := json.Marshal(ev)
	if err != nil {
		return fmt.Errorf("mount event: %w", err)
	}
	_, err = x.conn.Write(append(b, '\n'))
	return err
}

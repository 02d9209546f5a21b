package engineapi

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"

	"github.com/imgfs/imgfs/internal/fault"
)

// MountFunc mounts what the daemon has made ready, in the caller's own
// namespaces; for driver overlay it is called twice. Where it mounts FUSE, fd
// is the mounted /dev/fuse, which Client.Mount sends and closes; otherwise -1.
// Its error is told to the daemon, which then forgets the mount, and returned
// by Client.Mount.
type MountFunc func(MountReady) (fd int, reply MountReply, err error)

// Mount asks the daemon for a tree and mounts it. report, if not nil, is
// called with each step of a pull that comes before. When mount has succeeded
// and a later step fails, undoing the mount is the caller's.
func (c *Client) Mount(ctx context.Context, req MountRequest, report func(Progress), mount MountFunc) (Mount, error) {
	if err := c.checkBuild(ctx); err != nil {
		return Mount{}, err
	}
	m, err := c.mountOnce(ctx, req, report, mount)
	if !errors.Is(err, ErrNoDaemon) || c.Restart == nil {
		return m, err
	}
	if err := c.Restart(ctx); err != nil {
		return Mount{}, err
	}
	return c.mountOnce(ctx, req, report, mount)
}

func (c *Client) mountOnce(ctx context.Context, req MountRequest, report func(Progress), mount MountFunc) (Mount, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return Mount{}, gone(ctx, err)
	}
	defer conn.Close()
	// Closing the connection is how a request that waits is given up.
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	r, err := upgrade(ctx, conn, req)
	if err != nil {
		return Mount{}, err
	}
	dec := json.NewDecoder(r)
	answered := false
	for {
		var ev MountEvent
		if err := dec.Decode(&ev); err != nil {
			if ctx.Err() == nil && (answered || !errors.Is(err, io.EOF)) {
				return Mount{}, fault.New(fault.Unavailable, "daemon went away during the mount: %w", err)
			}
			return Mount{}, gone(ctx, err)
		}
		switch {
		case ev.Error != nil:
			return Mount{}, ev.Error.Err()
		case ev.Done != nil:
			return *ev.Done, nil
		case ev.Ready != nil:
			answered = true
			fd, reply, err := mount(*ev.Ready)
			if err != nil {
				reply.Error = WireError(err)
				sendReply(conn, reply, -1) // the error of interest is mount's
				return Mount{}, err
			}
			if err := sendReply(conn, reply, fd); err != nil {
				return Mount{}, lost(ctx, err)
			}
		case ev.Progress != nil && report != nil:
			report(*ev.Progress)
		}
	}
}

// upgrade sends the request and returns what follows the 101.
func upgrade(ctx context.Context, conn net.Conn, mr MountRequest) (io.Reader, error) {
	body, err := json.Marshal(mr)
	if err != nil {
		return nil, fmt.Errorf("request: %w", err)
	}
	req, err := newRequest(ctx, http.MethodPost, "/imgfs/v1/mounts", nil, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", Protocol)
	// A daemon that stopped reading may have said why; else reading fails too.
	_ = req.Write(conn)
	br := bufio.NewReader(conn)
	res, err := http.ReadResponse(br, req)
	if err != nil {
		return nil, gone(ctx, err)
	}
	if err := replyError(res); err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		res.Body.Close()
		return nil, fmt.Errorf("daemon: unexpected reply %s to a mount", res.Status)
	}
	return br, nil
}

// sendReply writes the one line of the CLI with fd (-1: none) beside it, and
// closes fd.
func sendReply(conn *net.UnixConn, reply MountReply, fd int) error {
	line, err := json.Marshal(reply)
	if err != nil {
		return fmt.Errorf("reply: %w", err)
	}
	var rights []byte
	if fd >= 0 {
		defer syscall.Close(fd)
		rights = syscall.UnixRights(fd)
	}
	_, _, err = conn.WriteMsgUnix(append(line, '\n'), rights, nil)
	return err
}

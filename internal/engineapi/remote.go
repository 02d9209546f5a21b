package engineapi

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"

	"github.com/imgfs/imgfs/internal/fault"
)

// Remote is a daemon where the user says that one is. Nothing is known of who
// runs it, and it is not started when nobody answers.
type Remote struct {
	Network string      // unix or tcp
	Address string      // path, or HOST:PORT
	TLS     *tls.Config // spoken over tcp; nil: none
}

// NewRemote returns a client of the daemon at r. It does not connect.
func NewRemote(r Remote) *Client {
	return &Client{remote: &r, http: &http.Client{Transport: &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return r.dial(ctx) },
		DisableCompression: true,
	}}}
}

func (r *Remote) dial(ctx context.Context) (net.Conn, error) {
	if r.TLS != nil {
		d := tls.Dialer{Config: r.TLS}
		return d.DialContext(ctx, r.Network, r.Address)
	}
	var d net.Dialer
	return d.DialContext(ctx, r.Network, r.Address)
}

// dialUnix is for what passes descriptors.
func (r *Remote) dialUnix(ctx context.Context) (*net.UnixConn, error) {
	if r.Network != "unix" {
		return nil, fault.WithHint(fault.New(fault.Invalid, "daemon at %s://%s: a mount needs a daemon of this machine, at a unix socket", r.Network, r.Address),
			"leave out -H, and IMGFS_HOST")
	}
	nc, err := r.dial(ctx)
	if err != nil {
		return nil, err
	}
	return nc.(*net.UnixConn), nil
}

// name says in an error of the connection which daemon it is about; nil, a
// daemon's own socket, is not named.
func (r *Remote) name(err error) error {
	if r == nil || fault.KindOf(err) != fault.Unavailable {
		return err
	}
	return fault.WithHint(fmt.Errorf("%s://%s: %w", r.Network, r.Address, err), "it is named by -H or IMGFS_HOST")
}

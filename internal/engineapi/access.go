package engineapi

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/fault"
)

// Who may do what. A client is trusted if it comes over a unix socket and is
// of the user the daemon runs as, or root: it has the daemon's power anyway.
// All others, who were let in by a socket's group, by a certificate, or
// because they are on this machine, are not. They get docker's routes and may
// read with ours, but nothing that touches the host:
//
//   - [admit] refuses what changes something below /imgfs/, which is where
//     mounting, uppers and the daemon's own life are;
//   - [confined] stands between them and the engine, and says of each of its
//     methods what they may have.

// Peer is who is at the other end of a connection.
type Peer struct {
	Trusted bool
	Name    string // for the log: uid and pid, or address and certificate's name
}

type peerKey struct{}

// WithPeer returns a context of a request of p.
func WithPeer(ctx context.Context, p Peer) context.Context {
	return context.WithValue(ctx, peerKey{}, p)
}

// PeerFrom returns whose request ctx is of; the zero Peer, who is not trusted,
// if that is not known.
func PeerFrom(ctx context.Context) Peer {
	p, _ := ctx.Value(peerKey{}).(Peer)
	return p
}

// Trusted reports whether ctx is of a request of the daemon's own user, or of
// root, over a unix socket.
func Trusted(ctx context.Context) bool { return PeerFrom(ctx).Trusted }

// withPeerOf is the http.Server's ConnContext.
func withPeerOf(ctx context.Context, c net.Conn) context.Context {
	return WithPeer(ctx, peerOfConn(c))
}

// peerOfConn fails closed: whose credentials cannot be had is not trusted.
func peerOfConn(c net.Conn) Peer {
	uc := unixConn(c)
	if uc == nil {
		return Peer{Name: c.RemoteAddr().String()}
	}
	cred, err := PeerOf(uc)
	if err != nil {
		return Peer{Name: "unknown"}
	}
	return Peer{Trusted: Own(cred), Name: fmt.Sprintf("uid %d pid %d", cred.Uid, cred.Pid)}
}

// overflowID stands for users that have no number in this user namespace.
const overflowID = 65534

// Own reports whether credentials are of the user this process runs as, or of
// root. nil, and a user who has no number here, are neither.
func Own(cred *unix.Ucred) bool { return own(cred, os.Geteuid(), wholeUsers) }

func own(cred *unix.Ucred, uid int, whole func() bool) bool {
	switch {
	case cred == nil:
		return false
	case cred.Uid == 0:
		return true
	}
	return int(cred.Uid) == uid && (cred.Uid != overflowID || whole())
}

// wholeUsers reports whether every user has a number in this user namespace.
func wholeUsers() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(b)), " ") == "0 0 4294967295"
}

// ClientOf names the client of a request for the log.
func ClientOf(r *http.Request) string {
	name := PeerFrom(r.Context()).Name
	if r.TLS != nil {
		name += certificateName(r.TLS)
	}
	return name
}

// certificateName returns " CN=…" of the certificate that a client has shown.
func certificateName(s *tls.ConnectionState) string {
	if len(s.PeerCertificates) == 0 {
		return ""
	}
	return " CN=" + s.PeerCertificates[0].Subject.CommonName
}

// OfPage reports whether a browser makes a request for somebody's page: across
// origins, or in clear to a name that its owner has let point to loopback.
// Daemons do not speak to browsers, and any page could use a port of this
// machine by one.
func OfPage(r *http.Request) bool {
	if r.Header.Get("Origin") != "" || r.Header.Get("Sec-Fetch-Site") != "" {
		return true
	}
	at, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return ok && at.IP.IsLoopback() && r.TLS == nil && !hereName(r.Host)
}

// hereName reports whether a Host header is no name that somebody could own.
func hereName(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || host == clientHost || net.ParseIP(host) != nil
}

// clientHost is the Host header of our own clients.
const clientHost = "imgfs"

// denied is the error for what is the daemon user's alone.
func denied(what string) error {
	return fault.WithHint(fault.New(fault.Denied, "%s: only for the user the daemon runs as, and root, over a unix socket", what),
		"ask the daemon of this machine, without -H or IMGFS_HOST")
}

package main

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/daemon"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

// certPathEnv names a directory of ca.pem, cert.pem and key.pem, as docker's
// clients have them; set, TLS is spoken to a daemon at tcp.
const certPathEnv = "IMGFS_CERT_PATH"

// hostOf returns what -H or IMGFS_HOST says, "" for the store's own daemon.
// The flag of that name of imgfs daemon is another: it is a list.
func hostOf(c *cli.Context) string {
	for _, at := range c.Lineage() {
		if s, ok := at.Value("host").(string); ok && s != "" {
			return s
		}
	}
	return ""
}

// remote returns a client of the daemon that -H names, nil if it names none.
func remote(c *cli.Context) (*engineapi.Client, error) {
	text := hostOf(c)
	if text == "" {
		return nil, nil
	}
	h, err := daemon.ParseHost(text)
	if err != nil {
		return nil, fault.WithHint(err, "-H takes unix://PATH or tcp://HOST:PORT")
	}
	r := engineapi.Remote{Network: h.Proto, Address: h.Addr}
	switch h.Proto {
	case "unix":
	case "tcp":
		if dir := os.Getenv(certPathEnv); dir != "" {
			if r.TLS, err = clientTLS(dir); err != nil {
				return nil, err
			}
		}
	default:
		return nil, fault.New(fault.Invalid, "-H %s: a daemon is reached at unix:// or tcp://", text)
	}
	return engineapi.NewRemote(r), nil
}

// clientTLS reads a directory of certificates. The server's is always verified.
func clientTLS(dir string) (*tls.Config, error) {
	pem, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		return nil, fault.New(fault.Invalid, "%s: %w", certPathEnv, err)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool()}
	if !c.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fault.New(fault.Invalid, "%s: no certificate in ca.pem", certPathEnv)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	switch {
	case err == nil:
		c.Certificates = []tls.Certificate{pair}
	case !os.IsNotExist(err):
		return nil, fault.New(fault.Invalid, "%s: %w", certPathEnv, err)
	}
	return c, nil
}

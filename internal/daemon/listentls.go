package daemon

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/imgfs/imgfs/internal/fault"
)

// TLS names the files of TLS on tcp sockets, in PEM.
type TLS struct {
	CA     string // who signs the certificates of clients
	Cert   string // the daemon's own
	Key    string // of that
	Verify bool   // clients must show a certificate that CA has signed
}

// tlsFiles is TLS and what its files held when they were last read.
type tlsFiles struct {
	files   TLS
	current atomic.Pointer[tls.Config]
}

// load reads the files; nil if there are none.
func (t TLS) load() (*tlsFiles, error) {
	if t == (TLS{}) {
		return nil, nil
	}
	f := &tlsFiles{files: t}
	return f, f.read()
}

// read reads the files again. On an error those that were read before stay.
func (f *tlsFiles) read() error {
	c, err := f.files.config()
	if err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	f.current.Store(c)
	return nil
}

// config returns a configuration that follows what read reads.
func (f *tlsFiles) config() *tls.Config {
	c := f.current.Load().Clone()
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return f.current.Load(), nil }
	return c
}

func (t TLS) config() (*tls.Config, error) {
	switch {
	case t.Cert == "" || t.Key == "":
		return nil, fault.WithHint(fault.New(fault.Invalid, "a certificate and its key are needed"), "--tlscert FILE --tlskey FILE")
	case t.Verify && t.CA == "":
		return nil, fault.WithHint(fault.New(fault.Invalid, "clients cannot be verified without the certificate that theirs are signed with"), "--tlscacert FILE")
	}
	pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%w", err)
	}
	c := &tls.Config{
		Certificates: []tls.Certificate{pair},
		MinVersion:   tls.VersionTLS12,
		NextProtos:   []string{"http/1.1"}, // connections are counted, so one is one request
		// A ticket would outlive the CA that was believed when it was made.
		SessionTicketsDisabled: true,
	}
	if !t.Verify {
		return c, nil
	}
	pem, err := os.ReadFile(t.CA)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%w", err)
	}
	c.ClientCAs, c.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
	if !c.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fault.New(fault.Invalid, "%s: no certificate in it", t.CA)
	}
	return c, nil
}

package fetch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
)

// statusError is an answer of a server that is not what was hoped for.
type statusError struct {
	method string
	url    string // redacted
	host   string
	status int
	code   string // the registry's error code, such as MANIFEST_UNKNOWN; or ""
	detail string // its message, one line; or ""
}

func (e *statusError) Error() string {
	s := fmt.Sprintf("%s %s: %d %s", e.method, e.url, e.status, http.StatusText(e.status))
	if e.detail != "" {
		s += ": " + e.detail
	}
	return s
}

// errMismatch marks an answer whose size or range is not the blob's. The
// server's copy is of no use; another server's may be.
var errMismatch = errors.New("answer does not fit the blob")

const maxErrorBody = 64 << 10 // bytes read of an error's body

// newStatusError consumes and closes resp.Body, in at most wait.
func newStatusError(resp *http.Response, wait time.Duration) *statusError {
	body := consume(resp, wait)
	e := &statusError{method: resp.Request.Method, url: redact(resp.Request.URL), host: resp.Request.URL.Host, status: resp.StatusCode}
	var doc struct {
		Errors []struct{ Code, Message string } `json:"errors"`
		Error  any                              `json:"error"`
	}
	if json.Unmarshal(body, &doc) == nil && len(doc.Errors) > 0 {
		e.code = doc.Errors[0].Code
		e.detail = oneLine(firstOf(doc.Errors[0].Message, e.code))
	}
	return e
}

// consume reads a little of a body that nobody needs, so that the connection
// can be used again, and closes it. Whatever comes slowly is left.
func consume(resp *http.Response, wait time.Duration) []byte {
	defer resp.Body.Close()
	defer time.AfterFunc(wait, func() { resp.Body.Close() }).Stop()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	return body
}

// oneLine makes foreign text fit for an error: printable, one line, short.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	const most = 200
	if s = strings.TrimSpace(s); len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// redact returns u without user info, query and fragment: signatures of CDN
// links and passwords stand there.
func redact(u *url.URL) string {
	c := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}
	return c.String()
}

// plainError returns the cause within a *url.Error, whose text holds the URL.
func plainError(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// transient reports whether trying again may help.
func transient(err error) bool {
	var s *statusError
	if errors.As(err, &s) {
		return retryStatus(s.status)
	}
	var f *fault.Error
	if errors.As(err, &f) || errors.Is(err, errMismatch) {
		return false
	}
	return !errors.Is(err, context.Canceled) && !errors.Is(err, errDowngrade) && !errors.Is(err, errRedirects) &&
		!errors.Is(err, errForward) && !unreachable(err)
}

// unreachable reports whether nobody who could answer is there: not worth
// waiting for at first contact.
func unreachable(err error) bool {
	var dns *net.DNSError
	return errors.Is(err, syscall.ECONNREFUSED) || errors.As(err, &dns) && dns.IsNotFound || spokeTLS(err) || spokePlain(err)
}

func badCertificate(err error) bool {
	var v *tls.CertificateVerificationError
	var u x509.UnknownAuthorityError
	var h x509.HostnameError
	return errors.As(err, &v) || errors.As(err, &u) || errors.As(err, &h)
}

// spokeTLS reports whether a failed handshake met a TLS server all the same.
func spokeTLS(err error) bool {
	var op *net.OpError
	return badCertificate(err) || errors.As(err, &op) && op.Op == "remote error" // an alert
}

// spokePlain reports whether a TLS handshake met a server without TLS.
func spokePlain(err error) bool {
	var r tls.RecordHeaderError
	return errors.As(err, &r) || err != nil && strings.Contains(err.Error(), "server gave HTTP response to HTTPS client")
}

func retryStatus(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, 499,
		http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout, 522:
		return true
	}
	return false
}

func statusOf(err error) int {
	var s *statusError
	if errors.As(err, &s) {
		return s.status
	}
	return 0
}

// explain turns the failure of a request to a registry into what the user
// reads: docker's text where docker has one, a kind, a hint.
func explain(err error, ref Reference, host string) error {
	var f *fault.Error
	if err == nil || errors.As(err, &f) {
		return err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) && statusOf(err) == 0 && !isTimeout(err) {
		return err
	}
	var s *statusError
	if errors.As(err, &s) {
		return explainStatus(s, ref, host)
	}
	err = plainError(err)
	out := fault.New(fault.Network, "registry %s: %w", host, err)
	switch {
	case errors.Is(err, errMismatch):
		return fault.New(fault.Integrity, "registry %s: %w", host, err)
	case spokePlain(err):
		return fault.WithHint(fault.New(fault.Network, "registry %s: http: server gave HTTP response to HTTPS client", host),
			"if plain http is what you want, add --insecure, or write server = \"http://%s\" into certs.d/%s/hosts.toml", host, host)
	case badCertificate(err):
		return fault.WithHint(out, "put the registry's CA into /etc/containerd/certs.d/%s/ca.crt, or add --insecure", certsName(host))
	case spokeTLS(err):
		return fault.WithHint(out, "if the registry wants a client certificate, put it into /etc/containerd/certs.d/%s as client.cert and client.key", certsName(host))
	case errors.Is(err, errDowngrade), errors.Is(err, errRedirects):
		return fault.WithHint(out, "the registry is set up wrongly; ask who runs it")
	}
	return fault.WithHint(out, "is %s the right name, and is the registry up? proxies are taken from HTTPS_PROXY, mirrors from certs.d/%s/hosts.toml", host, certsName(host))
}

// certsName is the name of a registry's directory below certs.d: Docker Hub's
// is named after what references say, not after the host that serves it.
func certsName(host string) string {
	if host == hubHost {
		return "docker.io"
	}
	return host
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

func explainStatus(s *statusError, ref Reference, host string) error {
	login := host
	if host == hubHost {
		login = "docker.io"
	}
	switch s.status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return fault.WithHint(fault.New(fault.Denied, "pull access denied for %s, repository does not exist or may require 'docker login'", ref.FamiliarName()),
			"log in (imgfs login %s), or give --authfile FILE or --creds USER:PASSWORD", login)
	case http.StatusNotFound:
		if s.code == "NAME_UNKNOWN" {
			return fault.WithHint(fault.New(fault.NotFound, "repository %s not found: name unknown", ref.FamiliarName()), "check the name's spelling")
		}
		if s.code == "BLOB_UNKNOWN" {
			return fault.New(fault.NotFound, "registry %s: blob of %s not found: blob unknown", host, ref.Familiar())
		}
		return fault.WithHint(fault.New(fault.NotFound, "manifest for %s not found: manifest unknown", ref.Familiar()),
			"check the tag; imgfs tags %s shows what there is", ref.FamiliarName())
	case http.StatusTooManyRequests:
		return fault.WithHint(fault.New(fault.Network, "registry %s: toomanyrequests: %s", host, firstOf(s.detail, "rate limit reached")),
			"wait, or log in (imgfs login %s) to get a higher limit", login)
	}
	return fault.New(fault.Network, "registry %s: %w", host, s)
}

// tooLong is the failure of a host that asks for more patience than we have.
func tooLong(host string, wait time.Duration) error {
	return fault.WithHint(fault.New(fault.Network, "registry %s: asks to come back in %s", host, wait.Round(time.Second)),
		"try again later, or log in to get a higher limit")
}

package daemon

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// certify writes NAME's certificate and key, signed by a, or by itself where
// a is nil, into a directory, with docker's names: ca.pem, cert.pem, key.pem.
func (a *authority) certify(t testing.TB, dir, name string, use ...x509.ExtKeyUsage) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: use,
		IsCA: a == nil, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	signer := &authority{template, key}
	if a != nil {
		signer = a
	}
	der, err := x509.CreateCertificate(rand.Reader, template, signer.cert, &key.PublicKey, signer.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	write := func(file, kind string, der []byte) {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("cert.pem", "CERTIFICATE", der)
	write("key.pem", "PRIVATE KEY", keyDER)
	ca := cert
	if a != nil {
		ca = a.cert
	}
	write("ca.pem", "CERTIFICATE", ca.Raw)
	return &authority{cert, key}
}

// tlsOf names the files that certify wrote.
func tlsOf(dir string) TLS {
	return TLS{CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem"), Verify: true}
}

// logged is a log that can be looked at.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// address returns where a daemon on tcp listens, by its log: the port was the
// kernel's choice.
func (l *logged) address(t testing.TB) string {
	t.Helper()
	for line := range strings.Lines(l.String()) {
		if _, rest, ok := strings.Cut(line, "address=127.0.0.1:"); ok && strings.Contains(line, "msg=serving ") {
			return "127.0.0.1:" + strings.Fields(rest)[0]
		}
	}
	t.Fatalf("no address in %s", l)
	return ""
}

// TestTLS serves to who shows the right certificate, and to nobody else.
func TestTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	var none *authority
	ca := none.certify(t, at("ca"), "ca")
	ca.certify(t, at("server"), "server", x509.ExtKeyUsageServerAuth)
	ca.certify(t, at("client"), "alice", x509.ExtKeyUsageClientAuth)
	ca.certify(t, at("wrong use"), "a server", x509.ExtKeyUsageServerAuth)
	none.certify(t, at("other"), "ca2").certify(t, at("stranger"), "mallory", x509.ExtKeyUsageClientAuth)
	log := &logged{}
	runDaemon(t, Options{
		Listening: Listening{Hosts: []string{"tcp://127.0.0.1:0"}, TLS: tlsOf(at("server"))},
		Logger:    NewLogger(log, false, slog.LevelDebug),
	})
	addr := log.address(t)

	client := func(certs string, edit ...func(*tls.Config)) *http.Client {
		c := &tls.Config{RootCAs: x509.NewCertPool()}
		c.RootCAs.AddCert(ca.cert)
		if certs != "" {
			pair, err := tls.LoadX509KeyPair(filepath.Join(at(certs), "cert.pem"), filepath.Join(at(certs), "key.pem"))
			if err != nil {
				t.Fatal(err)
			}
			c.Certificates = []tls.Certificate{pair}
		}
		for _, f := range edit {
			f(c)
		}
		tr := &http.Transport{TLSClientConfig: c}
		t.Cleanup(tr.CloseIdleConnections)
		return &http.Client{Transport: tr}
	}
	get := func(c *http.Client, path string) (string, error) {
		res, err := c.Get("https://" + addr + path)
		if err != nil {
			return "", err
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		return res.Status + " " + string(b), err
	}
	if got, err := get(client("client"), "/_ping"); err != nil || got != "200 OK OK" {
		t.Errorf("a client: %q %v", got, err)
	}
	for what, c := range map[string]*http.Client{
		"no certificate":          client(""),
		"somebody else's":         client("stranger"),
		"one for another purpose": client("wrong use"),
		"TLS 1.1": client("client", func(c *tls.Config) {
			c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
		}),
	} {
		if got, err := get(c, "/_ping"); err == nil {
			t.Errorf("%s: %q", what, got)
		}
	}
	plain := engineapi.NewRemote(engineapi.Remote{Network: "tcp", Address: addr})
	if _, err := plain.Status(testContext(t)); fault.KindOf(err) != fault.Unavailable || !strings.Contains(fault.HintOf(err), "IMGFS_CERT_PATH") {
		t.Errorf("without TLS: %v, hint %q", err, fault.HintOf(err))
	}
	if res, err := http.Get("http://" + addr + "/images/json"); err != nil || res.StatusCode != http.StatusBadRequest {
		t.Errorf("in clear: %v %v", res, err)
	}
	// A certificate is not trust.
	res, err := client("client").Post("https://"+addr+"/imgfs/v1/shutdown?force=1", "", nil)
	if err != nil || res.StatusCode != http.StatusForbidden {
		t.Errorf("shutdown: %v %v", res, err)
	}
	if !strings.Contains(log.String(), "CN=alice") {
		t.Errorf("the log does not name who asked: %s", log)
	}

	// Our own client, and docker's.
	remote := engineapi.NewRemote(engineapi.Remote{Network: "tcp", Address: addr, TLS: client("client").Transport.(*http.Transport).TLSClientConfig})
	defer remote.Close()
	if _, err := remote.Images(testContext(t), nil, engineapi.ListOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := remote.GC(testContext(t)); fault.KindOf(err) != fault.Denied {
		t.Errorf("gc: %v", err)
	}
	if _, err := mountAs(testContext(t), remote, "x", t.TempDir()); fault.KindOf(err) != fault.Invalid {
		t.Errorf("mount: %v", err)
	}
	docker, err := exec.LookPath("docker")
	imgtest.Need(t, err == nil, "docker's client")
	cmd := exec.CommandContext(testContext(t), docker, "--tlsverify", "-H", "tcp://"+addr, "images", "-q")
	cmd.Env = append(os.Environ(), "DOCKER_CERT_PATH="+at("client"), "HOME="+dir)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("docker --tlsverify: %v %s", err, out)
	}
}

// TestTLSReload has files change: who was let in before is not any more, and
// files that cannot be read change nothing.
func TestTLSReload(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var none *authority
	old := none.certify(t, filepath.Join(dir, "ca"), "ca")
	old.certify(t, dir, "server", x509.ExtKeyUsageServerAuth)
	old.certify(t, filepath.Join(dir, "client"), "client", x509.ExtKeyUsageClientAuth)
	files, err := tlsOf(dir).load()
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", files.config())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.(*tls.Conn).Handshake()
			io.WriteString(c, "x")
			c.Close()
		}
	}()
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "client/cert.pem"), filepath.Join(dir, "client/key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	cache := tls.NewLRUClientSessionCache(4)
	connect := func() error {
		c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}, ClientSessionCache: cache})
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = io.ReadFull(c, make([]byte, 1))
		return err
	}
	if err := connect(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := files.read(); fault.KindOf(err) != fault.Invalid {
		t.Errorf("damaged: %v", err)
	}
	if err := connect(); err != nil {
		t.Errorf("after files that cannot be read: %v", err)
	}
	none.certify(t, filepath.Join(dir, "ca2"), "ca2").certify(t, dir, "server", x509.ExtKeyUsageServerAuth)
	if err := files.read(); err != nil {
		t.Fatal(err)
	}
	if err := connect(); err == nil {
		t.Error("a client of the old authority is let in")
	}
}

func TestTLSFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var none *authority
	none.certify(t, dir, "ca")
	good := tlsOf(dir)
	for _, tt := range []struct {
		edit func(*TLS)
		want string
	}{
		{func(f *TLS) { f.Cert = "" }, "a certificate and its key are needed"},
		{func(f *TLS) { f.Key = "" }, "a certificate and its key are needed"},
		{func(f *TLS) { f.CA = "" }, "cannot be verified without"},
		{func(f *TLS) { f.Key = f.Cert }, "private key"},
		{func(f *TLS) { f.CA = f.Key }, "no certificate in it"},
		{func(f *TLS) { f.CA = "/nowhere" }, "no such file"},
	} {
		f := good
		tt.edit(&f)
		if _, err := f.load(); fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.want, err)
		}
	}
	if f, err := (TLS{}).load(); f != nil || err != nil {
		t.Errorf("none: %v %v", f, err)
	}
}

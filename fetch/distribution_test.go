package fetch

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// push copies a layout into a registry with skopeo.
func push(t *testing.T, layout, target string, flags ...string) {
	t.Helper()
	args := append([]string{"copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"}, flags...)
	if out, err := exec.Command(imgtest.Program(t, "skopeo"), append(args, "oci:"+layout, "docker://"+target)...).CombinedOutput(); err != nil {
		t.Fatalf("skopeo: %v\n%s", err, out)
	}
}

// layout writes a layout of one image whose layer is a real tar stream.
func layout(t *testing.T) (dir string, layer []byte) {
	t.Helper()
	layer, err := os.ReadFile(tree{"etc/hostname": []byte("x\n"), "big": noise(500_000)}.tarFile(t))
	if err != nil {
		t.Fatal(err)
	}
	f := tree{}
	f.index(t, f.image(t, "linux/amd64", "", layer))
	return f.dir(t), layer
}

func TestDistribution(t *testing.T) {
	t.Parallel()
	host := imgtest.Distribution(t, "", "")
	dir, layer := layout(t)
	push(t, dir, host+"/library/debian:12", "--dest-compress=false")
	c := New(options(t))
	img := mustResolve(t, c, host+"/library/debian:12")
	if string(img.Layers[0].DiffID) == "" {
		t.Fatalf("got %+v", img)
	}
	got, err := readLayer(t.Context(), img, 0)
	if err != nil || int64(len(got)) != img.Layers[0].Size {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if string(img.Layers[0].Blob) == string(img.Layers[0].DiffID) && string(got) != string(layer) {
		t.Error("other bytes")
	}
	// This server, too, goes on in the middle.
	r, err := c.Blob(img.Reference, img.Layers[0]).Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b := r.(*blobReader)
	b.body.Close()
	b.off = 1000
	if err := b.connect(); err != nil {
		t.Fatal(err)
	}
	rest := make([]byte, 100)
	if _, err := b.Read(rest); err != nil || string(rest) != string(got[1000:1100]) {
		t.Errorf("resumed with other bytes: %v", err)
	}
	if !b.sources[0].state.ranges() {
		t.Error("its ranges were not understood")
	}
	_, err = c.Resolve(t.Context(), mustParse(t, host+"/library/debian:13"), Platform{})
	wantFault(t, err, fault.NotFound, "manifest for "+host+"/library/debian:13 not found: manifest unknown", "imgfs tags")
}

func TestDistributionHtpasswd(t *testing.T) {
	t.Parallel()
	// htpasswd -Bbn -C 5 imgfs secret
	const line = "imgfs:$2y$05$TT/VtlVURoWcJeIcKJ/DuuFj7Y8jZH6.dx3aiWOcQCgTSc2.b1KG2"
	file := filepath.Join(t.TempDir(), "htpasswd")
	writeFile(t, file, line+"\n")
	host := imgtest.Distribution(t, "", "auth:\n  htpasswd:\n    realm: test\n    path: "+file+"\n")
	dir, _ := layout(t)
	push(t, dir, host+"/x:1", "--dest-creds=imgfs:secret")

	_, err := New(options(t)).Resolve(t.Context(), mustParse(t, host+"/x:1"), Platform{})
	wantFault(t, err, fault.Denied, "pull access denied for "+host+"/x, repository does not exist or may require 'docker login'", "imgfs login "+host)

	o := options(t)
	writeFile(t, filepath.Join(o.Auth.RuntimeDir, "containers", "auth.json"), `{"auths":{"`+host+`":{"auth":"`+b64("imgfs:secret")+`"}}}`)
	img := mustResolve(t, New(o), host+"/x:1")
	if _, err := readLayer(t.Context(), img, 0); err != nil {
		t.Error(err)
	}
	writeFile(t, filepath.Join(o.Auth.RuntimeDir, "containers", "auth.json"), `{"auths":{"`+host+`":{"auth":"`+b64("imgfs:wrong")+`"}}}`)
	_, err = New(o).Resolve(t.Context(), mustParse(t, host+"/x:1"), Platform{})
	wantFault(t, err, fault.Denied, "pull access denied", "")
}

// TLS by a CA of our own, which wants a client certificate as well.
func TestDistributionTLS(t *testing.T) {
	t.Parallel()
	keys := t.TempDir()
	ca := authority(t, keys)
	ca.issue(t, "server", x509.ExtKeyUsageServerAuth)
	ca.issue(t, "client", x509.ExtKeyUsageClientAuth)
	host := imgtest.Distribution(t, "  tls:\n    certificate: "+keys+"/server.cert\n    key: "+keys+"/server.key\n    clientcas:\n      - "+keys+"/ca.crt\n", "")
	dir, _ := layout(t)
	certs := t.TempDir()
	for _, n := range []string{"client.cert", "client.key"} {
		b, err := os.ReadFile(filepath.Join(keys, n))
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(certs, n), string(b))
	}
	push(t, dir, host+"/x:1", "--dest-cert-dir="+certs)

	try := func(name, toml string, docker bool) error {
		o := options(t)
		o.CertsDirs = []string{t.TempDir()}
		into := filepath.Join(o.CertsDirs[0], host)
		if docker {
			if err := os.CopyFS(into, os.DirFS(keys)); err != nil {
				t.Fatal(err)
			}
		} else if toml != "" {
			writeFile(t, filepath.Join(into, "hosts.toml"), strings.ReplaceAll(toml, "DIR", keys))
		}
		img, err := New(o).Resolve(t.Context(), mustParse(t, host+"/x:1"), Platform{})
		if err == nil {
			_, err = readLayer(t.Context(), img, 0)
		}
		return err
	}
	for name, toml := range map[string]string{
		"pair":      "ca = \"DIR/ca.crt\"\nclient = [[\"DIR/client.cert\", \"DIR/client.key\"]]\n",
		"as a host": "[host.\"https://" + host + "\"]\nca = [\"DIR/ca.crt\"]\nclient = [[\"DIR/client.cert\", \"DIR/client.key\"]]\n",
	} {
		if err := try(name, toml, false); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := try("as docker", "", true); err != nil {
		t.Errorf("as docker: %v", err)
	}
	wantFault(t, try("no CA", "", false), fault.Network, "certificate signed by unknown authority", "ca.crt")
	wantFault(t, try("no client certificate", "ca = \"DIR/ca.crt\"\n", false), fault.Network, "remote error: tls: ", "client.cert")
}

// signer is a CA in a directory.
type signer struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func authority(t *testing.T, dir string) *signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, dir+"/ca.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	return &signer{dir, cert, key}
}

// issue writes NAME.cert and NAME.key.
func (s *signer) issue(t *testing.T, name string, use x509.ExtKeyUsage) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{use},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, s.cert, key.Public(), s.key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(s.dir, name+".cert"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	writeFile(t, filepath.Join(s.dir, name+".key"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})))
}

package daemon

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/fs"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// pushTo puts an image of layers, each a text for imgtest.Tar, into
// registries that are open to pushes.
func pushTo(t testing.TB, name, tag string, layers []string, registries ...*imgtest.Registry) *imgtest.Image {
	t.Helper()
	var streams [][]byte
	for _, text := range layers {
		b, err := imgtest.Tar(text)
		if err != nil {
			t.Fatal(err)
		}
		streams = append(streams, b)
	}
	return pushLayers(t, name, tag, streams, registries...)
}

// pushLayers is pushTo with layers as tar streams.
func pushLayers(t testing.TB, name, tag string, layers [][]byte, registries ...*imgtest.Registry) *imgtest.Image {
	t.Helper()
	img, err := imgtest.NewImage(imgtest.ImageSpec{Layers: layers})
	if err != nil {
		t.Fatal(err)
	}
	for _, reg := range registries {
		for _, b := range append(img.Layers, img.Config) {
			reg.PutBlob(t, b.Data)
		}
		reg.PutManifest(t, name, tag, img.Manifest.MediaType, img.Manifest.Data)
		reg.Forget()
	}
	return img
}

// TestIdentityToken pulls with what docker sends after a login that gave an
// identity token: the user's name, no password, and the token.
func TestIdentityToken(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	d := runDaemon(t, Options{})
	for _, tt := range []struct {
		name, auth string
		ok         bool
	}{
		{"with a name", `{"username":"u","password":"","identitytoken":"idt","serveraddress":"%s"}`, true},
		{"alone", `{"identitytoken":"idt"}`, true},
		{"as a password", `{"username":"<token>","password":"idt"}`, true},
		{"another", `{"username":"u","identitytoken":"other"}`, false},
		{"none", `{"username":"u","password":"idt"}`, false},
	} {
		reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{Auth: "token", Username: "-", Identity: "idt"})
		pushTo(t, "x", "1", []string{"file a " + strings.ReplaceAll(tt.name, " ", "-")}, reg)
		auth := tt.auth
		if strings.Contains(auth, "%s") {
			auth = fmt.Sprintf(auth, reg.Host)
		}
		req := httptest.NewRequest(http.MethodPost, "/v1.50/images/create?fromImage="+reg.Host+"/x&tag=1", nil)
		req.Header.Set("X-Registry-Auth", base64.URLEncoding.EncodeToString([]byte(auth)))
		status, body := d.request(t, req)
		if ok := status == http.StatusOK && strings.Contains(body, "Downloaded newer image"); ok != tt.ok {
			t.Errorf("%s: %d %s", tt.name, status, body)
		}
		if !tt.ok && !strings.Contains(body, "pull access denied") {
			t.Errorf("%s: %d %s", tt.name, status, body)
		}
	}
}

// mirrored returns a reference, and options for its registry: a hosts.toml
// that has mirror asked first and origin behind it.
func mirrored(t testing.TB, mirror, origin *imgtest.Registry) engineapi.RegistryOptions {
	t.Helper()
	certs := t.TempDir()
	dir := filepath.Join(certs, "far.example")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("server = %q\n[host.%q]\ncapabilities = [\"pull\", \"resolve\"]\n", origin.URL, mirror.URL)
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return engineapi.RegistryOptions{CertsDir: certs}
}

// TestDamagedAtMirror is regressions 10 and 11 from end to end: a layer that
// comes damaged from one endpoint comes from the next, once, and is an
// integrity error only where that one has no better. Nothing is left then.
func TestDamagedAtMirror(t *testing.T) {
	d := runDaemon(t, Options{})
	for _, tt := range []struct {
		name           string
		mirror, origin imgtest.Fault
		ok             bool
	}{
		{"wrong bytes", imgtest.Fault{Flip: true}, imgtest.Fault{}, true},
		{"bytes too many", imgtest.Fault{Extra: 10}, imgtest.Fault{}, true},
		{"wrong bytes at both", imgtest.Fault{Flip: true}, imgtest.Fault{Flip: true}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			mirror := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
			origin := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
			img := pushTo(t, "x", "1", []string{"file a " + fmt.Sprintf("%q", tt.name) + "\nfile b size=5000"}, mirror, origin)
			for reg, f := range map[*imgtest.Registry]imgtest.Fault{mirror: tt.mirror, origin: tt.origin} {
				if f.Flip || f.Extra > 0 {
					f.On, f.Match = imgtest.KindBlob, img.Layers[0].Digest
					reg.Inject(f)
				}
			}
			ctx := testContext(t)
			res, err := d.client.Pull(ctx, engineapi.PullRequest{Reference: "far.example/x:1", Registry: mirrored(t, mirror, origin)}, nil)
			if tt.ok && (err != nil || string(res.ImageID) != img.Config.Digest) {
				t.Errorf("got %+v, %v", res, err)
			}
			if !tt.ok && fault.KindOf(err) != fault.Integrity {
				t.Errorf("got %v, want an integrity error", err)
			}
			if n := origin.Count(imgtest.KindBlob); n != 1 {
				t.Errorf("%d blobs from the origin, want the layer alone", n)
			}
			diff := strings.TrimPrefix(img.DiffIDs[0], "sha256:")
			if _, err := os.Stat(filepath.Join(d.Root, "layers", diff)); (err == nil) != tt.ok {
				t.Errorf("the layer: %v", err)
			}
			if left, err := os.ReadDir(filepath.Join(d.Root, "tmp")); err != nil || len(left) > 0 {
				t.Errorf("left: %v %v", left, err)
			}
		})
	}
	if _, err := d.client.Ping(testContext(t)); err != nil {
		t.Error(err)
	}
}

// TestUpToDate is regression 16: a tag that names what is known costs one
// HEAD, a digest nothing at all, and a tag that moved or is new the manifest and
// what is new of it.
func TestUpToDate(t *testing.T) {
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	img := pushTo(t, "x", "1", []string{"file a one"}, reg)
	d := runDaemon(t, Options{})
	pull := func(ref string, upToDate bool, head, manifest, blob int) {
		t.Helper()
		res, err := d.client.Pull(testContext(t), engineapi.PullRequest{Reference: ref}, nil)
		if err != nil || res.UpToDate != upToDate {
			t.Errorf("%s: %+v %v", ref, res, err)
		}
		h, m, b := reg.Count(imgtest.KindHead), reg.Count(imgtest.KindManifest), reg.Count(imgtest.KindBlob)
		if h != head || m != manifest || b != blob {
			t.Errorf("%s: %d HEAD, %d manifests, %d blobs; want %d, %d, %d", ref, h, m, b, head, manifest, blob)
		}
		if n := reg.Count(); n != head+manifest+blob {
			t.Errorf("%s: %d requests in all", ref, n)
		}
		reg.Forget()
	}
	pull(reg.Host+"/x:1", false, 0, 1, 2)
	pull(reg.Host+"/x:1", true, 1, 0, 0)
	pull(reg.Host+"/x@"+img.Manifest.Digest, true, 0, 0, 0)
	pushTo(t, "x", "1", []string{"file a one", "file b two"}, reg)
	pull(reg.Host+"/x:1", false, 1, 1, 2) // asked if it moved, then resolved
}

// request sends req to the daemon as any HTTP client would.
func (r *running) request(t testing.TB, req *http.Request) (status int, body string) {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", r.Socket)
	}}
	defer transport.CloseIdleConnections()
	req.URL.Scheme, req.URL.Host, req.RequestURI = "http", "imgfs", ""
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// TestForms pulls and mounts the same tree in every form that layers and
// manifests have.
func TestForms(t *testing.T) {
	needFUSE(t)
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	p := newStore(t)
	c := spawned(t, p)
	ctx := testContext(t)
	layers := imgtest.Tree(1, 300, 3)
	want := ""
	for _, compression := range []string{"none", "gzip", "gzip-members", "zstd", "zstd-frames"} {
		for _, docker := range []bool{false, true} {
			img, err := imgtest.NewImage(imgtest.ImageSpec{Layers: layers, Compression: compression, Docker: docker})
			if err != nil {
				t.Fatal(err)
			}
			if err := img.Push(ctx, reg.Host, "forms/x", compression); err != nil {
				t.Fatal(err)
			}
			ref := reg.Host + "/forms/x@" + img.Manifest.Digest
			dir := mountDir(t)
			m, err := mountAs(ctx, c, ref, dir)
			if err != nil {
				t.Errorf("%s, docker's %v: %v", compression, docker, err)
				continue
			}
			got := listDir(t, dir)
			if want == "" {
				want = got
			}
			if got != want || strings.Count(got, "\n") < 300 {
				t.Errorf("%s, docker's %v: another tree of %d entries", compression, docker, strings.Count(got, "\n"))
			}
			if err := fs.Unmount(dir, false); err != nil {
				t.Fatal(err)
			}
			if err := c.WaitGone(ctx, m.ID); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Remove(ctx, ref, engineapi.RemoveOptions{Force: true}); err != nil { // or the next would find the layers
				t.Fatal(err)
			}
			if _, err := c.GC(ctx); err != nil {
				t.Fatal(err)
			}
			if left, err := os.ReadDir(filepath.Join(p.Root, "layers")); err != nil || len(left) > 0 {
				t.Fatalf("layers left: %v %v", left, err)
			}
		}
	}
}

package fetch

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
)

const blobSize = 300_000

// oneLayer returns a registry with an image of one layer, resolved.
func oneLayer(t *testing.T, ro imgtest.RegistryOptions, o Options) (*imgtest.Registry, *Image, []byte) {
	t.Helper()
	reg := imgtest.NewRegistry(t, ro)
	layer := noise(blobSize)
	makeImage(t, reg, "x", "1", "", layer)
	if ro.TLS {
		o.CertsDirs = []string{hostsFile(t, reg.Host, `ca = "ca.pem"`)}
		writeFile(t, o.CertsDirs[0]+"/"+reg.Host+"/ca.pem", string(reg.CA))
	}
	img := mustResolve(t, New(o), reg.Host+"/x:1")
	reg.Forget()
	return reg, img, layer
}

// TestBlobResumes: whatever happens to a transfer, the bytes come out right.
func TestBlobResumes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		faults []imgtest.Fault
		blobs  int // requests it may take; 0 = not counted
		ranges int // of them with Range
	}{
		{"nothing wrong", nil, 1, 0},
		{"ends early, right Content-Length", []imgtest.Fault{{Short: 100_000, Times: 1}}, 2, 1},
		{"ends early three times", []imgtest.Fault{{Short: 70_000, Times: 3}}, 4, 3},
		{"reset", []imgtest.Fault{{Short: 100_001, Reset: true, Times: 1}}, 0, 0},
		{"nothing but a header", []imgtest.Fault{{Empty: true, Times: 2}}, 3, 0},
		{"stall", []imgtest.Fault{{Short: 100_000, Stall: true, Times: 1}}, 2, 1},
		{"range ignored", []imgtest.Fault{{Short: 100_000, Times: 1}, {IgnoreRange: true, Times: 1}}, 2, 1},
		{"range ignored, and cut again", []imgtest.Fault{{Short: 100_000, Times: 1}, {IgnoreRange: true, Short: 200_000, Times: 1}}, 3, 1},
		{"range ignored, and cut before the place", []imgtest.Fault{{Short: 100_000, Times: 1}, {IgnoreRange: true, Short: 50_000, Times: 2}}, 4, 1},
		{"wrong start", []imgtest.Fault{{Short: 100_000, Times: 1}, {ContentRange: "bytes 5-299999/300000", Times: 1}}, 3, 1},
		{"wrong total", []imgtest.Fault{{Short: 100_000, Times: 1}, {ContentRange: "bytes 100000-299999/300001", Times: 1}}, 3, 1},
		{"no total", []imgtest.Fault{{Short: 100_000, Times: 1}, {ContentRange: "bytes 100000-299999/*", Times: 1}}, 2, 1},
		{"nonsense range", []imgtest.Fault{{Short: 100_000, Times: 1}, {ContentRange: "100000-", Times: 1}}, 3, 1},
		{"416", []imgtest.Fault{{Short: 100_000, Times: 1}, {Status: 416, Times: 1}}, 3, 1},
		{"400 to a range", []imgtest.Fault{{Short: 100_000, Times: 1}, {Status: 400, Times: 1}}, 3, 1},
		{"500 in between", []imgtest.Fault{{Short: 100_000, Times: 1}, {Status: 500, Times: 2}}, 4, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o := options(t)
			o.Stall = time.Second
			reg, img, layer := oneLayer(t, imgtest.RegistryOptions{}, o)
			for _, f := range c.faults {
				f.On = imgtest.KindBlob
				reg.Inject(f)
			}
			wantLayer(t, img, 0, layer)
			got := reg.Requests(imgtest.KindBlob)
			ranges := 0
			for _, q := range got {
				if q.Header.Get("Range") != "" {
					ranges++
				}
			}
			if c.blobs != 0 && (len(got) != c.blobs || ranges != c.ranges) {
				t.Errorf("%d requests, %d with Range; want %d, %d", len(got), ranges, c.blobs, c.ranges)
			}
		})
	}
}

// TestBlobFails: where the bytes cannot be had, there is an error, never an
// end of file.
func TestBlobFails(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		fault imgtest.Fault
		kind  fault.Kind
		text  string
	}{
		{"always cut", imgtest.Fault{Short: 10}, fault.Network, "transfer broke at byte"},
		{"stalls for ever", imgtest.Fault{Empty: true, Stall: true}, fault.Network, "no data for too long"},
		{"too long", imgtest.Fault{Extra: 1}, fault.Integrity, "it has 300001 bytes, the manifest says 300000"},
		{"gone", imgtest.Fault{Status: 404}, fault.NotFound, "blob unknown"},
		{"forbidden", imgtest.Fault{Status: 403}, fault.Denied, "pull access denied"},
		{"down", imgtest.Fault{Status: 503}, fault.Network, "503"},
		{"no content", imgtest.Fault{Status: 204}, fault.Integrity, "status 204"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o := options(t)
			o.Stall = 200 * time.Millisecond
			reg, img, _ := oneLayer(t, imgtest.RegistryOptions{}, o)
			c.fault.On = imgtest.KindBlob
			reg.Inject(c.fault)
			got, err := readLayer(t.Context(), img, 0)
			if len(got) >= blobSize {
				t.Errorf("%d bytes came out", len(got))
			}
			wantFault(t, err, c.kind, c.text, "")
		})
	}
}

// A blob without Content-Length is counted while it comes.
func TestBlobOfUnknownLength(t *testing.T) {
	t.Parallel()
	for extra, want := range map[int]string{0: "", 1: "longer than the 300000 bytes"} {
		layer := noise(blobSize)
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush() // chunked
			w.Write(layer)
			w.Write(make([]byte, extra))
		}))
		defer srv.Close()
		c := New(options(t))
		ref := mustParse(t, strings.TrimPrefix(srv.URL, "http://")+"/x:1")
		r, err := c.Blob(ref, Layer{Blob: id.BlobOf(layer), Size: blobSize}).Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		r.Close()
		if want == "" {
			if err != nil || len(b) != blobSize {
				t.Errorf("%d bytes, %v", len(b), err)
			}
			continue
		}
		wantFault(t, err, fault.Integrity, want, "")
	}
}

func TestBlobCanceled(t *testing.T) {
	t.Parallel()
	reg, img, _ := oneLayer(t, imgtest.RegistryOptions{}, options(t))
	reg.Inject(imgtest.Fault{On: imgtest.KindBlob, Short: 100, Stall: true})
	ctx, cancel := context.WithCancel(t.Context())
	r, err := img.Open(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadFull(r, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if n, err := r.Read(make([]byte, 1)); n != 0 || fault.KindOf(err) != fault.Canceled {
		t.Errorf("%d, %v", n, err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func TestReadAfterClose(t *testing.T) {
	t.Parallel()
	_, img, _ := oneLayer(t, imgtest.RegistryOptions{}, options(t))
	r, err := img.Open(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	if n, err := r.Read(make([]byte, 1)); n != 0 || err == nil || err == io.EOF {
		t.Errorf("%d, %v", n, err)
	}
}

// Regression 3: a signed link that has run out is renewed at the registry.
// Regressions 13, 18: and nothing of the registry's goes to the other host.
func TestRedirectToCDN(t *testing.T) {
	t.Parallel()
	ro := imgtest.RegistryOptions{CDN: true, Auth: "basic", Username: "u", Password: "p"}
	for _, tls := range []bool{false, true} {
		ro.TLS = tls
		o := options(t)
		o.Auth.Username, o.Auth.Password = "u", "p"
		reg, img, layer := oneLayer(t, ro, o)
		wantLayer(t, img, 0, layer)
		wantCounts(t, reg, map[imgtest.Kind]int{imgtest.KindBlob: 1, imgtest.KindCDN: 1})
		for _, status := range []int{400, 401, 403, 410} {
			reg.Forget()
			reg.Inject(imgtest.Fault{On: imgtest.KindCDN, Status: status, Times: 1})
			wantLayer(t, img, 0, layer)
			wantCounts(t, reg, map[imgtest.Kind]int{imgtest.KindBlob: 1, imgtest.KindCDN: 2})
		}
		reg.Forget()
		reg.Inject(imgtest.Fault{On: imgtest.KindCDN, Short: 1000, Times: 1})
		wantLayer(t, img, 0, layer)
		cdn := reg.Requests(imgtest.KindCDN)
		if len(cdn) != 2 || cdn[1].Header.Get("Range") != "bytes=1000-299999" {
			t.Errorf("range lost at the redirect: %v", cdn[len(cdn)-1].Header)
		}
		for _, q := range cdn {
			if q.Header.Get("Referer") != "" {
				t.Error("Referer sent")
			}
		}
		reg.Inject(imgtest.Fault{On: imgtest.KindCDN, Status: 403})
		_, err := readLayer(t.Context(), img, 0)
		if err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("got %v", err)
		}
	}
}

// net/http alone would hand Authorization on to a subdomain, and every
// configured header to anybody.
func TestRedirectToSubdomain(t *testing.T) {
	t.Parallel()
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{Auth: "basic", Username: "u", Password: "p"})
	cdn := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	layer := noise(100)
	makeImage(t, reg, "x", "1", "", layer)
	makeImage(t, cdn, "x", "1", "", layer)
	_, regPort, _ := strings.Cut(reg.Host, ":")
	_, cdnPort, _ := strings.Cut(cdn.Host, ":")
	reg.Inject(imgtest.Fault{On: imgtest.KindBlob, Skip: 1, Location: "http://cdn.localhost:" + cdnPort + "/v2/x/blobs/" + string(id.BlobOf(layer))})
	o := options(t)
	o.Auth.Username, o.Auth.Password = "u", "p"
	o.CertsDirs = []string{hostsFile(t, "localhost:"+regPort, "[header]\nX-Secret = \"s\"\nCookie = \"c=d\"\n")}
	o.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		_, port, _ := net.SplitHostPort(addr)
		return (&net.Dialer{}).DialContext(ctx, network, "127.0.0.1:"+port)
	}
	wantLayer(t, mustResolve(t, New(o), "localhost:"+regPort+"/x:1"), 0, layer)
	if got := reg.Requests(imgtest.KindBlob); got[0].Header.Get("X-Secret") == "" || got[0].Header.Get("Authorization") == "" {
		t.Error("the registry itself was not sent what it should be")
	}
	for _, q := range cdn.Requests() {
		for _, k := range []string{"Authorization", "Cookie", "X-Secret", "Referer"} {
			if q.Header.Get(k) != "" {
				t.Errorf("%s sent to another host", k)
			}
		}
	}
}

// Regression 18.
func TestNoDowngradeByRedirect(t *testing.T) {
	t.Parallel()
	o := options(t)
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{TLS: true, CDN: true, CDNPlain: true})
	makeImage(t, reg, "x", "1", "", noise(10))
	dir := hostsFile(t, reg.Host, `ca = "ca.pem"`)
	writeFile(t, dir+"/"+reg.Host+"/ca.pem", string(reg.CA))
	o.CertsDirs = []string{dir}
	_, err := New(o).Resolve(t.Context(), mustParse(t, reg.Host+"/x:1"), Platform{})
	wantFault(t, err, fault.Network, "redirect from https to http refused", "set up wrongly")
	wantCounts(t, reg, map[imgtest.Kind]int{imgtest.KindCDN: 0})
}

// Regression 18: ten redirects are followed, eleven are not.
func TestRedirectLimit(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]string{10: "", 11: "more than 10 redirects"} {
		reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
		m := makeImage(t, reg, "x", "1", "")
		reg.Inject(imgtest.Fault{On: imgtest.KindHead, Times: n, Location: "/v2/x/manifests/1"})
		d, err := New(options(t)).Head(t.Context(), mustParse(t, reg.Host+"/x:1"))
		if want == "" {
			if err != nil || d != m.digest {
				t.Errorf("%d redirects: %v", n, err)
			}
			continue
		}
		wantFault(t, err, fault.Network, want, "")
	}
}

// Regression 17.
func TestForeignLayers(t *testing.T) {
	t.Parallel()
	layer := noise(1000)
	served := map[string][]byte{"/good": layer, "/short": layer[:999], "/long": append(layer[:1000:1000], 0)}
	var leaked bool
	var asked []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		leaked = leaked || r.Header.Get("Authorization") != ""
		asked = append(asked, r.URL.Path)
		if b, ok := served[r.URL.Path]; ok {
			w.Write(b)
			return
		}
		http.NotFound(w, r)
	}))
	defer srv.Close()
	for _, c := range []struct {
		name   string
		urls   []string
		inside bool // the registry has it, too
		kind   fault.Kind
		text   string
	}{
		{"registry first", []string{srv.URL + "/gone"}, true, 0, ""},
		{"by URL", []string{srv.URL + "/good"}, false, 0, ""},
		{"second URL", []string{srv.URL + "/gone", srv.URL + "/short", srv.URL + "/good"}, false, 0, ""},
		{"wrong schemes", []string{"file:///etc/passwd", "ftp://x/y", "http://u:p@" + srv.Listener.Addr().String() + "/good"}, false, fault.NotFound, "blob unknown"},
		{"too short", []string{srv.URL + "/short"}, false, fault.Integrity, "999 bytes"},
		{"too long", []string{srv.URL + "/long"}, false, fault.Integrity, "1001 bytes"},
		{"gone", []string{srv.URL + "/gone"}, false, fault.NotFound, "not found"},
	} {
		t.Run(c.name, func(t *testing.T) {
			leaked, asked = false, nil
			reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{Auth: "basic", Username: "u", Password: "p"})
			conf := mustJSON(t, map[string]any{"os": "linux", "architecture": "amd64",
				"rootfs": map[string]any{"type": "layers", "diff_ids": []id.Blob{id.BlobOf(layer)}}})
			m := v1.Manifest{SchemaVersion: 2, MediaType: types.DockerManifestSchema2,
				Config: v1.Descriptor{MediaType: types.DockerConfigJSON, Size: int64(len(conf)), Digest: hashOf(reg.PutBlob(t, conf))},
				Layers: []v1.Descriptor{{MediaType: types.DockerForeignLayer, Size: 1000, Digest: hashOf(id.BlobOf(layer)), URLs: c.urls}}}
			reg.PutManifest(t, "x", "1", typeSchema2, mustJSON(t, m))
			if c.inside {
				reg.PutBlob(t, layer)
			}
			o := options(t)
			o.Auth.Username, o.Auth.Password = "u", "p"
			img := mustResolve(t, New(o), reg.Host+"/x:1")
			if c.text == "" {
				wantLayer(t, img, 0, layer)
			} else {
				_, err := readLayer(t.Context(), img, 0)
				wantFault(t, err, c.kind, c.text, "")
			}
			if leaked {
				t.Error("credentials sent to the URL")
			}
			if c.inside && len(asked) > 0 {
				t.Errorf("asked for %v though the registry has it", asked)
			}
		})
	}
}

// Regressions 10 and 11: who got wrong bytes opens again, and is served by
// somebody else.
func TestReopenTakesAnotherEndpoint(t *testing.T) {
	t.Parallel()
	origin := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	mirror := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	layer := noise(5000)
	makeImage(t, origin, "library/x", "1", "", layer)
	makeImage(t, mirror, "library/x", "1", "", layer)
	o := options(t)
	o.CertsDirs = []string{hostsFile(t, "docker.io", "server = \""+origin.URL+"\"\n[host.\""+mirror.URL+"\"]\ncapabilities = [\"pull\", \"resolve\"]\n")}
	img := mustResolve(t, New(o), "x:1")
	mirror.Inject(imgtest.Fault{On: imgtest.KindBlob, Flip: true})
	got, err := readLayer(t.Context(), img, 0)
	if err != nil || id.BlobOf(got) == img.Layers[0].Blob {
		t.Fatalf("the mirror's bytes are right: %v", err)
	}
	wantLayer(t, img, 0, layer)
	if origin.Count(imgtest.KindBlob) != 1 {
		t.Errorf("the origin served %d blobs", origin.Count(imgtest.KindBlob))
	}
}

// A mirror that breaks off for good is followed by the next, which goes on
// where it stopped.
func TestResumeAtNextEndpoint(t *testing.T) {
	t.Parallel()
	origin := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	mirror := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	layer := noise(5000)
	makeImage(t, origin, "library/x", "1", "", layer)
	makeImage(t, mirror, "library/x", "1", "", layer)
	o := options(t)
	o.CertsDirs = []string{hostsFile(t, "docker.io", "server = \""+origin.URL+"\"\n[host.\""+mirror.URL+"\"]\n")}
	img := mustResolve(t, New(o), "x:1")
	mirror.Inject(imgtest.Fault{On: imgtest.KindBlob, Short: 2000, Times: 1})
	mirror.Inject(imgtest.Fault{On: imgtest.KindBlob, Status: 500})
	wantLayer(t, img, 0, layer)
	if got := origin.Requests(imgtest.KindBlob); len(got) != 1 || got[0].Header.Get("Range") != "bytes=2000-4999" {
		t.Errorf("the origin was asked %v", got)
	}
}

// A manifest's URLs are its author's word: plain http is spoken to them where
// it is to a registry, on loopback or with --insecure.
func TestForeignPlain(t *testing.T) {
	t.Parallel()
	for _, insecure := range []bool{false, true} {
		d := dialer{}
		o := options(t)
		o.Dial, o.Insecure, o.MaxRetry = d.dial, insecure, -1
		c := New(o)
		s, ok := c.foreign("http://cdn.test/layer")
		if ok != insecure {
			t.Errorf("insecure %t: http://cdn.test is a source: %t", insecure, ok)
		}
		if ok {
			s.get(t.Context(), nil, manner{})
		}
		if got := d.refused(); len(got) > 0 != insecure {
			t.Errorf("insecure %t: dialled %v", insecure, got)
		}
		if _, ok := c.foreign("http://127.0.0.1:1/layer"); !ok {
			t.Errorf("insecure %t: loopback is no source", insecure)
		}
	}
}

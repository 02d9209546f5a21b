package fetch

import (
	"bytes"
	"context"
	"io"
	"slices"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
)

func opener(b []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
}

func pushBlob(ctx context.Context, c *Client, ref Reference, b []byte, from string) error {
	_, err := c.PushBlob(ctx, ref, id.BlobOf(b), int64(len(b)), opener(b), from)
	return err
}

// TestPushBlob: whatever happens to an upload, the blob is there in the end,
// once.
func TestPushBlob(t *testing.T) {
	t.Parallel()
	small, big := noise(1000), noise(5<<20)
	for _, c := range []struct {
		name    string
		blob    []byte
		faults  []imgtest.Fault
		uploads int // requests
	}{
		{"small", small, nil, 2},
		{"empty", []byte{}, nil, 2},
		{"big", big, nil, 2},
		{"begin fails", small, []imgtest.Fault{{Status: 503, Times: 2}}, 4},
		{"end fails", small, []imgtest.Fault{{Skip: 1, Status: 500, Times: 1}}, 4},
		{"forgotten", small, []imgtest.Fault{{Skip: 1, Status: 404, Times: 1}}, 4},
		{"big fails", big, []imgtest.Fault{{Skip: 1, Status: 502, Times: 1}}, 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
			for _, f := range c.faults {
				f.On = imgtest.KindUpload
				reg.Inject(f)
			}
			client, ref := New(options(t)), mustParse(t, reg.Host+"/lib/x:1")
			for range 2 {
				if err := pushBlob(t.Context(), client, ref, c.blob, ""); err != nil {
					t.Fatal(err)
				}
			}
			if n := reg.Count(imgtest.KindUpload); n != c.uploads {
				t.Errorf("%d requests, want %d", n, c.uploads)
			}
			got, err := client.FetchBlob(t.Context(), ref, id.BlobOf(c.blob), int64(len(c.blob)))
			if err != nil || !bytes.Equal(got, c.blob) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
}

func TestPushMounts(t *testing.T) {
	t.Parallel()
	for _, no := range []bool{false, true} {
		reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{NoMount: no})
		client, ref := New(options(t)), mustParse(t, reg.Host+"/lib/x:1")
		blob := noise(5000)
		if err := pushBlob(t.Context(), client, ref, blob, "lib/other"); err != nil {
			t.Fatal(err)
		}
		if q := reg.Requests(imgtest.KindUpload)[0]; q.URL.Query().Get("from") != "lib/other" {
			t.Errorf("asked for %s", q.URL)
		}
		if _, err := client.FetchBlob(t.Context(), ref, id.BlobOf(blob), 5000); err != nil {
			t.Error(err)
		}
	}
}

func TestPushRefused(t *testing.T) {
	t.Parallel()
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{Auth: "basic", Username: "u", Password: "p"})
	ref := mustParse(t, reg.Host+"/x:1")
	o := options(t)
	o.MaxRetry = 1
	c := New(o)
	denied := "push access denied for " + reg.Host + "/x: requested access to the resource is denied"
	wantFault(t, pushBlob(t.Context(), c, ref, noise(10), ""), fault.Denied, denied, "imgfs login "+reg.Host)
	_, err := c.PushManifest(t.Context(), ref, typeManifest, []byte("{}"))
	wantFault(t, err, fault.Denied, denied, "imgfs login")
	o.Auth.Username, o.Auth.Password, o.Stall = "u", "p", 200*time.Millisecond
	c = New(o)
	if err := pushBlob(t.Context(), c, ref, noise(10), ""); err != nil {
		t.Error(err)
	}
	reg.Inject(imgtest.Fault{On: imgtest.KindUpload, Status: 500})
	wantFault(t, pushBlob(t.Context(), c, ref, noise(11), ""), fault.Network, "500", "")
	reg.Heal()
	reg.Inject(imgtest.Fault{On: imgtest.KindUpload, Status: 202, Header: map[string]string{"Location": ""}})
	wantFault(t, pushBlob(t.Context(), c, ref, noise(11), ""), fault.Network, "does not say where to upload to", "")
	_, err = c.PushManifest(t.Context(), ref.At(someDigest), typeManifest, []byte("{}"))
	wantFault(t, err, fault.Integrity, "not "+someDigest, "")
	wantFault(t, pushBlob(t.Context(), c, mustParse(t, "oci:/x"), nil, ""), fault.Invalid, "only a registry", "")
}

// A token to pull with is exchanged for one to push with.
func TestPushToken(t *testing.T) {
	t.Parallel()
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{Auth: "token", Username: "u", Password: "p"})
	o := options(t)
	o.Auth.Username, o.Auth.Password = "u", "p"
	c, ref := New(o), mustParse(t, reg.Host+"/x:1")
	if err := pushBlob(t.Context(), c, ref, noise(10), ""); err != nil {
		t.Fatal(err)
	}
	reg.ExpireTokens()
	if err := pushBlob(t.Context(), c, ref, noise(5<<20), ""); err != nil {
		t.Fatal(err)
	}
	var scopes []string
	for _, q := range reg.Requests(imgtest.KindToken) {
		scopes = append(scopes, q.URL.Query().Get("scope"))
	}
	if !slices.Contains(scopes, "repository:x:pull") {
		t.Errorf("scopes %q", scopes)
	}
}

// artifactOf makes an artifact as one is pushed beside an image.
func artifactOf(t *testing.T, c *Client, ref Reference, subject id.Blob, artifactType, note string) ([]byte, id.Blob) {
	t.Helper()
	blob := []byte("{}")
	if err := pushBlob(t.Context(), c, ref, blob, ""); err != nil {
		t.Fatal(err)
	}
	d := v1.Descriptor{MediaType: "application/vnd.oci.empty.v1+json", Size: 2, Digest: hashOf(id.BlobOf(blob))}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: artifactType, Config: d, Layers: []v1.Descriptor{d},
		Annotations: map[string]string{"note": note},
		Subject:     &v1.Descriptor{MediaType: types.OCIManifestSchema1, Size: 5, Digest: hashOf(subject)}}
	raw := mustJSON(t, m)
	return raw, id.BlobOf(raw)
}

// exchangeReferrers pushes, lists, gets and deletes artifacts.
func exchangeReferrers(t *testing.T, host string, o Options, image id.Blob, api, deletes bool) {
	t.Helper()
	c, ref := New(o), mustParse(t, host+"/lib/x:1")
	list := func(artifactType string) (notes []string) {
		t.Helper()
		// Another client does not know what this one did.
		all, err := New(o).Referrers(t.Context(), ref, image, artifactType)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range all {
			if d.MediaType != typeManifest || d.Size == 0 || d.Digest == "" {
				t.Errorf("got %+v", d)
			}
			if d.ArtifactType == artifactType || artifactType == "" {
				notes = append(notes, d.Annotations["note"])
			}
		}
		slices.Sort(notes)
		return notes
	}
	if got := list("a/b"); len(got) != 0 {
		t.Errorf("referrers before any was pushed: %v", got)
	}
	var last id.Blob
	for i, kind := range []string{"a/b", "a/c", "a/b"} {
		note := string(rune('1' + i))
		raw, digest := artifactOf(t, c, ref, image, kind, note)
		for range 2 { // the second time changes nothing
			kept, err := c.PushManifest(t.Context(), ref.At(digest), typeManifest, raw)
			if err != nil || kept != api {
				t.Fatalf("kept %v, %v", kept, err)
			}
		}
		got, mediaType, err := c.FetchManifest(t.Context(), ref, digest)
		if err != nil || !bytes.Equal(got, raw) || mediaType != typeManifest {
			t.Errorf("got %s %q, %v", mediaType, got, err)
		}
		last = digest
	}
	for kind, want := range map[string][]string{"": {"1", "2", "3"}, "a/b": {"1", "3"}, "a/c": {"2"}, "a/d": nil} {
		if got := list(kind); !slices.Equal(got, want) {
			t.Errorf("referrers of type %q: %q, want %q", kind, got, want)
		}
	}
	if err := c.DeleteManifest(t.Context(), ref, last); err != nil {
		t.Fatal(err)
	}
	if got := list(""); !slices.Equal(got, []string{"1", "2"}) {
		t.Errorf("referrers after one was deleted: %q", got)
	}
	if _, _, err := c.FetchManifest(t.Context(), ref, last); deletes != (fault.KindOf(err) == fault.NotFound) {
		t.Errorf("fetched what was deleted: %v", err)
	}
}

func TestReferrers(t *testing.T) {
	t.Parallel()
	for _, ro := range []imgtest.RegistryOptions{{}, {FilterRefs: true}, {ReferrersPage: 1}, {ReferrersPage: 2, FilterRefs: true}, {NoReferrers: true}} {
		reg := imgtest.NewRegistry(t, ro)
		m := makeImage(t, reg, "lib/x", "1", "")
		exchangeReferrers(t, reg.Host, options(t), m.digest, !ro.NoReferrers, true)
		for _, q := range reg.Requests(imgtest.KindRefs) {
			if q.URL.Query().Get("artifactType") == "" && q.URL.Query().Get("from") == "" && q.URL.RawQuery != "" {
				t.Errorf("asked %s", q.URL)
			}
		}
	}
}

// A server without the API is asked for it once in a while, not each time; and
// pages that are answered to every path are no answer.
func TestReferrersAPIMissing(t *testing.T) {
	t.Parallel()
	for _, f := range []imgtest.Fault{{Status: 404}, {Status: 400}, {Status: 405}, {Status: 501}, {Status: 200, Body: "<html>welcome</html>"}, {Status: 200, Body: "{}"}} {
		reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
		m := makeImage(t, reg, "x", "1", "")
		f.On = imgtest.KindRefs
		reg.Inject(f)
		c := New(options(t))
		for range 3 {
			if list, err := c.Referrers(t.Context(), mustParse(t, reg.Host+"/x:1"), m.digest, "a/b"); err != nil || len(list) != 0 {
				t.Errorf("%v, %v", list, err)
			}
		}
		wantCounts(t, reg, map[imgtest.Kind]int{imgtest.KindRefs: 1, imgtest.KindManifest: 3})
	}
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	o := options(t)
	o.MaxRetry = -1
	ref := mustParse(t, reg.Host+"/x:1")
	reg.Inject(imgtest.Fault{On: imgtest.KindRefs, Status: 500})
	_, err := New(o).Referrers(t.Context(), ref, someDigest, "")
	wantFault(t, err, fault.Network, "500", "")
	reg.Inject(imgtest.Fault{On: imgtest.KindManifest, Status: 200, Body: `{"schemaVersion":2,"config":{}}`})
	reg.Inject(imgtest.Fault{On: imgtest.KindRefs, Status: 404})
	reg.Heal()
	reg.Inject(imgtest.Fault{On: imgtest.KindRefs, Status: 404})
	reg.Inject(imgtest.Fault{On: imgtest.KindManifest, Status: 200, Body: `{"schemaVersion":3}`})
	_, err = New(o).Referrers(t.Context(), ref, someDigest, "")
	wantFault(t, err, fault.Integrity, "manifest", "")
	if list, err := New(o).Referrers(t.Context(), mustParse(t, "oci:/x"), someDigest, ""); list != nil || err != nil {
		t.Errorf("%v, %v", list, err)
	}
}

// A mirror is asked for referrers if its hosts.toml lets it, and the registry
// behind it where the mirror knows of none.
func TestReferrersOfMirror(t *testing.T) {
	t.Parallel()
	for _, allowed := range []bool{false, true} {
		origin := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
		mirror := imgtest.NewRegistry(t, imgtest.RegistryOptions{NoReferrers: true})
		m := makeImage(t, origin, "x", "1", "")
		c := New(options(t))
		ref := mustParse(t, origin.Host+"/x:1")
		raw, digest := artifactOf(t, c, ref, m.digest, "a/b", "")
		if _, err := c.PushManifest(t.Context(), ref.At(digest), typeManifest, raw); err != nil {
			t.Fatal(err)
		}
		may := `"pull"`
		if allowed {
			may += `, "referrers"`
		}
		o := options(t)
		o.CertsDirs = []string{hostsFile(t, "example.com", "server = \""+origin.URL+"\"\n[host.\""+mirror.URL+"\"]\ncapabilities = ["+may+"]\n")}
		list, err := New(o).Referrers(t.Context(), mustParse(t, "example.com/x:1"), m.digest, "a/b")
		if err != nil || len(list) != 1 || list[0].Digest != digest {
			t.Errorf("%v, %v", list, err)
		}
		if asked := mirror.Count() > 0; asked != allowed {
			t.Errorf("mirror asked: %v", asked)
		}
	}
}

func TestFetchBlobRefuses(t *testing.T) {
	t.Parallel()
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	blob := noise(1000)
	d := reg.PutBlob(t, blob)
	c, ref := New(options(t)), mustParse(t, reg.Host+"/x:1")
	for _, size := range []int64{-1, maxFetched + 1} {
		_, err := c.FetchBlob(t.Context(), ref, d, size)
		wantFault(t, err, fault.Integrity, "bytes, more than", "")
	}
	_, err := c.FetchBlob(t.Context(), ref, d, 999)
	wantFault(t, err, fault.Integrity, "1000 bytes, the manifest says 999", "")
	reg.Inject(imgtest.Fault{On: imgtest.KindBlob, Flip: true, Times: 1})
	if got, err := c.FetchBlob(t.Context(), ref, d, 1000); err != nil || !bytes.Equal(got, blob) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	reg.Inject(imgtest.Fault{On: imgtest.KindBlob, Flip: true})
	_, err = c.FetchBlob(t.Context(), ref, d, 1000)
	wantFault(t, err, fault.Integrity, "blob verification failed for digest "+string(d), "")
	_, err = c.FetchBlob(t.Context(), ref, someDigest, 5)
	wantFault(t, err, fault.NotFound, "blob unknown", "")
}

// A server that takes nothing any more is left.
func TestPushStalls(t *testing.T) {
	t.Parallel()
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	reg.Inject(imgtest.Fault{On: imgtest.KindUpload, Skip: 1, Delay: time.Hour})
	o := options(t)
	o.Stall, o.MaxRetry = 200*time.Millisecond, -1
	err := pushBlob(t.Context(), New(o), mustParse(t, reg.Host+"/x:1"), noise(64<<20), "")
	wantFault(t, err, fault.Network, "no data for too long", "")
}

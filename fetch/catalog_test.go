package fetch

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// server serves answers by path and query.
type server struct {
	*httptest.Server
	answers map[string]string
	link    map[string]string // of Link headers
}

func newServer(t *testing.T, answers, link map[string]string) *server {
	s := &server{answers: answers, link: link}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		at := r.URL.RequestURI()
		body, ok := s.answers[at]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		if l := s.link[at]; l != "" {
			w.Header().Set("Link", l)
		}
		fmt.Fprint(w, body)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *server) host() string { return s.Listener.Addr().String() }

func TestTags(t *testing.T) {
	t.Parallel()
	const first, second = "/v2/lib/x/tags/list?n=1000", "/v2/lib/x/tags/list?last=b&n=1000"
	next := map[string]string{first: "<" + second + `>; rel="next"`}
	for name, tt := range map[string]struct {
		answers, link map[string]string
		want          string // or the error
		kind          fault.Kind
	}{
		"one answer":    {map[string]string{first: `{"name":"lib/x","tags":["b","a"]}`}, nil, "b a", 0},
		"several":       {map[string]string{first: `{"tags":["a","b"]}`, second: `{"tags":["c"]}`}, next, "a b c", 0},
		"none":          {map[string]string{first: `{"tags":null}`}, nil, "", 0},
		"no repository": {nil, nil, "lib/x not found: name unknown", fault.NotFound},
		"round":         {map[string]string{first: `{"tags":["a"]}`, second: `{}`}, map[string]string{first: next[first], second: next[first]}, "in circles", fault.Integrity},
		"another host":  {map[string]string{first: `{"tags":["a"]}`}, map[string]string{first: `<http://other.example/x>; rel="next"`}, "a", 0},
		"no JSON":       {map[string]string{first: `<html>`}, nil, "list of tags", fault.Integrity},
		"no tag":        {map[string]string{first: `{"tags":["a","../../etc"]}`}, nil, "lists a tag that is none", fault.Integrity},
		"with escapes":  {map[string]string{first: `{"tags":["\u001b[2J"]}`}, nil, "lists a tag that is none", fault.Integrity},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, tt.answers, tt.link)
			got, err := New(options(t)).Tags(t.Context(), mustParse(t, s.host()+"/lib/x"))
			if tt.kind != 0 {
				wantFault(t, err, tt.kind, tt.want, "")
			} else if err != nil || strings.Join(got, " ") != tt.want {
				t.Errorf("%q, %v; want %q", got, err, tt.want)
			}
		})
	}
	_, err := New(options(t)).Tags(t.Context(), mustParse(t, "oci:/x"))
	wantFault(t, err, fault.Invalid, "only a registry", "")
}

// Debian's docker-registry lists tags and its catalog.
func TestDistributionCatalog(t *testing.T) {
	t.Parallel()
	host := imgtest.Distribution(t, "", "")
	dir, _ := layout(t)
	for _, at := range []string{"/lib/x:1", "/lib/x:2", "/other/xy:1", "/other/z:1"} {
		push(t, dir, host+at)
	}
	c := New(options(t))
	tags, err := c.Tags(t.Context(), mustParse(t, host+"/lib/x"))
	if slices.Sort(tags); err != nil || !slices.Equal(tags, []string{"1", "2"}) {
		t.Errorf("%q, %v", tags, err)
	}
	_, err = c.Tags(t.Context(), mustParse(t, host+"/none"))
	wantFault(t, err, fault.NotFound, "repository "+host+"/none not found: name unknown", "")
	for term, want := range map[string]string{"X": "/lib/x /other/xy", "other/": "/other/xy /other/z", "": "/lib/x /other/xy /other/z", "nothing": ""} {
		got, err := c.Search(t.Context(), host+"/"+term, 25)
		var names []string
		for _, f := range got {
			names = append(names, strings.TrimPrefix(f.Name, host))
		}
		if err != nil || strings.Join(names, " ") != want {
			t.Errorf("%q: %q, %v; want %q", term, names, err, want)
		}
	}
	if got, err := c.Search(t.Context(), host+"/", 2); err != nil || len(got) != 2 {
		t.Errorf("at most 2: %v, %v", got, err)
	}
}

func TestSearch(t *testing.T) {
	t.Parallel()
	const results = `{"num_results":2,"results":[{"name":"ubuntu","description":"a\nb","star_count":9000,"is_official":true,"is_automated":false},{"name":"who/ubuntu","star_count":3}]}`
	hub := newServer(t, map[string]string{"/v1/search?n=25&q=ubuntu": results, "/v1/search?n=1&q=ubuntu": results}, nil)
	o := options(t)
	o.CertsDirs = []string{hostsFile(t, "docker.io", fmt.Sprintf("server = %q\n", hub.URL))}
	c := New(o)
	for _, term := range []string{"ubuntu", "docker.io/ubuntu", "index.docker.io/library/ubuntu"} {
		got, err := c.Search(t.Context(), term, 25)
		want := []Found{{"ubuntu", "a b", 9000, true}, {"who/ubuntu", "", 3, false}}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %+v, %v", term, got, err)
		}
	}
	if got, err := c.Search(t.Context(), "ubuntu", 1); err != nil || len(got) != 1 {
		t.Errorf("at most one: %+v, %v", got, err)
	}
	own := newServer(t, map[string]string{"/v1/search?n=5&q=app": strings.ReplaceAll(results, "ubuntu", "app")}, nil)
	if got, err := c.Search(t.Context(), own.host()+"/app", 5); err != nil || got[0].Name != own.host()+"/app" {
		t.Errorf("%+v, %v", got, err)
	}
	neither := newServer(t, nil, nil)
	_, err := c.Search(t.Context(), neither.host()+"/app", 5)
	wantFault(t, err, fault.Invalid, "neither a search nor a catalog", "")
	page := newServer(t, map[string]string{"/v1/search?n=5&q=app": "<html>", "/v2/_catalog?n=1000": `{"repositories":["my/app","x"]}`}, nil)
	if got, err := c.Search(t.Context(), page.host()+"/app", 5); err != nil || len(got) != 1 || got[0].Name != page.host()+"/my/app" {
		t.Errorf("%+v, %v", got, err)
	}
	for term, want := range map[string]string{"https://x/y": "should not have a scheme", "": "nothing to search for", "UPPER.X Y/z": "invalid registry endpoint"} {
		_, err := c.Search(t.Context(), term, 25)
		wantFault(t, err, fault.Invalid, want, "")
	}
	for _, n := range []int{0, -1, 101} {
		_, err := c.Search(t.Context(), "x", n)
		wantFault(t, err, fault.Invalid, "Limit "+strconv.Itoa(n)+" is outside the range of [1, 100]", "")
	}
}

func TestLogin(t *testing.T) {
	t.Parallel()
	for _, auth := range []string{"", "basic", "token"} {
		reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{Auth: auth, Username: "u", Password: "p"})
		for _, password := range []string{"p", "wrong"} {
			o := options(t)
			o.Auth.Username, o.Auth.Password = "u", password
			c := New(o)
			err := c.Login(t.Context(), reg.Host)
			c.Close()
			switch {
			case password == "p" || auth == "":
				if err != nil {
					t.Errorf("%q: %v", auth, err)
				}
			case auth == "basic":
				wantFault(t, err, fault.Denied, "login attempt to http://"+reg.Host+"/v2/ failed with status: 401 Unauthorized", "")
			default:
				wantFault(t, err, fault.Denied, fmt.Sprintf("Get %q: unauthorized: incorrect username or password", "https://"+reg.Host+"/v2/"), "")
			}
		}
	}
	err := New(options(t)).Login(t.Context(), "127.0.0.1:1")
	wantFault(t, err, fault.Network, "127.0.0.1:1", "")
}

// TestGet gets what a name stands for: an index, or an artifact that is no
// image.
func TestGet(t *testing.T) {
	t.Parallel()
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	m := makeImage(t, reg, "x", "1", "")
	index := makeIndex(t, reg, "x", "2", map[string]made{"linux/amd64": m})
	c := New(options(t))
	for name, want := range map[string]id.Blob{"x:1": m.digest, "x:2": index, "x@" + string(index): index} {
		body, mediaType, digest, err := c.Get(t.Context(), mustParse(t, reg.Host+"/"+name))
		if err != nil || digest != want || id.BlobOf(body) != want || (mediaType == typeIndex) != (want == index) {
			t.Errorf("%s: %s %s %v", name, mediaType, digest, err)
		}
	}
	_, _, _, err := c.Get(t.Context(), mustParse(t, reg.Host+"/x:3"))
	wantFault(t, err, fault.NotFound, "manifest for "+reg.Host+"/x:3 not found", "")
}

// TestMountToken mounts blobs from several repositories at once, from a registry
// that wants a token good for each: one that another request has got meanwhile
// does not do, and the next one is good for both.
func TestMountToken(t *testing.T) {
	t.Parallel()
	var srv *httptest.Server
	srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			json.NewEncoder(w).Encode(map[string]string{"token": base64.URLEncoding.EncodeToString([]byte(strings.Join(r.URL.Query()["scope"], " ")))})
			return
		}
		need := []string{"repository:x:pull"}
		if r.Method == http.MethodPost {
			need = []string{"repository:x:pull,push", "repository:" + r.URL.Query().Get("from") + ":pull"}
		}
		token, _ := base64.URLEncoding.DecodeString(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
		if !covers(strings.Fields(string(token)), need) {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="t",scope=%q`, srv.URL, strings.Join(need, " ")))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if r.Method == http.MethodHead {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.WriteHeader(http.StatusCreated)
	}))
	defer srv.Close()
	c := New(options(t))
	ref := mustParse(t, srv.Listener.Addr().String()+"/x:1")
	done := make(chan error)
	const n = 6
	for i := range n {
		go func() {
			blob := []byte{byte(i)}
			how, err := c.PushBlob(t.Context(), ref, id.BlobOf(blob), 1, opener(blob), fmt.Sprintf("from%d", i))
			if err == nil && how != Mounted {
				err = fmt.Errorf("blob %d: %d, not mounted", i, how)
			}
			done <- err
		}()
	}
	for range n {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

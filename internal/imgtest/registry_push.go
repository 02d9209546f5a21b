package imgtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// inside asks the registry itself, past all faults.
func (r *Registry) inside(method, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	r.inner.ServeHTTP(w, httptest.NewRequest(method, path, nil))
	return w
}

// pass lets the inner registry answer and returns its answer's header.
func (r *Registry) pass(w http.ResponseWriter, req *http.Request, header http.Header) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	r.inner.ServeHTTP(rec, req)
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	for k, v := range header {
		w.Header()[k] = v
	}
	w.WriteHeader(rec.Code)
	w.Write(rec.Body.Bytes())
	return rec
}

// putManifest tells who has pushed a manifest with a subject whether that is
// kept account of.
func (r *Registry) putManifest(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	var m struct{ Subject *v1.Descriptor }
	json.Unmarshal(body, &m)
	header := http.Header{}
	if m.Subject != nil && !r.opts.NoReferrers {
		header.Set("OCI-Subject", m.Subject.Digest.String())
	}
	again := req.Clone(req.Context())
	again.Body = io.NopCloser(bytes.NewReader(body))
	r.pass(w, again, header)
}

// referrers is the referrers API.
func (r *Registry) referrers(w http.ResponseWriter, req *http.Request) {
	if r.opts.NoReferrers {
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, "404 page not found")
		return
	}
	rec := r.inside(http.MethodGet, req.URL.Path)
	x := v1.IndexManifest{SchemaVersion: 2, MediaType: "application/vnd.oci.image.index.v1+json", Manifests: []v1.Descriptor{}}
	if rec.Code == http.StatusOK {
		json.Unmarshal(rec.Body.Bytes(), &x)
	}
	repo, _, _ := strings.Cut(req.URL.Path, "/referrers/")
	for i, d := range x.Manifests {
		var m struct{ ArtifactType string }
		json.Unmarshal(r.inside(http.MethodGet, repo+"/manifests/"+d.Digest.String()).Body.Bytes(), &m)
		x.Manifests[i].ArtifactType = or(m.ArtifactType, d.ArtifactType)
	}
	slices.SortFunc(x.Manifests, func(a, b v1.Descriptor) int { return strings.Compare(a.Digest.Hex, b.Digest.Hex) })
	q := req.URL.Query()
	if want := q.Get("artifactType"); want != "" && r.opts.FilterRefs {
		x.Manifests = slices.DeleteFunc(x.Manifests, func(d v1.Descriptor) bool { return d.ArtifactType != want })
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	if n := r.opts.ReferrersPage; n > 0 {
		from, _ := strconv.Atoi(q.Get("from"))
		rest := x.Manifests[min(from, len(x.Manifests)):]
		if x.Manifests = rest; len(rest) > n {
			x.Manifests = rest[:n]
			q.Set("from", strconv.Itoa(from+n))
			w.Header().Set("Link", fmt.Sprintf(`<%s?%s>; rel="next"`, req.URL.Path, q.Encode()))
		}
	}
	w.Header().Set("Content-Type", string(x.MediaType))
	json.NewEncoder(w).Encode(x)
}

// upload is the uploads' part that the inner registry lacks: mounts.
func (r *Registry) upload(w http.ResponseWriter, req *http.Request) {
	q := req.URL.Query()
	path := req.URL.Path
	switch {
	case req.Method == http.MethodPost && q.Get("mount") != "":
		repo, _, _ := strings.Cut(path, "/blobs/")
		if !r.opts.NoMount && r.inside(http.MethodHead, repo+"/blobs/"+q.Get("mount")).Code == http.StatusOK {
			w.Header().Set("Location", repo+"/blobs/"+q.Get("mount"))
			w.WriteHeader(http.StatusCreated)
			return
		}
		plain := req.Clone(req.Context())
		plain.URL.RawQuery = ""
		r.pass(w, plain, nil)
	default:
		r.inner.ServeHTTP(w, req)
	}
}

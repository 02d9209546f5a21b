package engineapi

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
)

// imageRoutes are docker's routes of images as a whole.
var imageRoutes = []route{
	{request: "GET /images/json", serve: (*server).listImages},
	{request: "GET /images/search", serve: (*server).search},
	{request: "POST /images/create", serve: (*server).createImage, body: anyBody},
	{request: "POST /images/prune", serve: (*server).prune},
}

func (s *server) listImages(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	f, err := parseFilters(q.Get("filters"), listFilters...)
	if err != nil {
		return err
	}
	if old := q.Get("filter"); old != "" && olderThan(r, 41) {
		if f == nil {
			f = filters{}
		}
		f["reference"] = append(f["reference"], old)
	}
	sel, err := f.selection(func(name string) (int64, error) { return s.created(r.Context(), name) })
	if err != nil {
		return err
	}
	dangling, err := f.flag("dangling")
	if err != nil {
		return err
	}
	list, err := s.engine.Images(r.Context(), ListOptions{
		// A parent is not dangling, whatever it is called.
		All:        boolParam(r, "all") && (dangling == nil || !*dangling),
		SharedSize: boolParam(r, "shared-size") && !olderThan(r, 42),
		Manifests:  boolParam(r, "manifests") && !olderThan(r, 47),
		Cached:     boolParam(r, "cached") || len(f["cached"]) > 0,
	})
	if err != nil {
		return err
	}
	list = sel.apply(list)
	if boolParam(r, "brief") {
		shorten(list, boolParam(r, "digests"))
	}
	return replyImages(w, asListed(r, list))
}

// created returns when an image was made, as it is listed: in seconds since
// 1970, 0 if it does not say.
func (s *server) created(ctx context.Context, name string) (int64, error) {
	img, err := s.engine.Inspect(ctx, name, InspectOptions{})
	if err != nil {
		return 0, err
	}
	t, err := time.Parse(time.RFC3339Nano, img.Created)
	if err != nil {
		return 0, nil
	}
	return t.Unix(), nil
}

// createImage pulls, or imports. An error before the first line is a reply of
// its own.
func (s *server) createImage(w http.ResponseWriter, r *http.Request) error {
	if r.URL.Query().Get("fromImage") == "" && r.URL.Query().Has("fromSrc") {
		return s.importImage(w, r)
	}
	req, err := pullRequest(r)
	if err != nil {
		return err
	}
	st := &stream{w: w}
	res, err := s.engine.Pull(r.Context(), req, st.step)
	if err != nil {
		s.log.Info("pull failed", "reference", req.Reference, "err", err)
		return st.fail(err)
	}
	status := "Status: Downloaded newer image for " + res.Reference
	if res.UpToDate {
		status = "Status: Image is up to date for " + res.Reference
	}
	if res.Digest != "" { // of all tags each has told its own
		st.line(streamLine{Status: "Digest: " + string(res.Digest)})
	}
	st.line(streamLine{Status: status})
	if r.Header.Get(RegistryHeader) == "" {
		return nil
	}
	return st.aux(&res)
}

// pullRequest reads a pull in docker's words, or in ours.
func pullRequest(r *http.Request) (PullRequest, error) {
	q := r.URL.Query()
	req := PullRequest{Reference: q.Get("fromImage"), AllTags: boolParam(r, "all-tags"), Platform: q.Get("platform")}
	if req.Reference == "" {
		return req, fault.New(fault.Invalid, "fromImage is missing")
	}
	var err error
	if r.Header.Get(RegistryHeader) != "" {
		req.Registry, err = headerOptions(r)
		return req, err
	}
	if olderThan(r, 32) {
		req.Platform = ""
	}
	// Old clients say so that they mean all tags.
	req.Reference = strings.TrimSuffix(req.Reference, ":")
	if localSource(req.Reference) {
		return req, fault.New(fault.Invalid, "invalid reference format")
	}
	req.Registry = dockerAuth(r.Header.Get("X-Registry-Auth"))
	tag := q.Get("tag")
	req.AllTags = tag == "" && !strings.ContainsAny(lastComponent(req.Reference), ":@")
	req.Reference, err = withTag(req.Reference, tag)
	return req, err
}

// localSource reports whether ref names an image in files of this machine. A
// client of docker's API means none: it may be on another.
func localSource(ref string) bool {
	for _, scheme := range []string{"oci:", "oci-archive:", "docker-archive:"} {
		if strings.HasPrefix(ref, scheme) {
			return true
		}
	}
	return false
}

func (s *server) search(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	req := SearchRequest{Term: q.Get("term")}
	if v := q.Get("limit"); v != "" {
		n, err := strconv.Atoi(v)
		switch {
		case err != nil || n < 0:
			return fault.New(fault.Invalid, "invalid limit specified: %q", v)
		case n > maxSearch:
			return fault.New(fault.Invalid, "limit %d is outside the range of [1, %d]", n, maxSearch)
		}
		req.Limit = n
	}
	f, err := parseFilters(q.Get("filters"), "is-automated", "is-official", "stars")
	if err != nil {
		return err
	}
	automated, err := f.flag("is-automated")
	if err != nil {
		return err
	}
	if req.Official, err = f.flag("is-official"); err != nil {
		return err
	}
	for _, v := range f["stars"] {
		n, err := strconv.Atoi(v)
		if err != nil {
			return fault.New(fault.Invalid, "invalid filter 'stars=%s'", v)
		}
		req.Stars = max(req.Stars, n)
	}
	if req.Registry, err = registryOptions(r); err != nil {
		return err
	}
	list := []SearchResult{}
	if automated == nil || !*automated { // nothing is, any more
		if list, err = s.engine.Search(r.Context(), req); err != nil {
			return err
		}
	}
	return replyList(w, list)
}

// maxSearch is how many results docker's index gives at once.
const maxSearch = 100

func (s *server) prune(w http.ResponseWriter, r *http.Request) error {
	f, err := parseFilters(r.URL.Query().Get("filters"), "dangling", "label", "label!", "until")
	if err != nil {
		return err
	}
	o := PruneOptions{Labels: f["label"], NoLabels: f["label!"]}
	dangling, err := f.flag("dangling")
	if err != nil {
		return err
	}
	o.All = dangling != nil && !*dangling
	switch until := f["until"]; {
	case len(until) > 1:
		return fault.New(fault.Invalid, "more than one until filter specified")
	case len(until) == 1:
		if o.Until, err = parseTime(until[0]); err != nil {
			return err
		}
	}
	rep, err := s.engine.Prune(r.Context(), o)
	if err != nil {
		return err
	}
	return reply(w, rep)
}

// registryOptions reads our own header, or else docker's.
func registryOptions(r *http.Request) (RegistryOptions, error) {
	if r.Header.Get(RegistryHeader) != "" {
		return headerOptions(r)
	}
	return dockerAuth(r.Header.Get("X-Registry-Auth")), nil
}

// headerOptions reads our own header.
func headerOptions(r *http.Request) (RegistryOptions, error) {
	var o RegistryOptions
	b, err := base64.URLEncoding.DecodeString(r.Header.Get(RegistryHeader))
	if err == nil && len(b) > 0 {
		err = json.Unmarshal(b, &o)
	}
	if err != nil {
		err = fault.New(fault.Invalid, "header %s: %w", RegistryHeader, err)
	}
	return o, err
}

// lastComponent returns what follows the last slash: where a colon begins a
// tag and not a port.
func lastComponent(ref string) string { return ref[strings.LastIndexByte(ref, '/')+1:] }

// dockerAuth reads X-Registry-Auth; what cannot be read is no credentials, as
// in docker.
func dockerAuth(h string) RegistryOptions {
	var a struct {
		Username      string `json:"username"`
		Password      string `json:"password"`
		Auth          string `json:"auth"` // base64(user:password)
		IdentityToken string `json:"identitytoken"`
		RegistryToken string `json:"registrytoken"`
	}
	b, err := base64.URLEncoding.DecodeString(h)
	if err != nil {
		b, err = base64.RawURLEncoding.DecodeString(h)
	}
	if err != nil || json.Unmarshal(b, &a) != nil {
		return RegistryOptions{}
	}
	if a.Username == "" && a.Auth != "" {
		if b, err := base64.StdEncoding.DecodeString(a.Auth); err == nil {
			a.Username, a.Password, _ = strings.Cut(string(b), ":")
		}
	}
	return RegistryOptions{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, Token: a.RegistryToken}
}

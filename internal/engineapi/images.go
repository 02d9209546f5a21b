package engineapi

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/imgfs/imgfs/internal/fault"
)

func (s *server) listImages(w http.ResponseWriter, r *http.Request) error {
	f, err := parseFilters(r.URL.Query().Get("filters"))
	if err != nil {
		return err
	}
	all, err := s.engine.Images(r.Context(), ListOptions{All: boolParam(r, "all")})
	if err != nil {
		return err
	}
	list, err := f.apply(all, func(name string) (int64, error) {
		img, err := s.engine.Inspect(r.Context(), name, InspectOptions{})
		if err != nil {
			return 0, err
		}
		return createdOf(all, img.ID), nil
	})
	if err != nil {
		return err
	}
	return reply(w, asListed(r, list))
}

// createImage pulls. An error before the first line is a reply of its own.
func (s *server) createImage(w http.ResponseWriter, r *http.Request) error {
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
	st.line(streamLine{Status: "Digest: " + string(res.Digest)})
	st.line(streamLine{Status: status})
	return st.result(&res)
}

// pullRequest reads a pull in docker's words, or in ours.
func pullRequest(r *http.Request) (PullRequest, error) {
	q := r.URL.Query()
	req := PullRequest{Reference: q.Get("fromImage"), Platform: q.Get("platform")}
	if req.Reference == "" {
		if q.Has("fromSrc") {
			return req, statusError{http.StatusNotImplemented, fault.New(fault.Invalid, "imgfs does not import tar archives")}
		}
		return req, fault.New(fault.Invalid, "fromImage is missing")
	}
	if r.Header.Get(RegistryHeader) != "" {
		var err error
		req.Registry, err = headerOptions(r)
		return req, err
	}
	req.Registry = dockerAuth(r.Header.Get("X-Registry-Auth"))
	switch tag := q.Get("tag"); {
	case tag == "" && !strings.ContainsAny(lastComponent(req.Reference), ":@"):
		return req, statusError{http.StatusNotImplemented, fault.WithHint(
			fault.New(fault.Invalid, "imgfs does not pull all tags of a repository"), "name one tag")}
	case strings.Contains(tag, ":"):
		req.Reference += "@" + tag
	case tag != "":
		req.Reference += ":" + tag
	}
	return req, nil
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

package engineapi

import (
	"net/http"
	"regexp"
	"strings"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// nameRoutes are docker's routes of single images, and one of ours.
var nameRoutes = []route{
	{request: "GET /images/{}/json", serve: (*server).inspectImage},
	{request: "GET /images/{}/history", serve: (*server).history},
	{request: "POST /images/{}/tag", serve: (*server).tag},
	{request: "POST /images/{}/push", serve: (*server).push},
	{request: "DELETE /images/{}", serve: (*server).removeImage},
	{request: "DELETE /imgfs/v1/names", serve: (*server).untag},
}

func (s *server) inspectImage(w http.ResponseWriter, r *http.Request) error {
	var o InspectOptions
	var err error
	if o.Platform, err = platformParam(r, "platform", 49); err != nil {
		return err
	}
	o.Manifests = boolParam(r, "manifests") && !olderThan(r, 48)
	if o.Manifests && o.Platform != "" {
		return fault.New(fault.Invalid, "conflicting options: manifests and platform options cannot both be set")
	}
	img, err := s.engine.Inspect(r.Context(), name(r), o)
	if err != nil {
		return err
	}
	return reply(w, asInspected(r, img))
}

func (s *server) history(w http.ResponseWriter, r *http.Request) error {
	platform, err := platformParam(r, "platform", 48)
	if err != nil {
		return err
	}
	list, err := s.engine.History(r.Context(), name(r), platform)
	if err != nil {
		return err
	}
	return reply(w, list)
}

// tag answers 201. Query noclobber is ours.
func (s *server) tag(w http.ResponseWriter, r *http.Request) error {
	target, err := withTag(r.URL.Query().Get("repo"), r.URL.Query().Get("tag"))
	if err != nil {
		return err
	}
	if err := s.engine.Tag(r.Context(), name(r), target, boolParam(r, "noclobber")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

var tagFormat = regexp.MustCompile(`^\w[\w.-]{0,127}$`)

// withTag joins what docker's clients send apart. A digest is sent as a tag; a
// tag that is sent both ways counts where it is apart.
func withTag(repo, tag string) (string, error) {
	if repo == "" {
		return "", fault.New(fault.Invalid, "invalid reference format: repository name can't be empty")
	}
	if tag == "" {
		return repo, nil
	}
	_, digest, pinned := strings.Cut(repo, "@")
	repo = withoutTag(repo)
	_, noDigest := id.ParseBlob(tag)
	switch {
	case noDigest == nil:
		return repo + "@" + tag, nil
	case !tagFormat.MatchString(tag):
		return "", fault.New(fault.Invalid, "invalid tag format")
	case pinned:
		return repo + ":" + tag + "@" + digest, nil
	}
	return repo + ":" + tag, nil
}

func (s *server) untag(w http.ResponseWriter, r *http.Request) error {
	items, err := s.engine.Untag(r.Context(), r.URL.Query().Get("name"))
	if err != nil {
		return err
	}
	return reply(w, items)
}

func (s *server) removeImage(w http.ResponseWriter, r *http.Request) error {
	if strings.TrimSpace(name(r)) == "" {
		return fault.New(fault.Invalid, "image name cannot be blank")
	}
	platforms, err := platformParams(r, "platforms", 50)
	if err != nil {
		return err
	}
	items, err := s.engine.Remove(r.Context(), name(r), RemoveOptions{
		Force: boolParam(r, "force"), NoPrune: boolParam(r, "noprune"), Platforms: platforms,
	})
	if err != nil {
		return err
	}
	return reply(w, items)
}

// push stores images in their registry. Docker's clients send the tag apart,
// and none for all of a repository; ours send the reference as it was typed.
func (s *server) push(w http.ResponseWriter, r *http.Request) error {
	req, err := pushRequest(r)
	if err != nil {
		return err
	}
	st := &stream{w: w}
	tags, err := s.engine.Push(r.Context(), req, st.step)
	for i := range tags { // of those that were pushed before an error too
		st.aux(&tags[i])
	}
	if err != nil {
		s.log.Info("push failed", "reference", req.Reference, "err", err)
		return st.fail(err)
	}
	return nil
}

func pushRequest(r *http.Request) (PushRequest, error) {
	q := r.URL.Query()
	req := PushRequest{Reference: name(r), Format: q.Get("format"), Compression: q.Get("compression")}
	var err error
	if req.Platform, err = platformParam(r, "platform", 46); err != nil {
		return req, err
	}
	if r.Header.Get(RegistryHeader) != "" {
		req.AllTags = boolParam(r, "all-tags")
		req.Registry, err = headerOptions(r)
		return req, err
	}
	req.Registry = dockerAuth(r.Header.Get("X-Registry-Auth"))
	tag := q.Get("tag")
	req.AllTags = tag == "" && !strings.ContainsAny(lastComponent(req.Reference), ":@")
	req.Reference, err = withTag(req.Reference, tag)
	return req, err
}

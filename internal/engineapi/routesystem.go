package engineapi

import (
	"net/http"
	"strings"

	"github.com/imgfs/imgfs/internal/fault"
)

// systemRoutes are docker's routes that are not of images, and the refusals.
var systemRoutes = []route{
	{request: "HEAD /_ping", serve: (*server).ping},
	{request: "GET /_ping", serve: (*server).ping},
	{request: "GET /version", serve: (*server).version},
	{request: "GET /info", serve: (*server).info},
	{request: "GET /events", serve: (*server).events},
	{request: "GET /system/df", serve: (*server).systemDF},
	{request: "POST /auth", serve: (*server).auth},
	{request: "GET /distribution/{}/json", serve: (*server).distribution},

	// Of what docker has besides images there is nothing, and nothing to prune.
	{request: "GET /containers/json", serve: constant([]struct{}{})},
	{request: "POST /containers/prune", serve: constant(struct{}{})},
	{request: "POST /networks/prune", serve: constant(struct{}{})},
	{request: "POST /volumes/prune", serve: constant(struct{}{})},
	{request: "POST /build/prune", serve: constant(struct{}{})},
	// docker inspect goes on to the next kind of thing.
	{request: "GET /containers/{}", serve: absent("No such container: ")},
	{request: "POST /containers/{}", serve: absent("No such container: ")},
	{request: "DELETE /containers/{}", serve: absent("No such container: ")},
	{request: "GET /networks/{}", serve: absent("No such network: ")},
	{request: "GET /volumes/{}", serve: absent("No such volume: ")},
	{request: "GET /plugins/{}", serve: absent("No such plugin: ")},

	// Not 404: docker would take that for a missing image and pull it.
	{request: "POST /containers/create", serve: refuse},
	{request: "POST /build", serve: refuse},
	{request: "POST /commit", serve: refuse},
	{request: "POST /grpc", serve: refuse},
	{request: "POST /session", serve: refuse},
	{request: "POST /networks/create", serve: refuse},
	{request: "POST /volumes/create", serve: refuse},
	{request: "POST /swarm/init", serve: refuse},
	{request: "POST /swarm/join", serve: refuse},
}

// refuse answers requests for what only docker's daemon has.
func refuse(*server, http.ResponseWriter, *http.Request) error {
	return statusError{http.StatusNotImplemented, fault.New(fault.Invalid, "imgfs serves images only; use imgfs run")}
}

// constant serves a value.
func constant(v any) handler {
	return func(_ *server, w http.ResponseWriter, _ *http.Request) error { return reply(w, v) }
}

// absent says that there is no such thing. Behind its name may stand what was to
// be done with it.
func absent(text string) handler {
	return func(_ *server, _ http.ResponseWriter, r *http.Request) error {
		name, _, _ := strings.Cut(name(r), "/")
		return fault.New(fault.NotFound, "%s%s", text, name)
	}
}

// auth tries credentials; docker's client keeps them.
func (s *server) auth(w http.ResponseWriter, r *http.Request) error {
	var req LoginRequest
	err := readBody(r, &req)
	if err != nil {
		return err
	}
	if r.Header.Get(RegistryHeader) != "" {
		if req.Registry, err = headerOptions(r); err != nil {
			return err
		}
	}
	res, err := s.engine.Login(r.Context(), req)
	switch {
	case fault.KindOf(err) == fault.Denied:
		return statusError{http.StatusUnauthorized, err}
	case err != nil:
		return err
	}
	if res.Status == "" {
		res.Status = "Login Succeeded"
	}
	return reply(w, res)
}

// distributionInspect is the reply of GET /distribution/{name}/json.
type distributionInspect struct {
	Descriptor Descriptor
	Platforms  []Platform
}

// distribution says what a name stands for in its registry.
func (s *server) distribution(w http.ResponseWriter, r *http.Request) error {
	o, err := registryOptions(r)
	if err != nil {
		return err
	}
	m, err := s.engine.Manifest(r.Context(), name(r), o)
	if err != nil {
		return err
	}
	if m.Platforms == nil {
		m.Platforms = []Platform{}
	}
	return reply(w, distributionInspect{
		Descriptor: Descriptor{MediaType: m.MediaType, Digest: string(m.Digest), Size: int64(len(m.Raw))},
		Platforms:  m.Platforms,
	})
}

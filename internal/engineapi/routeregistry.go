package engineapi

import (
	"context"
	"net/http"
	"net/url"
)

// registryRoutes are imgfs' own routes that talk to registries.
var registryRoutes = []route{
	{request: "GET /imgfs/v1/tags", serve: asking(Engine.Tags)},
	{request: "GET /imgfs/v1/manifest", serve: asking(Engine.Manifest)},
}

// asking serves what the engine asks a registry about the parameter name.
// Options of the registry travel in a header, since there are secrets among
// them.
func asking[T any](ask func(Engine, context.Context, string, RegistryOptions) (T, error)) handler {
	return func(s *server, w http.ResponseWriter, r *http.Request) error {
		o, err := headerOptions(r)
		if err != nil {
			return err
		}
		v, err := ask(s.engine, r.Context(), r.URL.Query().Get("name"), o)
		if err != nil {
			return err
		}
		return reply(w, v)
	}
}

// Tags lists the tags of a repository in its registry, in its order.
func (c *Client) Tags(ctx context.Context, repository string, r RegistryOptions) ([]string, error) {
	var tags []string
	return tags, c.ask(ctx, "/imgfs/v1/tags", repository, r, &tags)
}

// Manifest returns what a name stands for in its registry.
func (c *Client) Manifest(ctx context.Context, name string, r RegistryOptions) (RegistryManifest, error) {
	var m RegistryManifest
	return m, c.ask(ctx, "/imgfs/v1/manifest", name, r, &m)
}

func (c *Client) ask(ctx context.Context, path, name string, r RegistryOptions, into any) error {
	h, err := optionsHeader(r)
	if err != nil {
		return err
	}
	return c.exchange(ctx, http.MethodGet, path, url.Values{"name": {name}}, h, nil, into)
}

package engineapi

import (
	"context"
	"net/http"
	"net/url"
)

// maxRefs is how long a file of references may be: some hundred thousand names.
const maxRefs = 64 << 20

// importRefs serves POST /imgfs/v1/refs, whose body is a repositories.json.
func (s *server) importRefs(w http.ResponseWriter, r *http.Request) error {
	var repos Repositories
	if err := readBody(r, &repos); err != nil {
		return err
	}
	rep, err := s.engine.ImportRefs(r.Context(), repos, boolParam(r, "force"))
	if err != nil {
		return err
	}
	return reply(w, rep)
}

// ExportRefs returns all names and what they point to.
func (c *Client) ExportRefs(ctx context.Context) (Repositories, error) {
	var repos Repositories
	return repos, c.get(ctx, "/imgfs/v1/refs", nil, &repos)
}

// ImportRefs adds names to images that are here.
func (c *Client) ImportRefs(ctx context.Context, r Repositories, force bool) (RefsReport, error) {
	q := url.Values{}
	if force {
		q.Set("force", "1")
	}
	var rep RefsReport
	return rep, c.call(ctx, http.MethodPost, "/imgfs/v1/refs", q, r, &rep)
}

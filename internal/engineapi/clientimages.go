package engineapi

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
)

// Images lists images, newest first. Filters are docker's (dangling, reference,
// label, label!, before, since, until) and mounted and cached, which are true
// or false; nil lists all.
func (c *Client) Images(ctx context.Context, filters map[string][]string, o ListOptions) ([]ImageSummary, error) {
	q := url.Values{}
	if err := setFilters(q, filters); err != nil {
		return nil, err
	}
	setFlags(q, map[string]bool{"all": o.All, "shared-size": o.SharedSize, "manifests": o.Manifests, "cached": o.Cached, "brief": o.Brief, "digests": o.Digests})
	res, err := c.do(ctx, http.MethodGet, "/images/json", q, nil, nil)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	list, err := readList(res.Body)
	if err != nil {
		return nil, lost(ctx, err)
	}
	return list, nil
}

// Inspect returns one image. Name is a reference, an image ID or a prefix.
func (c *Client) Inspect(ctx context.Context, name string, o InspectOptions) (ImageInspect, error) {
	q := url.Values{}
	setFlags(q, map[string]bool{"manifests": o.Manifests})
	setPlatforms(q, "platform", o.Platform)
	var i ImageInspect
	return i, c.get(ctx, "/images/"+name+"/json", q, &i)
}

// History returns how an image was made, newest first. Platform is which it
// must be for; "": any.
func (c *Client) History(ctx context.Context, name, platform string) ([]HistoryItem, error) {
	q := url.Values{}
	setPlatforms(q, "platform", platform)
	var list []HistoryItem
	return list, c.get(ctx, "/images/"+name+"/history", q, &list)
}

// Tag gives the image called source one more name. One that names another image
// moves, unless noClobber is set (fault.Conflict).
func (c *Client) Tag(ctx context.Context, source, target string, noClobber bool) error {
	q := url.Values{"repo": {target}}
	setFlags(q, map[string]bool{"noclobber": noClobber})
	return c.call(ctx, http.MethodPost, "/images/"+source+"/tag", q, nil, nil)
}

// Untag removes a name; the image stays.
func (c *Client) Untag(ctx context.Context, name string) ([]DeleteItem, error) {
	var items []DeleteItem
	return items, c.call(ctx, http.MethodDelete, "/imgfs/v1/names", url.Values{"name": {name}}, nil, &items)
}

// Remove removes a name, and with its last name the image.
func (c *Client) Remove(ctx context.Context, name string, o RemoveOptions) ([]DeleteItem, error) {
	q := url.Values{}
	setFlags(q, map[string]bool{"force": o.Force, "noprune": o.NoPrune})
	setPlatforms(q, "platforms", o.Platforms...)
	var items []DeleteItem
	return items, c.call(ctx, http.MethodDelete, "/images/"+name, q, nil, &items)
}

// Prune removes images without a name. Filters are docker's: dangling (false:
// also those with a name that no mount uses), label, label!, until.
func (c *Client) Prune(ctx context.Context, filters map[string][]string) (PruneReport, error) {
	q := url.Values{}
	var rep PruneReport
	if err := setFilters(q, filters); err != nil {
		return rep, err
	}
	return rep, c.call(ctx, http.MethodPost, "/images/prune", q, nil, &rep)
}

// Pull pulls an image; report, if not nil, is called with every step, from
// the calling goroutine.
func (c *Client) Pull(ctx context.Context, req PullRequest, report func(Progress)) (PullResult, error) {
	var result PullResult
	q := url.Values{"fromImage": {req.Reference}}
	setFlags(q, map[string]bool{"all-tags": req.AllTags})
	if req.Platform != "" {
		q.Set("platform", req.Platform)
	}
	res, err := c.withOptions(ctx, http.MethodPost, "/images/create", q, req.Registry)
	if err != nil {
		return result, err
	}
	defer res.Body.Close()
	return result, readStream(ctx, res.Body, report, &result)
}

// Push stores an image, or all tags of a repository, in its registry. With an
// error come the tags that were pushed before it.
func (c *Client) Push(ctx context.Context, req PushRequest, report func(Progress)) ([]PushedTag, error) {
	q := url.Values{}
	setFlags(q, map[string]bool{"all-tags": req.AllTags})
	setPlatforms(q, "platform", req.Platform)
	for k, v := range map[string]string{"format": req.Format, "compression": req.Compression} {
		if v != "" {
			q.Set(k, v)
		}
	}
	res, err := c.withOptions(ctx, http.MethodPost, "/images/"+req.Reference+"/push", q, req.Registry)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	var tags []PushedTag
	in := newLines(ctx, res.Body, report)
	for {
		b, err := in.next()
		if err == io.EOF {
			return tags, nil
		}
		if err != nil {
			return tags, err
		}
		var t PushedTag
		if err := json.Unmarshal(b, &t); err != nil {
			return tags, lost(ctx, err)
		}
		tags = append(tags, t)
	}
}

// Search looks for repositories.
func (c *Client) Search(ctx context.Context, req SearchRequest) ([]SearchResult, error) {
	q := url.Values{"term": {req.Term}}
	if req.Limit != 0 {
		q.Set("limit", strconv.Itoa(req.Limit))
	}
	filters := map[string][]string{}
	if req.Official != nil {
		filters["is-official"] = []string{strconv.FormatBool(*req.Official)}
	}
	if req.Stars != 0 {
		filters["stars"] = []string{strconv.Itoa(req.Stars)}
	}
	if err := setFilters(q, filters); err != nil {
		return nil, err
	}
	h, err := optionsHeader(req.Registry)
	if err != nil {
		return nil, err
	}
	var list []SearchResult
	return list, c.exchange(ctx, http.MethodGet, "/images/search", q, h, nil, &list)
}

// Login finds out whether a registry takes credentials; nothing is kept. If not,
// the error is fault.Denied.
func (c *Client) Login(ctx context.Context, req LoginRequest) (LoginResult, error) {
	var res LoginResult
	h, err := optionsHeader(req.Registry)
	if err != nil {
		return res, err
	}
	return res, c.exchange(ctx, http.MethodPost, "/auth", nil, h, req, &res)
}

// withOptions sends a request whose reply is a stream.
func (c *Client) withOptions(ctx context.Context, method, path string, q url.Values, o RegistryOptions) (*http.Response, error) {
	h, err := optionsHeader(o)
	if err != nil {
		return nil, err
	}
	return c.do(ctx, method, path, q, h, nil)
}

// optionsHeader returns the header that r travels in, as it may hold secrets.
func optionsHeader(r RegistryOptions) (http.Header, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("registry options: %w", err)
	}
	return http.Header{RegistryHeader: {base64.URLEncoding.EncodeToString(b)}}, nil
}

// setFlags puts those that are set into a query.
func setFlags(q url.Values, flags map[string]bool) {
	for k, on := range flags {
		if on {
			q.Set(k, "1")
		}
	}
}

// setPlatforms puts platforms into a query, but for "".
func setPlatforms(q url.Values, key string, platforms ...string) {
	for _, p := range platforms {
		if p != "" {
			q.Add(key, platformJSON(p))
		}
	}
}

package fetch

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

const (
	maxTags     = 100_000 // of one repository that are listed
	maxTagPages = 1000    // of answers they come in
	maxCatalog  = 100_000 // repositories that are looked through
	pageSize    = 1000    // asked for in one answer
	indexHost   = "index.docker.io"
	maxResults  = 100 // of a search, as docker limits them
)

// Tags lists the tags of ref's repository, in the order of its registry.
func (c *Client) Tags(ctx context.Context, ref Reference) ([]string, error) {
	if ref.source != SourceRegistry {
		return nil, fault.New(fault.Invalid, "%s: only a registry has tags to list", ref.Name())
	}
	var list []string
	err := c.try(ref, canResolve, func(e *endpoint) error {
		list = nil
		r := request{method: http.MethodGet, repository: ref.path, what: "tags/list", query: url.Values{"n": {strconv.Itoa(pageSize)}}}
		return e.pages(ctx, r, "tags", maxTagPages, func(body []byte) (bool, error) {
			var page struct {
				Tags []string `json:"tags"`
			}
			if err := json.Unmarshal(body, &page); err != nil {
				return false, fault.New(fault.Integrity, "registry %s: list of tags: %w", e.host, err)
			}
			for _, t := range page.Tags {
				if _, err := ParseReference(ref.Name() + ":" + t); err != nil || t == "" {
					return false, fault.New(fault.Integrity, "registry %s: lists a tag that is none: %q", e.host, oneLine(t))
				}
			}
			list = append(list, page.Tags...)
			if len(list) > maxTags {
				return false, fault.New(fault.Integrity, "repository %s: more than %d tags", ref.FamiliarName(), maxTags)
			}
			return true, nil
		})
	})
	return list, err
}

// pages gets all of an answer that comes in several, until take says that it
// has enough.
func (e *endpoint) pages(ctx context.Context, r request, name string, most int, take func(body []byte) (more bool, err error)) error {
	seen := map[string]bool{}
	for range most {
		resp, body, err := e.get(ctx, r, name, maxManifest)
		if s := (*statusError)(nil); errors.As(err, &s) && s.status == http.StatusNotFound {
			s.code = "NAME_UNKNOWN" // what else: there is no manifest in question
		}
		if err != nil {
			return err
		}
		more, err := take(body)
		if err != nil || !more {
			return err
		}
		if r.url = nextPage(resp); r.url == nil {
			return nil
		}
		if at := r.url.String(); seen[at] {
			return fault.New(fault.Integrity, "registry %s: its list of %s goes round in circles", e.host, name)
		} else {
			seen[at] = true
		}
	}
	return fault.New(fault.Integrity, "registry %s: its list of %s does not end", e.host, name)
}

// Get gets what ref names in its registry as it is, an index or a manifest,
// verified. It is not parsed: it may be an artifact's.
func (c *Client) Get(ctx context.Context, ref Reference) (body []byte, mediaType string, digest id.Blob, err error) {
	if ref.source != SourceRegistry {
		return nil, "", "", fault.New(fault.Invalid, "%s: not in a registry", ref.Name())
	}
	got, err := c.named(ctx, ref)
	if err != nil {
		return nil, "", "", err
	}
	var m struct {
		MediaType string `json:"mediaType"`
	}
	_ = json.Unmarshal(got.body, &m) // whoever wants more of it parses it
	return got.body, cmp.Or(m.MediaType, stripType(got.contentType)), got.digest, nil
}

// Login finds out whether the registry takes the credentials that the client
// has; domain is as in references. A registry that wants none takes all.
func (c *Client) Login(ctx context.Context, domain string) error {
	all, err := c.endpoints(domain)
	if err != nil {
		return err
	}
	e := all[len(all)-1]
	resp, err := e.do(ctx, request{method: http.MethodGet, url: &url.URL{Host: e.host, Path: e.path + "/"}})
	if err == nil {
		consume(resp, c.opts.Stall)
		return nil
	}
	var s *statusError
	if !errors.As(err, &s) || s.status/100 != 4 || s.status == http.StatusTooManyRequests {
		return explain(err, Reference{source: SourceRegistry, domain: domain}, e.host)
	}
	if strings.HasSuffix(s.url, e.host+e.path+"/") {
		return fault.New(fault.Denied, "login attempt to %s failed with status: %d %s", s.url, s.status, http.StatusText(s.status))
	}
	// Its token server's answer.
	return fault.New(fault.Denied, "Get %q: unauthorized: incorrect username or password", "https://"+e.host+e.path+"/")
}

// Found is a repository that a search found.
type Found struct {
	Name        string // as it is pulled: with its registry, but for Docker Hub's
	Description string
	Stars       int
	Official    bool
}

// Search looks for repositories whose name or description holds what term
// says, at Docker Hub, or in the registry whose host term begins with. It asks
// the registry's search (the old index API), and where there is none looks
// through its catalog. At most limit come back, which is from 1 to 100.
func (c *Client) Search(ctx context.Context, term string, limit int) ([]Found, error) {
	if limit < 1 || limit > maxResults {
		return nil, fault.New(fault.Invalid, "Limit %d is outside the range of [1, %d]", limit, maxResults)
	}
	domain, term, err := splitTerm(term)
	if err != nil {
		return nil, err
	}
	all, err := c.endpoints(domain)
	if err != nil {
		return nil, err
	}
	e := all[len(all)-1]
	list, err := e.search(ctx, domain, term, limit)
	if s := statusOf(err); domain != "docker.io" && (s/100 == 4 && s != http.StatusUnauthorized && s != http.StatusForbidden && s != http.StatusTooManyRequests || errors.Is(err, errNoSearch)) {
		list, err = e.catalog(ctx, domain, term, limit)
		if s := statusOf(err); s == http.StatusNotFound || s == http.StatusMethodNotAllowed || s == http.StatusNotImplemented {
			return nil, fault.New(fault.Invalid, "registry %s: has neither a search nor a catalog", domain)
		}
	}
	if s := statusOf(err); s == http.StatusUnauthorized || s == http.StatusForbidden {
		return nil, fault.WithHint(fault.New(fault.Denied, "registry %s: a search is denied", domain), "log in: imgfs login %s", domain)
	}
	return list, explain(err, Reference{source: SourceRegistry, domain: domain, path: term}, e.host)
}

// splitTerm takes a registry off the front of what is searched for.
func splitTerm(term string) (domain, rest string, err error) {
	if strings.Contains(term, "://") {
		return "", "", fault.New(fault.Invalid, "invalid repository name: repository name (%s) should not have a scheme", term)
	}
	first, rest, ok := strings.Cut(term, "/")
	switch {
	case !ok || !strings.ContainsAny(first, ".:") && first != "localhost":
		domain, rest = "docker.io", term
	case first == "index.docker.io":
		domain = "docker.io"
	default:
		domain = first
	}
	if domain == "docker.io" {
		rest = strings.TrimPrefix(rest, "library/")
		if rest == "" {
			return "", "", fault.New(fault.Invalid, "nothing to search for")
		}
	}
	if _, err := ParseReference(domain + "/x"); err != nil {
		return "", "", fault.New(fault.Invalid, "invalid registry endpoint %q", domain)
	}
	return domain, rest, nil
}

// errNoSearch marks an answer that is none of the search: some servers send a
// page for every path.
var errNoSearch = errors.New("the answer is no result of a search")

// search asks the index API.
func (e *endpoint) search(ctx context.Context, domain, term string, limit int) ([]Found, error) {
	at := &url.URL{Scheme: "https", Host: e.host, Path: "/v1/search", RawQuery: url.Values{"q": {term}, "n": {strconv.Itoa(limit)}}.Encode()}
	if e.host == hubHost {
		at.Host = indexHost
	}
	_, body, err := e.get(ctx, request{method: http.MethodGet, url: at}, "search", maxManifest)
	if err != nil {
		return nil, err
	}
	var answer struct {
		Results []struct {
			Name        string `json:"name"`
			Description string `json:"description"`
			Stars       int    `json:"star_count"`
			Official    bool   `json:"is_official"`
		} `json:"results"`
	}
	if json.Unmarshal(body, &answer) != nil || answer.Results == nil {
		return nil, errNoSearch
	}
	var list []Found
	for _, r := range answer.Results[:min(limit, len(answer.Results))] {
		list = append(list, Found{found(domain, r.Name), oneLine(r.Description), r.Stars, r.Official})
	}
	return list, nil
}

// catalog looks for term in the names of all repositories.
func (e *endpoint) catalog(ctx context.Context, domain, term string, limit int) ([]Found, error) {
	r := request{method: http.MethodGet, url: &url.URL{Host: e.host, Path: e.path + "/_catalog", RawQuery: "n=" + strconv.Itoa(pageSize)}}
	term = strings.ToLower(term)
	var list []Found
	seen := 0
	err := e.pages(ctx, r, "repositories", maxTagPages, func(body []byte) (bool, error) {
		var page struct {
			Repositories []string `json:"repositories"`
		}
		if err := json.Unmarshal(body, &page); err != nil {
			return false, fault.New(fault.Integrity, "registry %s: catalog: %w", e.host, err)
		}
		for _, name := range page.Repositories {
			if strings.Contains(strings.ToLower(name), term) && len(list) < limit {
				list = append(list, Found{Name: found(domain, name)})
			}
		}
		seen += len(page.Repositories)
		return len(list) < limit && seen < maxCatalog, nil
	})
	return list, err
}

// found returns a repository's name as it is pulled.
func found(domain, name string) string {
	if domain == "docker.io" {
		return oneLine(name)
	}
	return domain + "/" + oneLine(name)
}

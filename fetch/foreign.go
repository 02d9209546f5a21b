package fetch

import (
	"context"
	"net/http"
	"net/url"
)

// foreign returns the source for a URL that a manifest names: any https
// server, or an http one where a registry might be, without credentials. What
// it gives is verified like all else.
func (c *Client) foreign(raw string) (*source, bool) {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		c.opts.Logger.Warn("foreign layer: URL skipped, neither http nor https, or with a user name")
		return nil, false
	}
	if u.Scheme == "http" && !c.opts.Insecure && !isLoopback(u.Host) {
		c.opts.Logger.Warn("foreign layer: URL skipped, http without --insecure", "host", u.Host)
		return nil, false
	}
	return &source{host: u.Host, state: c.host(u.Host), get: func(ctx context.Context, header http.Header, _ manner) (*http.Response, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
		if err != nil {
			return nil, err
		}
		req.Header = header
		resp, err := c.send(c.anyone(), req)
		if err == nil && resp.StatusCode/100 != 2 {
			return nil, newStatusError(resp, c.opts.Stall)
		}
		return resp, err
	}}, true
}

// anyone returns the HTTP client for servers nobody configured.
func (c *Client) anyone() *http.Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stranger == nil {
		c.stranger = c.httpClient(hostConfig{}, false)
	}
	return c.stranger
}

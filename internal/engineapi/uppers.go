package engineapi

import (
	"context"
	"net/http"
)

func (s *server) upper(w http.ResponseWriter, r *http.Request) error {
	u, err := s.engine.Upper(r.Context(), name(r))
	if err != nil {
		return err
	}
	return reply(w, u)
}

func (s *server) checkUpper(w http.ResponseWriter, r *http.Request) error {
	list, err := s.engine.CheckUpper(r.Context(), name(r))
	if err != nil {
		return err
	}
	return reply(w, list)
}

func (s *server) removeUpper(w http.ResponseWriter, r *http.Request) error {
	if err := s.engine.RemoveUpper(r.Context(), name(r)); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *server) convertUpper(w http.ResponseWriter, r *http.Request) error {
	var req ConvertRequest
	if err := readBody(r, &req); err != nil {
		return err
	}
	if err := s.engine.ConvertUpper(r.Context(), name(r), req); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// Uppers lists the uppers of the store, oldest first.
func (c *Client) Uppers(ctx context.Context) ([]Upper, error) {
	var list []Upper
	return list, c.get(ctx, "/imgfs/v1/uppers", nil, &list)
}

// Upper returns one upper of the store.
func (c *Client) Upper(ctx context.Context, name string) (Upper, error) {
	var u Upper
	return u, c.get(ctx, "/imgfs/v1/uppers/"+name, nil, &u)
}

// CheckUpper returns what is damaged in an upper.
func (c *Client) CheckUpper(ctx context.Context, name string) ([]UpperProblem, error) {
	var list []UpperProblem
	return list, c.get(ctx, "/imgfs/v1/uppers/"+name+"/check", nil, &list)
}

// RemoveUpper removes an upper with all its changes.
func (c *Client) RemoveUpper(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, "/imgfs/v1/uppers/"+name, nil, nil, nil)
}

// ConvertUpper rewrites an upper so that kernel overlayfs can take it.
func (c *Client) ConvertUpper(ctx context.Context, name string, req ConvertRequest) error {
	return c.call(ctx, http.MethodPost, "/imgfs/v1/uppers/"+name+"/convert", nil, req, nil)
}

package engineapi

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/imgfs/imgfs/internal/fault"
)

// upper serves what is asked of one upper; rest is its name, behind which an
// action may stand.
func (s *server) upper(w http.ResponseWriter, r *http.Request, rest string) error {
	name, action, _ := strings.Cut(rest, "/")
	switch r.Method + " " + action {
	case "GET ":
		u, err := s.engine.Upper(r.Context(), name)
		if err != nil {
			return err
		}
		return reply(w, u)
	case "GET check":
		list, err := s.engine.CheckUpper(r.Context(), name)
		if err != nil {
			return err
		}
		return reply(w, list)
	case "DELETE ":
		if err := s.engine.RemoveUpper(r.Context(), name); err != nil {
			return err
		}
	case "POST convert":
		var req ConvertRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			return fault.New(fault.Invalid, "convert request: %w", err)
		}
		if err := s.engine.ConvertUpper(r.Context(), name, req); err != nil {
			return err
		}
	default:
		return fault.New(fault.NotFound, "no such upper: %s", rest)
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

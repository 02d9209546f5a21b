package engineapi

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/imgfs/imgfs/internal/fault"
)

// layerRoutes are imgfs' own routes of single layers.
var layerRoutes = []route{
	{request: "POST /imgfs/v1/layers", serve: (*server).importLayer, body: anyBody},
	{request: "GET /imgfs/v1/layers/{}/json", serve: (*server).inspectLayer},
	{request: "GET /imgfs/v1/layers/{}/tar", serve: (*server).exportLayer},
	{request: "DELETE /imgfs/v1/layers/{}", serve: (*server).removeLayer},
}

// MaxConfig is the longest config that a layer is imported with, in bytes.
const MaxConfig = 8 << 20

func (s *server) inspectLayer(w http.ResponseWriter, r *http.Request) error {
	l, err := s.engine.InspectLayer(r.Context(), name(r))
	if err != nil {
		return err
	}
	return reply(w, l)
}

func (s *server) removeLayer(w http.ResponseWriter, r *http.Request) error {
	if err := s.engine.RemoveLayer(r.Context(), name(r)); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *server) exportLayer(w http.ResponseWriter, r *http.Request) error {
	return s.sendTar(w, func(w io.Writer) error { return s.engine.ExportLayer(r.Context(), name(r), w) })
}

// importLayer reads a body that begins with the config, of ?config=N bytes, and
// goes on with the layer.
func (s *server) importLayer(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	return serveUpload(s, w, r, func(report func(Progress)) (LayerInspect, error) {
		req := LayerImport{Parent: q.Get("parent"), Reference: q.Get("reference")}
		if text := q.Get("config"); text != "" {
			n, err := strconv.ParseUint(text, 10, 32)
			if err != nil || n > MaxConfig {
				return LayerInspect{}, fault.New(fault.Invalid, "config of %s bytes: more than %d, or no number", text, MaxConfig)
			}
			req.Config = make([]byte, n)
			if _, err := io.ReadFull(r.Body, req.Config); err != nil {
				return LayerInspect{}, fault.New(fault.Invalid, "config: %w", err)
			}
		}
		return s.engine.ImportLayer(r.Context(), req, r.Body, report)
	})
}

// Layer returns what is known of a layer; see [LayerStore] for its names.
func (c *Client) Layer(ctx context.Context, name string) (LayerInspect, error) {
	var l LayerInspect
	return l, c.get(ctx, layerPath(name)+"/json", nil, &l)
}

func layerPath(name string) string { return "/imgfs/v1/layers/" + name }

// RemoveLayer gives up a layer that ImportLayer stored without an image.
func (c *Client) RemoveLayer(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, layerPath(name), nil, nil, nil)
}

// ExportLayer writes a layer's uncompressed tar to w.
func (c *Client) ExportLayer(ctx context.Context, name string, w io.Writer) error {
	return c.receiveTar(ctx, layerPath(name)+"/tar", nil, w)
}

// ImportLayer stores a layer; see [LayerStore]. Report, if not nil, is called
// with every step, from the calling goroutine.
func (c *Client) ImportLayer(ctx context.Context, req LayerImport, body io.Reader, report func(Progress)) (LayerInspect, error) {
	q := url.Values{}
	for k, v := range map[string]string{"parent": req.Parent, "reference": req.Reference} {
		if v != "" {
			q.Set(k, v)
		}
	}
	if req.Config != nil {
		q.Set("config", strconv.Itoa(len(req.Config)))
		body = io.MultiReader(bytes.NewReader(req.Config), body)
	}
	var l LayerInspect
	return l, c.upload(ctx, "/imgfs/v1/layers", q, body, report, &l)
}

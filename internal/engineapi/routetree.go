package engineapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
)

// treeRoutes are imgfs' own routes that read trees.
var treeRoutes = []route{
	// A stream of steps and entries.
	{request: "POST /imgfs/v1/tree/list", serve: (*server).listTree, reads: true},
	// A stream of steps, an empty line, and the bytes.
	{request: "POST /imgfs/v1/tree/read", serve: (*server).readTree, reads: true},
}

func treeRequest(r *http.Request) (TreeRequest, error) {
	var req TreeRequest
	if err := readBody(r, &req); err != nil {
		return req, err
	}
	if req.Bytes != nil {
		req.Path = string(req.Bytes)
	}
	return req, nil
}

// treeBatch is how many entries are sent at once.
const treeBatch = 256

// listTree streams entries, a list of them per line.
func (s *server) listTree(w http.ResponseWriter, r *http.Request) error {
	req, err := treeRequest(r)
	if err != nil {
		return err
	}
	st := &stream{w: w}
	var batch []TreeEntry
	send := func() error {
		b, err := json.Marshal(batch)
		if err == nil {
			st.line(streamLine{Aux: b})
			batch = batch[:0]
		}
		return err
	}
	err = s.engine.ListTree(r.Context(), req, st.step, func(e TreeEntry) error {
		e.pack()
		if batch = append(batch, e); len(batch) < treeBatch {
			return nil
		}
		return send()
	})
	if err == nil && (len(batch) > 0 || !st.started) {
		err = send()
	}
	if err != nil {
		return st.fail(err)
	}
	return nil
}

// readTree streams bytes. An error behind the first of them is a trailer.
func (s *server) readTree(w http.ResponseWriter, r *http.Request) error {
	req, err := treeRequest(r)
	if err != nil {
		return err
	}
	b := &bytesBehind{stream: stream{w: w}}
	err = s.engine.ReadTree(r.Context(), req, b.step, b)
	switch {
	case err == nil:
		return b.begin()
	case !b.begun:
		return b.fail(err)
	}
	s.log.Warn("read of a tree", "err", err)
	return trail(w, err)
}

// bytesBehind is a stream of lines, an empty one, and then bytes.
type bytesBehind struct {
	stream
	begun bool
}

func (b *bytesBehind) step(p Progress) {
	b.announce()
	b.stream.step(p)
}

// announce says, while it can be said, that a trailer may come.
func (b *bytesBehind) announce() {
	if !b.started {
		b.w.Header().Set("Trailer", errorTrailer)
	}
}

func (b *bytesBehind) begin() error {
	if b.begun {
		return nil
	}
	b.begun = true
	if b.announce(); !b.started {
		b.w.Header().Set("Content-Type", "application/octet-stream")
	}
	_, err := io.WriteString(b.w, "\r\n")
	return err
}

func (b *bytesBehind) Write(p []byte) (int, error) {
	if err := b.begin(); err != nil {
		return 0, err
	}
	return b.w.Write(p)
}

// postTree sends a request about a tree.
func (c *Client) postTree(ctx context.Context, path string, req TreeRequest) (*http.Response, error) {
	req.Bytes = odd(req.Path)
	b, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("request: %w", err)
	}
	return c.do(ctx, http.MethodPost, path, nil, nil, b)
}

// ListTree calls emit with what is at a path of a tree; see [Trees]. report,
// nil for none, is called with the steps of a pull that comes before.
func (c *Client) ListTree(ctx context.Context, req TreeRequest, report func(Progress), emit func(TreeEntry) error) error {
	res, err := c.postTree(ctx, "/imgfs/v1/tree/list", req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	in := newLines(ctx, res.Body, report)
	for {
		aux, err := in.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		var batch []TreeEntry
		if err := json.Unmarshal(aux, &batch); err != nil {
			return fmt.Errorf("daemon's reply: %w", err)
		}
		for i := range batch {
			batch[i].unpack()
			if err := emit(batch[i]); err != nil {
				return err
			}
		}
	}
}

// ReadTree writes what is at a path of a tree to w; see [Trees]. report, nil for
// none, is called with the steps of a pull that comes before.
func (c *Client) ReadTree(ctx context.Context, req TreeRequest, report func(Progress), w io.Writer) error {
	res, err := c.postTree(ctx, "/imgfs/v1/tree/read", req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	in := newLines(ctx, res.Body, report)
	if _, err := in.next(); err != errEmptyLine {
		if err == nil || err == io.EOF {
			err = lost(ctx, io.ErrUnexpectedEOF)
		}
		return err
	}
	out := &failing{w: w}
	if _, err := io.Copy(out, in.r); err != nil {
		if out.err != nil {
			return out.err
		}
		return lost(ctx, err)
	}
	return trailed(res)
}

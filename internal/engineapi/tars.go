package engineapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// errorTrailer holds the error of a stream that has begun, as JSON.
const errorTrailer = "Imgfs-Error"

// trail puts err into the trailer of a reply that has begun.
func trail(w http.ResponseWriter, err error) error {
	text, jerr := json.Marshal(WireError(err))
	if jerr != nil {
		return jerr
	}
	w.Header().Set(errorTrailer, string(text))
	return nil
}

// trailed returns the error in the trailer of a reply that was read to its end;
// nil if there is none.
func trailed(res *http.Response) error {
	text := res.Trailer.Get(errorTrailer)
	if text == "" {
		return nil
	}
	var e Error
	if err := json.Unmarshal([]byte(text), &e); err != nil {
		return errors.New(text)
	}
	return e.Err()
}

// sendTar replies with what write writes. Its first bytes are the header of the
// reply, so that an error before them is a reply of its own; one behind them is
// a trailer.
func (s *server) sendTar(w http.ResponseWriter, write func(io.Writer) error) error {
	b := &begun{w: w}
	err := write(b)
	if err == nil || !b.yes {
		return err
	}
	s.log.Warn("tar ends early", "err", err)
	return trail(w, err)
}

// begun writes the header before the first bytes.
type begun struct {
	w   http.ResponseWriter
	yes bool
}

func (b *begun) Write(p []byte) (int, error) {
	if !b.yes {
		b.yes = true
		b.w.Header().Set("Content-Type", "application/x-tar")
		b.w.Header().Set("Trailer", errorTrailer)
	}
	return b.w.Write(p)
}

// receiveTar writes a reply to w; an error in its trailer is returned.
func (c *Client) receiveTar(ctx context.Context, path string, q url.Values, w io.Writer) error {
	res, err := c.do(ctx, http.MethodGet, path, q, http.Header{"Te": {"trailers"}}, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	out := &failing{w: w}
	if _, err := io.Copy(out, res.Body); err != nil {
		if out.err != nil {
			return fmt.Errorf("export: %w", out.err)
		}
		return lost(ctx, err)
	}
	return trailed(res)
}

// failing remembers that it was w that failed.
type failing struct {
	w   io.Writer
	err error
}

func (f *failing) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	f.err = err
	return n, err
}

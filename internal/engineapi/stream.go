package engineapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"github.com/imgfs/imgfs/internal/fault"
)

// streamLine is one line of the stream of a pull or a job, in docker's shape.
// Kind and hint of an error travel inside errorDetail, where docker's clients
// ignore them. Aux is the result.
type streamLine struct {
	Stream      string          `json:"stream,omitempty"` // a line of text, of a load
	Status      string          `json:"status,omitempty"`
	ID          string          `json:"id,omitempty"`
	Detail      *streamDetail   `json:"progressDetail,omitempty"`
	Aux         json.RawMessage `json:"aux,omitempty"`
	ErrorDetail *Error          `json:"errorDetail,omitempty"`
	Error       string          `json:"error,omitempty"`
}

// streamDetail counts bytes; {} when nothing is to be counted.
type streamDetail struct {
	Current int64 `json:"current,omitempty"`
	Total   int64 `json:"total,omitempty"`
}

// stream writes a reply line by line; it starts with the first one.
type stream struct {
	w       http.ResponseWriter
	started bool
}

// line writes l. A client that has gone is noticed by the request's context.
func (s *stream) line(l streamLine) {
	if !s.started {
		s.w.Header().Set("Content-Type", "application/json")
		s.started = true
	}
	b, err := json.Marshal(l)
	if err != nil {
		return // a struct of strings and numbers
	}
	s.w.Write(append(b, '\r', '\n'))
	http.NewResponseController(s.w).Flush()
}

// step writes how far something has come.
func (s *stream) step(p Progress) {
	l := streamLine{Status: p.Status, ID: p.ID}
	if p != (Progress{Status: p.Status}) {
		l.Detail = &streamDetail{p.Current, p.Total}
	}
	s.line(l)
}

// aux writes a value.
func (s *stream) aux(v any) error {
	b, err := json.Marshal(v)
	if err == nil {
		s.line(streamLine{Aux: b})
	}
	return err
}

// fail writes err as the last line. Before the first one it is a reply of its
// own: then it is returned.
func (s *stream) fail(err error) error {
	if !s.started {
		return err
	}
	s.line(streamLine{ErrorDetail: WireError(err), Error: err.Error()})
	return nil
}

// job serves what takes long and tells how far it is: a request in JSON, a
// stream of steps and the result as the reply.
func job[Q, R any](do func(Engine, context.Context, Q, func(Progress)) (R, error)) handler {
	return func(s *server, w http.ResponseWriter, r *http.Request) error {
		var req Q
		if err := readBody(r, &req); err != nil {
			return err
		}
		st := &stream{w: w}
		res, err := do(s.engine, r.Context(), req, st.step)
		if err != nil {
			return st.fail(err)
		}
		return st.aux(res)
	}
}

// readBody decodes a request's body.
func readBody(r *http.Request, into any) error {
	if err := json.NewDecoder(r.Body).Decode(into); err != nil {
		return fault.New(fault.Invalid, "request: %w", err)
	}
	return nil
}

// runJob is the client's side of job.
func runJob[R any](ctx context.Context, c *Client, path string, req any, report func(Progress)) (R, error) {
	var res R
	b, err := json.Marshal(req)
	if err != nil {
		return res, fault.New(fault.Invalid, "request: %w", err)
	}
	reply, err := c.do(ctx, http.MethodPost, path, nil, nil, b)
	if err != nil {
		return res, err
	}
	defer reply.Body.Close()
	return res, readStream(ctx, reply.Body, report, &res)
}

// readStream reads a stream to its result. report, nil for none, is called
// with every step.
func readStream(ctx context.Context, r io.Reader, report func(Progress), result any) error {
	b, err := newLines(ctx, r, report).next()
	if err == io.EOF || err == errEmptyLine {
		err = lost(ctx, io.ErrUnexpectedEOF)
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(b, result)
}

// lines reads a stream of steps that is followed by something else.
type lines struct {
	ctx    context.Context
	r      *bufio.Reader
	report func(Progress)
}

func newLines(ctx context.Context, r io.Reader, report func(Progress)) *lines {
	return &lines{ctx, bufio.NewReaderSize(r, 64<<10), report}
}

var errEmptyLine = errors.New("empty line")

// next returns the next aux, having reported the steps before it; at the end
// io.EOF, or errEmptyLine where that comes first, or the error that is told.
func (l *lines) next() (json.RawMessage, error) {
	for {
		b, err := l.line()
		if err != nil {
			return nil, err
		}
		if len(b) == 0 {
			return nil, errEmptyLine
		}
		var m streamLine
		if err := json.Unmarshal(b, &m); err != nil {
			return nil, lost(l.ctx, err)
		}
		switch {
		case m.ErrorDetail != nil:
			return nil, m.ErrorDetail.Err()
		case m.Aux != nil:
			return m.Aux, nil
		case m.Stream != "": // of what is said to docker's clients
		case l.report != nil:
			p := Progress{ID: m.ID, Status: m.Status}
			if m.Detail != nil {
				p.Current, p.Total = m.Detail.Current, m.Detail.Total
			}
			l.report(p)
		}
	}
}

// line returns the next line without its end.
func (l *lines) line() ([]byte, error) {
	var all []byte
	for {
		b, err := l.r.ReadSlice('\n')
		all = append(all, b...)
		switch {
		case err == nil:
			return bytes.TrimRight(all, "\r\n"), nil
		case err == io.EOF && len(all) == 0:
			return nil, io.EOF
		case err != bufio.ErrBufferFull:
			return nil, lost(l.ctx, err)
		case len(all) > maxReply:
			return nil, lost(l.ctx, bufio.ErrTooLong)
		}
	}
}

package engineapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
)

// eventTimeout is how long a client may take to read an event.
const eventTimeout = 30 * time.Second

// Media types of GET /events; all have one object per line.
const (
	eventsJSON   = "application/json"
	eventsNDJSON = "application/x-ndjson"
	eventsLines  = "application/jsonl"
	eventsSeq    = "application/json-seq" // RFC 7464: a record separator before each
)

// legacyEvent is an event as it was below 1.52.
type legacyEvent struct {
	Status string `json:"status,omitempty"`
	ID     string `json:"id,omitempty"`
	*Event
}

// events streams what happens until the client leaves, or until the time that
// it names.
func (s *server) events(w http.ResponseWriter, r *http.Request) error {
	since, err := timeParam(r, "since")
	if err != nil {
		return err
	}
	until, err := timeParam(r, "until")
	if err != nil {
		return err
	}
	if !until.IsZero() && until.Before(since) {
		q := r.URL.Query()
		return fault.New(fault.Invalid, "`since` time (%s) cannot be after `until` time (%s)", q.Get("since"), q.Get("until"))
	}
	f, err := parseFilters(r.URL.Query().Get("filters"))
	if err != nil {
		return err
	}
	if since.IsZero() && until.IsZero() {
		since = time.Now() // what happens after the header is not missed
	}
	media := eventsMedia(r.Header.Values("Accept"))
	w.Header().Set("Content-Type", media)
	w.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(w)
	// That the header comes at once tells the client that it is heard.
	if err := rc.Flush(); err != nil {
		return nil
	}
	write := func(v any) error {
		b, err := json.Marshal(v)
		if err != nil {
			return fmt.Errorf("event: %w", err)
		}
		if media == eventsSeq {
			b = append([]byte{'\x1e'}, b...)
		}
		_ = rc.SetWriteDeadline(time.Now().Add(eventTimeout)) // where there is one
		if _, err := w.Write(append(b, '\n')); err != nil {
			return err
		}
		return rc.Flush()
	}
	defer rc.SetWriteDeadline(time.Time{}) // the connection may serve another request
	legacy := olderThan(r, 52)
	err = s.engine.Events(r.Context(), since, until, func(ev Event) error {
		switch {
		case !f.happened(&ev):
			return nil
		case legacy && ev.Type == "image":
			return write(legacyEvent{ev.Action, ev.Actor.ID, &ev})
		}
		return write(ev)
	})
	if err != nil && r.Context().Err() == nil {
		s.log.Info("events", "err", err)
		_ = write(streamLine{ErrorDetail: WireError(err), Error: err.Error()}) // if it still can be
	}
	return nil
}

// eventsMedia returns the media type of the best that accept lists; without a
// known one, it is docker's old word for the same lines.
func eventsMedia(accept []string) string {
	best, media := 0.0, eventsJSON
	for _, a := range strings.Split(strings.Join(accept, ","), ",") {
		typ, params, err := mime.ParseMediaType(strings.TrimSpace(a))
		if err != nil || !slices.Contains([]string{eventsNDJSON, eventsLines, eventsSeq}, typ) {
			continue
		}
		q := 1.0
		if s, ok := params["q"]; ok {
			if q, err = strconv.ParseFloat(s, 64); err != nil {
				continue
			}
		}
		if q > best {
			best, media = q, typ
		}
	}
	return media
}

// happened reports whether f keeps an event, as docker's daemon does: keys that
// do not apply to it keep nothing.
func (f filters) happened(ev *Event) bool {
	for key, want := range f {
		if len(want) == 0 {
			continue
		}
		var have []string
		switch key {
		case "type":
			have = []string{ev.Type}
		case "event":
			have = []string{ev.Action}
		case "scope":
			have = []string{ev.Scope}
		case "label":
			if !hasLabels(ev.Actor.Attributes, want) {
				return false
			}
			continue
		case "image":
			name := ev.Actor.Attributes["image"]
			if ev.Type == "image" {
				name = ev.Actor.Attributes["name"]
			}
			have = []string{ev.Actor.ID, withoutTag(ev.Actor.ID)}
			if name != "" {
				have = append(have, name, withoutTag(name))
			}
		case ev.Type:
			have = []string{ev.Actor.ID, ev.Actor.Attributes["name"]}
		}
		if !slices.ContainsFunc(want, func(s string) bool { return slices.Contains(have, s) }) {
			return false
		}
	}
	return true
}

// Events calls emit with what has happened since, if that is not "", as far as
// it is remembered, and then with what happens until until, if that is not "",
// or ctx ends. Times are in docker's form: seconds since 1970 with a fraction, a
// date and time, or how long ago. Filters are docker's.
func (c *Client) Events(ctx context.Context, since, until string, filters map[string][]string, emit func(Event) error) error {
	q := url.Values{}
	for k, v := range map[string]string{"since": since, "until": until} {
		if v != "" {
			q.Set(k, v)
		}
	}
	if err := setFilters(q, filters); err != nil {
		return err
	}
	res, err := c.do(ctx, http.MethodGet, "/events", q, http.Header{"Accept": {eventsNDJSON}}, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	in := newLines(ctx, res.Body, nil)
	for {
		b, err := in.line()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		var m struct {
			Event
			ErrorDetail *Error `json:"errorDetail"`
		}
		if err := json.Unmarshal(bytes.TrimSpace(b), &m); err != nil {
			return lost(ctx, err)
		}
		if m.ErrorDetail != nil {
			return m.ErrorDetail.Err()
		}
		if err := emit(m.Event); err != nil {
			return err
		}
	}
}

// setFilters puts filters into a query, in docker's form.
func setFilters(q url.Values, filters map[string][]string) error {
	if len(filters) == 0 {
		return nil
	}
	sets := map[string]map[string]bool{}
	for _, k := range slices.Sorted(maps.Keys(filters)) {
		sets[k] = map[string]bool{}
		for _, v := range filters[k] {
			sets[k][v] = true
		}
	}
	b, err := json.Marshal(sets)
	if err != nil {
		return fmt.Errorf("filters: %w", err)
	}
	q.Set("filters", string(b))
	return nil
}

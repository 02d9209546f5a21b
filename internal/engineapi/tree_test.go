package engineapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
)

// treeEngine lists and reads by what stands in the path.
type treeEngine struct{ Engine }

func (treeEngine) ListTree(_ context.Context, req TreeRequest, report func(Progress), emit func(TreeEntry) error) error {
	if strings.Contains(req.Path, "pull") {
		report(Progress{ID: "l", Status: "Downloading", Current: 1, Total: 2})
	}
	if strings.Contains(req.Path, "none") {
		return fault.WithHint(fault.New(fault.NotFound, "%s: nothing there", req.Path), "look elsewhere")
	}
	for i := range strings.Count(req.Path, "x") {
		if err := emit(TreeEntry{Path: fmt.Sprint(i), Mtime: time.Unix(5, 7).UTC()}); err != nil {
			return err
		}
	}
	if strings.Contains(req.Path, "\xff") {
		return emit(TreeEntry{Path: req.Path, Target: "t\xfe"})
	}
	if strings.Contains(req.Path, "half") {
		return fault.New(fault.Integrity, "damaged")
	}
	return nil
}

func (treeEngine) ReadTree(_ context.Context, req TreeRequest, report func(Progress), w io.Writer) error {
	if strings.Contains(req.Path, "pull") {
		report(Progress{Status: "Pulling"})
	}
	if strings.Contains(req.Path, "none") {
		return fault.New(fault.NotFound, "nothing there")
	}
	if _, err := io.WriteString(w, strings.Repeat("x", strings.Count(req.Path, "x"))+"\r\n\n"); err != nil {
		return err
	}
	if strings.Contains(req.Path, "half") {
		return fault.New(fault.Integrity, "damaged")
	}
	return nil
}

func TestTree(t *testing.T) {
	c := serve(t, treeEngine{})
	ctx := t.Context()
	for _, tt := range []struct {
		path         string
		steps, files int
		kind         fault.Kind
		fails        bool
	}{
		{path: ""},
		{path: "x", files: 1},
		{path: "pull" + strings.Repeat("x", 1000), steps: 1, files: 1000},
		{path: "\xff", files: 1},
		{path: "none", fails: true, kind: fault.NotFound},
		{path: "pull none", steps: 1, fails: true, kind: fault.NotFound},
		{path: "half x", fails: true, kind: fault.Integrity},
		{path: "half" + strings.Repeat("x", 2*treeBatch), files: 2 * treeBatch, fails: true, kind: fault.Integrity},
	} {
		steps := 0
		report := func(Progress) { steps++ }
		var list []TreeEntry
		err := c.ListTree(ctx, TreeRequest{Path: tt.path}, report, func(e TreeEntry) error {
			list = append(list, e)
			return nil
		})
		if (err != nil) != tt.fails || err != nil && fault.KindOf(err) != tt.kind {
			t.Errorf("list %.20q: %v", tt.path, err)
		}
		if steps != tt.steps || len(list) != tt.files {
			t.Errorf("list %.20q: %d steps, %d entries", tt.path, steps, len(list))
		}
		if tt.path == "\xff" && (list[0].Path != "\xff" || list[0].Target != "t\xfe" || list[0].Bytes != nil) {
			t.Errorf("list: %+v", list[0])
		}

		steps = 0
		var b bytes.Buffer
		err = c.ReadTree(ctx, TreeRequest{Path: tt.path}, report, &b)
		if (err != nil) != tt.fails || err != nil && fault.KindOf(err) != tt.kind {
			t.Errorf("read %.20q: %v", tt.path, err)
		}
		want := strings.Repeat("x", strings.Count(tt.path, "x")) + "\r\n\n"
		if tt.kind == fault.NotFound {
			want = ""
		}
		if steps != tt.steps || b.String() != want {
			t.Errorf("read %.20q: %d steps, %q", tt.path, steps, b.String())
		}
	}
	err := c.ListTree(ctx, TreeRequest{Path: "none"}, nil, nil)
	if fault.HintOf(err) != "look elsewhere" {
		t.Errorf("hint %q", fault.HintOf(err))
	}
	// Who wants no more is not sent more.
	stop, n := errors.New("stop"), 0
	err = c.ListTree(ctx, TreeRequest{Path: strings.Repeat("x", 1000)}, nil, func(TreeEntry) error { n++; return stop })
	if !errors.Is(err, stop) || n != 1 {
		t.Errorf("list: %v after %d", err, n)
	}
	if err := c.ReadTree(ctx, TreeRequest{Path: "x"}, nil, failingWriter{stop}); !errors.Is(err, stop) {
		t.Errorf("read: %v", err)
	}
	res, body := get(t, c, "POST", "/imgfs/v1/tree/read")
	if res.StatusCode != 400 {
		t.Errorf("no request: %d %s", res.StatusCode, body)
	}
}

type failingWriter struct{ error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.error }

// What a daemon sends that is none is an error, and no crash.
func TestTreeLines(t *testing.T) {
	for _, text := range []string{"", "\n", "x", "x\n", "{}", "{\"aux\":[]}", "{\"aux\":[]}\r\n", "{\"status\":\"s\"}\r\n\r\n", strings.Repeat("x", 1<<20)} {
		in := newLines(t.Context(), strings.NewReader(text), nil)
		var seen []string
		for range 5 {
			aux, err := in.next()
			seen = append(seen, string(aux))
			if err != nil {
				break
			}
		}
		if want := strings.Count(text, "aux"); strings.HasSuffix(text, "\n") && len(slices.DeleteFunc(seen, func(s string) bool { return s == "" })) != want {
			t.Errorf("%.20q: %q", text, seen)
		}
	}
}

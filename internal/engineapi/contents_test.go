package engineapi

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

func TestContents(t *testing.T) {
	t.Parallel()
	e := &engine{}
	c := serve(t, e)
	list, err := c.Changes(t.Context(), Source{Image: "b"}, "a")
	if err != nil || len(list) != 2 || list[0] != (Change{"C", "/ba"}) || list[1].Path != "/\xff" {
		t.Errorf("Changes: %q, %v", list, err)
	}
	var b bytes.Buffer
	if err := c.Export(t.Context(), Source{Mount: "m"}, true, &b); err != nil || b.String() != "m true" && b.String() != "mtrue" {
		t.Errorf("Export: %q, %v", &b, err)
	}
	res, err := c.Commit(t.Context(), CommitRequest{Message: "x"})
	if err != nil || res.ID != id.ImageIDOf([]byte("x")) {
		t.Errorf("Commit: %v, %v", res, err)
	}

	// An error arrives as what it is, also behind the first bytes.
	e.err = fault.WithHint(fault.New(fault.Integrity, "damaged\nhere"), "mend it")
	check := func(what string, err error) {
		t.Helper()
		if fault.KindOf(err) != fault.Integrity || err.Error() != "damaged\nhere" || fault.HintOf(err) != "mend it" {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err = c.Changes(t.Context(), Source{}, "")
	check("Changes", err)
	check("Export", c.Export(t.Context(), Source{}, false, &b))
	b.Reset()
	check("Export, begun", c.Export(t.Context(), Source{Upper: "u"}, false, &b))
	if b.String() != "half" {
		t.Errorf("%q", &b)
	}
	_, err = c.Commit(t.Context(), CommitRequest{})
	check("Commit", err)
}

func TestChangeJSON(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/a", "/\xff\"\n", "/ü", ""} {
		b, err := json.Marshal(Change{"A", path})
		if err != nil {
			t.Fatal(err)
		}
		var c Change
		if err := json.Unmarshal(b, &c); err != nil || c.Path != path {
			t.Errorf("%s: %q, %v", b, c.Path, err)
		}
	}
	var c Change
	if err := json.NewDecoder(strings.NewReader(`[]`)).Decode(&c); err == nil {
		t.Error("a list is a change")
	}
}

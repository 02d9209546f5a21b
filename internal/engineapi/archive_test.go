package engineapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// archivist is an engine whose archives break off, and that tells what it is
// asked for.
type archivist struct {
	engine
	after   string // what is written before that
	imports []ImportRequest
	loads   []LoadRequest
}

func (a *archivist) Save(_ context.Context, req SaveRequest, w io.Writer) error {
	if a.after != "" {
		if _, err := io.WriteString(w, a.after); err != nil {
			return err
		}
	}
	return fault.WithHint(fault.New(fault.Integrity, "bad %s for %s", strings.Join(req.Names, " and "), req.Platform), "try again")
}

func (a *archivist) Load(_ context.Context, req LoadRequest, _ io.Reader, report func(Progress)) ([]LoadedImage, error) {
	a.loads = append(a.loads, req)
	report(Progress{ID: "abc", Status: "Loading layer", Current: 1, Total: 2})
	return []LoadedImage{{Reference: "u:1"}, {ID: id.ImageID("sha256:" + strings.Repeat("1", 64))}}, nil
}

func (a *archivist) Import(_ context.Context, req ImportRequest, body io.Reader, report func(Progress)) (id.ImageID, error) {
	a.imports = append(a.imports, req)
	b, err := io.ReadAll(body)
	report(Progress{Status: "Importing", Current: int64(len(b))})
	return id.ImageIDOf(b), err
}

// TestSaveBreaksOff: nobody may take an archive that breaks off for whole.
func TestSaveBreaksOff(t *testing.T) {
	for _, after := range []string{"", "some of it", strings.Repeat("much ", 10000)} {
		c := serve(t, &archivist{after: after})
		var out bytes.Buffer
		err := c.Save(t.Context(), SaveRequest{Names: []string{"a", "b:1"}, Platform: "linux/arm64"}, &out)
		if fault.KindOf(err) != fault.Integrity || err.Error() != "bad a and b:1 for linux/arm64" || fault.HintOf(err) != "try again" || out.String() != after {
			t.Errorf("%.10q: %v, %d bytes", after, err, out.Len())
		}
		// Docker's clients know nothing of our trailer.
		for _, path := range []string{"/images/get?names=a", "/v1.41/images/a/get"} {
			res, err := c.http.Get("http://h" + path)
			if after != "" && errors.Is(err, io.EOF) {
				continue // not even the header
			}
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			b, err := io.ReadAll(res.Body)
			if after == "" && (res.StatusCode != http.StatusInternalServerError || err != nil) || after != "" && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%s after %.10q: %s %.10q %v", path, after, res.Status, b, err)
			}
		}
	}
	c := serve(t, &archivist{})
	for path, want := range map[string]string{
		"/images/get":                              "names is missing",
		"/images/get?names=a&platform=x":           "failed to parse platform",
		"/images/a/get?platform={%22os%22:%22%22}": "",
	} {
		res, err := c.http.Get("http://h" + path)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if b, _ := io.ReadAll(res.Body); !strings.Contains(string(b), want) || res.StatusCode < 400 {
			t.Errorf("%s: %s %s", path, res.Status, b)
		}
	}
}

// TestArchiveLines compares what docker's clients read with what docker writes.
func TestArchiveLines(t *testing.T) {
	const hex = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881" // of "x"
	const load = `{"stream":"Loaded image: u:1\n"}` + "\r\n" + `{"stream":"Loaded image ID: sha256:1111111111111111111111111111111111111111111111111111111111111111\n"}` + "\r\n"
	a := &archivist{}
	c := serve(t, a)
	for _, tt := range []struct{ path, want string }{
		{"/images/load", `{"status":"Loading layer","id":"abc","progressDetail":{"current":1,"total":2}}` + "\r\n" + load},
		{"/images/load?quiet=1", load},
		{"/images/load?quiet=1&platform={%22os%22:%22linux%22,%22architecture%22:%22arm64%22}", load},
		{"/v1.47/images/load?quiet=1&platform={%22os%22:%22linux%22,%22architecture%22:%22arm64%22}", load},
		{"/images/create?fromSrc=-&repo=a&tag=b&message=m&changes=CMD+x&changes=USER+y&platform=linux%2Farm64", `{"status":"sha256:` + hex + `"}` + "\r\n"},
		{"/v1.31/images/create?fromSrc=-&repo=a%3Ab&platform=linux%2Farm64", `{"status":"sha256:` + hex + `"}` + "\r\n"},
		{"/images/create?fromSrc=http%3A%2F%2Fh%2Fx&repo=a&tag=sha256%3A" + hex, `{"status":"Importing","progressDetail":{"current":1}}` + "\r\n" + `{"status":"sha256:` + hex + `"}` + "\r\n"},
	} {
		res, err := c.http.Post("http://h"+tt.path, "application/x-tar", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if b, err := io.ReadAll(res.Body); err != nil || string(b) != tt.want {
			t.Errorf("%s: %s %v\n%s\nwant\n%s", tt.path, res.Status, err, b, tt.want)
		}
	}
	for i, want := range []string{"", "", "linux/arm64", ""} {
		if a.loads[i].Platform != want {
			t.Errorf("load %d: %+v", i, a.loads[i])
		}
	}
	for i, want := range []ImportRequest{
		{Source: "-", Reference: "a:b", Message: "m", Changes: []string{"CMD x", "USER y"}, Platform: "linux/arm64"},
		{Source: "-", Reference: "a:b"},
		{Source: "http://h/x", URL: "http://h/x", Reference: "a@sha256:" + hex},
	} {
		got := a.imports[i]
		if got.Source != want.Source || got.URL != want.URL || got.Reference != want.Reference || got.Message != want.Message ||
			strings.Join(got.Changes, ";") != strings.Join(want.Changes, ";") || got.Platform != want.Platform {
			t.Errorf("import %d: %+v, want %+v", i, got, want)
		}
	}
	var steps []Progress
	list, err := c.Load(t.Context(), LoadRequest{}, strings.NewReader("x"), func(p Progress) { steps = append(steps, p) })
	if err != nil || len(list) != 2 || list[0].Reference != "u:1" || len(steps) != 1 {
		t.Errorf("%v %v %v", list, steps, err)
	}
	imageID, err := c.Import(t.Context(), ImportRequest{}, strings.NewReader("x"), nil)
	if err != nil || imageID.Hex() != hex {
		t.Errorf("%v %v", imageID, err)
	}
}

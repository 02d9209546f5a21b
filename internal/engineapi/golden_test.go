package engineapi

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/imgfs/imgfs/internal/id"
)

// TestGolden is regression 63: the exact replies of the image routes, at
// versions of the API between which they changed.
func TestGolden(t *testing.T) {
	e := &engine{images: []ImageSummary{
		{ID: digest("a"), Created: 20, Size: 7, SharedSize: -1, Containers: -1, RepoTags: []string{"ubuntu:14.04"}, RepoDigests: []string{"ubuntu@sha256:x"}, Labels: map[string]string{"k": "v"}},
		{ID: digest("b"), Created: 10, Size: 8, SharedSize: -1, Containers: -1, RepoTags: []string{}, RepoDigests: []string{}},
	}}
	e.inspect = &ImageInspect{
		ID: digest("a"), RepoTags: []string{"ubuntu:14.04"}, RepoDigests: []string{"ubuntu@sha256:x"}, Created: "2014-04-17T00:00:00Z",
		Config: json.RawMessage(`{"Cmd":["sh"]}`), Architecture: "amd64", Os: "linux", Size: 7,
		GraphDriver: GraphDriver{Name: "imgfs", Data: map[string]string{"ChainID": "c"}},
		RootFS:      RootFS{Type: "layers", Layers: []id.DiffID{id.DiffID(digest("d"))}},
		Metadata:    ImageMetadata{LastTagTime: time.Unix(0, 0).UTC()},
	}
	c := serve(t, e)
	a, b, d := string(digest("a")), string(digest("b")), string(digest("d"))
	named := `{"Id":"` + a + `","ParentId":"","RepoTags":["ubuntu:14.04"],"RepoDigests":["ubuntu@sha256:x"],"Created":20,"Size":7,VIRTUAL7"SharedSize":-1,"Containers":-1,"Labels":{"k":"v"}}`
	nameless := `{"Id":"` + b + `","ParentId":"","RepoTags":TAGS,"RepoDigests":DIGESTS,"Created":10,"Size":8,VIRTUAL8"SharedSize":-1,"Containers":-1,"Labels":null}`
	list := "[" + named + "," + nameless + "]"
	inspect := `{"Id":"` + a + `","RepoTags":["ubuntu:14.04"],"RepoDigests":["ubuntu@sha256:x"],"Parent":"","Comment":"","Created":"2014-04-17T00:00:00Z","DockerVersion":"","Author":"","Config":{"Cmd":["sh"]},"Architecture":"amd64","Os":"linux","Size":7,VIRTUAL7"GraphDriver":{"Name":"imgfs","Data":{"ChainID":"c"}},"RootFS":{"Type":"layers","Layers":["` + d + `"]},"Metadata":{"LastTagTime":"1970-01-01T00:00:00Z"}}`
	none := []string{"TAGS", `["<none>:<none>"]`, "DIGESTS", `["<none>@<none>"]`}
	empty := []string{"TAGS", `[]`, "DIGESTS", `[]`}
	sizes := []string{"VIRTUAL7", `"VirtualSize":7,`, "VIRTUAL8", `"VirtualSize":8,`}
	bare := []string{"VIRTUAL7", "", "VIRTUAL8", ""}
	for _, tt := range []struct {
		version string
		changes []string
	}{
		{"/v1.24", append(none, sizes...)},
		{"/v1.41", append(none, sizes...)},
		{"/v1.43", append(empty, sizes...)},
		{"/v1.44", append(empty, bare...)},
		{"/v1.50", append(empty, bare...)},
		{"", append(empty, bare...)},
	} {
		for path, want := range map[string]string{
			"/images/json":              list,
			"/images/ubuntu:14.04/json": inspect,
			"/images/nosuch/json":       `{"message":"No such image: nosuch","kind":"not-found"}`,
		} {
			want = strings.NewReplacer(tt.changes...).Replace(want)
			if _, got := get(t, c, "GET", tt.version+path); strings.TrimSpace(got) != want {
				t.Errorf("%s%s:\n got %s\nwant %s", tt.version, path, got, want)
			}
		}
	}
	for _, i := range e.images {
		if i.VirtualSize != nil || len(i.RepoTags) == 1 && i.RepoTags[0] == "<none>:<none>" {
			t.Errorf("an old client changed the engine's own list: %+v", i)
		}
	}
}

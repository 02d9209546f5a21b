package engineapi

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

var update = flag.Bool("update", false, "write the golden files anew")

// goldenVersions are those between which docker's API for images changed. None
// is the newest.
var goldenVersions = []string{"1.24", "1.41", "1.43", "1.44", "1.47", "1.50", "1.52", ""}

// goldenRequests are what docker's clients ask. In a query, P stands for a
// platform in JSON.
var goldenRequests = []string{
	"GET /_ping",
	"HEAD /_ping",
	"GET /version",
	"GET /info",
	"GET /images/json",
	"GET /images/json?all=1&manifests=1&shared-size=1",
	`GET /images/json?filters={"dangling":{"true":true}}`,
	"GET /images/json?filter=ubuntu",
	`GET /images/json?filters={"nosuch":{"x":true}}`,
	"GET /images/ubuntu:14.04/json",
	"GET /images/ubuntu:14.04/json?manifests=1",
	"GET /images/ubuntu:14.04/json?platform=P",
	"GET /images/ubuntu:14.04/json?platform=P&manifests=1",
	"GET /images/ubuntu:14.04/json?platform=linux/arm64",
	"GET /images/bare/json",
	"GET /images/nosuch/json",
	"GET /images/ubuntu:14.04/history?platform=P",
	"POST /images/ubuntu:14.04/tag?repo=docker.io/library/u&tag=1",
	"POST /images/create?fromImage=docker.io/library/ubuntu&tag=14.04&platform=linux/arm64",
	"POST /images/create?fromImage=docker.io/library/ubuntu",
	"POST /images/create?fromImage=ubuntu&tag=nosuch",
	"POST /images/create?fromImage=ubuntu&tag=broken",
	"POST /images/docker.io/library/ubuntu/push?tag=14.04&platform=P",
	"POST /images/docker.io/library/ubuntu/push",
	"POST /images/nosuch/push?tag=1",
	"DELETE /images/ubuntu:14.04?force=1&noprune=1&platforms=P&platforms=P",
	"DELETE /images/%20",
	`GET /images/search?term=ubuntu&limit=5&filters={"is-official":{"true":true},"stars":{"3":true}}`,
	`GET /images/search?term=ubuntu&filters={"is-automated":["true"]}`,
	"GET /images/search?term=ubuntu&limit=101",
	`POST /images/prune?filters={"dangling":{"false":true},"label":{"k=v":true},"label!":{"keep":true},"until":{"1000":true}}`,
	`POST /images/prune?filters={"reference":{"x":true}}`,
	"GET /system/df",
	"GET /system/df?type=image&verbose=1",
	"GET /system/df?type=image&verbose=0",
	"GET /system/df?type=container&type=volume&type=build-cache",
	"GET /system/df?type=nosuch",
	"GET /events?since=1000&until=2000.000000005",
	`GET /events?until=2000&filters={"type":{"image":true},"event":{"pull":true}}`,
	"GET /events?since=2000&until=1000",
	"GET /distribution/ubuntu:14.04/json",
	"GET /containers/json",
	"POST /containers/create?name=x",
	"POST /containers/prune",
	"GET /containers/x/json",
	"GET /volumes",
	"POST /build",
}

// goldenEngine tells of one of everything. What it was asked it puts where
// that is seen.
type goldenEngine struct{ engine }

func (e *goldenEngine) Images(_ context.Context, o ListOptions) ([]ImageSummary, error) {
	desc := &Descriptor{MediaType: "application/vnd.oci.image.index.v1+json", Digest: string(digest("e")), Size: 946}
	named := ImageSummary{
		ID: digest("a"), Created: 20, Size: 7, SharedSize: -1, Containers: 1, Labels: map[string]string{"k": "<v>"}, Descriptor: desc,
		RepoTags: []string{"ubuntu:14.04"}, RepoDigests: []string{"ubuntu@" + string(digest("e"))},
	}
	if o.SharedSize {
		named.SharedSize = 3
	}
	if o.Manifests {
		m := ManifestSummary{
			ID: string(digest("f")), Descriptor: *desc, Available: true, Kind: "image", Size: ManifestSize{Content: 4, Total: 7},
			ImageData: &ManifestImageData{Platform: Platform{Architecture: "amd64", OS: "linux"}, Containers: []string{"m"}},
		}
		m.ImageData.Size.Unpacked = 7
		named.Manifests = []ManifestSummary{m}
	}
	list := []ImageSummary{
		named,
		{ID: digest("b"), ParentID: string(digest("a")), Created: 10, Size: 8, SharedSize: named.SharedSize, RepoTags: []string{}, RepoDigests: []string{}},
	}
	if o.All {
		list = append(list, ImageSummary{ID: digest("c"), Size: 1, SharedSize: -1, RepoTags: []string{}, RepoDigests: []string{}})
	}
	return list, nil
}

func (e *goldenEngine) Inspect(_ context.Context, name string, o InspectOptions) (ImageInspect, error) {
	img := ImageInspect{
		ID: digest("a"), RepoTags: []string{"ubuntu:14.04"}, RepoDigests: []string{"ubuntu@" + string(digest("e"))},
		Parent: string(digest("b")), Comment: "c", Created: "2014-04-17T00:00:00Z", DockerVersion: "0.10.0", Author: "a",
		Config: json.RawMessage(`{"Hostname":"h","Cmd":["sh"],"Env":null,"ExposedPorts":{"80/tcp":{}},"Labels":{"k":"<v>"},"User":7,
			"Volumes":{},"WorkingDir":"/","Healthcheck":{"Test":["NONE"]},"Nosuch":1}`),
		Architecture: "amd64", Os: "linux", Size: 7,
		GraphDriver: GraphDriver{Name: "imgfs", Data: map[string]string{"ChainID": "c"}},
		RootFS:      RootFS{Type: "layers", Layers: []id.DiffID{id.DiffID(digest("d"))}},
		Metadata:    ImageMetadata{LastTagTime: time.Unix(0, 0).UTC()},
		Descriptor:  &Descriptor{MediaType: "m", Digest: string(digest("e")), Size: 946},
	}
	switch {
	case name == "bare":
		return ImageInspect{ID: digest("b"), RepoTags: []string{}, RepoDigests: []string{}, Config: json.RawMessage(`"hostile"`)}, nil
	case name != "ubuntu:14.04":
		return img, fault.New(fault.NotFound, "No such image: %s", name)
	case o.Manifests:
		img.Manifests = []ManifestSummary{{ID: string(digest("f")), Kind: "unknown"}}
	case o.Platform != "":
		img.Architecture = o.Platform
	}
	return img, nil
}

func (e *goldenEngine) History(_ context.Context, name, platform string) ([]HistoryItem, error) {
	return []HistoryItem{
		{ID: string(digest("a")), Created: 20, CreatedBy: "sh -c <x> " + platform, Tags: []string{name}, Size: 7},
		{ID: "<missing>", Created: 10, CreatedBy: "ADD file", Comment: "c"},
	}, nil
}

func (e *goldenEngine) Tag(_ context.Context, source, target string, _ bool) error {
	if source != "ubuntu:14.04" || target != "docker.io/library/u:1" {
		return fault.New(fault.Failed, "tag %s %s", source, target)
	}
	return nil
}

func (e *goldenEngine) Remove(_ context.Context, name string, o RemoveOptions) ([]DeleteItem, error) {
	return []DeleteItem{{Untagged: fmt.Sprintf("%s %+v", name, o)}, {Deleted: string(digest("a"))}}, nil
}

func (e *goldenEngine) Prune(_ context.Context, o PruneOptions) (PruneReport, error) {
	return PruneReport{ImagesDeleted: []DeleteItem{{Deleted: fmt.Sprintf("%v %d %v %v", o.All, o.Until.Unix(), o.Labels, o.NoLabels)}}, SpaceReclaimed: 5}, nil
}

func (e *goldenEngine) Pull(_ context.Context, req PullRequest, report func(Progress)) (PullResult, error) {
	_, tag, _ := strings.Cut(req.Reference, ":")
	if tag == "nosuch" {
		return PullResult{}, fault.New(fault.NotFound, "manifest for %s not found: manifest unknown: manifest unknown", req.Reference)
	}
	report(Progress{ID: cmp.Or(tag, "latest"), Status: "Pulling from library/ubuntu " + req.Platform})
	report(Progress{ID: "515ae707f091", Status: "Pulling fs layer"})
	report(Progress{ID: "515ae707f091", Status: "Downloading", Current: 5, Total: 10})
	if tag == "broken" {
		return PullResult{}, fault.WithHint(fault.New(fault.Integrity, "layer <x>: digest does not match"), "try again")
	}
	res := PullResult{Reference: "ubuntu:14.04", Digest: id.Blob(digest("e")), ImageID: digest("a")}
	if req.AllTags {
		report(Progress{Status: "Digest: " + string(digest("e"))})
		res = PullResult{Reference: "ubuntu", UpToDate: true}
	}
	return res, nil
}

func (e *goldenEngine) Push(_ context.Context, req PushRequest, report func(Progress)) ([]PushedTag, error) {
	report(Progress{Status: "The push refers to repository [docker.io/library/ubuntu] " + req.Platform})
	if strings.HasPrefix(req.Reference, "nosuch") {
		return nil, fault.New(fault.NotFound, "An image does not exist locally with the tag: nosuch")
	}
	report(Progress{ID: "515ae707f091", Status: "Pushed"})
	report(Progress{Status: "14.04: digest: " + string(digest("e")) + " size: 946"})
	tags := []PushedTag{{"14.04", id.Blob(digest("e")), 946}}
	if req.AllTags {
		tags = append(tags, PushedTag{"16.04", id.Blob(digest("f")), 947})
	}
	return tags, nil
}

func (e *goldenEngine) Search(_ context.Context, req SearchRequest) ([]SearchResult, error) {
	return []SearchResult{{Name: req.Term, Description: fmt.Sprint(req.Limit, " <", req.Official != nil && *req.Official, "> ", req.Stars), StarCount: 3, IsOfficial: true}}, nil
}

func (e *goldenEngine) Manifest(_ context.Context, name string, _ RegistryOptions) (RegistryManifest, error) {
	return RegistryManifest{Reference: name, MediaType: "m", Digest: id.Blob(digest("e")), Raw: []byte("{}"), Platforms: []Platform{{Architecture: "amd64", OS: "linux"}}}, nil
}

func (e *goldenEngine) Events(_ context.Context, since, until time.Time, emit func(Event) error) error {
	for _, ev := range []Event{
		{Type: "image", Action: "pull", Actor: EventActor{ID: "ubuntu:14.04", Attributes: map[string]string{"name": "ubuntu", "since": fmt.Sprint(since.Unix()), "until": fmt.Sprint(until.UnixNano())}}},
		{Type: "mount", Action: "mount", Actor: EventActor{ID: "m"}},
	} {
		ev.Scope, ev.Time, ev.TimeNano = "local", 1500, 1500000000001
		if err := emit(ev); err != nil {
			return err
		}
	}
	return nil
}

// TestGolden is regression 63: the exact replies of docker's routes, at versions
// of the API between which they changed. What is of this machine is a *.
func TestGolden(t *testing.T) {
	c := serve(t, &goldenEngine{})
	for _, v := range goldenVersions {
		t.Run(cmp.Or(v, "none"), func(t *testing.T) {
			prefix := ""
			if v != "" {
				prefix = "/v" + v
			}
			var got bytes.Buffer
			for _, request := range goldenRequests {
				method, path, _ := strings.Cut(strings.ReplaceAll(request, "=P", `={"os":"linux","architecture":"arm64","variant":"v8"}`), " ")
				path = strings.NewReplacer("{", "%7B", "}", "%7D", `"`, "%22").Replace(path)
				res, body := get(t, c, method, prefix+path)
				fmt.Fprintf(&got, "-- %s --\n%d %s\n%s\n", request, res.StatusCode, res.Header.Get("Content-Type"), readable(body))
			}
			file := filepath.Join("testdata", "golden", cmp.Or(v, APIVersion)+".txt")
			if *update && v != "" {
				if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			a, b := strings.Split(got.String(), "\n-- "), strings.Split(string(want), "\n-- ")
			for i := range max(len(a), len(b)) {
				if i >= len(a) || i >= len(b) || a[i] != b[i] {
					t.Fatalf("differs from %s (go test -run Golden -update writes it)\ngot  %s\nwant %s", file, at(a, i), at(b, i))
				}
			}
		})
	}
}

func at(list []string, i int) string {
	if i < len(list) {
		return list[i]
	}
	return "nothing"
}

// ofMachine are values of the machine and the build.
var ofMachine = regexp.MustCompile(`("(?:Version|ServerVersion|GitCommit|GoVersion|Arch|Architecture|KernelVersion|BuildTime|Name|NCPU|MemTotal|NGoroutines|SystemTime|OperatingSystem|OSVersion)":)(?:"[^"]*"|\d+)`)

// readable hides what is of this machine.
func readable(body string) string {
	body = strings.ReplaceAll(body, "\r\n", "\n")
	if strings.Contains(body, `"DockerRootDir"`) || strings.Contains(body, `"GoVersion"`) {
		body = ofMachine.ReplaceAllString(body, "$1*")
	}
	return body
}

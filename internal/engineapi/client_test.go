package engineapi

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
)

// heard is an engine that remembers what it was asked last.
type heard struct {
	goldenEngine
	last string
}

func (e *heard) hear(args ...any) { e.last = strings.TrimSpace(fmt.Sprintln(args...)) }

func (e *heard) Images(ctx context.Context, o ListOptions) ([]ImageSummary, error) {
	e.hear(o)
	return e.goldenEngine.Images(ctx, o)
}

func (e *heard) Inspect(ctx context.Context, name string, o InspectOptions) (ImageInspect, error) {
	e.hear(name, o)
	return e.goldenEngine.Inspect(ctx, "ubuntu:14.04", o)
}

func (e *heard) History(ctx context.Context, name, platform string) ([]HistoryItem, error) {
	e.hear(name, platform)
	return e.goldenEngine.History(ctx, name, platform)
}

func (e *heard) Tag(_ context.Context, source, target string, noClobber bool) error {
	e.hear(source, target, noClobber)
	return nil
}

func (e *heard) Untag(_ context.Context, name string) ([]DeleteItem, error) {
	e.hear(name)
	return []DeleteItem{{Untagged: name}}, nil
}

func (e *heard) Remove(ctx context.Context, name string, o RemoveOptions) ([]DeleteItem, error) {
	e.hear(name, o)
	return e.goldenEngine.Remove(ctx, name, o)
}

func (e *heard) Prune(ctx context.Context, o PruneOptions) (PruneReport, error) {
	e.hear(o.All, o.Until.Unix(), o.Labels, o.NoLabels)
	return e.goldenEngine.Prune(ctx, o)
}

func (e *heard) Push(ctx context.Context, req PushRequest, report func(Progress)) ([]PushedTag, error) {
	e.hear(fmt.Sprintf("%+v", req))
	tags, err := e.goldenEngine.Push(ctx, req, report)
	if req.Format == "broken" {
		err = fault.WithHint(fault.New(fault.Denied, "push access denied"), "imgfs login")
	}
	return tags, err
}

func (e *heard) Search(ctx context.Context, req SearchRequest) ([]SearchResult, error) {
	e.hear(req.Term, req.Limit, *req.Official, req.Stars, req.Registry.Username)
	return e.goldenEngine.Search(ctx, req)
}

func (e *heard) Login(_ context.Context, req LoginRequest) (LoginResult, error) {
	e.hear(fmt.Sprintf("%+v", req))
	if req.Password != "secret" {
		return LoginResult{}, fault.New(fault.Denied, "incorrect username or password")
	}
	return LoginResult{IdentityToken: "i"}, nil
}

// TestClient has what the client is told arrive at the engine, and its answer
// come back.
func TestClient(t *testing.T) {
	e := &heard{}
	c := serve(t, e)
	ctx := context.Background()
	yes := true
	o := RegistryOptions{Username: "me", Insecure: true}
	var steps []string
	report := func(p Progress) { steps = append(steps, p.Status) }
	for _, tt := range []struct {
		name  string
		call  func() (any, error)
		heard string
		want  string // a part of the answer, as %+v
	}{
		{"images", func() (any, error) {
			return c.Images(ctx, map[string][]string{"label": {"k=<v>"}}, ListOptions{All: true, SharedSize: true, Manifests: true, Cached: true})
		}, "{true true true true false false}", "Size:{Content:4 Total:7}"},
		{"dangling", func() (any, error) {
			return c.Images(ctx, map[string][]string{"dangling": {"true"}}, ListOptions{All: true})
		}, "{false false false false false false}", "RepoTags:[]"},
		{"inspect", func() (any, error) { return c.Inspect(ctx, "a/../b?c#d:1", InspectOptions{Platform: "linux/arm64/v8"}) },
			"a/../b?c#d:1 {linux/arm64/v8 false}", "Architecture:linux/arm64/v8"},
		{"manifests", func() (any, error) { return c.Inspect(ctx, "x", InspectOptions{Manifests: true}) }, "x { true}", "Kind:unknown"},
		{"history", func() (any, error) { return c.History(ctx, "x", "linux/arm64") }, "x linux/arm64", "ID:<missing>"},
		{"tag", func() (any, error) { return nil, c.Tag(ctx, "x:1", "host:5000/y:2", true) }, "x:1 host:5000/y:2 true", ""},
		{"untag", func() (any, error) { return c.Untag(ctx, "x:1") }, "x:1", "Untagged:x:1"},
		{"remove", func() (any, error) {
			return c.Remove(ctx, "x:1", RemoveOptions{Force: true, NoPrune: true, Platforms: []string{"linux/arm64", "linux/amd64"}})
		}, "x:1 {true true [linux/arm64 linux/amd64]}", "Deleted:sha256:a"},
		{"prune", func() (any, error) {
			return c.Prune(ctx, map[string][]string{"dangling": {"false"}, "until": {"1000"}, "label": {"k"}, "label!": {"l"}})
		}, "true 1000 [k] [l]", "SpaceReclaimed:5"},
		{"push", func() (any, error) {
			return c.Push(ctx, PushRequest{Reference: "ubuntu:14.04", Platform: "linux/arm64/v8", Format: ToEstargz, Compression: "zstd", Registry: o}, report)
		}, fmt.Sprintf("%+v", PushRequest{Reference: "ubuntu:14.04", Platform: "linux/arm64/v8", Format: ToEstargz, Compression: "zstd", Registry: o}), "Tag:14.04"},
		{"push all", func() (any, error) {
			return c.Push(ctx, PushRequest{Reference: "ubuntu", AllTags: true}, nil)
		}, fmt.Sprintf("%+v", PushRequest{Reference: "ubuntu", AllTags: true}), "Tag:16.04"},
		{"search", func() (any, error) {
			return c.Search(ctx, SearchRequest{Term: "u b", Limit: 5, Official: &yes, Stars: 3, Registry: o})
		}, "u b 5 true 3 me", "Name:u b"},
		{"login", func() (any, error) {
			return c.Login(ctx, LoginRequest{Username: "me", Password: "secret", ServerAddress: "h", Registry: o})
		}, fmt.Sprintf("%+v", LoginRequest{Username: "me", Password: "secret", ServerAddress: "h", Registry: o}), "Status:Login Succeeded IdentityToken:i"},
		{"version", func() (any, error) { return c.Version(ctx) }, "", "APIVersion:" + APIVersion},
		{"info", func() (any, error) { return c.Info(ctx) }, "", "[Cached 47B] [Lazy 60B]"},
	} {
		e.last = ""
		got, err := tt.call()
		if err != nil || e.last != tt.heard || got != nil && !strings.Contains(fmt.Sprintf("%+v", got), tt.want) {
			t.Errorf("%s: heard %q, want %q; got %+v %v, want %s", tt.name, e.last, tt.heard, got, err, tt.want)
		}
	}
	if want := []string{"The push refers to repository [docker.io/library/ubuntu] linux/arm64/v8", "Pushed", "14.04: digest: " + string(digest("e")) + " size: 946"}; !reflect.DeepEqual(steps, want) {
		t.Errorf("steps of a push: %q", steps)
	}

	tags, err := c.Push(ctx, PushRequest{Reference: "ubuntu", AllTags: true, Format: "broken"}, nil)
	if len(tags) != 2 || fault.KindOf(err) != fault.Denied || fault.HintOf(err) != "imgfs login" {
		t.Errorf("a push that failed after two tags: %v %v", tags, err)
	}
	_, err = c.Login(ctx, LoginRequest{Username: "me", Password: "wrong"})
	if fault.KindOf(err) != fault.Denied || err.Error() != "incorrect username or password" {
		t.Errorf("login refused: %v", err)
	}
	_, err = c.Inspect(ctx, "x", InspectOptions{Platform: "arm64"})
	if fault.KindOf(err) != fault.Invalid {
		t.Errorf("no platform: %v", err)
	}
	var seen []Event
	err = c.Events(ctx, "1000", "2000.000000005", map[string][]string{"type": {"mount", "image"}}, func(ev Event) error {
		seen = append(seen, ev)
		return nil
	})
	if err != nil || len(seen) != 2 || seen[0].Actor.Attributes["until"] != fmt.Sprint(time.Unix(2000, 5).UnixNano()) || seen[1].Type != "mount" {
		t.Errorf("events: %+v %v", seen, err)
	}
}

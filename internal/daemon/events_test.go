package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imgfs/imgfs/imagedb"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// remembered returns what a daemon remembers of what has happened.
func remembered(t testing.TB, d *running) []engineapi.Event {
	t.Helper()
	var list []engineapi.Event
	until := fmt.Sprintf("%d.%09d", time.Now().Unix(), time.Now().Nanosecond())
	err := d.client.Events(testContext(t), "0", until, nil, func(ev engineapi.Event) error {
		list = append(list, ev)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestEventsOf says what each operation tells.
func TestEventsOf(t *testing.T) {
	t.Parallel()
	images := []seed{
		{called: "base", names: []string{"base:1"}, labels: map[string]string{"who": "me"}},
		{called: "mid", parent: "base"},
		{called: "top", parent: "mid", names: []string{"top:1", "top@"}, manifest: true},
		{called: "two", names: []string{"two:1", "two:2"}},
		{called: "none"},
	}
	for _, tt := range []struct {
		what string
		do   func(ctx context.Context, c *engineapi.Client, ids map[string]id.ImageID) error
		want []string // type, action, image and attributes but "name" if that is its ID
	}{
		{"tag", func(ctx context.Context, c *engineapi.Client, _ map[string]id.ImageID) error {
			return c.Tag(ctx, "base:1", "localhost:5000/base:2", false)
		}, []string{"image tag base name=localhost:5000/base:2 who=me"}},
		{"refused tag", func(ctx context.Context, c *engineapi.Client, _ map[string]id.ImageID) error {
			return refused(c.Tag(ctx, "base:1", "two:1", true))
		}, nil},
		{"untag", func(ctx context.Context, c *engineapi.Client, _ map[string]id.ImageID) error {
			_, err := c.Untag(ctx, "base:1")
			return err
		}, []string{"image untag base reference=base:1 who=me"}},
		{"rmi of a name", func(ctx context.Context, c *engineapi.Client, _ map[string]id.ImageID) error {
			_, err := c.Remove(ctx, "two:2", engineapi.RemoveOptions{})
			return err
		}, []string{"image untag two reference=two:2"}},
		{"rmi by name of an image with ancestors", func(ctx context.Context, c *engineapi.Client, _ map[string]id.ImageID) error {
			_, err := c.Remove(ctx, "top:1", engineapi.RemoveOptions{})
			return err
		}, []string{"image untag top reference=top:1", "image delete top", "image delete mid"}},
		{"rmi by ID", func(ctx context.Context, c *engineapi.Client, ids map[string]id.ImageID) error {
			_, err := c.Remove(ctx, string(ids["top"]), engineapi.RemoveOptions{NoPrune: true})
			return err
		}, []string{"image untag top reference=top:1", "image untag top reference=top@", "image delete top"}},
		{"refused rmi", func(ctx context.Context, c *engineapi.Client, ids map[string]id.ImageID) error {
			_, err := c.Remove(ctx, string(ids["two"]), engineapi.RemoveOptions{})
			return refused(err)
		}, nil},
		{"prune", func(ctx context.Context, c *engineapi.Client, _ map[string]id.ImageID) error {
			_, err := c.Prune(ctx, nil)
			return err
		}, []string{"image delete none", "image prune  reclaimed=0"}},
	} {
		t.Run(tt.what, func(t *testing.T) {
			t.Parallel()
			d, ids := seeded(t, images...)
			if err := tt.do(testContext(t), d.client, ids); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, ev := range remembered(t, d) {
				if ev.Type != daemonEvents {
					got = append(got, shown(ids, ev))
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

// refused expects err to be a conflict.
func refused(err error) error {
	if fault.KindOf(err) == fault.Conflict {
		return nil
	}
	return fmt.Errorf("got %v, want a conflict", err)
}

// shown is an event as a line.
func shown(ids map[string]id.ImageID, ev engineapi.Event) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s", ev.Type, ev.Action, called(ids, ev.Actor.ID))
	for _, k := range slices.Sorted(maps.Keys(ev.Actor.Attributes)) {
		v := ev.Actor.Attributes[k]
		if k == "name" && v == ev.Actor.ID {
			continue
		}
		if repo, _, ok := strings.Cut(v, "@"); ok {
			v = repo + "@"
		}
		fmt.Fprintf(&b, " %s=%s", k, v)
	}
	return b.String()
}

// TestEventsOfMounts follows a writable mount, its commit and its end, as they
// happen.
func TestEventsOfMounts(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	d, ids := seeded(t, seed{called: "base", names: []string{"base:1"}, layers: []string{"file a 1"}})
	dir := mountDir(t)
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	got := make(chan engineapi.Event, 16)
	ended := make(chan error, 1)
	since := fmt.Sprint(time.Now().Unix())
	go func() {
		ended <- d.client.Events(ctx, since, "", map[string][]string{"type": {"mount", "image"}}, func(ev engineapi.Event) error {
			got <- ev
			return nil
		})
	}()
	m, err := mountAs(ctx, d.client, "base:1", dir, func(r *engineapi.MountRequest) { r.Mode, r.Tmp = "rw", true })
	if err != nil {
		t.Fatal(err)
	}
	made, err := d.client.Commit(ctx, engineapi.CommitRequest{Source: engineapi.Source{Mount: m.ID}, Reference: "made:1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := fsUnmount(dir); err != nil {
		t.Fatal(err)
	}
	if err := d.client.WaitGone(ctx, m.ID); err != nil {
		t.Fatal(err)
	}
	ids["made"] = made.ID
	more := fmt.Sprintf(" driver=fuse image=base:1 imageID=%s mode=rw name=%s", ids["base"], dir)
	for _, want := range []string{
		"mount mount " + m.ID + more, "image tag made name=made:1", "image commit made", "mount unmount " + m.ID + more,
	} {
		if s := shown(ids, <-got); s != want {
			t.Errorf("got  %s\nwant %s", s, want)
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("end of the events: %v", err)
	}
	img, err := d.client.Inspect(testContext(t), "made:1", engineapi.InspectOptions{})
	if err != nil || img.Parent != string(ids["base"]) {
		t.Errorf("parent: %q %v, want %s", img.Parent, err, ids["base"])
	}
}

// TestEventsOfDaemon listens from a daemon's start to its end, which is the end
// of the stream too.
func TestEventsOfDaemon(t *testing.T) {
	t.Parallel()
	d := runDaemon(t, Options{})
	var got []string
	began := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		ended <- d.client.Events(testContext(t), "0", "", nil, func(ev engineapi.Event) error {
			if got = append(got, ev.Type+" "+ev.Action); len(got) == 1 {
				close(began)
			}
			return nil
		})
	}()
	<-began
	d.end(t)
	if err := <-ended; err != nil || fmt.Sprint(got) != "[daemon start daemon stop]" {
		t.Errorf("got %v, %v", got, err)
	}
}

// TestEventsTimes asks for events of a span of time.
func TestEventsTimes(t *testing.T) {
	t.Parallel()
	e := &engine{}
	var times []time.Time
	for i := range 3 {
		e.event(imageEvents, "tag", fmt.Sprint(i))
		e.events.mu.Lock()
		times = append(times, time.Unix(0, e.events.ring[i].TimeNano))
		e.events.mu.Unlock()
	}
	future := time.Now().Add(time.Hour)
	for _, tt := range []struct {
		what         string
		since, until time.Time
		want         string
	}{
		{"all that is remembered", time.Unix(0, 0), times[2], "[0 1 2]"},
		{"until alone", time.Time{}, times[1], "[0 1]"},
		{"since and until are included", times[1], times[1], "[1]"},
		{"none so late", future, times[2], "[]"},
		{"none so early", time.Time{}, times[0].Add(-time.Hour), "[]"},
		{"until now", times[2], time.Now(), "[2]"},
	} {
		got := []string{}
		err := e.Events(testContext(t), tt.since, tt.until, func(ev engineapi.Event) error {
			got = append(got, ev.Actor.ID)
			return nil
		})
		if err != nil || fmt.Sprint(got) != tt.want {
			t.Errorf("%s: got %v, %v; want %s", tt.what, got, err, tt.want)
		}
	}
	// What happened before a subscriber came is not told without since.
	if batch, more, err := e.events.take(e.events.subscribe(false)); len(batch) != 0 || more == nil || err != nil {
		t.Errorf("a new subscriber gets %v, %v", batch, err)
	}
	// What one has not been told when its context ends, it is told.
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	got := []string{}
	err := e.Events(ctx, times[2], time.Time{}, func(ev engineapi.Event) error {
		if ev.Actor.ID == "2" {
			e.event(imageEvents, "tag", "3")
			cancel()
		}
		got = append(got, ev.Actor.ID)
		return nil
	})
	if err != nil || fmt.Sprint(got) != "[2 3]" {
		t.Errorf("got %v, %v; want 2 and 3", got, err)
	}
}

// TestEventsSlow has one subscriber that does not read while more happens than
// is remembered: it is told so, and nobody else notices.
func TestEventsSlow(t *testing.T) {
	t.Parallel()
	e := &engine{}
	const n = 3 * eventsKept
	stuck, stop := make(chan struct{}), make(chan struct{})
	slow, seen := make(chan error, 1), make(chan string)
	var once sync.Once
	e.event(imageEvents, "tag", "first")
	go func() {
		slow <- e.Events(testContext(t), time.Unix(0, 0), time.Time{}, func(engineapi.Event) error {
			once.Do(func() { close(stuck) })
			<-stop
			return nil
		})
	}()
	<-stuck
	ctx, cancel := context.WithCancel(testContext(t))
	ended := make(chan error, 1)
	go func() {
		ended <- e.Events(ctx, time.Unix(0, 0), time.Time{}, func(ev engineapi.Event) error {
			seen <- ev.Actor.ID
			return nil
		})
	}()
	if got := <-seen; got != "first" {
		t.Errorf("got event %s", got)
	}
	for i := range n {
		e.event(imageEvents, "tag", fmt.Sprint(i))
		if got := <-seen; got != fmt.Sprint(i) {
			t.Fatalf("got event %s, want %d", got, i)
		}
	}
	close(stop)
	if err := <-slow; fault.KindOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "events are lost: 2048 came faster than they were read") {
		t.Errorf("slow subscriber: %v", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	totals, listen := e.events.counts()
	if listen != 0 {
		t.Errorf("%d subscribers are left", listen)
	}
	if got := totals[eventKind{imageEvents, "tag"}]; got != n+1 {
		t.Errorf("%d events were counted, want %d", got, n+1)
	}
}

// TestEventsBacklog takes what is remembered, of which older parts are forgotten
// while it is told: that is no error.
func TestEventsBacklog(t *testing.T) {
	t.Parallel()
	e := &engine{}
	for i := range 2 * eventsKept {
		e.event(imageEvents, "tag", fmt.Sprint(i))
	}
	got, last := 0, ""
	err := e.Events(testContext(t), time.Unix(0, 0), time.Time{}, func(ev engineapi.Event) error {
		if got == 0 {
			for i := range eventsKept / 2 {
				e.event(imageEvents, "tag", fmt.Sprint("late ", i))
			}
		}
		got, last = got+1, ev.Actor.ID
		if last == fmt.Sprint("late ", eventsKept/2-1) {
			return errDone
		}
		return nil
	})
	if err != errDone || got != eventBatch+eventsKept {
		t.Errorf("%d events, the last %q, %v; want %d", got, last, err, eventBatch+eventsKept)
	}
}

var errDone = errors.New("done")

// TestEventsMany has a thousand clients listen, who all learn all of it.
func TestEventsMany(t *testing.T) {
	if testing.Short() {
		t.Skip("a thousand connections")
	}
	d, _ := seeded(t, seed{called: "x", names: []string{"x:0"}})
	const clients, n = 1000, 5
	ctx := testContext(t)
	since := fmt.Sprintf("%d.%09d", time.Now().Unix(), time.Now().Nanosecond())
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			var got []string
			err := d.client.Events(ctx, since, "", map[string][]string{"event": {"tag"}}, func(ev engineapi.Event) error {
				got = append(got, ev.Actor.Attributes["name"])
				if len(got) == n {
					return errDone
				}
				return nil
			})
			if !errors.Is(err, errDone) || fmt.Sprint(got) != "[x:1 x:2 x:3 x:4 x:5]" {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
	for i := range n {
		if err := d.client.Tag(ctx, "x:0", fmt.Sprintf("x:%d", i+1), false); err != nil {
			t.Error(err)
		}
	}
	all.Wait()
}

// TestEventLabels bounds what events hold of an image.
func TestEventLabels(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		size int
		want int // attributes
	}{{0, 1}, {maxEventLabels - 1, 2}, {maxEventLabels, 1}} {
		e := &engine{}
		img := &imagedb.Image{ID: "sha256:x"}
		if tt.size > 0 {
			img.Labels = map[string]string{"k": strings.Repeat("v", tt.size)}
		}
		e.imageEvent("tag", img)
		if got := e.events.ring[0].Actor.Attributes; len(got) != tt.want || got["name"] != "sha256:x" {
			t.Errorf("label of %d bytes: %d attributes, want %d", tt.size, len(got), tt.want)
		}
	}
}

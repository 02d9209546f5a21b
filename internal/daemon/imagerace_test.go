package daemon

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

// TestImagesAtOnce names, removes, prunes, lists and shows the same images from
// many sides: whatever wins, nothing fails but by what another has done, the
// events are in order, and nothing is left over.
func TestImagesAtOnce(t *testing.T) {
	t.Parallel()
	var images []seed
	for i := range 6 {
		parent := ""
		if i%3 > 0 { // three generations, twice
			parent = fmt.Sprint("i", i-1)
		}
		s := seed{called: fmt.Sprint("i", i), parent: parent, names: []string{fmt.Sprint("x:", i), fmt.Sprintf("r%d@", i)}, manifest: true}
		for n := range i%3 + 1 {
			s.layers = append(s.layers, fmt.Sprintf("file a%d/%d 1", i/3, n))
		}
		images = append(images, s)
	}
	d, ids := seeded(t, images...)
	ctx := testContext(t)
	const rounds = 30
	jobs := []func(n int) error{
		func(n int) error {
			return d.client.Tag(ctx, string(ids[fmt.Sprint("i", n%6)]), fmt.Sprint("y:", n%4), false)
		},
		func(n int) error { return d.client.Tag(ctx, fmt.Sprint("y:", n%4), fmt.Sprint("z:", n%2), true) },
		func(n int) error { _, err := d.client.Untag(ctx, fmt.Sprint("x:", n%6)); return err },
		func(n int) error {
			_, err := d.client.Remove(ctx, fmt.Sprint("y:", n%4), engineapi.RemoveOptions{Force: n%2 == 0, NoPrune: n%3 == 0})
			return err
		},
		func(n int) error {
			_, err := d.client.Remove(ctx, string(ids[fmt.Sprint("i", n%6)]), engineapi.RemoveOptions{Force: n == rounds-1})
			return err
		},
		func(n int) error {
			if n < rounds/2 {
				return nil
			}
			_, err := d.client.Prune(ctx, map[string][]string{"dangling": {fmt.Sprint(n < rounds-1)}})
			return err
		},
		func(n int) error {
			_, err := d.client.Images(ctx, nil, engineapi.ListOptions{All: n%2 == 0, SharedSize: true, Manifests: true, Cached: true})
			return err
		},
		func(n int) error {
			_, err := d.client.Inspect(ctx, fmt.Sprint("x:", n%6), engineapi.InspectOptions{})
			return err
		},
		func(n int) error { _, err := d.client.History(ctx, fmt.Sprint("y:", n%4), ""); return err },
		func(n int) error { _, err := d.client.Graph(ctx); return err },
	}
	listening, stop := context.WithCancel(ctx)
	listened := make(chan error, 1)
	go func() {
		last := int64(0)
		listened <- d.client.Events(listening, "0", "", nil, func(ev engineapi.Event) error {
			if ev.TimeNano < last {
				t.Errorf("event %+v is late", ev)
			}
			last = ev.TimeNano
			return nil
		})
	}()
	var all sync.WaitGroup
	for i, job := range jobs {
		all.Go(func() {
			for n := range rounds {
				switch err := job(n); fault.KindOf(err) {
				case fault.NotFound, fault.Conflict:
				default:
					if err != nil {
						t.Errorf("job %d, round %d: %v", i, n, err)
					}
				}
			}
		})
	}
	all.Wait()
	stop()
	<-listened // how it ends is the context's
	if _, err := d.client.Prune(ctx, map[string][]string{"dangling": {"false"}}); err != nil {
		t.Error(err)
	}
	if list := listed(t, d); len(list) != 0 {
		t.Errorf("images left: %s", asJSON(t, list))
	}
	for _, sub := range []string{"layers", "chains", "blobs/sha256"} {
		if list, err := os.ReadDir(filepath.Join(d.Root, sub)); err != nil || len(list) != 0 {
			t.Errorf("%s left: %v %v", sub, list, err)
		}
	}
	if g, err := d.client.GC(ctx); err != nil || g.Reclaimed != 0 {
		t.Errorf("gc: %+v %v", g, err)
	}
}

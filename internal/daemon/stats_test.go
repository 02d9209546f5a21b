package daemon

import (
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// TestMountStats reads a lazy image: what was waited for is counted, and what
// is here of its layers.
func TestMountStats(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	files := bigTree(31)
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	img := pushImage(t, reg, "x", "1", estargz(t, tarOf(t, files)))
	d := runDaemon(t, Options{})
	dir := mountDir(t)
	m, err := mountAs(testContext(t), d.client, img.ref, dir, func(r *engineapi.MountRequest) { r.Prefetch = engineapi.PrefetchNone })
	if err != nil {
		t.Fatal(err)
	}
	stats := func() engineapi.MountStats {
		t.Helper()
		list, err := d.client.Mounts(testContext(t))
		if err != nil || len(list) != 1 {
			t.Fatalf("%v %v", list, err)
		}
		return list[0].Stats
	}
	before := stats()
	if before.Waits != 0 || before.FetchedBytes != 0 || before.LazyBytes == 0 || m.Stats.LazyBytes != before.LazyBytes {
		t.Errorf("before: %s", asJSON(t, before))
	}
	const name = "lib/middle"
	wantTree(t, dir, content{name: files[name]})
	after := stats()
	if after.Waits == 0 || after.Waited <= 0 || after.FetchedBytes == 0 || after.FetchedBytes > uint64(len(files[name]))+4096 ||
		after.CachedBytes < before.CachedBytes+int64(after.FetchedBytes) || after.CachedBytes+after.LazyBytes != before.CachedBytes+before.LazyBytes {
		t.Errorf("after a file of %d bytes: %s; before: %s", len(files[name]), asJSON(t, after), asJSON(t, before))
	}
	wantTree(t, dir, content{name: files[name]})
	if again := stats(); again.Waits != after.Waits || again.FetchedBytes != after.FetchedBytes {
		t.Errorf("again: %s; before: %s", asJSON(t, again), asJSON(t, after))
	}
	i, err := d.client.Inspect(testContext(t), img.ref, engineapi.InspectOptions{Manifests: true})
	if err != nil || i.GraphDriver.Data["LazyBytes"] == "0" || i.GraphDriver.Data["MountPoint"] != dir ||
		len(i.Manifests) != 1 || i.Manifests[0].Size.Content != after.CachedBytes || i.Manifests[0].Size.Total != after.CachedBytes+after.LazyBytes ||
		len(i.Manifests[0].ImageData.Containers) != 1 || i.Manifests[0].ImageData.Containers[0] != m.ID {
		t.Errorf("inspect: %s %v", asJSON(t, i), err)
	}
	list, err := d.client.Images(testContext(t), nil, engineapi.ListOptions{Cached: true})
	if err != nil || len(list) != 1 || list[0].Cached == nil || *list[0].Cached != after.CachedBytes || *list[0].Lazy != after.LazyBytes || list[0].Containers != 1 {
		t.Errorf("images: %s %v", asJSON(t, list), err)
	}
}

// wantEvictions checks that a daemon remembers to have evicted layers.
func wantEvictions(t testing.TB, d *running) {
	t.Helper()
	n := 0
	for _, ev := range remembered(t, d) {
		if ev.Type == layerEvents && ev.Action == "evict" && strings.HasPrefix(ev.Actor.ID, "sha256:") && ev.Actor.Attributes["freed"] > "0" {
			n++
		}
	}
	if n == 0 {
		t.Error("no event tells of an eviction")
	}
}

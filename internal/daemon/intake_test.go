package daemon

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// Strangers wait for room; the daemon's own user does not, nor is one kept who
// has left.
func TestIntake(t *testing.T) {
	t.Parallel()
	room := make(intake, 1)
	leave, err := room.enter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := room.enter(gone); err == nil {
		t.Error("two in a room for one")
	}
	own, err := room.enter(engineapi.WithPeer(gone, engineapi.Peer{Trusted: true}))
	if err != nil {
		t.Error(err)
	}
	own()
	leave()
	if leave, err = room.enter(t.Context()); err != nil {
		t.Error(err)
	}
	leave()
}

// An archive may claim more layers than anybody has.
func TestLoadManyLayers(t *testing.T) {
	t.Parallel()
	layer := mustTar(t, "file a text")
	p := parts{"l": layer}
	var list []savedImage
	const each = 4000
	for n := 0; n <= maxHeld/each; n++ {
		var diffs, files []string
		for i := range each {
			diffs = append(diffs, string(id.BlobOf(fmt.Append(nil, n, i))))
			files = append(files, "l")
		}
		c := fmt.Sprint("c", n)
		p[c] = marshal(t, map[string]any{"os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": diffs}})
		list = append(list, savedImage{Config: c, Layers: files})
	}
	p["manifest.json"] = marshal(t, list)
	d := runDaemon(t, Options{})
	if _, err := d.load(t, p.bytes(t)); fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), "the archive has more than 30000 layers") {
		t.Error(err)
	}
	list = list[:1] // few enough, and none is what it claims to be
	p["manifest.json"] = marshal(t, list)
	if _, err := d.load(t, p.bytes(t)); fault.KindOf(err) != fault.Integrity {
		t.Error(err)
	}
	d.empty(t)
}

// Names that cannot be given leave the others where they were.
func TestLoadBadName(t *testing.T) {
	t.Parallel()
	layer := mustTar(t, "file a text")
	d := runDaemon(t, Options{})
	old := testConfig(t, "old", layer)
	d.mustLoad(t, savedAs(t, old, [][]byte{layer}, "x:1").bytes(t), "x:1 "+string(id.ImageIDOf(old)))
	raw := savedAs(t, testConfig(t, "new", layer), [][]byte{layer}, "x:1", "sha256:1").bytes(t)
	if _, err := d.load(t, raw); fault.KindOf(err) != fault.Integrity || !strings.Contains(err.Error(), `invalid tag "sha256:1"`) {
		t.Error(err)
	}
	list, err := d.client.Images(testContext(t), nil, engineapi.ListOptions{All: true})
	if err != nil || len(list) != 1 || list[0].ID != id.ImageIDOf(old) {
		t.Errorf("%v %v", list, err)
	}
}

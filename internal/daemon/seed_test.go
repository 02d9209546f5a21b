package daemon

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/imgfs/imgfs/imagedb"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
	"github.com/imgfs/imgfs/internal/metadb"
	"github.com/imgfs/imgfs/layerdb"
)

// seed is an image that a test's store has before its daemon starts.
type seed struct {
	called   string   // how the test calls it
	names    []string // full, or familiar with a tag; "REPO@" is by the manifest's digest
	layers   []string // a text for imgtest.Tar each
	parent   string   // which other seed, listed before, it was made of
	created  time.Time
	labels   map[string]string
	history  []past // none: the config has no history
	platform string // of linux; "" is amd64
	manifest bool   // came with one
	index    id.Blob
}

// past is an entry of a config's history.
type past struct {
	Created   *time.Time `json:"created,omitempty"`
	CreatedBy string     `json:"created_by,omitempty"`
	Comment   string     `json:"comment,omitempty"`
	Empty     bool       `json:"empty_layer,omitempty"`
}

// seeded returns a daemon whose store has images, and their IDs by what the
// test calls them.
func seeded(t testing.TB, images ...seed) (*running, map[string]id.ImageID) {
	t.Helper()
	p := newStore(t)
	ids := seedStore(t, p, images...)
	return runDaemon(t, Options{Paths: p}), ids
}

// seedStore is seeded without a daemon.
func seedStore(t testing.TB, p Paths, images ...seed) map[string]id.ImageID {
	t.Helper()
	if err := p.makeRoot(); err != nil {
		t.Fatal(err)
	}
	db, err := metadb.Open(filepath.Join(p.Root, "db"))
	if err != nil {
		t.Fatal(err)
	}
	layers, err := layerdb.Open(p.Root, db, layerdb.Options{Merge: merge})
	if err != nil {
		t.Fatal(err)
	}
	store, err := imagedb.Open(p.Root, db, imagedb.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]id.ImageID{}
	for _, s := range images {
		ids[s.called] = s.put(t, layers, store, ids[s.parent])
	}
	if err := errors.Join(layers.Close(), metadb.Close(db)); err != nil {
		t.Fatal(err)
	}
	return ids
}

func (s *seed) put(t testing.TB, layers *layerdb.Store, store *imagedb.Store, parent id.ImageID) id.ImageID {
	t.Helper()
	img := imagedb.Image{Platform: "linux/amd64", Parent: parent, Digest: s.index}
	if s.platform != "" {
		img.Platform = "linux/" + s.platform
	}
	var chain id.ChainKey
	var keys []id.LayerKey
	for _, text := range s.layers {
		b, err := imgtest.Tar(text)
		if err != nil {
			t.Fatal(err)
		}
		ref, err := layers.Register(testContext(t), bytes.NewReader(b), chain, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer ref.Release()
		chain, keys = ref.Chain(), ref.Layers()
		img.Layers = append(img.Layers, imagedb.Layer{DiffID: id.DiffID(ref.Top())})
	}
	config := map[string]any{
		"os": "linux", "architecture": img.Platform[len("linux/"):], "author": s.called,
		"config": map[string]any{"Labels": s.labels},
		"rootfs": rootFS{"layers", img.DiffIDs()},
	}
	if !s.created.IsZero() {
		config["created"] = s.created
	}
	if s.history != nil {
		config["history"] = s.history
	}
	img.Config = marshal(t, config)
	if s.manifest {
		img.Manifest = marshal(t, map[string]any{"schemaVersion": 2, "mediaType": manifestType, "config": map[string]any{"digest": id.BlobOf(img.Config)}})
		img.ManifestDigest = id.BlobOf(img.Manifest)
		if img.Digest == "" {
			img.Digest = img.ManifestDigest
		}
	}
	imageID := id.ImageIDOf(img.Config)
	if err := layers.Retain(imageOwner+string(imageID), keys); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Create(img); err != nil {
		t.Fatal(err)
	}
	for _, n := range s.names {
		if n[len(n)-1] == '@' {
			n += string(id.BlobOf(img.Manifest))
		}
		if err := store.Tag(n, imageID); err != nil {
			t.Fatal(err)
		}
	}
	return imageID
}

// asJSON is for comparisons that are to be read.
func asJSON(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// tarDiff returns the diffID of a layer.
func tarDiff(t testing.TB, text string) id.DiffID {
	t.Helper()
	b, err := imgtest.Tar(text)
	if err != nil {
		t.Fatal(err)
	}
	return id.DiffIDFrom(sha256.Sum256(b))
}

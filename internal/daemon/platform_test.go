package daemon

import (
	"bytes"
	"encoding/json"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// pushIndex puts an image for two platforms under one name: its file "a" holds
// the architecture.
func (r *registry) pushIndex(t testing.TB, name string, architectures ...string) (ref string, ids []id.ImageID) {
	t.Helper()
	var list []any
	for _, arch := range architectures {
		r.push(t, name, "file a "+arch)
		old := r.blobs[r.config(t, name+":latest")]
		config := bytes.Replace(old, []byte(`"architecture":"amd64"`), []byte(`"architecture":"`+arch+`"`), 1)
		digest := id.BlobOf(config)
		r.blobs[string(digest)] = config
		var m map[string]any
		if err := json.Unmarshal(r.manifests[name+":latest"], &m); err != nil {
			t.Fatal(err)
		}
		m["config"] = map[string]any{"mediaType": configType, "digest": digest, "size": len(config)}
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		r.manifests[string(id.BlobOf(b))] = b
		ids = append(ids, id.ImageIDOf(config))
		list = append(list, map[string]any{
			"mediaType": manifestType, "digest": id.BlobOf(b), "size": len(b),
			"platform": map[string]string{"os": "linux", "architecture": arch},
		})
	}
	b, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": indexType, "manifests": list,
	})
	if err != nil {
		t.Fatal(err)
	}
	r.manifests[name+":latest"] = b
	r.manifests[string(id.BlobOf(b))] = b
	return r.host() + "/" + name + ":latest", ids
}

// TestTwoPlatforms pulls one name for one platform after the other: the tag
// goes to the one that came last; the digest of the index stays with the first,
// and with a platform finds either. The other is known by its own manifest.
func TestTwoPlatforms(t *testing.T) {
	reg := newRegistry(t)
	ref, ids := reg.pushIndex(t, "both", "amd64", "s390x")
	d := runDaemon(t, Options{})
	ctx := testContext(t)
	platforms := []string{"linux/amd64", "linux/s390x"}
	var byIndex string
	for i, tt := range []struct {
		of       int
		upToDate bool
	}{{0, false}, {1, false}, {1, true}, {0, false}} {
		res, err := d.client.Pull(ctx, engineapi.PullRequest{Reference: ref, Platform: platforms[tt.of]}, nil)
		if err != nil || res.ImageID != ids[tt.of] || res.UpToDate != tt.upToDate {
			t.Fatalf("pull %d: %+v (%v), want %v", i, res, err, ids[tt.of])
		}
		byIndex = strings.TrimSuffix(ref, ":latest") + "@" + string(res.Digest)
		for name, want := range map[string]id.ImageID{ref: ids[tt.of], byIndex: ids[0]} {
			if img, err := d.client.Inspect(ctx, name, engineapi.InspectOptions{}); err != nil || img.ID != want {
				t.Errorf("%s after pull %d: %v %v, want %v", name, i, img.ID, err, want)
			}
		}
	}
	for i, p := range platforms { // whichever the tag points to
		var b bytes.Buffer
		if err := d.client.Save(ctx, engineapi.SaveRequest{Names: []string{ref}, Platform: p}, &b); err != nil {
			t.Fatal(err)
		}
		if list := string(unpacked(t, b.Bytes())["manifest.json"]); !strings.Contains(list, strings.TrimPrefix(string(ids[i]), "sha256:")) || !strings.Contains(list, ref) {
			t.Errorf("saved for %s: %s, want %s called %s", p, list, ids[i], ref)
		}
	}
	err := d.client.Save(ctx, engineapi.SaveRequest{Names: []string{ref}, Platform: "linux/arm64"}, io.Discard)
	if fault.KindOf(err) != fault.NotFound || !strings.HasSuffix(err.Error(), "was found but does not provide the specified platform (linux/arm64)") {
		t.Errorf("saved for another platform: %v", err)
	}
	reg.Close() // from here on nothing is asked
	for i, p := range platforms {
		if img, err := d.client.Inspect(ctx, byIndex, engineapi.InspectOptions{Platform: p}); err != nil || img.ID != ids[i] {
			t.Errorf("%s for %s: %v %v, want %v", byIndex, p, img.ID, err, ids[i])
		}
		if res, err := d.client.Pull(ctx, engineapi.PullRequest{Reference: byIndex, Platform: p}, nil); err != nil || res.ImageID != ids[i] || !res.UpToDate {
			t.Errorf("pull of %s for %s: %+v (%v), want %v", byIndex, p, res, err, ids[i])
		}
	}
	second, err := d.client.Inspect(ctx, string(ids[1]), engineapi.InspectOptions{})
	if err != nil || len(second.RepoDigests) != 1 || second.RepoDigests[0] == byIndex {
		t.Errorf("names of the second: %q, %q (%v), want one digest, its own", second.RepoTags, second.RepoDigests, err)
	}
}

// TestOtherPlatform has a name whose image is for another platform: who asks
// for none in particular and for the registry's newest gets that of the host.
func TestOtherPlatform(t *testing.T) {
	t.Setenv("DOCKER_DEFAULT_PLATFORM", "")
	reg := newRegistry(t)
	ref, ids := reg.pushIndex(t, "both", "amd64", "arm64", "s390x")
	d := runDaemon(t, Options{})
	ctx := testContext(t)
	if _, err := d.client.Pull(ctx, engineapi.PullRequest{Reference: ref, Platform: "linux/s390x"}, nil); err != nil {
		t.Fatal(err)
	}
	res, err := d.client.Pull(ctx, engineapi.PullRequest{Reference: ref}, nil)
	if err != nil || res.ImageID == ids[2] {
		t.Errorf("pull without a platform: %v %v, want the host's", res.ImageID, err)
	}
}

// TestMountPlatforms mounts one name for two platforms, beside each other.
func TestMountPlatforms(t *testing.T) {
	needFUSE(t)
	reg := newRegistry(t)
	ref, _ := reg.pushIndex(t, "both", "amd64", "s390x")
	d := runDaemon(t, Options{})
	for _, arch := range []string{"amd64", "s390x", "amd64"} {
		dir := mountDir(t)
		_, err := mountAs(testContext(t), d.client, ref, dir, func(r *engineapi.MountRequest) { r.Platform = "linux/" + arch })
		if err != nil {
			t.Fatalf("mount for %s: %v", arch, err)
		}
		wantFile(t, filepath.Join(dir, "a"), arch)
	}
}
